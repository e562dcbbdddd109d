"""Latent interpolation: new pairs between two pairs of one class, on a line or on a great circle.

The glossary of multimodal data augmentation, "Latent space interpolation"; Shoemake, "Animating Rotation with
Quaternion Curves", SIGGRAPH 1985, for the spherical form. Latents of a diffusion model are near a sphere, of radius
sqrt(d) for noise: what lies on a straight line between two of them is too short, and decodes pale and smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvc.randomness import numpy_generator

Interpolate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(first (B, ...), second (B, ...), t (B,)) to (B, ...): `lerp` or `slerp`."""


@dataclass(frozen=True, eq=False)
class Between:
    """Where n new pairs lie.

    Attributes:
        first, second: (n,) int64, rows of the two pairs; of one class, and different.
        t: (n,) float32 in [0, 1], how far from the first to the second; for both modalities.
    """

    first: Tensor
    second: Tensor
    t: Tensor


def lerp(first: Tensor, second: Tensor, t: float | Tensor) -> Tensor:
    """(1 - t) * first + t * second, on the straight line; exact at both ends.

    Args:
        first, second: (B, ...) of a floating type.
        t: one number, or (B,), in [0, 1].

    Raises:
        ValueError: shapes differ, a type is no floating one, or a t is outside [0, 1]; names the value.
    """
    along = _along(first, second, t).to(first.dtype)
    return torch.lerp(first, second, along.view(-1, *[1] * (first.ndim - 1)))


def slerp(first: Tensor, second: Tensor, t: float | Tensor) -> Tensor:
    """Along the great circle between two directions, at constant angular speed; lengths go along a line.

    Each sample counts as one vector, whatever its shape. Between vectors of one length the length stays. Nearly
    parallel vectors lose no precision: their angle comes from an arc tangent, and nothing is divided by its sine.
    Between vectors that point against each other all ways are equally long: the one over the axis that the first is
    least along is taken. From or to a vector of length 0, which has no direction, it is `lerp`.

    Args:
        first, second: (B, ...) of a floating type: features (B, D), latents (B, 4, h, w) and the like.
        t: one number, or (B,), in [0, 1]; the ends are exact.

    Returns:
        (B, ...) of the type that was given; computed in float32 at least.

    Raises:
        ValueError: as `lerp`, or opposite vectors of one number alone, which have no way around.
    """
    share = _along(first, second, t)[:, None]
    one, other = (values.flatten(1).to(share.dtype) for values in (first, second))
    (start, length), (end, other_length) = _direction(one), _direction(other)
    angle = 2 * torch.atan2((start - end).norm(dim=1, keepdim=True), (start + end).norm(dim=1, keepdim=True))
    turned = (share * angle).cos() * start + (share * angle).sin() * _across(start, end)
    no_direction = (length == 0) | (other_length == 0)
    made = torch.where(no_direction, torch.lerp(one, other, share), torch.lerp(length, other_length, share) * turned)
    made = torch.where(share == 0, one, torch.where(share == 1, other, made))
    return made.to(first.dtype).view_as(first)


def _direction(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) vectors as those of length 1, and their lengths (B, 1); of length 0 where there is no direction."""
    length = values.norm(dim=1, keepdim=True)
    return values / length.clamp_min(torch.finfo(values.dtype).tiny), length


def _across(start: Tensor, end: Tensor) -> Tensor:
    """The unit vector at a right angle to `start` on the side of `end`; both (B, n) of length 1."""
    across = end - (start * end).sum(dim=1, keepdim=True) * start
    # Opposite vectors, and equal ones, leave nothing but rounding: any right angle will do.
    lost = across.norm(dim=1, keepdim=True) < 8 * torch.finfo(start.dtype).eps
    opposite = lost & ((start * end).sum(dim=1, keepdim=True) < 0)
    if start.shape[1] == 1 and bool(opposite.any()):
        raise ValueError(f"vectors of one number, such as {start[opposite][0]:g} and its opposite, have no way around")
    least = torch.zeros_like(start).scatter_(1, start.abs().argmin(dim=1, keepdim=True), 1)
    across = torch.where(lost, least, across)
    for _ in range(2):  # the first time leaves rounding of the size of what it took away
        across = across - (start * across).sum(dim=1, keepdim=True) * start
        across = across / across.norm(dim=1, keepdim=True).clamp_min(torch.finfo(start.dtype).tiny)
    return across


def _along(first: Tensor, second: Tensor, t: float | Tensor) -> Tensor:
    """t as (B,), float32 at least, on the device of `first`; all arguments checked."""
    if first.shape != second.shape or first.ndim < 2 or first.dtype != second.dtype:
        shapes = " and ".join(f"{tuple(values.shape)} {values.dtype}" for values in (first, second))
        raise ValueError(f"samples are {shapes}, not (B, ...) of one shape and type")
    if not first.is_floating_point():
        raise ValueError(f"values of {first.dtype} have nothing between them")
    along = torch.as_tensor(t, dtype=torch.float64).cpu()
    if along.ndim > 1 or along.ndim and len(along) != len(first):
        raise ValueError(f"t is {tuple(along.shape)} for {len(first)} samples")
    for value in along.reshape(-1).tolist():
        if not 0 <= value <= 1:
            raise ValueError(f"t {value:g} is outside [0, 1]")
    return along.to(first.device, torch.promote_types(first.dtype, torch.float32)).expand(len(first))


def draw_between(labels: Sequence[int], indices: Sequence[int], seed: int) -> Between:
    """Draw where new pairs lie; randomness from (seed, "latent interpolation", index), one index a new pair.

    The first pair is uniform among those whose class has another one, the second uniform among the others of its
    class, and t uniform in [0, 1).

    Args:
        labels: class of each of N pairs.
        indices: (n) global numbers >= 0 of the new pairs.
        seed: of the augmentation.

    Raises:
        ValueError: no class has two pairs.
    """
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(int(label), []).append(row)
    able = [row for row, label in enumerate(labels) if len(members[int(label)]) > 1]
    if not able:
        raise ValueError(f"none of the {len(members)} classes of {len(labels)} pairs has two of them")
    drawn = []
    for index in indices:
        source = numpy_generator(seed, "latent interpolation", index)
        first = able[int(source.integers(len(able)))]
        others = [row for row in members[int(labels[first])] if row != first]
        drawn.append((first, others[int(source.integers(len(others)))], float(source.random())))
    firsts, seconds, along = (np.array([row[place] for row in drawn]) for place in range(3))
    return Between(
        torch.from_numpy(firsts.astype(np.int64)),
        torch.from_numpy(seconds.astype(np.int64)),
        torch.from_numpy(along.astype(np.float32)),
    )


def interpolate_pairs(
    images: Tensor, texts: Tensor, between: Between, image_path: Interpolate = slerp, text_path: Interpolate = slerp
) -> tuple[Tensor, Tensor]:
    """New pairs: both modalities of each go equally far from the first pair to the second one.

    Args:
        images: (N, ...) features or latents of the images of N pairs.
        texts: (N, ...) features or embeddings of their texts.
        between: where the n new pairs lie; their class is that of row `between.first`.
        image_path: `slerp` for latents and for features of length 1, or `lerp`.
        text_path: likewise.

    Returns:
        images (n, ...) and texts (n, ...).

    Raises:
        ValueError: numbers of images and texts differ, or as `slerp`.
    """
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts are no pairs")
    made = []
    for values, path in ((images, image_path), (texts, text_path)):
        first, second = (values[rows.to(values.device)] for rows in (between.first, between.second))
        made.append(path(first, second, between.t))
    return made[0], made[1]
