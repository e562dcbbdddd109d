"""Cross-modal consistency losses: what a model makes of one concept shall not differ over its modalities.

The glossaries of cross-modal and of multimodal data augmentation, "Cross-Modal Consistency Loss". There are losses of
predictions (`symmetric_kl`, `jensen_shannon`), of features (`feature_distance`), and of the geometry of a batch
(`cross_modal_geometry`, `in_modal_geometry`; Goel et al., "CyCLIP", NeurIPS 2022). All are 0 for equal inputs, do not
change when the two are exchanged, and compute in float32 at least. They are added to the loss of the task with a
weight: by themselves they are least where everything is predicted alike.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 = 1/2 sum_c (p_c - q_c) (log p_c - log q_c), in nats; from 0 to any size.

    Punishes confident predictions that contradict each other without bound: for `jensen_shannon` they count ln 2.

    Args:
        first, second: (B, C) finite logits of the same samples, from two modalities.

    Returns:
        () float32, the mean over B.

    Raises:
        ValueError: the shapes are no equal (B, C), or the type is no floating one.
    """
    one, other = (values.log_softmax(dim=1) for values in _pair(first, second, "logits"))
    return ((one.exp() - other.exp()) * (one - other)).sum(dim=1).mean() / 2


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats; from 0 to ln 2.

    Args:
        first, second: (B, C) finite logits of the same samples, from two modalities.

    Returns:
        () float32, the mean over B.

    Raises:
        ValueError: as `symmetric_kl`.
    """
    one, other = (values.log_softmax(dim=1) for values in _pair(first, second, "logits"))
    middle = torch.logaddexp(one, other) - log(2)
    return (one.exp() * (one - middle) + other.exp() * (other - middle)).sum(dim=1).mean() / 2


def feature_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of features that are scaled to length 1, which is 2 - 2 cos; from 0 to 4.

    Args:
        first, second: (B, D) features of the same samples, from two modalities, in one space. A feature of length 0
            stays 0.

    Returns:
        () float32, the mean over B.

    Raises:
        ValueError: as `symmetric_kl`.
    """
    one, other = _unit(first, second)
    return (one - other).square().sum(dim=1).mean()


def cross_modal_geometry(images: Tensor, texts: Tensor) -> Tensor:
    """Mean over j and k of (<I_j, T_k> - <I_k, T_j>)^2: image j is as like text k as image k is like text j.

    Args:
        images, texts: (B, D) features of B pairs in one space; they are scaled to length 1.

    Returns:
        () float32. The paper's sum over j and k divided by B is B times this, which grows with the batch.

    Raises:
        ValueError: as `symmetric_kl`.
    """
    one, other = _unit(images, texts)
    table = one @ other.T
    return (table - table.T).square().mean()


def in_modal_geometry(images: Tensor, texts: Tensor) -> Tensor:
    """Mean over j and k of (<I_j, I_k> - <T_j, T_k>)^2: two images are as like each other as their texts are.

    Features of the two modalities are compared with their own kind alone, so that D may differ.

    Args:
        images, texts: (B, D) and (B, D') features of B pairs; they are scaled to length 1.

    Returns:
        () float32. The paper's sum over j and k divided by B is B times this, which grows with the batch.

    Raises:
        ValueError: the numbers of rows differ, or the type is no floating one.
    """
    if images.ndim != 2 or texts.ndim != 2 or len(images) != len(texts) or not len(images):
        raise ValueError(f"features are {tuple(images.shape)} and {tuple(texts.shape)}, not of B pairs each")
    one, other = (F.normalize(_wide(values, "features"), dim=1) for values in (images, texts))
    return (one @ one.T - other @ other.T).square().mean()


def _unit(first: Tensor, second: Tensor) -> list[Tensor]:
    return [F.normalize(values, dim=1) for values in _pair(first, second, "features")]


def _pair(first: Tensor, second: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or first.shape != second.shape or not first.numel():
        raise ValueError(f"{what} are {tuple(first.shape)} and {tuple(second.shape)}, not of one shape (B, n)")
    return _wide(first, what), _wide(second, what)


def _wide(values: Tensor, what: str) -> Tensor:
    """At least float32: differences of half-precision values lose what they are about."""
    if not values.is_floating_point():
        raise ValueError(f"{what} of {values.dtype} are no floating-point numbers")
    return values if values.dtype == torch.float64 else values.float()
