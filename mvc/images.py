"""Any image file becomes 8-bit RGB by declared rules, or a clear error; and RGB becomes tensors and back.

Rules: EXIF rotation is applied; transparency is laid on a background colour; 16-bit values are divided by
256; of animated and multi-page files the first frame counts; more than 64 megapixels are refused.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError

from mvc.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are opened, whatever a file is called; Pillow knows many more, rarely used and rarely tested."""
MAX_PIXELS = 64_000_000
"""Width times height above which an image is refused, judged from its header before anything is decoded."""

GREY_LEVELS = 6.0
"""Chroma below which an image can count as grey: a decoder gives a grey image a tint of a few levels."""
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class _Quiet:
    """Silences warnings while at least one thread decodes.

    `warnings.catch_warnings` alone swaps a process-wide list: two threads that leave it in another order than
    they entered would keep warnings off for good. Here the first one in saves, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._saved.__exit__(None, None, None)


_quiet = _Quiet()


def decode(path: Path, background: str = "white") -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Args:
        path: the file; its content decides the format, not its name.
        background: colour behind transparent pixels, as Pillow names colours.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, larger than 64 megapixels, or holds
            values that no rule covers; names the path, and the reason as `why`.
    """
    return decode_with_mode(path, background)[0]


def decode_with_mode(path: Path, background: str = "white") -> tuple[Image.Image, str]:
    """Decode as `decode` does, and tell Pillow's mode of the file as stored, such as "L" or "I;16"."""
    try:
        with open(path, "rb") as file:
            found = _attempt(file, background)
    except OSError as error:
        found = error.strerror or str(error)
    if isinstance(found, str):
        raise DataError(
            f"{path} cannot be read as an image", why=found, do="replace or remove it, or set data.on_bad=skip"
        )
    return found


def decode_bytes(content: bytes, where: str, background: str = "white") -> Image.Image:
    """Decode the bytes of an image file as `decode` does with a file, wherever they were stored.

    Args:
        content: all bytes of the file.
        where: what the error calls it, such as "shard.tar, member 7.jpg".
        background: colour behind transparent pixels, as Pillow names colours.

    Raises:
        DataError: as `decode`; names `where`.
    """
    found = _attempt(BytesIO(content), background)
    if isinstance(found, str):
        raise DataError(
            f"{where} cannot be read as an image", why=found, do="replace it, or remove it with its captions"
        )
    return found[0]


def _attempt(file: IO[bytes], background: str) -> tuple[Image.Image, str] | str:
    """What `_decode` gives, or why it cannot."""
    try:
        with _quiet():
            return _decode(file, background)
    except _Refused as error:
        return str(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"it declares more than {MAX_PIXELS // 10**6} megapixels"
    except UnidentifiedImageError:
        file.seek(0)
        return f"not an image, or none of {', '.join(FORMATS)}" if file.read(1) else "the file is empty"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # a corrupt file can raise nearly anything in a decoder
        return f"{type(error).__name__}: {error}"


class _Refused(Exception):
    """The image was understood, and no rule allows it."""


def _decode(file: IO[bytes], background: str) -> tuple[Image.Image, str]:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width} x {image.height}"
            raise _Refused(f"it declares {size} pixels, more than {MAX_PIXELS // 10**6} megapixels")
        mode = image.mode
        image.load()
        # After load(): Pillow itself has then turned TIFF files, and taken the tag away.
        rotation = _ROTATIONS.get(_orientation(image))
        rgb = _to_rgb(image, background)
    return (rgb if rotation is None else rgb.transpose(rotation)), mode


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey_to_8_bit(image)
    if image.has_transparency_data:
        # convert("RGB") would show whatever colour hides under the transparent pixels.
        front = image.convert("RGBA")
        back = Image.new("RGBA", front.size, ImageColor.getrgb(background))
        return Image.alpha_composite(back, front).convert("RGB")
    rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale deep grey by a rule that is the same for every file; Pillow's convert() would clip at 255.

    16 bits: v // 256, as Pillow does for 16-bit colour. 32-bit integers: 0..255 as they are, up to 65535
    like 16 bits. Floats: 0..1 times 255, or 0..255 as they are, rounded. Nothing is stretched by its content.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> 8).astype(np.uint8)
    else:
        low, high = values.min(), values.max()
        if not np.isfinite(low) or not np.isfinite(high) or low < 0:
            raise _Refused(f"values from {low} to {high}: negative or not finite")
        if image.mode == "F" and high <= 255:
            grey = np.rint(values * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
        elif image.mode != "F" and high <= 65535:
            grey = (values if high <= 255 else values >> 8).astype(np.uint8)
        else:
            limit = "0..1 or 0..255 in a float image" if image.mode == "F" else "0..65535 in an integer image"
            raise _Refused(f"values up to {high}: only {limit} have a declared meaning")
    scaled = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}; decode() makes one")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # One step: short side to `size`, then the centre. Resizing a 1 x 60000 image first would fill the memory.
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_uint8(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the short side to `size` (bicubic, antialiased) and crop the centre.

    Args:
        image: RGB image.
        size: side in pixels.

    Returns:
        Array of shape (size, size, 3), uint8. An image of that size already comes back unchanged.
    """
    return np.array(_square(image, size), dtype=np.uint8)


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """The same square as `to_uint8`, as a float32 tensor of shape (3, size, size) in [-1, 1]."""
    return torch.from_numpy(to_uint8(image, size)).permute(2, 0, 1).float().div(127.5).sub(1.0).contiguous()


def to_pixels(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Inverse of `to_tensor`'s scaling: (3, H, W) in [-1, 1] to (H, W, 3) uint8, rounded and clamped."""
    scaled = tensor.detach().to("cpu", torch.float32).add(1.0).mul(127.5).round().clamp(0.0, 255.0)
    pixels: NDArray[np.uint8] = scaled.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def chroma(pixels: NDArray[np.uint8]) -> float:
    """Mean over the pixels of the largest minus the smallest channel, 0..255; 0 is grey.

    Args:
        pixels: (H, W, 3) uint8.
    """
    return float((pixels.max(axis=2).astype(np.int64) - pixels.min(axis=2)).mean())
