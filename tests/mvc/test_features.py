from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mvc.duplicates import near_pairs
from mvc.errors import DataError, NumericError, Stopped
from mvc.extractors import Extractor
from mvc.features import CHANGES, Change, Seen, changed, look, measure, see
from mvc.images import decode, to_uint8
from mvc.randomness import numpy_generator
from mvc.stopping import flag
from mvc.storage import sha256_file

SIDE = 16


class Means:
    """An extractor whose vector is known: the mean of each channel; counts its images."""

    def __init__(self, identity: str = "channel means, the first") -> None:
        self.identity, self.count = identity, 0

    def __call__(self) -> Extractor:
        return Extractor("means", self.identity, 3, self._embed)

    def _embed(self, image: Image.Image) -> Tensor:
        self.count += 1
        return torch.from_numpy(np.asarray(image).reshape(-1, 3).mean(axis=0))


def write_image(path: Path, number: int) -> tuple[str, Path]:
    pixels = numpy_generator(0, "test image", number).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return sha256_file(path), path


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path]]:
    return [write_image(tmp_path / f"{number}.png", number) for number in range(4)]


def seen(
    folder: Path, images: list[tuple[str, Path]], load: Means | None, size: int | None = SIDE, background: str = "white"
) -> Seen:
    used = load or Means()
    return look(folder, images, size, background, used.identity, used if load else refuse)


def refuse() -> Extractor:
    raise AssertionError("the cache should have answered")


def equal(first: Seen, second: Seen) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_what_is_kept_is_what_was_seen(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    first = seen(tmp_path / "cache", images, Means())
    pixels = [to_uint8(decode(path), SIDE) for _, path in images]
    assert equal(first, see(Means()(), pixels)) and equal(first, seen(tmp_path / "cache", images, None))
    for row, image in enumerate(pixels):
        np.testing.assert_allclose(first.features[row], image.reshape(-1, 3).mean(axis=0), rtol=1e-6)
        assert f"{first.hashes[row]:016x}" == str(imagehash.phash(Image.fromarray(image)))
    assert [array.dtype.name for array in vars(first).values()] == ["float32", "uint64", "float32", "float32"]
    assert len(first) == 4 and equal(first.take([2, 0]), seen(tmp_path / "cache", [images[2], images[0]], None))


def test_hashes_differ_in_the_bits_that_the_duplicate_finder_counts(images: list[tuple[str, Path]]) -> None:
    hashes = see(Means()(), [to_uint8(decode(path), SIDE) for _, path in images]).hashes
    for first, second, bits in near_pairs([f"{number:016x}" for number in hashes], 64):
        assert np.bitwise_count(hashes[first] ^ hashes[second]) == bits


@pytest.mark.parametrize(
    ("pixels", "spread", "chroma"),
    [
        (np.full((8, 8, 3), 200), 0, 0),
        (np.full((8, 8, 3), [10, 60, 30]), 0, 50),
        (np.stack([np.full((8, 3), 7), np.full((8, 3), 9)]), 2, 0),
        (np.stack([np.full((8, 3), [0, 0, 255]), np.full((8, 3), 128)]), 128, 127.5),
    ],
)
def test_spread_and_chroma(pixels: NDArray[np.int64], spread: float, chroma: float) -> None:
    _, found_spread, found_chroma = measure(pixels.astype(np.uint8))
    assert (found_spread, found_chroma) == (spread, chroma)


def test_only_what_changed_is_looked_at_again(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    load = Means()
    seen(tmp_path / "cache", images, load)
    images[1] = write_image(images[1][1], 99)
    seen(tmp_path / "cache", [*images[::-1], images[1]], load)
    assert load.count == 5
    seen(tmp_path / "cache", images, load, size=8)
    seen(tmp_path / "cache", images, load, background="black")
    assert load.count == 13
    other = Means("channel means, the second")
    seen(tmp_path / "cache", images, other)
    assert other.count == 4
    # Every extractor keeps its own; nothing was lost.
    seen(tmp_path / "cache", images, None)
    seen(tmp_path / "cache", images, None, size=8)


def test_images_of_the_generators_size_are_left_as_they_are(tmp_path: Path) -> None:
    pixels = numpy_generator(0, "test image").integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = [(sha256_file(tmp_path / "a.png"), tmp_path / "a.png")]
    assert equal(seen(tmp_path / "c", image, Means(), None), seen(tmp_path / "c", image, Means(), SIDE))


def test_no_image_needs_no_extractor(tmp_path: Path) -> None:
    nothing = seen(tmp_path / "cache", [], None)
    assert len(nothing) == 0 and nothing.features.shape == (0, 0) and nothing.hashes.dtype == np.uint64
    assert see(Means()(), []).features.shape == (0, 3)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, images: list[tuple[str, Path]], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Means()
    before = seen(tmp_path / "cache", images, load)
    [path] = (tmp_path / "cache").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    whole = bytes(content)
    path.write_bytes({"bit": whole, "cut": whole[:-9], "empty": b"", "text": b"not at all " * 9}[damage])
    assert equal(seen(tmp_path / "cache", images, load), before)
    assert load.count == 8 and "is damaged" in capsys.readouterr().err


def test_a_stop_keeps_what_was_seen(
    tmp_path: Path, images: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvc.features._AHEAD", 1)
    load = Means()
    extractor = Extractor("means", load.identity, 3, lambda image: _then_stop(load._embed(image), monkeypatch))
    with pytest.raises(Stopped, match="1 of 4 images are looked at, which is kept"):
        look(tmp_path / "cache", images, SIDE, "white", load.identity, lambda: extractor)
    monkeypatch.setattr(flag, "signal", None)
    seen(tmp_path / "cache", images, load)
    assert load.count == 4


def _then_stop(vector: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(flag, "signal", 15)
    return vector


def test_errors_name_the_image(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    broken = Extractor("a net", "broken", 3, lambda image: torch.full((3,), float("nan")))
    with pytest.raises(NumericError, match=r"0\.png: a net: the features of an image are not finite"):
        look(tmp_path / "cache", images, SIDE, "white", "broken", lambda: broken)
    images[2][1].write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image"):
        seen(tmp_path / "cache", images, Means())


def test_changed_images_are_kept_apart_and_get_rougher(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.stack([np.add.outer(ramp // 2, ramp // 2)] * 3, axis=2)
    pixels[8:16, 8:16] = 255
    assert changed(pixels, "") is pixels
    errors = []
    for change in CHANGES:
        once = changed(pixels, change)
        assert once.shape == pixels.shape and np.array_equal(once, changed(pixels, change))
        errors.append(float(np.abs(once.astype(int) - pixels).mean()))
    assert 0 < errors[0] < errors[1] < 20
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, load = [(sha256_file(tmp_path / "a.png"), tmp_path / "a.png")], Means()

    def kept(change: Change) -> Seen:
        return look(tmp_path / "cache", image, None, "white", load.identity, load, change)

    every: tuple[Change, ...] = ("", *CHANGES)
    for change in every:
        assert equal(kept(change), see(load(), [changed(pixels, change)]))
    count = load.count
    assert [len(kept(change)) for change in every] == [1, 1, 1] and load.count == count
