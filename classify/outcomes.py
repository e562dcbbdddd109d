"""What an arm's classifiers came to, which of them are independent of each other, and what an arm is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.arms import Arm

Floats = NDArray[np.float64]
Unit = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The classifiers of one arm, one a unit.

    Attributes:
        arm: its strategy, source, ratio and augmentation.
        units: (data seed or fold, model seed) of each classifier.
        validation: validation accuracy of each; None where there was no validation split.
        test: what `metrics.measure` said of each.
        correct: of each the (n,) booleans of its test images, in an order that all arms share.
        ratio: synthetic images for each real one, as they were; 0 for `real`.
        diversity: mean training loss late in training; None where unknown.
        affinity: accuracy of a classifier of clean images on the arm's images, less that on clean ones (`affinity.py`);
            None where unknown.
        labels: of each unit the (n,) true classes of its test images; None makes the intervals of single classes wider.
    """

    arm: Arm
    units: list[Unit]
    validation: list[float] | None
    test: list[dict[str, Any]]
    correct: list[NDArray[np.bool_]]
    ratio: float = 0.0
    diversity: float | None = None
    affinity: float | None = None
    labels: list[NDArray[np.int64]] | None = None


def aligned(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with their units in one order, that of the first.

    Raises:
        ValueError: two arms have different units, so that they cannot be paired.
    """
    order = outcomes[0].units
    return [_in_order(outcome, order) for outcome in outcomes]


def _in_order(outcome: Outcome, order: list[Unit]) -> Outcome:
    if sorted(outcome.units) != sorted(order) or len(set(order)) != len(order):
        raise ValueError(f"arm {outcome.arm.name} has the units {outcome.units}, and others have {order}")
    places = [outcome.units.index(unit) for unit in order]
    return replace(
        outcome,
        units=list(order),
        validation=None if outcome.validation is None else [outcome.validation[place] for place in places],
        test=[outcome.test[place] for place in places],
        correct=[outcome.correct[place] for place in places],
        labels=None if outcome.labels is None else [outcome.labels[place] for place in places],
    )


def data_seeds(units: Sequence[Unit]) -> list[int]:
    """The different data seeds or folds, in their order."""
    return list(dict.fromkeys(data_seed for data_seed, _ in units))


def unit_weights(units: Sequence[Unit]) -> Floats:
    """(units,) shares of one: every data seed counts the same, and so do the model seeds within one."""
    seeds = [data_seed for data_seed, _ in units]
    return np.array([1 / (len(set(seeds)) * seeds.count(seed)) for seed in seeds])


def independent(values: Sequence[float], units: Sequence[Unit]) -> list[float]:
    """One value for each independent sample.

    With several data seeds those are the samples: classifiers of one data seed share their images, and their mean is
    one value. With a single data seed the model seeds are the samples, and what is found holds for that data alone.
    """
    seeds = data_seeds(units)
    if len(seeds) == 1:
        return [float(value) for value in values]
    pairs = list(zip(values, units, strict=True))
    return [float(np.mean([value for value, unit in pairs if unit[0] == seed])) for seed in seeds]


def augmentation_of(arm: Arm, default: str) -> str:
    """The augmentation that an arm is trained with."""
    return arm.augmentation or default


def references(arms: Sequence[Arm], default: str) -> list[int | None]:
    """The place of the arm that each arm is compared with; None for plain `real`, which is compared with nothing.

    It is the real arm of the same augmentation, so that nothing but the synthetic images differs, and plain `real`
    where there is no such arm. A real arm of another augmentation is compared with plain `real`.

    Args:
        arms: all arms, a real one among them.
        default: augmentation of the arms that name none.
    """
    real = {place: augmentation_of(arm, default) for place, arm in enumerate(arms) if arm.strategy == "real"}
    plain = next((place for place, name in real.items() if name == default), min(real))
    found: list[int | None] = []
    for place, arm in enumerate(arms):
        if place == plain:
            found.append(None)
        elif arm.strategy == "real":
            found.append(plain)
        else:
            same = (other for other, name in real.items() if name == augmentation_of(arm, default))
            found.append(next(same, plain))
    return found
