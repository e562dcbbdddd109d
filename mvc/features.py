"""What filters and figures of quality know of an image: a vector, a perceptual hash, its contrast and its colour.

Each image is looked at by itself and once: what was seen is kept by the sha256 of the image's file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mvc.errors import NumericError
from mvc.extractors import Extractor
from mvc.images import chroma, decode, to_uint8
from mvc.progress import meter, say
from mvc.randomness import numpy_generator
from mvc.stopping import flag
from mvc.storage import remove_leftovers, sha256_bytes, sha256_json, write_bytes

FOLDER = "cache/features"
"""Below the run folder."""

_FORMAT = 1
_SHARD = 256
"""Images a file: a kill loses at most so many."""
_AHEAD = 16
"""Images that are decoded together while none is encoded; bounds the memory."""
_WORKERS = 2
_NAMES = ("features", "hashes", "spread", "chroma")

Change = Literal["", "light", "strong"]
"""How an image is changed before it is looked at; "" is not at all."""
CHANGES: tuple[Change, ...] = ("light", "strong")
_SCALES = {"light": 0.75, "strong": 0.5}
_JPEG_QUALITY = 85
_NOISE_LEVELS = 2


@dataclass(frozen=True)
class Seen:
    """What is known of n images; rows belong together.

    Attributes:
        features: (n, d) float32, as the extractor gives them: not of length 1.
        hashes: (n,) uint64, the 64 bits of imagehash.phash.
        spread: (n,) float32, largest minus smallest level in any channel, 0..255; 0 is a plain colour.
        chroma: (n,) float32, mean over the pixels of the largest minus the smallest channel, 0..255; 0 is grey.
    """

    features: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    spread: NDArray[np.float32]
    chroma: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Seen:
        """The images at `rows`, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Seen(self.features[chosen], self.hashes[chosen], self.spread[chosen], self.chroma[chosen])


def look(
    folder: Path,
    images: Sequence[tuple[str, Path]],
    size: int | None,
    background: str,
    extractor_identity: str,
    load: Callable[[], Extractor],
    change: Change = "",
) -> Seen:
    """Look at images, or remember what was seen of them.

    An entry depends on the bytes of the image's file, on the size, the background, the extractor and the change.
    Damaged files of the cache are reported, and their images looked at again.

    Args:
        folder: of the cache, run/cache/features.
        images: n pairs of the sha256 of an image's file, in hexadecimal digits, and its path.
        size: side in pixels that images are brought to first, as `mvc.images.to_uint8` does it, so that a real image
            looks as a generator learnt it; None leaves them as they are.
        background: colour behind transparent pixels.
        extractor_identity: of the extractor.
        load: loads it; called only if something is missing.
        change: done to each image first, as `changed` does it: what a copy of it would look like.

    Returns:
        n rows in the order of `images`; of no image at all, features of width 0.

    Raises:
        DataError: an image cannot be decoded.
        NumericError: its features are not finite; names the image.
        Stopped: a signal asked for a stop; what was seen by then is kept.
    """
    own = folder / extractor_identity[:16]
    keys = [sha256_json([_FORMAT, digest, size, background, extractor_identity, change]) for digest, _ in images]
    stored = _read_shards(own)
    missing = {key: path for key, (_, path) in zip(keys, images, strict=True) if key not in stored}
    if missing:
        _look_at(own, missing, partial(_open, size=size, background=background, change=change), load())
        stored = _read_shards(own)
    if not keys:
        return _empty(0)
    rows = [stored[key] for key in keys]
    return Seen(*(np.stack([getattr(seen, name)[row] for seen, row in rows]) for name in _NAMES))


def measure(pixels: NDArray[np.uint8]) -> tuple[int, float, float]:
    """Perceptual hash, spread and chroma of one image, as in `Seen`.

    Args:
        pixels: (H, W, 3) uint8, RGB.
    """
    phash = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
    spread = int((pixels.max(axis=(0, 1)).astype(np.int64) - pixels.min(axis=(0, 1))).max())
    return phash, float(spread), chroma(pixels)


def see(extractor: Extractor, images: Sequence[NDArray[np.uint8]]) -> Seen:
    """Look at images in memory, (H, W, 3) uint8 each, without a cache."""
    if not images:
        return _empty(extractor.width)
    features = np.stack([extractor.encode(pixels) for pixels in images])
    return _seen(features, [measure(pixels) for pixels in images])


def _empty(width: int) -> Seen:
    return _seen(np.empty((0, width), dtype=np.float32), [])


