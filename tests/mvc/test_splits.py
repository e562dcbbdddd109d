from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.errors import ConfigError, DataError
from mvc.layout import FoundImage
from mvc.splits import Splits, class_folds, hold_out, make_splits, require_folds, seeded_groups, shots_of
from mvc.storage import sha256_bytes


def digests(class_name: str, count: int) -> dict[str, str]:
    return {f"{class_name}/{n:03d}.png": sha256_bytes(f"{class_name} {n}".encode()) for n in range(count)}


def split(sha256: dict[str, str], **options: object) -> Splits:
    folders = {path: path.split("/") for path in sha256}
    images = [
        FoundImage(path, parts[-2], parts[0] if len(parts) == 3 else None) for path, parts in sorted(folders.items())
    ]
    defaults = dict(given=frozenset(), seed=0, validation_share=0.2, test_share=0.2, shots=None)
    return make_splits(images, sha256, **{**defaults, **options})  # type: ignore[arg-type]


def counts(result: Splits, class_name: str, used: bool = False) -> dict[str, int]:
    paths = [path for path in result.split if path.split("/")[-2] == class_name]
    return dict(Counter(result.split[path] for path in paths if not used or path not in result.left_out))


def test_shares_are_stratified_and_of_the_rest() -> None:
    result = split(digests("a", 100) | digests("b", 50) | digests("c", 10))
    assert counts(result, "a") == {"test": 20, "validation": 16, "train": 64}
    assert counts(result, "b") == {"test": 10, "validation": 8, "train": 32}
    assert counts(result, "c") == {"test": 2, "validation": 2, "train": 6}
    assert result.made == {"test", "validation"} and not result.left_out and not result.warnings


@pytest.mark.parametrize("count,expected", [(2, (2, 0, 0)), (3, (2, 0, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))])
def test_small_classes_keep_two_for_training(count: int, expected: tuple[int, int, int]) -> None:
    result = split(digests("small", count) | digests("large", 20))
    found = counts(result, "small")
    assert tuple(found.get(name, 0) for name in ("train", "validation", "test")) == expected
    named = [text for text in result.warnings if text.endswith(": small")]
    assert len(named) == expected[1:].count(0)


def test_seed_decides_and_the_same_seed_repeats() -> None:
    sha256 = digests("a", 40) | digests("b", 40)
    assert split(sha256).split == split(sha256).split
    assert split(sha256).split != split(sha256, seed=1).split


def test_another_class_changes_nothing() -> None:
    before = split(digests("b", 30) | digests("c", 30))
    after = split(digests("a", 9) | digests("b", 30) | digests("c", 47))
    assert all(after.split[path] == before.split[path] for path in digests("b", 30))


def test_one_more_image_moves_at_most_one_per_boundary() -> None:
    before, after = split(digests("a", 50) | digests("b", 5)), split(digests("a", 51) | digests("b", 5))
    assert sum(after.split[path] != name for path, name in before.split.items()) <= 2


def test_renaming_changes_nothing() -> None:
    plain = digests("a", 30)
    renamed = {f"a/x{30 - int(path[2:5]):03d}.png": digest for path, digest in plain.items()}
    of_digest = {digest: split(plain | digests("b", 5)).split[path] for path, digest in plain.items()}
    result = split(renamed | digests("b", 5)).split
    assert all(result[path] == of_digest[digest] for path, digest in renamed.items())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=25), st.integers(0, 5))
def test_copies_stay_together(copies: list[int], seed: int) -> None:
    sha256 = {f"a/{n}-{k}.png": sha256_bytes(bytes([n])) for n, many in enumerate(copies) for k in range(many)}
    result = split(sha256 | digests("b", 4), seed=seed)
    homes = {digest: {result.split[path] for path in sha256 if sha256[path] == digest} for digest in sha256.values()}
    assert all(len(names) == 1 for names in homes.values())
    assert sum(names == {"train"} for names in homes.values()) >= 2
    held = counts(result, "a").get("test", 0)
    assert held <= max(1, round(0.2 * len(sha256)))


