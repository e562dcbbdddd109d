"""Score the points of `mvc tune` on training and validation images; the test split is not looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.candidates import read_candidates
from mvc.config import Experiment
from mvc.dataset import Dataset, ImageRecord, load_index
from mvc.extractors import FoundExtractor, find_extractor
from mvc.features import Seen

from .agreement import clip_agreement, margins
from .cross_fitted import fit_classifiers
from .judging import Judging, Looker, judge_pool, prepare_judging
from .tune import pictures_of, pool_of_point
from .tune_figures import Labels, Made, Real, on_front, read_classes, real_images, score, score_real
from .tune_points import Point
from .verdicts import COPY_OF_TRAINING


@dataclass(frozen=True)
class _Reader:
    """What says which class an image shows.

    Attributes:
        name: how it is told of.
        extractor: whose features it reads.
        right: from what was seen of n images, their labels and their parents, whether each is taken for its class.
    """

    name: str
    extractor: FoundExtractor
    right: Callable[[Seen, Labels, Sequence[frozenset[str]]], NDArray[np.bool_]]


def score_points(run: Path, experiment: Experiment, points: Sequence[Point], image_size: int) -> dict[str, Any]:
    """The scores of drawn points and of the real images that they are held against.

    Args:
        run: the run folder.
        experiment: as the user gave it; sections run, data, filter, quality and tune are used.
        points: all drawn, at least one.
        image_size: side in pixels of the images that were drawn.

    Returns:
        JSON values: `points`, the figures of `tune_figures.score` in their order, with `front`; `real`, those of
        training and validation images; `extractor` and `agreement_by`, what they were seen and read by.

    Raises:
        ConfigError: an extractor is not known.
        DataError: an image cannot be decoded.
        EnvironmentFault: an extractor's weights are missing or damaged.
        Stopped: a signal asked for a stop; what was seen is kept.
    """
    dataset, own = _without_test(load_index(run)), experiment.quality.extractor
    likeness = find_extractor(experiment.filter.extractor, "filter.extractor")
    extractor = likeness if own == "auto" else find_extractor(own, "quality.extractor")
    # The filter's own rule of copies, whatever the filters are set to; others would cost time here.
    rule = {"copies": True, "repeats": False, "classifier": False, "clip": None}
    changed = experiment.model_copy(update={"filter": experiment.filter.model_copy(update=rule)})
    judging = prepare_judging(run, changed, dataset, image_size)
    looker = judging.looker
    reader = _find_reader(looker, experiment, likeness)
    real = _real(looker, extractor, experiment.quality.neighbours)
    scores = [score(_made(run, judging, extractor, reader, point), real) for point in points]
    unseen = dataset.split("validation")
    # No classifier learnt from these: all of them read each one.
    right = (
        None
        if reader is None
        else reader.right(looker.at_real(reader.extractor, unseen), real.validation_labels, [frozenset()] * len(unseen))
    )
    return {
        "points": [{**own, "front": front} for own, front in zip(scores, on_front(scores), strict=True)],
        "real": score_real(real, right, judging.false_rejects().get(COPY_OF_TRAINING)),
        "extractor": extractor.name,
        "agreement_by": None if reader is None else reader.name,
    }


def _without_test(dataset: Dataset) -> Dataset:
    """The data set as if it had no test split, so that nothing here can look at it."""
    return replace(dataset, records=[record for record in dataset.records if record.split != "test"])


def _real(looker: Looker, extractor: FoundExtractor, neighbours: int) -> Real:
    train, unseen = (looker.dataset.split(name) for name in ("train", "validation"))
    labels = [np.array([record.label for record in records], dtype=np.int64) for records in (train, unseen)]
    seen = [looker.at_real(extractor, records).features for records in (train, unseen)]
    return real_images(seen[0], labels[0], seen[1], labels[1], neighbours)


def _made(run: Path, judging: Judging, extractor: FoundExtractor, reader: _Reader | None, point: Point) -> Made:
    """Look at the images of a point."""
    pictures, pool = pictures_of(run, point), pool_of_point(run, point)
    rows, files = read_candidates(pool), [(picture.sha256, picture.path) for picture in pictures]
    said, classes = judge_pool(judging, pool, rows.values()), judging.dataset.classes
    labels = np.array([classes.index(picture.class_name) for picture in pictures], dtype=np.int64)
    return Made(
        features=judging.looker.at_drawn(extractor, files).features,
        labels=labels,
        right=None
        if reader is None
        else reader.right(
            judging.looker.at_drawn(reader.extractor, files), labels, [picture.parents for picture in pictures]
        ),
        copies=sum(COPY_OF_TRAINING in verdict.reasons for verdict in said.values()),
        drawn=len(rows),
    )


def _find_reader(looker: Looker, experiment: Experiment, likeness: FoundExtractor) -> _Reader | None:
    """The CLIP of filter.clip; else classifiers of features, where the classes allow; else the extractor, if a CLIP."""
    looks, train = experiment.filter, looker.dataset.split("train")
    counts = np.bincount([record.label for record in train], minlength=len(looker.dataset.classes))
    if int((counts > 0).sum()) < 2:
        return None
    if looks.clip is not None:
        return _by_clip(looker, find_extractor(looks.clip, "filter.clip"))
    if int(counts[counts > 0].min()) >= 2:
        return _by_classifiers(looker, likeness, train, experiment.run.seed)
    return _by_clip(looker, likeness) if likeness.has_text else None


def _by_clip(looker: Looker, clip: FoundExtractor) -> _Reader:
    words = dict(zip(looker.dataset.classes, looker.dataset.words, strict=True))
    loaded = clip.load(looker.device)
    agreement = clip_agreement(loaded, looker.at_real(clip, looker.dataset.split("train")), words, [], None)

    def right(seen: Seen, labels: Labels, parents: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
        return margins(agreement, seen, labels) > 0

    return _Reader(f"class prompts of {clip.name}", clip, right)


def _by_classifiers(looker: Looker, likeness: FoundExtractor, train: Sequence[ImageRecord], seed: int) -> _Reader:
    present, numbers = np.unique([record.label for record in train], return_inverse=True)
    names = [looker.dataset.classes[label] for label in present]
    ids = [record.id for record in train]
    fitted = fit_classifiers(looker.at_real(likeness, train), ids, numbers, names, seed)

    def right(seen: Seen, labels: Labels, parents: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = present[read_classes(fitted, seen, parents)] == labels
        return found

    return _Reader(f"cross-fitted classifiers of {likeness.name} features", likeness, right)
