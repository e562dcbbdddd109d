"""The cache of decoded images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mvc.candidates import write_image
from mvc.classify import images as module
from mvc.classify.images import Images, cached_images, channel_statistics, decode_all, take
from mvc.errors import DataError, EnvironmentFault, Stopped
from mvc.stopping import flag
from mvc.storage import sha256_file, write_bytes

from .runs import picture


def numbered(count: int, first: int = 0) -> Images:
    """Images of 4 px whose every value is their number, with the number as label."""
    numbers = torch.arange(first, first + count)
    return Images(numbers[:, None, None, None].expand(-1, 4, 4, 3).to(torch.uint8).contiguous(), numbers)


def resident() -> float:
    """MB of this process that are in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


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


def test_the_file_is_plain_safetensors_and_alike_for_alike_images(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a", 3)
    pixels = cached_images(tmp_path / "one", paths, digests, 16, "white", "images")
    cached_images(tmp_path / "two", paths, digests, 16, "white", "images")
    one, two = ((tmp_path / name / "images.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    length = int.from_bytes(one[:8], "little")
    assert (length + 8) % 64 == 0
    assert json.loads(one[8 : 8 + length]) == {
        "pixels": {"dtype": "U8", "shape": [3, 16, 16, 3], "data_offsets": [0, 3 * 16 * 16 * 3]}
    }
    assert one[8 + length :] == decode_all(paths, digests, 16, "white", "images").numpy().tobytes()
    assert torch.equal(load_file(tmp_path / "one" / "images.safetensors")["pixels"], pixels)


def test_no_images_are_a_cache_too(tmp_path: Path) -> None:
    for _ in range(2):
        assert cached_images(tmp_path / "cache", [], [], 8, "white", "images").shape == (0, 8, 8, 3)


def test_what_is_written_into_the_pixels_stays_in_this_process(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    mine = cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    mine[:] = 0
    again = cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    assert np.array_equal(again[2].numpy(), picture(0, 2))


def test_a_replaced_cache_stays_readable(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    old = cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    cached_images(tmp_path / "cache", paths, digests, 8, "white", "images")
    assert all(np.array_equal(old[index].numpy(), picture(0, index)) for index in range(5))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_opening_reads_nothing_and_touching_reads_what_is_touched(tmp_path: Path) -> None:
    side, count = 512, 96
    paths, digests = files(tmp_path / "a", 1)
    given = (tmp_path / "cache", paths * count, digests * count, side, "white", "images")
    made = cached_images(*given)
    assert made.nbytes > 75e6
    del made
    before = resident()
    pixels = cached_images(*given)
    assert resident() - before < 5
    Images(pixels, torch.zeros(count, dtype=torch.int64)).rows(range(10, 90))
    assert resident() - before < 5
    pixels[40:50].sum()
    assert resident() - before < 30
    pixels.sum(dtype=torch.int64)
    assert resident() - before > 65


_OTHER = """
import sys, time
from pathlib import Path
from mvc.classify import images

folder, names, digests, start = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","), Path(sys.argv[4])
decoded, plain = [], images.decode

def slow(path, background):
    decoded.append(path)
    time.sleep(0.02)
    return plain(path, background)

images.decode = slow
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
pixels = images.cached_images(folder, [Path(name) for name in names], digests, 16, "white", "images")
print(len(decoded), int(pixels.sum()), flush=True)
"""


def test_two_processes_at_once_make_one_cache(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a", 30)
    start = tmp_path / "start"
    texts = [str(tmp_path / "cache"), ",".join(map(str, paths)), ",".join(digests), str(start)]
    others = [
        subprocess.Popen([sys.executable, "-c", _OTHER, *texts], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [other.stdout.readline() for other in others if other.stdout is not None] == ["ready\n"] * 2
    start.touch()
    said = sorted(tuple(map(int, other.communicate(timeout=60)[0].split())) for other in others)
    total = sum(int(picture(0, index).sum()) for index in range(30))
    # One decoded all of them, the other one waited and decoded none.
    assert said == [(0, total), (30, total)] and all(other.returncode == 0 for other in others)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


def test_a_stop_while_another_process_makes_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, digests = files(tmp_path / "a")
    with module._alone(tmp_path / "cache"):
        monkeypatch.setattr(flag, "signal", 15)
        began = time.monotonic()
        with pytest.raises(Stopped, match="stopped by signal 15"):
            cached_images(tmp_path / "cache", paths, digests, 16, "white", "images")
    assert time.monotonic() - began < 5 and not (tmp_path / "cache").exists()


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    paths, digests = files(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write .*file/cache"):
        cached_images(tmp_path / "file" / "cache", paths, digests, 16, "white", "images")


def test_rows_that_follow_each_other_are_a_view() -> None:
    images = numbered(9)
    for rows in (range(2, 6), [2, 3, 4, 5]):
        part = images.rows(rows)
        assert part.pixels.data_ptr() == images.pixels[2].data_ptr() and part.labels.tolist() == [2, 3, 4, 5]
    other = images.rows([5, 2, 2])
    assert other.pixels[:, 0, 0, 0].tolist() == other.labels.tolist() == [5, 2, 2]
    other.pixels[:] = 7
    assert images.pixels[5].unique().tolist() == [5]
    assert images.rows([]).pixels.shape == (0, 4, 4, 3) and images.rows(range(8, 9)).labels.tolist() == [8]


def test_a_batch_is_taken_in_its_order_from_both_sets() -> None:
    real, synthetic = numbered(5), numbered(4, first=5)
    indices = np.array([8, 0, 5, 4, 4, 7], dtype=np.int64)
    pixels, labels = take(real, synthetic, indices)
    assert pixels.shape == (6, 3, 4, 4) and pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert pixels[:, 1, 2, 3].tolist() == labels.tolist() == indices.tolist()
    for others in (synthetic, None):
        only_real, labels = take(real, others, indices[3:5])
        assert only_real[:, 0, 0, 0].tolist() == labels.tolist() == [4, 4] and labels.dtype == torch.int64
    pixels[:] = 9
    assert real.pixels[4].unique().tolist() == [4] and synthetic.pixels[3].unique().tolist() == [8]


def test_channel_statistics_are_those_of_all_pixels() -> None:
    pixels = torch.stack([torch.from_numpy(picture(index % 2, index)) for index in range(150)])
    pixels[..., 2] = 40
    mean, deviation = channel_statistics(pixels)
    plain = pixels.double().flatten(0, 2) / 255
    torch.testing.assert_close(mean.double(), plain.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(deviation[:2].double(), plain.std(0, correction=0)[:2], rtol=0, atol=1e-6)
    assert deviation[2] == pytest.approx(1 / 255)
