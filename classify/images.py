"""All images of a comparison at the classifier's size as uint8, mapped into memory from the run's cache.

Real and synthetic images go through the same decoder and geometry, so that neither can be told by its edges. The
cache is a file of which the system keeps as much in memory as there is room for, once for all processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mvc.errors import DataError, EnvironmentFault
from mvc.images import decode, to_uint8
from mvc.progress import meter
from mvc.stopping import flag
from mvc.storage import publish_folder, sha256_file, sha256_json, verified_manifest

_FILE = "images.safetensors"
_CHUNK = 64
_VERSION = 1
"""Part of the cache key: raise it when the pixels of an unchanged file would change."""


@dataclass(frozen=True)
class Images:
    """Images with labels.

    Args:
        pixels: (n, S, S, 3) uint8; channels last, so that a batch is in the layout that convolutions like.
        labels: (n,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Sequence[int]) -> Images:
        """The images at `rows`: a view where the rows follow each other, as those of a split do, else a copy."""
        first = rows[0] if rows else 0
        if all(row == first + place for place, row in enumerate(rows)):
            return Images(self.pixels[first : first + len(rows)], self.labels[first : first + len(rows)])
        index = torch.tensor(rows, dtype=torch.int64)
        return Images(self.pixels.index_select(0, index), self.labels[index])

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """(B, 3, S, S) uint8 views, in order."""
        for start in range(0, len(self), batch_size):
            yield self.pixels[start : start + batch_size].permute(0, 3, 1, 2)