def test_given_splits_are_kept() -> None:
    sha256 = {f"{name}/a/{n}.png": sha256_bytes(f"{name}{n}".encode()) for name in ("train", "test") for n in range(20)}
    sha256 |= {
        f"{name}/b/{n}.png": sha256_bytes(f"{name}{n}b".encode()) for name in ("train", "test") for n in range(20)
    }
    result = split(sha256, given=frozenset({"train", "test"}))
    assert result.made == {"validation"}
    assert counts(result, "a") == {"train": 16, "validation": 4, "test": 20}
    assert all(result.split[path] == "test" for path in sha256 if path.startswith("test"))


def test_shots_are_nested_and_counted() -> None:
    sha256 = digests("a", 60)
    train = {path for path in sha256}
    drawn = [shots_of(sha256, 3, shots) for shots in range(1, 20)]
    assert all(len(set(paths)) == shots and set(paths) <= train for shots, paths in enumerate(drawn, 1))
    assert all(set(small) < set(large) for small, large in zip(drawn, drawn[1:], strict=False))
    assert set(shots_of(sha256, 3, 10)) != set(shots_of(sha256, 4, 10))


def test_shots_prefer_different_images() -> None:
    sha256 = {f"a/{n}-{k}.png": sha256_bytes(bytes([n])) for n in range(6) for k in range(3)}
    assert len({sha256[path] for path in shots_of(sha256, 0, 6)}) == 6
    assert len(shots_of(sha256, 0, 9)) == 9


def test_few_shot_limits_a_made_validation_split_but_not_a_given_one() -> None:
    result = split(digests("a", 100) | digests("b", 60), shots=5)
    assert counts(result, "a", used=True) == {"train": 5, "validation": 5, "test": 20}
    assert counts(result, "b", used=True) == {"train": 5, "validation": 5, "test": 12}
    assert len(result.left_out) == 59 + 11 + 33 + 5
    sha256 = {
        f"{name}/{c}/{n}.png": sha256_bytes(f"{name}{c}{n}".encode())
        for name in ("train", "validation", "test")
        for c in "ab"
        for n in range(9)
    }
    kept = split(sha256, shots=3, given=frozenset({"train", "validation", "test"}))
    assert counts(kept, "a", used=True) == {"train": 3, "validation": 9, "test": 9}


def test_shots_do_not_change_the_splits() -> None:
    sha256 = digests("a", 50) | digests("b", 50)
    assert split(sha256, shots=4).split == split(sha256).split


def test_too_many_shots_names_class_and_count() -> None:
    with pytest.raises(DataError, match="(?s)data.shots=7 is more.*b: 4 of its 6 images.*c: 6 of its 10"):
        split(digests("a", 40) | digests("b", 6) | digests("c", 10), shots=7)


def test_classes_without_a_pair() -> None:
    sha256 = digests("a", 10) | digests("single", 1) | {f"copies/{n}.png": "0" * 64 for n in range(3)}
    with pytest.raises(
        DataError, match=r"(?s)fewer than 2 different training images: \n  copies \(1\)\n  single \(1\)"
    ):
        split(sha256)
    assert counts(split(sha256, fewest=1), "single") == {"train": 1}
    with pytest.raises(DataError, match="pairs of different images"):
        split(digests("a", 10) | digests("b", 10), shots=1)


def test_hold_out_and_groups_directly() -> None:
    sha256 = digests("a", 10)
    assert len(hold_out(sha256, 0, 0.3, 2)) == 3
    assert hold_out(digests("a", 2), 0, 0.5, 2) == set()
    groups = seeded_groups(sha256 | {"a/copy.png": sha256["a/004.png"]}, 0, "split")
    assert sorted(map(len, groups)) == [1] * 9 + [2]
    assert ["a/004.png", "a/copy.png"] in groups
    assert [group[0] for group in groups] != sorted(group[0] for group in groups)


