"""The cache of decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mvc.candidates import write_image
from mvc.classify import images as module
from mvc.classify.images import cached_images
from mvc.errors import DataError
from mvc.storage import sha256_file, write_bytes

from .runs import picture


def files(folder: Path, count: int = 5) -> tuple[list[Path], list[str]]:
    names = [f"{index}.png" for index in range(count)]
    digests = [write_image(folder, name, picture(0, index)) for index, name in enumerate(names)]
    return [folder / name for name in names], digests


def test_pixels_are_those_of_the_files_in_order(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    pixels = cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    assert pixels.dtype == torch.uint8 and pixels.shape == (5, 16, 16, 3)
    assert all(np.array_equal(pixels[index].numpy(), picture(0, index)) for index in range(5))


def test_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, digests = files(tmp_path / "a")
    first = cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    for path in paths:
        path.unlink()
    assert torch.equal(first, cached_images(tmp_path / "cache", paths, digests, 16, "white", "images"))
    monkeypatch.setattr(module, "_VERSION", 2)
    with pytest.raises(DataError, match=r"0\.png"):
        cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")


def test_other_size_order_or_a_broken_cache_is_decoded_afresh(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    cache = tmp_path / "cache"
    first = cached_images(cache, paths, digests, 16, "white", "images")
    assert cached_images(cache, paths, digests, 8, "white", "images").shape == (5, 8, 8, 3)
    turned = cached_images(cache, paths[::-1], digests[::-1], 16, "white", "images")
    assert torch.equal(turned, first.flip(0))
    write_bytes(cache / "images.safetensors", b"broken")
    assert torch.equal(first.flip(0), cached_images(cache, paths[::-1], digests[::-1], 16, "white", "images"))


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    write_image(tmp_path / "a", "3.png", picture(1, 3))
    assert sha256_file(paths[3]) != digests[3]
    with pytest.raises(DataError, match=r"3\.png has changed since the run was made"):
        cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    assert not (tmp_path / "cache").exists()
