"""Cross-modal mixup: both modalities of a pair are blended with those of another pair, with one lambda for both.

The glossaries of cross-modal and of multimodal data augmentation, "Cross-Modal Mixup"; Zhang et al., "mixup: Beyond
Empirical Risk Minimization", ICLR 2018, for the Beta law. Raw images and token embeddings are mixed (input level), or
the features of both modalities (embedding level); token ids are no numbers that could be mixed. In maths, lambda is
the share of a pair's own content in its mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.randomness import numpy_generator


@dataclass(frozen=True, eq=False)
class Mixture:
    """Which pair each of B pairs is mixed with, and how much of its own it keeps; for all modalities alike.

    Attributes:
        partner: (B,) int64 on the CPU, the row of the other pair; any row, the own one included.
        share: (B,) float32 on the CPU, in [0, 1]: lambda of each pair.

    Raises:
        ValueError: the shapes differ, a partner is no row, or a share is outside [0, 1]; names the value.
    """

    partner: Tensor
    share: Tensor

    def __post_init__(self) -> None:
        if self.partner.ndim != 1 or self.partner.shape != self.share.shape or not len(self.partner):
            raise ValueError(
                f"partner has the shape {tuple(self.partner.shape)} and share {tuple(self.share.shape)}; "
                "both are (B,) with B of 1 at least"
            )
        for number in self.partner.tolist():
            if not 0 <= number < len(self.partner):
                raise ValueError(f"partner {number} is no row of a batch of {len(self.partner)}")
        for value in self.share.tolist():
            if not 0 <= value <= 1:
                raise ValueError(f"share {value:g} is outside [0, 1]")

    def __len__(self) -> int:
        return len(self.partner)


@dataclass(frozen=True, eq=False)
class MixedPairs:
    """B mixed pairs.

    Attributes:
        images: (B, C, H, W) or (B, D), of the type that was given.
        texts: (B, L, D) or (B, D), of the type that was given.
        attention_mask: (B, L) boolean, where a text has a token of its own or of its partner; None if none was given.
    """

    images: Tensor
    texts: Tensor
    attention_mask: Tensor | None = None


def draw_mixture(count: int, alpha: float, seed: int, step: int, per_pair: bool = False) -> Mixture:
    """Draw partners and shares; randomness from (seed, "cross-modal mixup", step).

    The pairs stand in a ring in a drawn order, and each one's partner is the next: none is its own partner, and no two
    are each other's, unless there are too few of them. Two that were each other's partner would become one and the
    same mixture at a share of 1/2, and a contrastive loss would part it from itself.

    Args:
        count: B, pairs of the batch.
        alpha: of Beta(alpha, alpha), above 0: 1 is uniform, small values keep most pairs nearly whole.
        seed: of the training.
        step: global step.
        per_pair: a share for each pair in place of one for the whole batch.

    Raises:
        ValueError: count is below 1, or alpha is no number above 0.
    """
    if count < 1:
        raise ValueError(f"a batch of {count} pairs cannot be mixed")
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha {alpha:g} is no number above 0")
    source = numpy_generator(seed, "cross-modal mixup", step)
    order = torch.from_numpy(source.permutation(count))
    partner = torch.empty(count, dtype=torch.int64)
    partner[order] = order.roll(-1)
    drawn = source.beta(alpha, alpha, count if per_pair else 1)
    return Mixture(partner, torch.from_numpy(drawn).float().expand(count).clone())


def mix(values: Tensor, mixture: Mixture) -> Tensor:
    """lambda * own + (1 - lambda) * partner's, for one modality or for soft targets; exact at lambda of 0 and 1.

    Args:
        values: (B, ...) of a floating type: images, token embeddings, features, or rows of class probabilities.
            Features of length 1 come out shorter: scale them to 1 again where a loss wants that.
        mixture: for these B rows.

    Returns:
        A new tensor of the same shape, type and device; no row is mixed twice.

    Raises:
        ValueError: values are of an integer type, or of another number of rows.
    """
    if not values.is_floating_point():
        raise ValueError(
            f"values of {values.dtype} cannot be mixed: token ids have to be embedded first, and the levels of "
            "an image scaled to floating-point numbers"
        )
    _require_rows(values, mixture, "values")
    partner = mixture.partner.to(values.device)
    share = mixture.share.to(values.device, values.dtype).view(-1, *[1] * (values.ndim - 1))
    # Indexing copies: the partners' rows are those before any of them was mixed.
    return torch.lerp(values[partner], values, share)


def mix_pairs(images: Tensor, texts: Tensor, mixture: Mixture, attention_mask: Tensor | None = None) -> MixedPairs:
    """Mix both modalities of B pairs with the same partner and the same share.

    Args:
        images: (B, C, H, W) pixels, or (B, D) features; floating type.
        texts: (B, L, D) token embeddings, all padded to one length, or (B, D) features; floating type.
        mixture: for these B pairs.
        attention_mask: (B, L), true or 1 where a text has a token.

    Raises:
        ValueError: as `mix`; texts of integers, such as token ids, are refused.
    """
    return MixedPairs(
        mix(images, mixture),
        mix(texts, mixture),
        None if attention_mask is None else mix_masks(attention_mask, mixture),
    )


def mix_masks(attention_mask: Tensor, mixture: Mixture) -> Tensor:
    """Where a mixed text has something to attend to: a token of a text that has a share in it.

    Args:
        attention_mask: (B, L), true or 1 where a text has a token.
        mixture: for these B texts.

    Returns:
        (B, L) boolean.
    """
    _require_rows(attention_mask, mixture, "attention_mask")
    own, share = attention_mask.bool(), mixture.share.to(attention_mask.device)[:, None]
    other = own[mixture.partner.to(own.device)]
    return (own & (share > 0)) | (other & (share < 1))


def soft_targets(labels: Tensor, classes: int, mixture: Mixture) -> Tensor:
    """lambda * y_i + (1 - lambda) * y_j for one-hot y; rows add up to 1.

    Args:
        labels: (B,) int64 classes.
        classes: C, how many there are.
        mixture: for these B pairs.

    Returns:
        (B, C) float32.

    Raises:
        ValueError: a label is no class.
    """
    _require_rows(labels, mixture, "labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"label {low if low < 0 else high} is none of {classes} classes")
    return mix(F.one_hot(labels, classes).float(), mixture)


def hard_targets(labels: Tensor, mixture: Mixture) -> Tensor:
    """The class of the larger part, (B,) as `labels`; the own one at a share of 1/2."""
    _require_rows(labels, mixture, "labels")
    share = mixture.share.to(labels.device)
    return torch.where(share >= 0.5, labels, labels[mixture.partner.to(labels.device)])


def contrastive_targets(mixture: Mixture, both_mixed: bool) -> Tensor:
    """How much of row i, a mixed image, belongs to column k, a text; each row adds up to 1.

    Texts that were left as they are: lambda_i at the image's own text, and 1 - lambda_i at its partner's. Texts that
    were mixed along, with the same partner and share: the whole weight at the text of the same row, since mixed image
    and mixed text say the same, and no other text of the batch says just that. For images that were left as they are
    and mixed texts, rows are the texts and columns the images.

    Args:
        mixture: of the B pairs.
        both_mixed: the texts were mixed along.

    Returns:
        (B, B) float32 on the CPU.
    """
    if both_mixed:
        return torch.eye(len(mixture))
    own = torch.arange(len(mixture))
    targets = torch.zeros(len(mixture), len(mixture))
    # Accumulated, for who is its own partner holds both parts.
    targets.index_put_((own, own), mixture.share, accumulate=True)
    targets.index_put_((own, mixture.partner), 1 - mixture.share, accumulate=True)
    return targets


def soft_contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Symmetric cross entropy of a table of similarities to soft targets; () float32, the mean of both directions.

    In the direction of the columns, the weights of a column are divided by their sum: with a share for each pair they
    need not add up to 1. A column without any weight, a text that is in no image, counts as 0 there.
    With the unit matrix as targets this is the loss of CLIP (Radford et al. 2021, Fig. 3).

    Args:
        logits: (B, B), row i: the scaled similarities of mixed item i to all items of the other modality.
        targets: (B, B) from `contrastive_targets`, on any device.

    Raises:
        ValueError: the two are not of one square shape.
    """
    if logits.shape != targets.shape or logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits are {tuple(logits.shape)} and targets {tuple(targets.shape)}, not both (B, B)")
    logits, targets = logits.float(), targets.to(logits.device, torch.float32)
    columns = targets / targets.sum(dim=0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    forward = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    backward = -(columns * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (forward + backward) / 2


def _require_rows(values: Tensor, mixture: Mixture, name: str) -> None:
    if not values.ndim or len(values) != len(mixture):
        raise ValueError(f"{name} of shape {tuple(values.shape)} have not the {len(mixture)} rows of the mixture")