def folds_of(sha256: dict[str, str], folds: int, **options: object) -> list[set[str]]:
    """The paths in test of each fold."""
    results = [split(sha256, folds=folds, fold=fold, **options) for fold in range(folds)]
    return [{path for path, name in result.split.items() if name == "test"} for result in results]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=2, max_size=6), st.integers(2, 5), st.integers(0, 9))
def test_every_image_is_tested_in_one_fold_and_classes_are_spread_evenly(
    sizes: list[int], folds: int, seed: int
) -> None:
    sha256 = {key: value for n, size in enumerate(sizes) for key, value in digests(f"c{n}", size).items()}
    tested = folds_of(sha256, folds, seed=seed)
    assert sum(map(len, tested)) == len(sha256) and set().union(*tested) == set(sha256)
    for number in range(len(sizes)):
        found = [sum(path.startswith(f"c{number}/") for path in paths) for paths in tested]
        assert max(found) - min(found) <= 1 and sum(found) == sizes[number]


def test_a_fold_is_in_place_of_the_test_share_and_validation_is_of_the_rest() -> None:
    result = split(digests("a", 50) | digests("b", 25), folds=5, fold=3, test_share=0.5)
    assert counts(result, "a") == {"test": 10, "validation": 8, "train": 32}
    assert counts(result, "b") == {"test": 5, "validation": 4, "train": 16}
    assert result.made == {"test", "validation"} and not result.warnings


def test_the_images_left_over_go_to_different_folds_for_different_classes() -> None:
    """With many classes of six images in five folds, the sixth ones do not all make the same fold larger."""
    sha256 = {key: value for n in range(50) for key, value in digests(f"c{n}", 6).items()}
    larger = [len(paths) - 50 for paths in folds_of(sha256, 5)]
    assert sum(larger) == 50 and min(larger) >= 3


def test_folds_by_their_closed_form() -> None:
    sha256 = digests("a", 11)
    order = [group[0] for group in seeded_groups(sha256, 4, "split")]
    fold_of = class_folds(sha256, 4, 3, "a")
    in_order = [fold_of[path] for path in order]
    assert in_order == sorted(in_order) and sorted(Counter(in_order).values()) == [3, 4, 4]
    assert folds_of(sha256 | digests("b", 9), 3, seed=4)[1] >= {path for path, fold in fold_of.items() if fold == 1}
    assert class_folds(sha256, 5, 3, "a") != fold_of


def test_one_more_image_moves_at_most_one_from_each_fold() -> None:
    before, after = class_folds(digests("a", 50), 0, 5, "a"), class_folds(digests("a", 51), 0, 5, "a")
    assert sum(after[path] != fold for path, fold in before.items()) <= 4


def test_copies_stay_in_one_fold() -> None:
    sha256 = {f"a/{n}-{k}.png": sha256_bytes(bytes([n])) for n in range(9) for k in range(1 + n % 3)}
    fold_of = class_folds(sha256, 0, 4, "a")
    assert all(len({fold_of[p] for p in sha256 if sha256[p] == digest}) == 1 for digest in sha256.values())
    assert set(fold_of.values()) == {0, 1, 2, 3}


def test_classes_with_fewer_images_than_folds() -> None:
    result = split(digests("a", 40) | digests("b", 3), folds=5, fold=0)
    tested = [split(digests("a", 40) | digests("b", 3), folds=5, fold=fold) for fold in range(5)]
    assert sum("classes without test images (too few images to give any): b" in r.warnings for r in tested) == 2
    assert counts(result, "a")["test"] == 8
    for fold in range(5):
        with pytest.raises(DataError, match=r"(?s)data.folds=5 would leave fewer than 2 different .* to: b \(1\)"):
            split(digests("a", 40) | digests("b", 2), folds=5, fold=fold)


def test_folds_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="(?s)the folder has a test split.*leave data.folds out"):
        require_folds(frozenset({"train", "test"}), 5, 0)
    with pytest.raises(ConfigError, match="(?s)data.fold=5 is none of data.folds=5.*from 0 to 4"):
        split(digests("a", 10) | digests("b", 10), folds=5, fold=5)
    with pytest.raises(ConfigError, match="data.fold=2 without data.folds"):
        require_folds(frozenset(), None, 2)
    require_folds(frozenset({"train", "validation"}), 5, 4)


