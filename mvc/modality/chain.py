"""Back-Modality, X_aug = G(H(F(X))): steps in a row, their fan-out, filters that draw again, and a uniform choice.

Li et al. 2023, "Back-Modality: Leveraging Modal Transformation for Data Augmentation", Sec. 2. Of l x m x n possible
augmentations of a sample some are chosen uniformly. Here the choice comes first: the leaves are put in a random order,
and the first ones that the filters let pass are taken, which is the same as to make all and to choose among those that
pass, without making what nobody takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod

import numpy as np

from mvc.errors import ConfigError
from mvc.randomness import numpy_generator

from .nodes import Level, Node, Nodes, Path, Sample
from .steps import Item, Output, Refused
from .store import Store

UNCHANGED, REPEAT = "same as the original", "same as another one"


@dataclass(frozen=True)
class Leaf:
    """One augmentation.

    Attributes:
        path: which output of each level it is.
        trail: the outputs of all levels on the way, the last one is the augmentation.
    """

    path: Path
    trail: list[Output]

    @property
    def value(self) -> Item:
        """The augmentation itself."""
        return self.trail[-1].value


@dataclass
class Augmented:
    """What became of a sample.

    Attributes:
        sample: itself.
        leaves: its augmentations, in the order of the choice.
        looked_at: leaves that were asked for.
        dropped: how many of them were not taken, by what spoke against them.
        not_begun: of those, how many the first step could not do.
    """

    sample: Sample
    leaves: list[Leaf] = field(default_factory=list)
    looked_at: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    not_begun: int = 0

    @property
    def refusal(self) -> str | None:
        """Why the first step could not do the sample at all; None if it could."""
        return next(iter(self.dropped)) if self.looked_at and self.not_begun == self.looked_at else None


def require_fitting(levels: Sequence[Level]) -> None:
    """Check that steps fit each other and lead back to where they began, before anything is loaded.

    Raises:
        ConfigError: a modality does not fit, the chain does not lead back, or a fan-out would repeat equal outputs.
    """
    if not levels:
        raise ConfigError("a chain of no steps augments nothing", do="give one step at least")
    steps = [level.step for level in levels]
    for before, after in zip(steps, steps[1:], strict=False):
        if before.gives != after.takes:
            raise ConfigError(
                f"{after.name} takes {after.takes}, and {before.name} before it gives {before.gives}",
                do=f"put a step that makes {after.takes} of {before.gives} between them, or choose another one",
            )
    first, last = steps[0], steps[-1]
    if first.takes != last.gives:
        raise ConfigError(
            f"the chain begins with {first.takes} ({first.name}) and ends with {last.gives} ({last.name})",
            why="an augmentation is of the same modality as what it augments",
            do=f"end with a step that gives {first.takes}",
        )
    for level in levels:
        if level.count > 1 and not level.step.random:
            raise ConfigError(
                f"{level.step.name} makes the same of an item every time, and {level.count} outputs of each are wanted",
                do="ask for 1, or let it sample",
            )


def leaf_order(seed: int, sample: Sample, counts: Sequence[int]) -> list[Path]:
    """All paths of a chain in a random order; randomness from (seed, "back-modality choice" and part, sample).

    Args:
        seed: of the augmentation.
        sample: whose paths.
        counts: fan-out of each level.
    """
    random = numpy_generator(seed, f"back-modality choice {sample.part}".strip(), sample.index)
    places = np.unravel_index(random.permutation(prod(counts)), tuple(counts))
    return [tuple(int(number) for number in path) for path in zip(*places, strict=True)]


class Chain:
    """A composition of steps, checked; nothing is loaded before the first batch.

    Args:
        levels: F, H and G, or more or fewer steps.
        augmentations_per_sample: how many are chosen, 5 in the paper (Sec. 3.2).
        same: whether two items are the same for the purpose; such augmentations are dropped. None keeps all.

    Raises:
        ConfigError: as `require_fitting`.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        augmentations_per_sample: int = 5,
        same: Callable[[Item, Item], bool] | None = None,
    ) -> None:
        require_fitting(levels)
        self.levels, self.augmentations_per_sample, self._same = list(levels), augmentations_per_sample, same

    def augment(self, samples: Sequence[Sample], seed: int, store: Store) -> list[Augmented]:
        """Augment some samples; they share batches, and no draw depends on which of them are there.

        Args:
            samples: some of the data set.
            seed: randomness from (seed, "back-modality choice", sample) and (seed, "back-modality", sample, level,
                path, attempt).
            store: where intermediate outputs are looked up and kept.

        Raises:
            EnvironmentFault: a step lacks what it needs.
            Stopped: a signal asked for a stop; finished batches are in the store.
        """
        counts = [level.count for level in self.levels]
        found = [Augmented(sample) for sample in samples]
        left = [iter(leaf_order(seed, sample, counts)) for sample in samples]
        nodes = Nodes(self.levels, seed, store)
        while True:
            round_ = [
                (one, path)
                for one, order in zip(found, left, strict=True)
                for path in islice(order, self._lacking(one))
            ]
            if not round_:
                return found
            nodes.fill([(one.sample, path) for one, path in round_])
            for one, path in round_:
                self._take(one, path, nodes.trail(one.sample, path))

    def _lacking(self, one: Augmented) -> int:
        return self.augmentations_per_sample - len(one.leaves)

    def _take(self, one: Augmented, path: Path, trail: Sequence[Node]) -> None:
        """Take a leaf, or count what spoke against it."""
        one.looked_at += 1
        end = trail[-1]
        if not isinstance(end, Output):
            one.dropped[end.why] += 1
            one.not_begun += len(trail) == 1 and isinstance(end, Refused)
            return
        leaf = Leaf(path, [node for node in trail if isinstance(node, Output)])
        if self._same is not None and self._same(one.sample.item, leaf.value):
            one.dropped[UNCHANGED] += 1
        elif self._same is not None and any(self._same(other.value, leaf.value) for other in one.leaves):
            one.dropped[REPEAT] += 1
        else:
            one.leaves.append(leaf)
