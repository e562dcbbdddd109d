"""MixGen: new image-text pairs, whose images are interpolated and whose texts are joined (input level).

Hao et al., "MixGen: A New Multi-Modal Data Augmentation", Sec. 2, Eq. (1), Algorithm 1 and Table 6. All new rows are
made from the batch as it came in before any is written. So also in place, no row is mixed with one that has been mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvc.mixgen_plan import Floats, MixGenPlan, plan_mixgen

MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of PIL images that can be mixed: 8 bits a channel, and no palette."""

_Item = TypeVar("_Item")


@overload
def mixgen(
    images: Tensor,
    texts: Sequence[str],
    random: np.random.Generator,
    *,
    variant: str = ...,
    share: float = ...,
    mix: float = ...,
    in_place: bool = ...,
) -> tuple[Tensor, list[str]]: ...


@overload
def mixgen(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    random: np.random.Generator,
    *,
    variant: str = ...,
    share: float = ...,
    mix: float = ...,
    in_place: bool = ...,
) -> tuple[list[Image.Image], list[str]]: ...


def mixgen(
    images: Tensor | Sequence[Image.Image],
    texts: Sequence[str],
    random: np.random.Generator,
    *,
    variant: str = "default",
    share: float = 0.25,
    mix: float = 0.5,
    in_place: bool = False,
) -> tuple[Tensor | list[Image.Image], list[str]]:
    """Replace the first rows of a batch by new pairs (MixGen, Algorithm 1).

    Args:
        images: (B, C, H, W), float of any range or uint8; or B PIL images, all of one size and mode.
        texts: B captions of a word at least, row by row those of the images.
        random: as in `plan_mixgen`.
        variant, share, mix: as in `plan_mixgen`.
        in_place: write into `images` and `texts` (then lists, where not a tensor) and return these. Rows that are not
            mixed are not even copied. PIL images are not changed themselves; the list gets new ones.

    Returns:
        Images and texts of the same kinds, B of each. Rows from M on are as they were, to the bit.

    Raises:
        ValueError: as in `plan_mixgen`, `mix_images` and `mix_texts`; nothing is written then.
    """
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts: a pair has one of each")
    plan = plan_mixgen(len(images), random, variant, share, mix)
    if isinstance(images, Tensor):
        new_images, new_texts = _image_rows(plan, images), _text_rows(plan, texts, in_place)
        return _put_rows(images, new_images, in_place), _put_items(texts, new_texts, in_place)
    new_pictures, new_texts = _picture_rows(plan, images, in_place), _text_rows(plan, texts, in_place)
    return _put_items(images, new_pictures, in_place), _put_items(texts, new_texts, in_place)


@overload
def mix_images(plan: MixGenPlan, images: Tensor, in_place: bool = False) -> Tensor: ...


@overload
def mix_images(plan: MixGenPlan, images: Sequence[Image.Image], in_place: bool = False) -> list[Image.Image]: ...


def mix_images(
    plan: MixGenPlan, images: Tensor | Sequence[Image.Image], in_place: bool = False
) -> Tensor | list[Image.Image]:
    """The images of a batch with the first M replaced by those of the new pairs (MixGen, Eq. (1)).

    No randomness. uint8 and PIL images are mixed in float32 and rounded, halves to the even level; float16 and bfloat16
    are mixed in float32 too. Exact at a lambda of 0 or 1, and under variant c.

    Args:
        plan: of this batch.
        images, in_place: as in `mixgen`.

    Raises:
        ValueError: there are not B images, or their shape, type, sizes or modes cannot be mixed; the text names them.
    """
    if isinstance(images, Tensor):
        return _put_rows(images, _image_rows(plan, images), in_place)
    return _put_items(images, _picture_rows(plan, images, in_place), in_place)


def mix_texts(plan: MixGenPlan, texts: Sequence[str], in_place: bool = False) -> list[str]:
    """The texts of a batch with the first M replaced by those of the new pairs (MixGen, Eq. (1), Table 6).

    Texts are joined by a space, as they are. Variants d and e leave words out: what stands between white space.

    Args:
        plan: of this batch.
        texts, in_place: as in `mixgen`.

    Raises:
        ValueError: there are not B texts, or one has no word; the text names the row.
    """
    return _put_items(texts, _text_rows(plan, texts, in_place), in_place)