def patients(class_name: str, sizes: list[int], first: int = 0) -> tuple[dict[str, str], dict[str, str]]:
    """Digests and groups of so many patients' images of a class."""
    paths = [
        (f"{class_name}/p{first + n}_{k}.png", f"p{first + n}") for n, size in enumerate(sizes) for k in range(size)
    ]
    return {path: sha256_bytes(path.encode()) for path, _ in paths}, dict(paths)


def test_groups_lie_in_one_split_each_and_shares_are_met() -> None:
    (cats, cat_groups), (dogs, dog_groups) = patients("cat", [3] * 20), patients("dog", [3] * 10, first=50)
    groups = cat_groups | dog_groups
    result = split(cats | dogs, groups=groups)
    assert counts(result, "cat") == {"test": 12, "validation": 9, "train": 39}
    assert counts(result, "dog") == {"test": 6, "validation": 6, "train": 18}
    assert all(len({result.split[path] for path in groups if groups[path] == name}) == 1 for name in groups.values())
    assert result.split != split(cats | dogs, groups=groups, seed=1).split


def test_groups_of_one_image_each_are_hardly_another_case() -> None:
    sha256 = digests("a", 50) | digests("b", 20)
    result = split(sha256, groups={path: path for path in sha256})
    assert counts(result, "a") == {"test": 10, "validation": 8, "train": 32}
    assert counts(result, "b") == {"test": 4, "validation": 3, "train": 13}


def test_a_class_of_one_group_is_named() -> None:
    (cats, cat_groups), (dogs, dog_groups) = patients("cat", [6]), patients("dog", [2] * 9, first=1)
    groups = cat_groups | dog_groups
    assert split(cats | dogs, groups=groups).warnings == [
        "classes without test images (all its images are of one group): cat",
        "classes without validation images (all its images are of one group): cat",
    ]
    (owls, owl_groups) = patients("owl", [4, 4], first=20)
    assert split(cats | dogs | owls, groups=groups | owl_groups).warnings[1:] == [
        "classes without validation images (all its images are of one group): cat",
        "classes without validation images (too few groups of images to give any): owl",
    ]
    with pytest.raises(DataError, match=r"data.folds=3 .* to: cat \(0, as all are of one group\)"):
        split(cats | dogs, groups=groups, folds=3)


def test_a_given_test_split_keeps_its_part_of_a_group() -> None:
    names = [f"{name}/{c}/{n}.png" for name in ("train", "test") for c in "ab" for n in range(10)]
    groups = {path: f"p{int(path.split('/')[2][0]) % 5}" for path in names}
    result = split(
        {path: sha256_bytes(path.encode()) for path in names}, given=frozenset({"train", "test"}), groups=groups
    )
    assert all((result.split[path] == "test") == path.startswith("test") for path in names)
    held = {groups[path] for path in names if result.split[path] == "validation"}
    assert held and not held & {groups[path] for path in names if result.split[path] == "train"}


def test_shots_may_cut_groups() -> None:
    (cats, cat_groups), (dogs, dog_groups) = patients("cat", [10] * 6), patients("dog", [10] * 6, first=10)
    result = split(cats | dogs, groups=cat_groups | dog_groups, shots=3)
    assert counts(result, "cat", used=True) == {"train": 3, "validation": 3, "test": 10}


def test_folds_keep_groups() -> None:
    (cats, cat_groups), (dogs, dog_groups) = patients("cat", [4] * 10), patients("dog", [2] * 15, first=50)
    groups = cat_groups | dog_groups
    tested = folds_of(cats | dogs, 5, groups=groups)
    assert set().union(*tested) == set(groups) and sum(map(len, tested)) == len(groups)
    assert [sum(path.startswith("cat") for path in paths) for paths in tested] == [8] * 5
    assert [sum(path.startswith("dog") for path in paths) for paths in tested] == [6] * 5
    assert all(sum(name in {groups[path] for path in paths} for paths in tested) == 1 for name in groups.values())