def take(real: Images, synthetic: Images | None, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Gather a batch by indices into [real | synthetic] without joining the two in memory.

    Args:
        real: the real training images.
        synthetic: the synthetic ones; None where no index points at one.
        indices: (B,) int64 in [0, len(real) + len(synthetic)).

    Returns:
        (B, 3, S, S) uint8 in channels-last layout, and (B,) int64 labels.
    """
    if synthetic is None:
        rows = torch.from_numpy(indices)
        return real.pixels.index_select(0, rows).permute(0, 3, 1, 2), real.labels.index_select(0, rows)
    # A copy of whole images one by one: indexing by two masks takes 17 times as long at 224 px.
    kept, made = real.pixels.numpy(), synthetic.pixels.numpy()
    pixels, count = np.empty((len(indices), *kept.shape[1:]), dtype=np.uint8), len(kept)
    for slot, row in enumerate(indices.tolist()):
        pixels[slot] = kept[row] if row < count else made[row - count]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), _labels(real.labels, synthetic.labels, indices)


def _labels(real: Tensor, synthetic: Tensor, indices: npt.NDArray[np.int64]) -> Tensor:
    labels = torch.empty(len(indices), dtype=torch.int64)
    made = torch.from_numpy(indices >= len(real))
    rows = torch.from_numpy(indices)
    labels[~made], labels[made] = real[rows[~made]], synthetic[rows[made] - len(real)]
    return labels


def channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in units of [0, 1]; exact, from histograms.

    Args:
        pixels: (n, S, S, 3) uint8.

    Returns:
        (3,) float32 means and (3,) float32 standard deviations, at least 1/255 (a constant channel).
    """
    counts = torch.zeros((3, 256), dtype=torch.int64)
    for part in pixels.split(_CHUNK):  # so that a mapped file is never copied as a whole
        counts += torch.stack([torch.bincount(part[..., channel].flatten(), minlength=256) for channel in range(3)])
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp_min(1 / 255).float()


def _decoded(
    paths: Sequence[Path], digests: Sequence[str], size: int, background: str, label: str
) -> Generator[npt.NDArray[np.uint8], None, None]:
    """The images in chunks, (_CHUNK or fewer, size, size, 3) uint8, with a thread a core."""

    def load(row: int) -> npt.NDArray[np.uint8]:
        if paths[row].is_file() and sha256_file(paths[row]) != digests[row]:
            raise DataError(f"{paths[row]} has changed since the run was made", do="put it back, or start another run")
        return to_uint8(decode(paths[row], background), size)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with meter(label, len(paths), "images") as shown, ThreadPoolExecutor(cores) as pool:
        # In chunks, so that a stop or a bad file does not wait for thousands of queued images.
        for start in range(0, len(paths), _CHUNK):
            flag.check("classifiers that were finished are kept")
            rows = range(start, min(start + _CHUNK, len(paths)))
            # One core gains nothing by threads and loses a tenth by changing them.
            yield np.stack(list(map(load, rows) if cores == 1 else pool.map(load, rows)))
            shown.advance(len(rows))


def decode_all(paths: Sequence[Path], digests: Sequence[str], size: int, background: str, label: str) -> Tensor:
    """Decode images at a size into memory, with a thread a core.

    Args:
        paths: image files.
        digests: sha256 of each file, as frozen by the stage that made or indexed it.
        size: side in pixels.
        background: colour behind transparent pixels.
        label: what to call them while it lasts.

    Returns:
        (n, size, size, 3) uint8.

    Raises:
        DataError: a file cannot be decoded, or is no longer the one of the digest; names it.
    """
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    done = 0
    with closing(_decoded(paths, digests, size, background, label)) as chunks:
        for chunk in chunks:
            pixels[done : done + len(chunk)] = chunk
            done += len(chunk)
    return torch.from_numpy(pixels)


def cached_images(
    folder: Path, paths: Sequence[Path], digests: Sequence[str], size: int, background: str, label: str
) -> Tensor:
    """The images of `paths`, from the cache where it is of the same images; nothing is read before it is touched.

    Processes that ask for the same folder at once make it once. What one of them writes into its tensor, no other
    sees, nor does the file. A cache that is replaced stays readable for those who have it.

    Args:
        folder: cache folder, published whole with a manifest.
        paths: image files.
        digests: sha256 of each file.
        size: side in pixels.
        background: colour behind transparent pixels.
        label: what to call them while they are decoded.

    Returns:
        (n, size, size, 3) uint8, mapped from the file.

    Raises:
        DataError: a file cannot be decoded.
        EnvironmentFault: the cache cannot be written.
        Stopped: while it was made, or another process made it.
    """
    key = sha256_json([_VERSION, size, background, list(digests)])
    kept = _mapped(folder, key)
    if kept is not None:
        return kept
    with _alone(folder):
        kept = _mapped(folder, key)  # another process may have made it meanwhile
        if kept is not None:
            return kept
        with (
            publish_folder(folder, {"key": key}) as temporary,
            closing(_decoded(paths, digests, size, background, label)) as chunks,
        ):
            _write(temporary / _FILE, (len(paths), size, size, 3), chunks)
        return load_file(folder / _FILE)["pixels"]


def _mapped(folder: Path, key: str) -> Tensor | None:
    """The pixels of a whole cache of that key, else None."""
    manifest = verified_manifest(folder)
    if manifest is None or manifest.get("key") != key:
        return None
    try:
        pixels: Tensor = load_file(folder / _FILE)["pixels"]
        return pixels
    except (SafetensorError, KeyError, OSError):
        return None  # whole but of another kind, or just replaced: made afresh


def _write(path: Path, shape: tuple[int, ...], chunks: Iterator[npt.NDArray[np.uint8]]) -> None:
    """Write one tensor `pixels` as safetensors, chunk by chunk: the library itself wants all of it in memory."""
    end = int(np.prod(shape))
    header = json.dumps({"pixels": {"dtype": "U8", "shape": list(shape), "data_offsets": [0, end]}}).encode()
    header += b" " * (-(len(header) + 8) % 64)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in chunks:
            file.write(chunk.data)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder; the kernel releases it however the process ends."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            flag.check("classifiers that were finished are kept")
            try:
                lock.acquire(timeout=1)
            except Timeout:
                continue
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {folder}",
            why=error.strerror or str(error),
            do="free some space or choose another run.dir",
        ) from error
    try:
        yield
    finally:
        lock.release()
