"""Modality dropout: in training a sample loses whole modalities now and then, but never all of them.

The glossaries of cross-modal and of multimodal data augmentation, "Modality Dropout"; Neverova et al., "ModDrop", IEEE
TPAMI 2016. Each modality of a sample is dropped by itself with its probability; a draw in which all of them are dropped
does not count and is made again. So a set S of dropped modalities has the probability

    prod_{m in S} p_m * prod_{m not in S} (1 - p_m) / (1 - prod_m p_m),   S not all modalities.

Nothing is really drawn twice: one number decides between all those sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from mvc.randomness import generator, numpy_generator

_MOST = 12
"""Modalities at most: there are 2^n sets of them."""


def dropped_sets(probabilities: Mapping[str, float]) -> dict[frozenset[str], float]:
    """The exact probability of each set of modalities that can be missing from a sample; they add up to 1.

    Args:
        probabilities: of each modality, in [0, 1], before all-dropped draws are made again.

    Raises:
        ValueError: fewer than two modalities or too many, a probability outside [0, 1], or all of them 1.
    """
    names = list(probabilities)
    if not 2 <= len(names) <= _MOST:
        raise ValueError(f"modality dropout needs 2 to {_MOST} modalities, and {len(names)} are named: {names}")
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"the probability {value:g} of {name} is outside [0, 1]")
    all_dropped = prod(probabilities.values())
    if all_dropped == 1:
        raise ValueError(f"the probabilities of {', '.join(names)} are all 1: nothing would be left of a sample")
    sets = {}
    for gone in product((False, True), repeat=len(names)):
        if not all(gone):
            shares = [p if out else 1 - p for p, out in zip(probabilities.values(), gone, strict=True)]
            missing = frozenset(name for name, out in zip(names, gone, strict=True) if out)
            sets[missing] = prod(shares) / (1 - all_dropped)
    return sets


def dropped_share(probabilities: Mapping[str, float]) -> dict[str, float]:
    """How often each modality is really missing: p_m (1 - prod of the others) / (1 - prod of all).

    Less than p_m, because draws that drop everything are made again: for two modalities of 0.3 each it is 0.23.

    Args:
        probabilities: as in `dropped_sets`.

    Raises:
        ValueError: as `dropped_sets`.
    """
    sets = dropped_sets(probabilities)
    return {name: sum(share for missing, share in sets.items() if name in missing) for name in probabilities}


class ModalityDropout(nn.Module):
    """Replaces whole modalities of samples by zeros, or by learned vectors, in training; the identity in evaluation.

    What is left is not scaled up, as elements are after dropout: a missing modality is a state of its own that a
    network meets again when it is used.

    Args:
        probabilities: of each modality by name, as in `dropped_sets`.
        seed: randomness from (seed, "modality dropout", step); row i of a batch has the i-th draw of it.
        widths: D of each modality, for a learned vector in place of zeros, begun from (seed, "modality mask", its
            number) at a standard deviation of 0.02; modalities that are not named become zeros.

    Raises:
        ValueError: as `dropped_sets`, or a width is below 1 or of an unknown modality.
    """

    def __init__(self, probabilities: Mapping[str, float], seed: int, widths: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.probabilities, self.seed = dict(probabilities), seed
        sets = {missing: share for missing, share in dropped_sets(self.probabilities).items() if share > 0}
        self._kept = np.array([[name not in missing for name in self.probabilities] for missing in sets])
        self._bounds = np.cumsum(list(sets.values()))
        self._bounds[-1] = np.inf  # so that rounding leaves no number without a set
        self.masks = nn.ParameterDict()
        for number, (name, width) in enumerate((widths or {}).items()):
            if name not in self.probabilities or width < 1:
                raise ValueError(f"the width {width} of {name} fits none of {', '.join(self.probabilities)}")
            drawn = torch.randn(width, generator=generator(seed, "modality mask", number))
            self.masks[name] = nn.Parameter(0.02 * drawn)

    def kept(self, count: int, step: int) -> dict[str, Tensor]:
        """Which samples of a batch keep each modality: (count,) boolean on the CPU, by name.

        Args:
            count: B, samples of the batch.
            step: global step.
        """
        drawn = numpy_generator(self.seed, "modality dropout", step).random(count)
        rows = self._kept[np.searchsorted(self._bounds, drawn, side="right")]
        return {name: torch.from_numpy(rows[:, place].copy()) for place, name in enumerate(self.probabilities)}

    def forward(self, features: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Drop modalities of a batch.

        Args:
            features: by name, (B, D), (B, L, D) or any other (B, ..., D); all of one B. A learned vector stands at
                each place of a sequence. Dropped values may be anything, NaN included, and get no gradient.
            step: global step; it does not matter in evaluation mode.

        Raises:
            ValueError: a modality is missing or unknown, numbers of samples differ, or D is not the mask's width.
        """
        counts = self._counts(features)
        if not self.training:
            return dict(features)
        kept = self.kept(counts, step)
        return {name: self._replaced(name, values, kept[name]) for name, values in features.items()}

    def _counts(self, features: Mapping[str, Tensor]) -> int:
        if set(features) != set(self.probabilities):
            raise ValueError(f"the modalities {', '.join(features)} are not {', '.join(self.probabilities)}")
        shapes = {name: tuple(values.shape) for name, values in features.items()}
        if any(len(shape) < 2 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"modalities are (B, ..., D) of one B, and these are {shapes}")
        for name, mask in self.masks.items():
            if shapes[name][-1] != len(mask):
                raise ValueError(f"{name} is {shapes[name]}, and its mask has the width {len(mask)}")
        return next(iter(shapes.values()))[0]

    def _replaced(self, name: str, values: Tensor, kept: Tensor) -> Tensor:
        own = kept.to(values.device).view(-1, *[1] * (values.ndim - 1))
        mask = self.masks[name].to(values.dtype) if name in self.masks else values.new_zeros(())
        # Chosen and not multiplied: zero times an infinite value would be no number.
        return torch.where(own, values, mask)
