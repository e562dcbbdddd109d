"""The figures of `mvc tune`, on arrays: class agreement, coverage, nearness to training images, and the trade-off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.features import Seen
from mvc.quality import Features, nearest, prdc, significant

from .cross_fitted import CrossFitted

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Real:
    """The real images that points are held against.

    Attributes:
        train: (n, d) features of the training images, n >= 1.
        train_labels: (n,) their classes.
        validation: (m, d) of the validation images.
        validation_labels: (m,).
        nearness: (m,) distance of each validation image to the nearest training image.
        neighbours: k of coverage and density, where the classes allow it.
    """

    train: Features
    train_labels: Labels
    validation: Features
    validation_labels: Labels
    nearness: NDArray[np.float64]
    neighbours: int


@dataclass(frozen=True)
class Made:
    """The images of one point.

    Attributes:
        features: (n, d) of those that are finite, like those of `Real`.
        labels: (n,) the classes that they were drawn for.
        right: (n,) whether each is taken for its class; None where nothing can say so.
        copies: how many are near copies of a training image.
        drawn: how many were drawn, n or more.
    """

    features: Features
    labels: Labels
    right: NDArray[np.bool_] | None
    copies: int
    drawn: int


def real_images(
    train: Features, train_labels: Labels, validation: Features, validation_labels: Labels, neighbours: int
) -> Real:
    """Measure the validation images once; the arguments are as in `Real`."""
    return Real(train, train_labels, validation, validation_labels, nearest(validation, train)[0], neighbours)


def cover(features: Features, labels: Labels, real: Real) -> tuple[float | None, float | None]:
    """Coverage and density (`mvc.quality.prdc`) within each class, over all classes together.

    Within the class, because images of other classes are no use; and with at most half as many neighbours as the
    class has validation images, because a few spheres that reach everywhere are covered by anything.

    Args:
        features: (n, d).
        labels: (n,).
        real: held against; classes with one validation image are left out.

    Returns:
        The share of validation images that have an image of their class nearby, and the mean density; None where no
        class has two images of both kinds.
    """
    covered, density, images, made = 0.0, 0.0, 0, 0
    for label in np.unique(real.validation_labels):
        own, others = features[labels == label], real.validation[real.validation_labels == label]
        found = prdc(own, others, max(1, min(real.neighbours, len(others) // 2)))
        if found["coverage"] is not None and found["density"] is not None:
            covered, images = covered + found["coverage"] * len(others), images + len(others)
            density, made = density + found["density"] * len(own), made + len(own)
    return (covered / images, density / made) if images else (None, None)


def score(made: Made, real: Real) -> dict[str, Any]:
    """The figures of a point as JSON values, rounded to six significant digits.

    `class_agreement` and `copies` are shares of all that were drawn. `distance` is the mean Euclidean distance to the
    nearest training image, `distance_ratio` the same divided by that of the validation images: below 1 the images lie
    nearer to the training images than unseen real ones do. `..._error` is a standard error. What is undefined is None.
    """
    agreement = None if made.right is None else _share(int(made.right.sum()), made.drawn)
    coverage, density = cover(made.features, made.labels, real)
    distances = nearest(made.features, real.train)[0]
    ratio, ratio_error = _ratio(distances, real.nearness)
    values = {
        "class_agreement": agreement,
        "class_agreement_error": None if agreement is None else share_error(agreement, made.drawn),
        "coverage": coverage,
        "coverage_error": None if coverage is None else share_error(coverage, len(real.validation)),
        "density": density,
        "distance": float(distances.mean()) if len(distances) else None,
        "distance_ratio": ratio,
        "distance_ratio_error": ratio_error,
        "copies": _share(made.copies, made.drawn),
    }
    return {"drawn": made.drawn, "images": len(distances), **_rounded(values)}


def score_real(real: Real, right: NDArray[np.bool_] | None, copies: float | None) -> dict[str, Any]:
    """The same of real images, as far as it makes sense: what a point can reach.

    Args:
        real: the images.
        right: (m,) whether each validation image is taken for its class; None where nothing can say so.
        copies: share of the validation images that count as near copies of a training image.
    """
    known = len(real.nearness) > 0
    coverage, density = cover(real.train, real.train_labels, real)
    validation = {
        "class_agreement": float(right.mean()) if right is not None and known else None,
        "distance": float(real.nearness.mean()) if known else None,
        "copies": copies,
    }
    train = {"coverage": coverage, "density": density}
    return {
        "train": {"images": len(real.train), **_rounded(train)},
        "validation": {"images": len(real.validation), **_rounded(validation)},
    }


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else significant(value) for name, value in values.items()}


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` images, after two of each kind are added.

    So that 8 of 8 is not taken for certain. Agresti and Coull 1998, "Approximate is better than exact".
    """
    adjusted = (share * count + 2) / (count + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (count + 4))


def _ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Ratio of two means and its standard error to first order; None where it is undefined."""
    if not len(ours) or not len(theirs) or theirs.mean() == 0:
        return None, None
    ratio = float(ours.mean() / theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return ratio, None
    errors = [values.std(ddof=1) / math.sqrt(len(values)) for values in (ours, theirs)]
    return ratio, float(np.hypot(errors[0], ratio * errors[1]) / theirs.mean())


def read_classes(fitted: CrossFitted, seen: Seen, parents: Sequence[frozenset[str]]) -> Labels:
    """The class that cross-fitted classifiers take each image for.

    As in `cross_fitted.own_probability`, an image is read by those that know the fewest of its parents.

    Args:
        fitted: the classifiers.
        seen: n images.
        parents: ids of the real images that each was made from.

    Returns:
        (n,) int64 labels as the classifiers were fitted with.
    """
    if not len(seen):
        return np.empty(0, dtype=np.int64)
    by_model = np.stack([model.predict_proba(seen.features.astype(np.float64)) for model in fitted.models])
    unseen = np.zeros(by_model.shape[:2])
    for row, names in enumerate(parents):
        for name in names:
            if name in fitted.part_of:
                unseen[fitted.part_of[name], row] += 1
    best = (unseen == unseen.max(axis=0))[..., None]
    labels: Labels = fitted.models[0].classes_[(by_model * best).sum(axis=0).argmax(axis=1)]
    return labels


OBJECTIVES = ("class_agreement", "coverage", "distance_ratio")
"""What the trade-off is about; more is better of each, of the last one up to 1."""


def on_front(scores: Sequence[dict[str, Any]]) -> list[bool]:
    """Which points are on the Pareto front: no other point is as good in every objective and better in one.

    To lie farther from the training images than unseen real images do is no gain, so ratios above 1 count as 1.
    Objectives that some point lacks are left out; without any, no point is on the front.

    Args:
        scores: of each point, as `score` gives them.
    """
    known = [name for name in OBJECTIVES if all(point[name] is not None for point in scores)]
    values = np.array([[min(point[name], 1.0) for name in known] for point in scores]).reshape(len(scores), -1)
    if not known:
        return [False] * len(scores)
    return [not bool(((values >= own).all(axis=1) & (values > own).any(axis=1)).any()) for own in values]
