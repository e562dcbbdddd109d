"""A world where it is known whether synthetic images help: Gaussian classes, and a softmax regression trained on them.

All model seeds of an arm are trained at once: weights (seeds, features + 1, classes), by plain gradient descent on
batches that each seed draws for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mvc.arms import parse_arm
from mvc.classify.conclude import Conclusion, Outcome, conclude
from mvc.classify.metrics import measure
from mvc.randomness import numpy_generator

CLASSES = ["ash", "birch", "cedar"]
FEATURES, SHOTS, RATIO, SEEDS = 16, 3, 10, 5
VALIDATION, TEST = 150, 300
DISTANCE = 2.2
"""Of each class from the origin, in standard deviations."""
STEPS, BATCH = 60, 24
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """(n, FEATURES + 1) with a column of ones, and (n,) labels."""

    features: Floats
    labels: NDArray[np.int64]

    def __add__(self, other: Points) -> Points:
        return Points(np.vstack([self.features, other.features]), np.append(self.labels, other.labels))


def draw(centres: Floats, count: int, rng: np.random.Generator) -> Points:
    """As many points of each class."""
    labels = np.arange(count) % len(CLASSES)
    features = centres[labels] + rng.normal(size=(count, FEATURES))
    return Points(np.hstack([features, np.ones((count, 1))]), labels)


def trained(points: Points, rng: np.random.Generator) -> Floats:
    """(SEEDS, FEATURES + 1, C) weights after STEPS steps."""
    weights = 0.1 * rng.normal(size=(SEEDS, FEATURES + 1, len(CLASSES)))
    wanted = np.eye(len(CLASSES))[points.labels]
    for _ in range(STEPS):
        drawn = rng.integers(0, len(points.labels), (SEEDS, BATCH))
        seen = points.features[drawn]
        gradient = probabilities(seen, weights) - wanted[drawn]
        weights -= 0.3 * np.swapaxes(seen, 1, 2) @ gradient / BATCH
    return weights


def probabilities(features: Floats, weights: Floats) -> Floats:
    """(SEEDS, n, C) softmax."""
    logits = features @ weights
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def outcome(name: str, points: Points, validation: Points, test: Points, rng: np.random.Generator) -> Outcome:
    """Train an arm, choose nothing, and measure it as the stage does."""
    weights = trained(points, rng)
    chosen = (probabilities(validation.features, weights).argmax(-1) == validation.labels).mean(axis=1)
    shares = torch.from_numpy(probabilities(test.features, weights))
    labels = torch.from_numpy(test.labels)
    return Outcome(
        arm=parse_arm(name),
        units=[(0, seed) for seed in range(SEEDS)],
        validation=chosen.tolist(),
        test=[measure(one, labels, CLASSES) for one in shares],
        correct=[(one.argmax(dim=1) == labels).numpy() for one in shares],
        ratio=0.0 if name == "real" else float(RATIO),
        labels=[test.labels] * SEEDS,
    )


def conclusion(case: str, repeat: int) -> Conclusion:
    """One repeat of a comparison of real, duplicate and combined.

    Args:
        case: "helps": synthetic points are of the true classes; "hurts": their labels are shuffled; "nothing": they
            are the real points again.
        repeat: its number, of which all draws depend.
    """
    rng = numpy_generator(repeat, f"known case: {case}")
    # At right angles and equally far from each other: the classes overlap as much in each repeat.
    centres = DISTANCE * np.linalg.qr(rng.normal(size=(FEATURES, len(CLASSES))))[0].T
    real, validation, test = (draw(centres, count, rng) for count in (SHOTS * len(CLASSES), VALIDATION, TEST))
    copies = Points(np.tile(real.features, (RATIO, 1)), np.tile(real.labels, RATIO))
    synthetic = copies if case == "nothing" else draw(centres, len(copies.labels), rng)
    if case == "hurts":
        synthetic = Points(synthetic.features, rng.permutation(synthetic.labels))
    arms = {"real": real, "duplicate": real + copies, "combined": real + synthetic}
    outcomes = [outcome(name, points, validation, test, rng) for name, points in arms.items()]
    return conclude(outcomes, CLASSES, VALIDATION, TEST, "default")
