"""MixGen on features: encoded images are interpolated and encoded texts joined (embedding level).

Hao et al., "MixGen: A New Multi-Modal Data Augmentation", Sec. 2.2, Eq. (2). In the paper it helps less than the input
level does. All functions are differentiable, make copies, and send gradients to both texts or images of a new pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvc.mixgen import blend, partner_rows
from mvc.mixgen_plan import MixGenPlan

_ON_FEATURES = ("default", "a")
"""The other variants of Table 6 are about words and whole images, of which features are made up no more."""


def mix_image_features(plan: MixGenPlan, features: Tensor) -> Tensor:
    """Features of a batch's images with the first M replaced: lambda * own + (1 - lambda) * partner's.

    Args:
        plan: of this batch, of variant default or a.
        features: (B, ...) float; pooled ones (B, D) or sequences of patches (B, N, D). A mixture of unit vectors is
            shorter than 1: mix before a loss normalises them.

    Returns:
        As `features`.

    Raises:
        ValueError: there are not B rows of floats, or the variant is another one.
    """
    _check(plan, features, "rows of image features", 2)
    new = blend(features[: len(plan)], partner_rows(plan, features), plan.mix)  # Eq. (2)
    return torch.cat([new, features[len(plan) :]])


def join_text_features(plan: MixGenPlan, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of text features with the first M replaced by own and partner's, one behind the other.

    The padding of the own text stays where it was, in the middle; a model that is told of the mask looks at neither
    that nor the padding at the end. Rows that are not mixed are padded to the new length with zeros.

    Args:
        plan: of this batch, of variant default or a.
        features: (B, L, D) float, from a text encoder.
        mask: (B, L), bool or integers, true where there is a token; or (B,) int64, the number of tokens of each row.

    Returns:
        (B, 2L, D) as `features`, and its mask (B, 2L) bool.

    Raises:
        ValueError: shapes don't go together, there are not B rows of floats, or the variant is another one.
    """
    _check(plan, features, "rows of text features", 3)
    there = _as_mask(mask, features)
    joined, joined_there = (
        torch.cat([own, torch.cat([partner_rows(plan, own), torch.zeros_like(own[len(plan) :])])], dim=1)  # Eq. (2)
        for own in (features, there)
    )
    return joined, joined_there


def mean_text_features(plan: MixGenPlan, features: Tensor) -> Tensor:
    """Pooled text features with the first M replaced by the mean of own and partner's.

    For dual encoders such as CLIP, which make one vector of a text. There is no sequence to concatenate then: what a
    pooled encoder can take of the concatenation is the mean of the two pooled vectors. (Where tokens are pooled by
    their mean, and both texts have equally many, that is exact.) As in the concatenation, lambda has no part in it.

    Args:
        plan: of this batch, of variant default or a.
        features: (B, D) float. A mean of unit vectors is shorter than 1: take it before a loss normalises them.

    Returns:
        As `features`.

    Raises:
        ValueError: there are not B rows of floats, or the variant is another one.
    """
    _check(plan, features, "rows of text features", 2)
    new = torch.lerp(features[: len(plan)], partner_rows(plan, features), 0.5)
    return torch.cat([new, features[len(plan) :]])


def _check(plan: MixGenPlan, features: Tensor, what: str, least: int) -> None:
    if plan.variant not in _ON_FEATURES:
        raise ValueError(
            f"variant '{plan.variant}' of MixGen is of words and images (Table 6), not of features: "
            f"one of {', '.join(_ON_FEATURES)}"
        )
    if features.dim() < least or not features.dtype.is_floating_point:
        raise ValueError(
            f"features are a {features.dtype} tensor of shape {tuple(features.shape)}: give floats, {least} dimensions"
        )
    plan.check_size(len(features), what)


def _as_mask(mask: Tensor, features: Tensor) -> Tensor:
    """(B, L) bool."""
    rows, length = features.shape[:2]
    if mask.shape == (rows, length):
        return mask.bool()
    if mask.shape == (rows,) and not mask.dtype.is_floating_point and mask.dtype != torch.bool:
        if bool(((mask < 0) | (mask > length)).any()):
            raise ValueError(f"lengths go from {int(mask.min())} to {int(mask.max())}, outside 0 to {length}")
        return torch.arange(length, device=mask.device) < mask[:, None]
    raise ValueError(
        f"the mask is a {mask.dtype} tensor of shape {tuple(mask.shape)}: "
        f"give ({rows}, {length}), or ({rows},) integers"
    )
