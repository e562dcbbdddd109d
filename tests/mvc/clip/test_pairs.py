"""Pairs in all four forms: the same images and captions, from any process, and real data in two forms at once."""

from __future__ import annotations

import hashlib
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mvc.clip.pairs import Pairs, read_pairs
from mvc.clip.places import ImageFile
from mvc.errors import ConfigError, DataError
from mvc.images import decode
from tests.folders import sha256_folder
from tests.real_data import real_data

from .pair_data import WRITERS, Example, examples, write_imagefolder, write_list

IDS = {
    "imagefolder": ["{split}/000.png", "{split}/004.png"],
    "json": ["{split}/000.png", "{split}/004.png"],
    "parquet": ["data/{split}-00000-of-00001.parquet/0", "data/{split}-00000-of-00001.parquet/4"],
    "webdataset": ["{split}-000000.tar/000.png", "{split}-000001.tar/004.png"],
}


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_back_what_was_written(form: str, split: str, tmp_path: Path) -> None:
    given = examples(5)
    root = WRITERS[form](tmp_path / "data set", split, given)
    before = sha256_folder(root)
    pairs = read_pairs(root, split, tmp_path / "cache")
    assert len(pairs) == 5 and pairs.captions == [one.captions for one in given]
    assert [pairs.ids[0], pairs.ids[4]] == [name.format(split=split) for name in IDS[form]]
    for index in (3, 0, 4, 1, 2, 0):
        assert pairs.content(index) == given[index].content
        np.testing.assert_array_equal(pixels(pairs.image(index)), pixels(Image.open(BytesIO(given[index].content))))
        assert pairs.sha256(index) == hashlib.sha256(given[index].content).hexdigest()
    assert read_pairs(root, split, tmp_path / "cache") == pairs
    assert sha256_folder(root) == before


@pytest.mark.parametrize("form", WRITERS)
def test_digest_is_of_ids_captions_and_images(form: str, tmp_path: Path) -> None:
    def digest(name: str, given: list[Example]) -> str:
        return read_pairs(WRITERS[form](tmp_path / name, "train", given), "train").digest

    given = examples(4)
    other = Example(given[2].name, given[2].content, ["something else"])
    longer = Example(given[2].name, given[2].content + b"\0", given[2].captions)
    first = digest("one", given)
    assert first == digest("the same", given) and len(first) == 64
    assert len({first, *(digest(str(n), [*given[:2], one, given[3]]) for n, one in enumerate((other, longer)))}) == 3
    assert digest("swapped", [given[1], given[0], *given[2:]]) != first


def test_imagefolder_and_list_have_one_digest(tmp_path: Path) -> None:
    given = examples(3)
    folder = read_pairs(write_imagefolder(tmp_path / "a", "train", given), "train")
    listed = read_pairs(write_list(tmp_path / "b", "train", given), "train")
    assert folder.digest == listed.digest and folder.ids == listed.ids


class Sizes(Dataset[tuple[int, int]]):
    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, int(np.asarray(self.pairs.image(index), dtype=np.int64).sum())


@pytest.mark.parametrize("form", WRITERS)
def test_pickled_and_in_the_workers_of_a_data_loader(form: str, tmp_path: Path) -> None:
    pairs = read_pairs(WRITERS[form](tmp_path, "train", examples(6)), "train")
    sums = [int(np.asarray(pairs.image(index), dtype=np.int64).sum()) for index in range(6)]
    again = pickle.loads(pickle.dumps(pairs))
    assert again == pairs and again.digest == pairs.digest
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    loader = DataLoader(Sizes(again), batch_size=2, sampler=order.tolist(), num_workers=2)
    got = [torch.stack([index, total], dim=1) for index, total in loader]
    assert torch.cat(got).tolist() == [[index, sums[index]] for index in order.tolist()]


def test_images_are_decoded_by_the_rules_of_the_project(tmp_path: Path) -> None:
    """Rotation by EXIF, transparency on a background and 16 bits: as `mvc.images.decode` does with the same files."""
    turned, clear, deep = tmp_path / "turned.png", tmp_path / "clear.png", tmp_path / "deep.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)).save(turned, exif=exif)
    Image.fromarray(np.full((3, 3, 4), (9, 9, 9, 0), dtype=np.uint8)).save(clear)
    Image.fromarray(np.full((3, 3), 257 * 7, dtype=np.uint16)).save(deep)
    rows = "".join(f'{{"file_name": "{path.name}", "text": "one"}}\n' for path in (turned, clear, deep))
    (tmp_path / "metadata.jsonl").write_text(rows)
    pairs = read_pairs(tmp_path, "train")
    for index, path in enumerate((turned, clear, deep)):
        np.testing.assert_array_equal(pixels(pairs.image(index, "blue")), pixels(decode(path, "blue")))
    assert pairs.image(0).size == (4, 6) and pairs.image(1).getpixel((0, 0)) == (255, 255, 255)
    assert pairs.image(1, "blue").getpixel((0, 0)) == (0, 0, 255) and pairs.image(2).getpixel((0, 0)) == (7, 7, 7)


