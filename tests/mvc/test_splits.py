from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.errors import DataError
from mvc.layout import FoundImage
from mvc.splits import Splits, hold_out, make_splits, seeded_groups, shots_of
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
