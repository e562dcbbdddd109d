"""MixGen's plan of a batch: which rows become new pairs, of which partners, and by which shares.

Hao et al., "MixGen: A New Multi-Modal Data Augmentation", Sec. 2, Algorithm 1 and Table 6. A plan is drawn from the
size of the batch alone, before any image or text is looked at. So images, words, token ids and features can be mixed
by the same plan, and it can be kept and applied again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mvc.randomness import numpy_generator

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]

VARIANTS = ("default", "a", "b", "c", "d", "e")
"""The default and the variants of Table 6, by their letters there."""
BETA_ALPHA = 0.1
"""Variants a, d and e draw the image's share from Beta(alpha, alpha): mostly near 0 or near 1."""


@dataclass(frozen=True, eq=False)
class MixGenPlan:
    """How the first M rows of a batch of B pairs become new pairs; all other rows stay as they are.

    Attributes:
        batch_size: B.
        variant: one of VARIANTS.
        partner: (M,) int64, the other row of new pair i; never i itself.
        mix: (M,) float64 in [0, 1], lambda: the share of the row's own image. Under variant c it is 1 or 0.
        takes_partner: (M,) bool, under b whether the text is the partner's, under c whether the image is.
        token_seed: (M,) int64, decides under d and e which tokens stay.
    """

    batch_size: int
    variant: str
    partner: Integers
    mix: Floats
    takes_partner: Booleans
    token_seed: Integers

    def __len__(self) -> int:
        """M, the number of new pairs."""
        return len(self.partner)

    def tokens(self, row: int, own: int, other: int) -> Integers:
        """Which tokens make up the text of a new pair (Table 6, column "Text").

        What is left out is drawn from the row's `token_seed`. Of a text that is thinned, one token at least stays, so
        that under d both texts are still there when lambda is all but 0 or 1.

        Args:
            row: 0 to M - 1.
            own: number of tokens of the row's own text, 1 at least.
            other: number of tokens of its partner's, 1 at least.

        Returns:
            int64 places, in ascending order, in the own tokens followed by the partner's.
        """
        random = numpy_generator(int(self.token_seed[row]), "mixgen tokens")
        match self.variant:
            case "b":
                return np.arange(own, own + other) if self.takes_partner[row] else np.arange(own)
            case "d":
                mix = float(self.mix[row])
                return np.concatenate([_thinned(own, mix, random), own + _thinned(other, 1 - mix, random)])
            case "e":
                return _thinned(own + other, 0.5, random)
        return np.arange(own + other)

    def check_size(self, count: int, what: str) -> None:
        """Refuse to mix a batch that the plan was not drawn for.

        Raises:
            ValueError: `count` of `what` is not B.
        """
        if count != self.batch_size:
            raise ValueError(f"the plan is for a batch of {self.batch_size} pairs, and there are {count} {what}")


def _thinned(count: int, share: float, random: np.random.Generator) -> Integers:
    """Random places below `count` in ascending order, round(share * count) of them, and one at least."""
    kept = max(1, round(share * count))
    return np.sort(random.choice(count, kept, replace=False))


def plan_mixgen(
    batch_size: int, random: np.random.Generator, variant: str = "default", share: float = 0.25, mix: float = 0.5
) -> MixGenPlan:
    """Draw the plan of a batch (MixGen, Algorithm 1 and Table 6).

    | variant | image | text | lambda |
    |---|---|---|---|
    | default | mixed | both, joined | `mix` |
    | a | mixed | both, joined | Beta(0.1, 0.1), drawn for each new pair |
    | b | mixed | one of the two | `mix` |
    | c | one of the two | both, joined | |
    | d | mixed | lambda of the own, 1 - lambda of the other's tokens, joined | as a |
    | e | mixed | a random half of all tokens | as a |

    Partners: as long as 2M <= B, row i gets row i + M, which is no new pair itself. Above that the rows stand in a
    ring in a drawn order, and each one's partner is the next: none is its own, and each is the partner of one at most
    (the paper shuffles, Sec. 4). Everything a variant could need is drawn under each of them, so that from equal
    generators all variants have the same partners and a, d and e the same lambdas.

    Args:
        batch_size: B, 2 at least unless `share` is 0.
        random: moves on; for plans by step take `numpy_generator(seed, "mixgen", step)`.
        variant: one of VARIANTS.
        share: M / B, in [0, 1]. M is round(share * B), and 1 at least if the share is above 0.
        mix: lambda of default and b, in [0, 1]: the share of the row's own image. The others take none.

    Raises:
        ValueError: an argument is out of its range; the text names its value.
    """
    _check_arguments(batch_size, variant, share, mix)
    count = max(1, round(share * batch_size)) if share > 0 else 0
    partner = _partners(batch_size, count, random)
    drawn = random.beta(BETA_ALPHA, BETA_ALPHA, count)
    takes_partner = random.integers(2, size=count).astype(np.bool_)
    token_seed = random.integers(2**62, size=count)
    match variant:
        case "a" | "d" | "e":
            shares = drawn
        case "c":
            shares = np.where(takes_partner, 0.0, 1.0)
        case _:
            shares = np.full(count, float(mix))
    return MixGenPlan(batch_size, variant, partner, shares, takes_partner, token_seed)


def _partners(batch_size: int, count: int, random: np.random.Generator) -> Integers:
    if 2 * count <= batch_size:
        return np.arange(count, 2 * count)
    order = random.permutation(batch_size)
    partner = np.empty(batch_size, np.int64)
    partner[order] = np.roll(order, -1)
    return partner[:count]


def _check_arguments(batch_size: int, variant: str, share: float, mix: float) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant '{variant}' of MixGen; one of {', '.join(VARIANTS)}")
    # Written this way round, they refuse what is no number too.
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is not in [0, 1]: it is the share of a batch that becomes new pairs")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix={mix} is not in [0, 1]: it is lambda, the share of a row's own image")
    if batch_size < 2 and (share > 0 or batch_size < 1):
        raise ValueError(
            f"a batch of {batch_size} has no partners to mix: give 2 pairs at least "
            "(drop_last=True of a DataLoader drops a last batch that is too small)"
        )