def _seen(features: NDArray[np.float32], measured: Sequence[tuple[int, float, float]]) -> Seen:
    hashes, spread, chromas = zip(*measured, strict=True) if measured else ((), (), ())
    return Seen(
        features, np.array(hashes, np.uint64), np.array(spread, dtype=np.float32), np.array(chromas, dtype=np.float32)
    )


def changed(pixels: NDArray[np.uint8], change: Change) -> NDArray[np.uint8]:
    """What a copy of an image may look like: made smaller and large again, with noise, saved as JPEG.

    The noise is the same for all images of a size; randomness: (0, "changed image").

    Args:
        pixels: (H, W, 3) uint8, RGB.
        change: light is 3/4 of the size, strong is half of it; both with up to 2 levels of noise and JPEG quality 85.

    Returns:
        (H, W, 3) uint8.
    """
    if not change:
        return pixels
    image = Image.fromarray(pixels)
    small = [max(round(side * _SCALES[change]), 1) for side in image.size]
    rough = np.asarray(image.resize((small[0], small[1]), Image.Resampling.BICUBIC).resize(image.size))
    noise = numpy_generator(0, "changed image").integers(-_NOISE_LEVELS, _NOISE_LEVELS + 1, pixels.shape)
    noisy = np.clip(rough.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=_JPEG_QUALITY)
    with Image.open(file) as saved:
        return np.array(saved.convert("RGB"), dtype=np.uint8)


def _open(
    path: Path, size: int | None, background: str, change: Change
) -> tuple[NDArray[np.uint8], tuple[int, float, float]]:
    image = decode(path, background)
    pixels = changed(np.array(image, dtype=np.uint8) if size is None else to_uint8(image, size), change)
    return pixels, measure(pixels)


def _look_at(
    folder: Path,
    missing: dict[str, Path],
    opened: Callable[[Path], tuple[NDArray[np.uint8], tuple[int, float, float]]],
    extractor: Extractor,
) -> None:
    """Look at images and write what was seen, a shard at a time."""
    todo = list(missing.items())
    with meter("looking at images", len(todo), "images") as shown, ThreadPoolExecutor(_WORKERS) as workers:
        for first in range(0, len(todo), _SHARD):
            part = todo[first : first + _SHARD]
            features, measured = [], []
            for start in range(0, len(part), _AHEAD):
                some = [path for _, path in part[start : start + _AHEAD]]
                for path, (pixels, facts) in zip(some, workers.map(opened, some), strict=True):
                    features.append(_encode(extractor, pixels, path))
                    measured.append(facts)
                    shown.advance()
                if flag:
                    break
            _write_shard(folder, [key for key, _ in part[: len(features)]], _seen(np.stack(features), measured))
            flag.check(f"{first + len(features)} of {len(todo)} images are looked at, which is kept")


def _encode(extractor: Extractor, pixels: NDArray[np.uint8], path: Path) -> NDArray[np.float32]:
    try:
        return extractor.encode(pixels)
    except NumericError as error:
        raise NumericError(f"{path}: {error.what}", error.why, error.do) from error


def _arrays(seen: Seen) -> dict[str, NDArray[np.generic]]:
    return {name: np.ascontiguousarray(getattr(seen, name)) for name in _NAMES}


def _digest(seen: Seen) -> str:
    return sha256_bytes(b"".join(array.tobytes() for array in _arrays(seen).values()))


def _write_shard(folder: Path, keys: Sequence[str], seen: Seen) -> None:
    facts = {"keys": list(keys), "digest": _digest(seen)}
    # Named by its keys, so that a file that is in use is never overwritten with something else.
    path = folder / f"{sha256_json(list(keys))[:16]}.safetensors"
    write_bytes(path, save(_arrays(seen), {"mvc": json.dumps(facts)}))


def _shards(folder: Path) -> Iterator[tuple[Seen, list[str]]]:
    """What whole files hold, with their keys; a damaged file is reported and removed."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                facts = json.loads(file.metadata()["mvc"])
                seen = Seen(*(file.get_tensor(name) for name in _NAMES))
            if facts["digest"] != _digest(seen) or len(facts["keys"]) != len(seen):
                raise ValueError("the numbers do not match their digest")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"features: {path} is damaged ({error}); its images are looked at again")
            path.unlink()
            continue
        yield seen, facts["keys"]


def _read_shards(folder: Path) -> dict[str, tuple[Seen, int]]:
    """Every entry of the cache by key: what its file holds, and the row."""
    remove_leftovers(folder)
    return {key: (seen, row) for seen, keys in _shards(folder) for row, key in enumerate(keys)}
