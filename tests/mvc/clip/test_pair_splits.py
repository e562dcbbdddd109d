"""Cutting a validation part off, by images alone; and images and captions in two splits."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.clip.pair_splits import Leak, cut_validation, find_leaks, image_digests
from mvc.clip.pairs import Pairs, read_pairs
from mvc.clip.places import ImageFile
from mvc.errors import DataError
from mvc.randomness import derived_seed
from tests.real_data import real_data

from .pair_data import WRITERS, Example, examples, write_imagefolder


def pairs_of(folder: Path, contents: list[bytes], prefix: str = "") -> Pairs:
    """Pairs of any bytes; they are not decoded here."""
    places = []
    for number, content in enumerate(contents):
        path = folder / f"{prefix}{number}"
        path.write_bytes(content)
        places.append(ImageFile(str(path), len(content)))
    ids = [f"{prefix}{number}" for number in range(len(contents))]
    return Pairs(ids, [[f"a {name}", f"b {name}"] for name in ids], list(places))


def test_the_rule_of_the_cut(tmp_path: Path) -> None:
    """Against the definition: the first round(share * n) of the images, ordered by the seed of their content."""
    pairs = pairs_of(tmp_path, [bytes([n]) for n in range(20)])
    train, validation = cut_validation(pairs, 0.3, seed=5)
    order = sorted(range(20), key=lambda n: derived_seed(5, f"pairs split {sha256(bytes([n])).hexdigest()}"))
    assert validation.ids == [str(n) for n in sorted(order[:6])] and train.ids == [str(n) for n in sorted(order[6:])]
    assert all(pairs.captions[int(name)] == texts for name, texts in zip(train.ids, train.captions, strict=True))
    assert cut_validation(pairs, 0.3, seed=5) == (train, validation)
    assert cut_validation(pairs, 0.3, seed=6)[1].ids != validation.ids


def test_a_new_image_moves_no_other_one(tmp_path: Path) -> None:
    contents = [bytes([n]) for n in range(40)]
    before = set(cut_validation(pairs_of(tmp_path, contents), 0.25, 0)[1].ids)
    after = set(cut_validation(pairs_of(tmp_path, [*contents, b"new"]), 0.25, 0)[1].ids)
    assert len(before - after) <= 1 and len(after - before) <= 1


@pytest.mark.parametrize("form", WRITERS)
def test_the_form_of_the_data_does_not_matter(form: str, tmp_path: Path) -> None:
    listed = examples(8)
    reference = cut_validation(read_pairs(write_imagefolder(tmp_path / "a", "train", listed), "train"), 0.4, 3)
    found = cut_validation(read_pairs(WRITERS[form](tmp_path / "b", "train", listed), "train"), 0.4, 3)
    assert [part.captions for part in found] == [part.captions for part in reference]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=25), st.floats(0.01, 0.99), st.integers(0, 99))
def test_copies_stay_together_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[int], share: float, seed: int
) -> None:
    pairs = pairs_of(tmp_path_factory.mktemp("copies"), [bytes([kind]) for kind in kinds])
    if len(set(kinds)) < 2:
        with pytest.raises(DataError, match=f"there are {len(kinds)} images, and 1 different ones"):
            cut_validation(pairs, share, seed)
        return
    train, validation = cut_validation(pairs, share, seed)
    assert sorted(train.ids + validation.ids) == sorted(pairs.ids) and len(train) and len(validation)
    assert not {kinds[int(name)] for name in train.ids} & {kinds[int(name)] for name in validation.ids}
    wanted = min(max(1, round(share * len(kinds))), len(kinds) - 1)
    assert len(validation) <= max(wanted, *map(kinds.count, kinds))
    if len(set(kinds)) == len(kinds):
        assert len(validation) == wanted


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_are_none(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}"):
        cut_validation(pairs_of(tmp_path, [b"a", b"b"]), share, 0)


def test_leaks_of_images_and_captions(tmp_path: Path) -> None:
    a, b, c, d = examples(4)
    train = [a, b, Example("copy.png", a.content, ["A Dog runs"])]
    test = [Example("other name.png", a.content, ["one"]), Example("c.png", c.content, ["a dog RUNS", b.captions[0]])]
    splits = {"validation": [d], "train": train, "test": test}
    read = {split: read_pairs(write_imagefolder(tmp_path, split, listed), split) for split, listed in splits.items()}
    assert find_leaks(read) == [
        Leak(
            "image",
            sha256(a.content).hexdigest(),
            (("train", "train/000.png"), ("train", "train/copy.png"), ("test", "test/other name.png")),
        ),
        Leak("caption", b.captions[0], (("train", "train/001.png"), ("test", "test/c.png"))),
        Leak("caption", "A Dog runs", (("train", "train/copy.png"), ("test", "test/c.png"))),
    ]
    assert find_leaks({"train": read["train"], "validation": read["validation"]}) == []


def test_leaks_of_flickr8k() -> None:
    place = real_data("flickr8k_200")
    train, test = (read_pairs(place, split) for split in ("train", "test"))
    assert image_digests(test) == [sha256((place / name).read_bytes()).hexdigest() for name in test.ids]
    leaks = find_leaks({"train": train, "test": test})
    common = {text.casefold() for texts in train.captions for text in texts} & {
        text.casefold() for texts in test.captions for text in texts
    }
    assert {leak.value.casefold() for leak in leaks} == common and all(leak.kind == "caption" for leak in leaks)
    planted = Pairs([*test.ids, "planted"], [*test.captions, ["a text of its own"]], [*test.places, train.places[9]])
    (found,) = (leak for leak in find_leaks({"train": train, "test": planted}) if leak.kind == "image")
    assert found.places == (("train", train.ids[9]), ("test", "planted"))
