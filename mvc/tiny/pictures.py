"""Pictures to train on: printed characters by number, and textures that keep the autoencoder general."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvc.randomness import generator, numpy_generator
from mvc.tiny.world import SIDE, draw_character, render


def texture(seed: int, index: int) -> NDArray[np.uint8]:
    """Draw one picture of nothing in particular; randomness: (seed, "texture", index).

    Noise of all scales, colour gradients and soft or hard shapes, in grey or in colour, with any contrast:
    a stand-in for photographs, scans and handwriting, none of which is used in training.

    Returns:
        (32, 32, 3), uint8.
    """
    random = numpy_generator(seed, "texture", index)
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    roughness = random.uniform(0.3, 0.9)
    for octave, cells in enumerate((2, 4, 8, 16, 32)):
        noise = random.standard_normal((cells, cells, 3)).astype(np.float32)
        noise = noise.mean(axis=2, keepdims=True) * 0.8 + noise * 0.5  # channels of real pictures go together
        grid = np.stack([_enlarged(noise[..., channel]) for channel in range(3)], axis=2)
        picture += grid * roughness**octave
    picture *= random.choice([0.0, 20.0, 45.0, 70.0], p=[0.3, 0.25, 0.3, 0.15])
    base = random.uniform(0, 255, 3) if random.random() < 0.6 else np.zeros(3)
    image = Image.fromarray(np.clip(picture + base, 0, 255).astype(np.uint8))
    _add_shapes(image, random)
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 2.0))))
    if random.random() < 0.45:
        image = image.convert("L").convert("RGB")
    low, high = np.sort(random.uniform(0, 255, 2)) if random.random() < 0.3 else (0.0, 255.0)
    return np.rint(low + np.asarray(image, dtype=np.float32) * ((high - low) / 255)).astype(np.uint8)


def _enlarged(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    if grid.shape[0] == SIDE:
        return grid
    return np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _add_shapes(image: Image.Image, random: np.random.Generator) -> None:
    """Draw up to five ellipses, polygons or thick strokes in place."""
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(0, 6))):
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        points = [(float(x), float(y)) for x, y in random.uniform(-3, SIDE + 3, (int(random.integers(3, 6)), 2))]
        kind = int(random.integers(3))
        if kind == 0:
            (left, right), (top, bottom) = (sorted(pair) for pair in zip(points[0], points[1], strict=True))
            draw.ellipse((left, top, right, bottom), fill=colour)
        elif kind == 1:
            draw.polygon(points, fill=colour)
        else:
            draw.line(points, fill=colour, width=int(random.integers(1, 6)), joint="curve")


def printed(seed: int, index: int) -> NDArray[np.uint8]:
    """The printed character of a number, (32, 32, 3), uint8."""
    return render(draw_character(seed, index))


def draw_many(kind: str, seed: int, count: int, cache: Path | None = None) -> Tensor:
    """Draw pictures 0..count-1 with two processes, or read them from the cache folder.

    Args:
        kind: "printed" or "texture".
        seed: of the draws.
        count: how many.
        cache: a folder for the pictures, keyed by kind, seed and count; None keeps none.

    Returns:
        (count, 3, 32, 32), uint8.
    """
    file = None if cache is None else cache / f"{kind}-{seed}-{count}.safetensors"
    if file is not None and file.exists():
        return load_file(file)["pictures"]
    draw = partial(printed if kind == "printed" else texture, seed)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pictures = torch.from_numpy(np.stack(list(pool.map(draw, range(count), chunksize=256))))
    pictures = pictures.permute(0, 3, 1, 2).contiguous()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"pictures": pictures}, file)
    return pictures


def as_input(pictures: Tensor) -> Tensor:
    """Scale uint8 pictures to float32 in [-1, 1], the range of the autoencoder."""
    return pictures.float() / 127.5 - 1


def disturbed(images: Tensor, seed: int, purpose: str, step: int) -> Tensor:
    """Move, turn, shear, bend, blur and fade a batch a little; randomness: (seed, purpose, step).

    What a caption says stays true: turns are at most 3 degrees. Half of the batch is blurred, as far as an
    8x8 picture enlarged to 32x32, since handwriting is often stored that small.

    Args:
        images: (n, 3, 32, 32), float32, -1..1.
        seed, purpose, step: of the draw.

    Returns:
        (n, 3, 32, 32), float32, -1..1.
    """
    random = generator(seed, purpose, step)
    count = len(images)
    turn = (torch.rand(count, generator=random) - 0.5) * 0.1
    zoom = 1 + (torch.rand(count, 2, generator=random) - 0.5) * 0.16
    shear = (torch.rand(count, 2, generator=random) - 0.5) * 0.12
    shift = (torch.rand(count, 2, generator=random) - 0.5) * 0.14
    theta = torch.stack(
        [
            torch.stack([zoom[:, 0] * turn.cos(), shear[:, 0] - turn.sin(), shift[:, 0]], 1),
            torch.stack([shear[:, 1] + turn.sin(), zoom[:, 1] * turn.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    # A smooth wobble, as of a hand: the pull of a 5x5 grid of random points.
    wobble = torch.randn(count, 2, 5, 5, generator=random) * 0.07 * torch.rand(count, 1, 1, 1, generator=random)
    pull = torch.nn.functional.interpolate(wobble, size=images.shape[-2:], mode="bicubic")
    grid = grid + pull.permute(0, 2, 3, 1)
    moved = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    side = int((8, 11, 16)[int(torch.randint(3, (1,), generator=random))])
    half = torch.nn.functional.interpolate(moved[: count // 2], size=(side, side), mode="area")
    blurred = torch.nn.functional.interpolate(half, size=images.shape[-2:], mode="bicubic").clamp(-1, 1)
    moved = torch.cat([blurred, moved[count // 2 :]])
    gain = 1 - 0.25 * torch.rand(count, 1, 1, 1, generator=random)
    noise = torch.randn(moved.shape, generator=random) * 0.06 * torch.rand(count, 1, 1, 1, generator=random)
    return ((moved + 1) * gain - 1 + noise).clamp(-1, 1)
