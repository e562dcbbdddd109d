from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from mvc.errors import DataError
from mvc.images import decode, decode_with_mode, to_pixels, to_tensor, to_uint8
from tests.mvc.pictures import picture

BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
RED, WHITE = (255, 0, 0), (255, 255, 255)


def marked() -> Image.Image:
    """6 x 4 picture, black with a white corner at the top left."""
    image = Image.new("RGB", (6, 4))
    image.paste(WHITE, (0, 0, 2, 2))
    return image


# What a viewer has to do to show a file with this tag upright (EXIF 2.3, tag 0x0112), undone to store it.
STORED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.asarray(marked())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    image = decode(path)
    assert image.size == (6, 4)
    np.testing.assert_array_equal(np.asarray(image), upright)


def test_broken_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png", exif=BROKEN_EXIF)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), np.asarray(picture(1)))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_ramp_keeps_256_levels(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    image, mode = decode_with_mode(tmp_path / f"ramp.{suffix}")
    assert mode == "I;16"
    np.testing.assert_array_equal(np.asarray(image)[:, :, 1], ramp >> 8)
    assert len(np.unique(np.asarray(image))) == 256


def test_32_bit_integers(tmp_path: Path) -> None:
    deep = np.array([[0, 256, 65535]], dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    assert np.asarray(decode(tmp_path / "deep.tiff"))[0, :, 0].tolist() == [0, 1, 255]
    Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32)).save(tmp_path / "flat.tiff")
    assert np.asarray(decode(tmp_path / "flat.tiff"))[0, :, 0].tolist() == [0, 7, 255]
    for values, text in (([-1, 5], "negative"), ([0, 70000], "0..65535")):
        Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "bad.tiff")
        with pytest.raises(DataError, match=text):
            decode(tmp_path / "bad.tiff")


def test_float_images_by_rule(tmp_path: Path) -> None:
    for values, expected in (([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 99.6, 255.0], [0, 100, 255])):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "f.tiff")
        image, mode = decode_with_mode(tmp_path / "f.tiff")
        assert mode == "F" and np.asarray(image)[0, :, 2].tolist() == expected
    for values, text in (([0.0, 1000.0], "0..1 or 0..255"), ([0.0, np.nan], "not finite"), ([-0.5, 0.5], "negative")):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "f.tiff")
        with pytest.raises(DataError, match=text):
            decode(tmp_path / "f.tiff")