BROKEN = {
    "not an image, or none of JPEG": b"no image at all",
    "the file is empty": b"",
    "": examples(1, 9)[0].content[:300],
}


@pytest.mark.parametrize("why", BROKEN)
@pytest.mark.parametrize(
    ("form", "where"),
    [
        ("imagefolder", "train/001.png"),
        ("json", "train/001.png"),
        ("parquet", r"00001.parquet, row 1 \(from 0\)"),
        ("webdataset", "train-000000.tar, member 001.png"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(form: str, where: str, why: str, tmp_path: Path) -> None:
    given = examples(3)
    given[1] = Example(given[1].name, BROKEN[why], given[1].captions)
    pairs = read_pairs(WRITERS[form](tmp_path, "train", given), "train")
    with pytest.raises(DataError, match=f"{where} cannot be read as an image(.|\n)*why: {why}"):
        pairs.image(1)
    assert pairs.image(2).size == (18, 18)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_000, 7_000)).save(tmp_path / "huge.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "huge.png", "text": "one"}\n')
    with pytest.raises(DataError, match="huge.png cannot be read(.|\n)*10000 x 7000 pixels, more than 64 megapixels"):
        read_pairs(tmp_path, "train").image(0)


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("imagefolder", "train/000.png"),
        ("parquet", "data/train-00000-of-00001.parquet"),
        ("webdataset", "train-000000.tar"),
    ],
)
def test_files_that_go_away_later_are_named(form: str, file: str, tmp_path: Path) -> None:
    pairs = read_pairs(WRITERS[form](tmp_path, "train", examples(2)), "train")
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"{Path(file).name}.* cannot be read(.|\n)*must stay as they are"):
        pairs.image(0)


def test_a_shard_that_became_shorter_is_named(tmp_path: Path) -> None:
    pairs = read_pairs(WRITERS["webdataset"](tmp_path, "train", examples(2)), "train")
    (tmp_path / "train-000000.tar").write_bytes(b"short")
    with pytest.raises(DataError, match="member 000.png cannot be read(.|\n)*became shorter"):
        pairs.content(0)


def test_rows_keep_all_captions_of_an_image(tmp_path: Path) -> None:
    pairs = read_pairs(write_imagefolder(tmp_path, "train", examples(5)), "train")
    part = pairs.rows([4, 2])
    assert part.ids == ["train/004.png", "train/002.png"] and part.captions == [pairs.captions[4], pairs.captions[2]]
    assert part.sha256(1) == pairs.sha256(2) and part.digest != pairs.digest


def test_pairs_that_do_not_fit_together() -> None:
    place = ImageFile("a.png", 1)
    with pytest.raises(ValueError, match="2 ids, 1 captions and 1 places"):
        Pairs(["a", "b"], [["one"]], [place])
    with pytest.raises(ValueError, match="image 1 has no caption"):
        Pairs(["a", "b"], [["one"], []], [place, place])
    with pytest.raises(ValueError, match="1 ids come twice"):
        Pairs(["a", "a"], [["one"], ["two"]], [place, place])


def test_wrong_arguments(tmp_path: Path) -> None:
    write_imagefolder(tmp_path, "train", examples(1))
    with pytest.raises(ConfigError, match="'holdout' is no split(.|\n)*train, validation, test"):
        read_pairs(tmp_path, "holdout")
    with pytest.raises(ConfigError, match="'zip' is no form(.|\n)*imagefolder, json, parquet, webdataset"):
        read_pairs(tmp_path, "train", form="zip")
    with pytest.raises(ConfigError, match="image_root is given, and the data are imagefolder"):
        read_pairs(tmp_path, "train", image_root=tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_pairs(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(("split", "images"), [("train", 150), ("test", 50)])
def test_flickr8k_is_the_same_in_all_four_forms(split: str, images: int, tmp_path: Path) -> None:
    place = real_data("flickr8k_200")
    folder = read_pairs(place, split)
    listed = read_pairs(place, split, form="json")
    assert len(folder) == images and sum(map(len, folder.captions)) == 5 * images
    assert listed.ids == folder.ids and listed.captions == folder.captions and listed.digest == folder.digest
    assert read_pairs(place / f"flickr8k_{split}.json", split) == listed
    assert (
        folder.captions[0][0]
        == {
            "train": "A boy with a stick kneeling in front of a goalie net",
            "test": "A black dog leaps over a log .",
        }[split]
    )
    some = range(0, images, 10)
    given = [Example(Path(folder.ids[n]).name, folder.content(n), folder.captions[n]) for n in some]
    read = {form: read_pairs(WRITERS[form](tmp_path / form, split, given), split) for form in ("parquet", "webdataset")}
    for row, number in enumerate(some):
        expected = pixels(decode(place / folder.ids[number]))
        for pairs in (folder.rows(some), listed.rows(some), *read.values()):
            assert pairs.captions[row] == folder.captions[number]
            np.testing.assert_array_equal(pixels(pairs.image(row)), expected)
