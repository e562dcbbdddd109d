"""All images of a comparison at the classifier's size as uint8 in memory, kept in the run's cache.

Real and synthetic images go through the same decoder and geometry, so that neither can be told by its edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvc.errors import DataError
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
        """The images at `rows`, copied."""
        index = torch.tensor(rows, dtype=torch.int64)
        return Images(self.pixels[index], self.labels[index])

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
    rows = torch.from_numpy(indices)
    made = rows >= len(real)
    if synthetic is None or not bool(made.any()):
        return real.pixels[rows].permute(0, 3, 1, 2), real.labels[rows]
    kept, other = rows[~made], rows[made] - len(real)
    pixels = torch.empty((len(rows), *real.pixels.shape[1:]), dtype=torch.uint8)
    labels = torch.empty(len(rows), dtype=torch.int64)
    pixels[~made], labels[~made] = real.pixels[kept], real.labels[kept]
    pixels[made], labels[made] = synthetic.pixels[other], synthetic.labels[other]
    return pixels.permute(0, 3, 1, 2), labels


def channel_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in units of [0, 1]; exact, from histograms.

    Args:
        pixels: (n, S, S, 3) uint8.

    Returns:
        (3,) float32 means and (3,) float32 standard deviations, at least 1/255 (a constant channel).
    """
    counts = torch.stack([torch.bincount(pixels[..., channel].flatten(), minlength=256) for channel in range(3)])
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp_min(1 / 255).float()


def decode_all(paths: Sequence[Path], digests: Sequence[str], size: int, background: str, label: str) -> Tensor:
    """Decode images at a size, with a thread a core.

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

    def load(row: int) -> None:
        if paths[row].is_file() and sha256_file(paths[row]) != digests[row]:
            raise DataError(f"{paths[row]} has changed since the run was made", do="put it back, or start another run")
        pixels[row] = to_uint8(decode(paths[row], background), size)

    with meter(label, len(paths), "images") as shown, ThreadPoolExecutor() as pool:
        # In chunks, so that a stop or a bad file does not wait for thousands of queued images.
        for start in range(0, len(paths), _CHUNK):
            flag.check("classifiers that were finished are kept")
            rows = range(start, min(start + _CHUNK, len(paths)))
            list(pool.map(load, rows))
            shown.advance(len(rows))
    return torch.from_numpy(pixels)


def cached_images(
    folder: Path, paths: Sequence[Path], digests: Sequence[str], size: int, background: str, label: str
) -> Tensor:
    """The images of `paths` as (n, size, size, 3) uint8, from the cache where it is of the same images.

    Args:
        folder: cache folder, published whole with a manifest.
        paths: image files.
        digests: sha256 of each file.
        size: side in pixels.
        background: colour behind transparent pixels.
        label: what to call them while they are decoded.

    Raises:
        DataError: a file cannot be decoded.
        EnvironmentFault: the cache cannot be written.
    """
    key = sha256_json([_VERSION, size, background, list(digests)])
    manifest = verified_manifest(folder)
    if manifest is not None and manifest.get("key") == key:
        try:
            kept: Tensor = load_file(folder / _FILE)["pixels"]
            return kept
        except (SafetensorError, KeyError):
            pass  # whole but of another kind: made afresh below
    pixels = decode_all(paths, digests, size, background, label)
    with publish_folder(folder, {"key": key}) as temporary:
        save_file({"pixels": pixels}, temporary / _FILE)
    return pixels