def test_alpha_is_laid_on_the_background(tmp_path: Path) -> None:
    pixels = np.array([[(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.asarray(decode(tmp_path / "a.png"))[0].tolist() == [list(WHITE), list(RED), [127, 127, 127]]
    assert np.asarray(decode(tmp_path / "a.png", "#000010"))[0, 0].tolist() == [0, 0, 16]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image = image.convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.png")
    assert np.asarray(decode(tmp_path / "p.png"))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    image.save(tmp_path / "one.png", transparency=0)
    assert np.asarray(decode(tmp_path / "one.png"))[0].tolist() == [list(WHITE), [0, 255, 0], [0, 0, 255]]
    image.save(tmp_path / "bytes.png", transparency=b"\x00\xff\x00")
    decoded, mode = decode_with_mode(tmp_path / "bytes.png")
    assert mode == "P" and np.asarray(decoded)[0].tolist() == [list(WHITE), [0, 255, 0], list(WHITE)]


def test_grey_with_transparency(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(10, 0), (10, 255)]], dtype=np.uint8)).save(tmp_path / "la.png")
    decoded, mode = decode_with_mode(tmp_path / "la.png")
    assert mode == "LA" and np.asarray(decoded)[0].tolist() == [list(WHITE), [10, 10, 10]]
    Image.fromarray(np.array([[10, 20]], dtype=np.uint8)).save(tmp_path / "l.png", transparency=20)
    assert np.asarray(decode(tmp_path / "l.png"))[0].tolist() == [[10, 10, 10], list(WHITE)]
    Image.fromarray(np.array([[2560, 20000]], dtype=np.uint16)).save(tmp_path / "i16.png", transparency=20000)
    assert np.asarray(decode(tmp_path / "i16.png"))[0].tolist() == [[10, 10, 10], list(WHITE)]


def test_one_bit_cmyk_and_lab(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "one.png")
    assert np.asarray(decode(tmp_path / "one.png"))[0].tolist() == [[255] * 3, [0] * 3]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    decoded, mode = decode_with_mode(tmp_path / "cmyk.jpg")
    assert mode == "CMYK" and np.abs(np.asarray(decoded).astype(int) - RED).max() <= 3
    rgb = Image.new("RGB", (4, 4), (200, 30, 60))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = ImageCms.applyTransform(rgb, transform)
    assert lab is not None
    lab.save(tmp_path / "lab.tiff")
    decoded, mode = decode_with_mode(tmp_path / "lab.tiff")
    assert mode == "LAB" and np.abs(np.asarray(decoded).astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff"])
def test_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as both:
        assert both.n_frames == 2  # type: ignore[attr-defined]
    assert decode(tmp_path / f"a.{suffix}").getcolors() == [(64, RED)]


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that declares side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [60_000, 11_000, 8_001])
def test_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    with pytest.raises(DataError, match="more than 64 megapixels"):
        decode(tmp_path / "bomb.png")


def test_bad_files_name_path_and_reason(tmp_path: Path) -> None:
    picture(0, 64).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    cases = {
        "half.jpg": (content[: len(content) // 2], "truncated"),
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"this is no picture", "not an image, or none of JPEG"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    }
    for name, (body, reason) in cases.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(DataError, match=f"(?is){name} cannot be read.*why: .*{reason}"):
            decode(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        decode(tmp_path / "missing.png")


def test_format_comes_from_the_content_not_the_name(tmp_path: Path) -> None:
    picture(3).save(tmp_path / "really_png.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "really_png.jpg")), np.asarray(picture(3)))


def test_warnings_of_pillow_stay_inside_and_filters_come_back(tmp_path: Path) -> None:
    picture(2).save(tmp_path / "fine.png", exif=BROKEN_EXIF)
    with Image.open(tmp_path / "fine.png") as image, pytest.warns(UserWarning, match="Corrupt EXIF"):
        image.getexif()
    (tmp_path / "bomb.png").write_bytes(bomb(11_000))
    before = list(warnings.filters)

    def attempt(number: int) -> bool:
        try:
            decode(tmp_path / ("bomb.png" if number % 2 else "fine.png"))
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(4) as workers:
        results = list(workers.map(attempt, range(80)))
    assert results == [True, False] * 40
    assert warnings.filters == before


def test_square_of_the_right_size_is_unchanged_and_inverts() -> None:
    image = picture(5, 32)
    np.testing.assert_array_equal(to_uint8(image, 32), np.asarray(image))
    tensor = to_tensor(image, 32)
    assert tensor.shape == (3, 32, 32) and tensor.dtype == torch.float32
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    np.testing.assert_array_equal(to_pixels(levels.float() / 127.5 - 1), levels.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(to_pixels(tensor), np.asarray(image))
    assert float(tensor.min()) >= -1 and float(tensor.max()) <= 1
    np.testing.assert_array_equal(to_pixels(torch.tensor([-9.0, 9.0, 0.0]).reshape(3, 1, 1)), [[[0, 255, 128]]])


def test_centre_is_kept_and_aspect_ratio_too() -> None:
    wide = Image.new("RGB", (90, 30), RED)
    wide.paste((0, 255, 0), (30, 0, 60, 30))
    assert np.asarray(to_uint8(wide, 30)).reshape(-1, 3).tolist() == [[0, 255, 0]] * 900
    reference = picture(7, 64).resize((96, 64), Image.Resampling.BICUBIC)
    whole = np.asarray(reference.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40].astype(int)
    assert np.abs(to_uint8(reference, 32).astype(int) - whole).max() <= 1


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    middle = to_uint8(Image.fromarray(stripes), 8)[:, 2:6].astype(int)
    assert np.abs(middle - 127).max() <= 2


def test_other_modes_are_refused_by_to_tensor() -> None:
    with pytest.raises(ValueError, match="mode L"):
        to_tensor(Image.new("L", (4, 4)), 4)
