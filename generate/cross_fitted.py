"""Whether an image shows its class, by a classifier that never saw the real images it was made from.

A linear classifier on features is fitted k times, each time without one part of the real training images. A synthetic
image is judged by those that know the fewest of its parents: a classifier that learnt a parent by heart says nothing
about its child.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.errors import ConfigError
from mvc.features import Seen
from mvc.randomness import derived_seed

FOLDS = 5
"""At most; a class with fewer images sets the number."""
_PENALTY = 0.1
"""scikit-learn's C: the best of 0.001 to 1 over digits, brain scans and photos, at 3, 10 and all images a class."""


@dataclass(frozen=True)
class CrossFitted:
    """k classifiers and the parts they never saw.

    Attributes:
        models: k pipelines of scikit-learn, standardisation and LogisticRegression.
        part_of: the part, 0..k-1, in which each training image lies, by its id; model i has not seen part i.
        own: (n,) float64, of each training image, the probability of its class by the model that has not seen it.
    """

    models: tuple[Any, ...]
    part_of: dict[str, int]
    own: NDArray[np.float64]


def fit_classifiers(
    train: Seen, ids: Sequence[str], labels: NDArray[np.int64], class_names: Sequence[str], seed: int
) -> CrossFitted:
    """Fit the classifiers; parts are stratified by class and drawn with (seed, "filter folds").

    Args:
        train: n real training images.
        ids: of each.
        labels: (n,) int64, index of the class of each.
        class_names: K folders, for the errors.
        seed: run.seed.

    Raises:
        ConfigError: there are less than two classes, or a class has less than two images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels, minlength=len(class_names))
    _require_enough(counts, class_names)
    folds = StratifiedKFold(
        min(FOLDS, int(counts.min())), shuffle=True, random_state=derived_seed(seed, "filter folds") % 2**32
    )
    features, models, part_of, own = train.features.astype(np.float64), [], {}, np.empty(len(labels))
    for part, (seen, unseen) in enumerate(folds.split(features, labels)):
        # Enough iterations for every set that was tried; a fit that is not done after them would warn.
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=5000))
        model.fit(features[seen], labels[seen])
        models.append(model)
        own[unseen] = _probability(model, features[unseen], labels[unseen])
        part_of.update({ids[row]: part for row in unseen})
    return CrossFitted(tuple(models), part_of, own)


def own_probability(
    fitted: CrossFitted, seen: Seen, labels: NDArray[np.int64], parents: Sequence[frozenset[str]]
) -> NDArray[np.float64]:
    """The probability of its class for each image.

    Args:
        fitted: the classifiers.
        seen: n images.
        labels: (n,) int64, index of the class of each.
        parents: ids of the real images that each was made from; unknown ids and none at all are fine.

    Returns:
        (n,) float64 in [0, 1]: the mean over the models that saw the fewest of the parents.
    """
    if len(seen) == 0:
        return np.empty(0)
    features = seen.features.astype(np.float64)
    by_model = np.stack([_probability(model, features, labels) for model in fitted.models])
    unseen = np.zeros_like(by_model)
    for row, names in enumerate(parents):
        for name in names:
            if name in fitted.part_of:
                unseen[fitted.part_of[name], row] += 1
    best = unseen == unseen.max(axis=0)
    return np.asarray((by_model * best).sum(axis=0) / best.sum(axis=0))


def _require_enough(counts: NDArray[np.int64], class_names: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise ConfigError(
            "filter.classifier needs at least two classes", why="there is one", do="set filter.classifier to false"
        )
    few = [name for name, count in zip(class_names, counts, strict=True) if count < 2]
    if few:
        raise ConfigError(
            f"filter.classifier: class '{few[0]}' has fewer than two training images"
            + (f", and {len(few) - 1} more" if len(few) > 1 else ""),
            why="each image is judged by a classifier that did not learn from it",
            do="add images, or set filter.classifier to false (filter.clip needs no image)",
        )


def _probability(model: Any, features: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = model.predict_proba(features)
    return probabilities[np.arange(len(labels)), labels]