def blend(own: Tensor, other: Tensor, mix: Floats) -> Tensor:
    """mix * own + (1 - mix) * other, row by row, in float32 or wider; exact at shares of 0 and 1.

    Args:
        own, other: (M, ...) of one shape and type: float, or uint8, which is rounded.
        mix: (M,) in [0, 1].
    """
    working = own.dtype if own.dtype in (torch.float32, torch.float64) else torch.float32
    weight = torch.from_numpy(1.0 - mix).to(own.device, working).view(-1, *[1] * (own.dim() - 1))
    mixed = torch.lerp(own.to(working), other.to(working), weight)  # Eq. (1)
    return (mixed if own.dtype.is_floating_point else mixed.round()).to(own.dtype)


def partner_rows(plan: MixGenPlan, rows: Tensor) -> Tensor:
    """A copy (M, ...) of each new pair's partner among rows (B, ...)."""
    return rows[torch.from_numpy(plan.partner).to(rows.device)]


def _image_rows(plan: MixGenPlan, images: Tensor) -> Tensor:
    """(M, C, H, W), the images of the new pairs."""
    if images.dim() != 4 or not (images.dtype.is_floating_point or images.dtype == torch.uint8):
        raise ValueError(
            f"images are a {images.dtype} tensor of shape {tuple(images.shape)}: give (B, C, H, W) of floats or uint8"
        )
    plan.check_size(len(images), "images")
    own, other = images[: len(plan)], partner_rows(plan, images)
    if plan.variant == "c":
        return torch.where(torch.from_numpy(plan.takes_partner).to(own.device).view(-1, 1, 1, 1), other, own)
    return blend(own, other, plan.mix)


def _picture_rows(plan: MixGenPlan, images: Sequence[Image.Image], in_place: bool) -> list[Image.Image]:
    """The M images of the new pairs."""
    _check_list(images, in_place)
    plan.check_size(len(images), "images")
    pairs = [(images[row], images[partner]) for row, partner in enumerate(plan.partner.tolist())]
    if plan.variant == "c":
        return [(other if taken else own).copy() for (own, other), taken in zip(pairs, plan.takes_partner, strict=True)]
    first = images[0]
    for row, image in enumerate(images):
        if (image.size, image.mode) != (first.size, first.mode):
            raise ValueError(
                f"image {row} is {_kind(image)}, and image 0 is {_kind(first)}: give all one size and mode"
            )
    if first.mode not in MODES:
        raise ValueError(f"images of mode {first.mode} cannot be mixed: convert them to one of {', '.join(MODES)}")
    if not pairs:
        return []
    own, other = (
        torch.from_numpy(np.stack([np.asarray(image) for image in side])) for side in zip(*pairs, strict=True)
    )
    mixed = blend(own, other, plan.mix).numpy()
    return [Image.frombytes(first.mode, first.size, pixels.tobytes()) for pixels in mixed]


def _kind(image: Image.Image) -> str:
    return f"{image.width}x{image.height} {image.mode}"


def _text_rows(plan: MixGenPlan, texts: Sequence[str], in_place: bool) -> list[str]:
    """The M texts of the new pairs."""
    if isinstance(texts, str):
        raise ValueError(f"texts is the one text {texts!r}: give a list of one text a row")
    _check_list(texts, in_place)
    plan.check_size(len(texts), "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {row} is {text!r}: every pair needs a caption of a word at least")
    return [_text(plan, row, texts[row], texts[partner]) for row, partner in enumerate(plan.partner.tolist())]


def _text(plan: MixGenPlan, row: int, own: str, other: str) -> str:
    match plan.variant:
        case "b":
            return other if plan.takes_partner[row] else own
        case "d" | "e":
            words, others = own.split(), other.split()
            both = [*words, *others]
            return " ".join(both[place] for place in plan.tokens(row, len(words), len(others)))
    return f"{own} {other}"


def _check_list(items: Sequence[object], in_place: bool) -> None:
    if in_place and not isinstance(items, list):
        raise ValueError(f"a {type(items).__name__} cannot be mixed in place: give a list")


def _put_items(items: Sequence[_Item], rows: list[_Item], in_place: bool) -> list[_Item]:
    if in_place and isinstance(items, list):
        items[: len(rows)] = rows
        return items
    return [*rows, *items[len(rows) :]]


def _put_rows(images: Tensor, rows: Tensor, in_place: bool) -> Tensor:
    if in_place:
        images[: len(rows)] = rows
        return images
    return torch.cat([rows, images[len(rows) :]])
