"""Judge synthetic images: fit the filters on the real ones, then say of each candidate what speaks against it.

Judging is a pure function of what was seen of the images, so that it can be repeated with other settings without
drawing or looking at anything again. What is said of a candidate never depends on later ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.features import Seen

from .agreement import ClipAgreement, margin_limits, margins
from .appearance import BLANK_LEVELS, chroma_limits, is_blank, is_grey
from .copies import DECIMALS, Likeness, Nearest, Pictures, Rule, find_nearest, fit_likeness, prepare
from .cross_fitted import CrossFitted, fit_classifiers, own_probability
from .repeats import pick
from .verdicts import (
    BLANK,
    COPY_OF_HELD_OUT,
    COPY_OF_TRAINING,
    GREY,
    NOT_FINITE,
    OTHER_CLASS_CLASSIFIER,
    OTHER_CLASS_CLIP,
    REPEAT,
    SCORES,
    nearest_columns,
    told,
    write_verdicts,
)
from .verdicts import Judged as Judged


@dataclass(frozen=True)
class Candidate:
    """One image to judge.

    Attributes:
        slot: (source, class, index), what it was drawn for.
        attempt: from 1.
        class_name: folder of the class that it should show.
        parents: ids of the real images that it was made from.
        row: of what was seen; None if the image is not finite and has no file.
    """

    slot: tuple[str, str, int]
    attempt: int
    class_name: str
    parents: frozenset[str]
    row: int | None


@dataclass(frozen=True)
class Judge:
    """Everything that was fitted on real images.

    Attributes:
        labels: index of the class by its folder.
        likeness: from when on two pictures are one.
        train, train_ids: the real training images.
        held_out: the real validation and test images.
        copies: whether near copies of training images are refused; those of held-out ones always are.
        repeats: whether near copies of accepted images are refused.
        chroma: limit by class for those that are coloured; None if colour is not judged.
        clip, least_margins: agreement by CLIP and the limit of each class; None if it is not judged by that.
        classifiers, least_probability: agreement by classifier; None if it is not judged by that.
    """

    labels: dict[str, int]
    likeness: Likeness
    train: Pictures
    train_ids: list[str]
    held_out: Pictures
    copies: bool
    repeats: bool
    chroma: dict[str, float] | None
    clip: ClipAgreement | None
    least_margins: NDArray[np.float64] | None
    classifiers: CrossFitted | None
    least_probability: float | None

    @property
    def thresholds(self) -> dict[str, Any]:
        """What images are refused by, as JSON values; None where a filter is off."""
        margin = None
        if self.least_margins is not None:
            margin = {name: float(self.least_margins[label]) for name, label in self.labels.items()}
        return {
            "spread": BLANK_LEVELS,
            "chroma": self.chroma,
            "copy_bits": self.likeness.rule.bits,
            "copy_similarity": self.likeness.rule.similarity,
            "clip_margin": margin,
            "class_probability": self.least_probability,
        }


def fit_judge(
    *,
    train: Seen,
    train_ids: Sequence[str],
    train_classes: Sequence[str],
    held_out: Seen,
    trial_copies: tuple[Seen, Seen],
    class_words: Mapping[str, str],
    copy_bits: int,
    copy_similarity: float | None,
    copies: bool,
    repeats: bool,
    colour: bool,
    classifier: bool,
    classifier_threshold: float | None,
    false_reject_rate: float,
    seed: int,
    clip: ClipAgreement | None = None,
) -> Judge:
    """Fit all filters on real images.

    Args:
        train: n real training images, n at least 1.
        train_ids: id of each.
        train_classes: class folder of each.
        held_out: the real validation and test images; may be empty.
        trial_copies: what was seen of the training images at `copies.trial_rows(n)` when they were changed lightly and
            strongly (`look(..., change=)`), in the order of `mvc.features.CHANGES`.
        class_words: words by class folder, in the order of the classes; classes without training image are left out.
        copy_bits: bits of 64 in which hashes of near copies differ at most.
        copy_similarity: least cosine of near copies; None finds it.
        copies: refuse near copies of training images.
        repeats: refuse near copies of accepted images of the class.
        colour: refuse grey images of coloured classes.
        classifier: judge class agreement by a cross-fitted classifier.
        classifier_threshold: least probability of the class; None finds it.
        false_reject_rate: share of the real training images that an agreement filter or the colour filter may refuse
            where it finds its own threshold, in [0, 1).
        seed: run.seed; randomness from (seed, "filter folds").
        clip: judge class agreement by a CLIP.

    Raises:
        ConfigError: the classifier lacks classes, or images of a class.
    """
    labels = {name: label for label, name in enumerate(class_words)}
    numbers = _numbers(labels, train_classes)
    likeness = fit_likeness(train, trial_copies, copy_bits, copy_similarity)
    classifiers = fit_classifiers(train, train_ids, numbers, list(labels), seed) if classifier else None
    least_probability = None if classifiers is None else classifier_threshold
    if classifiers is not None and classifier_threshold is None:
        least_probability = float(np.quantile(classifiers.own, false_reject_rate, method="lower"))
    least_margins = None
    if clip is not None:
        least_margins = np.round(margin_limits(clip, numbers, len(labels), false_reject_rate), DECIMALS)
    chroma = None
    if colour:
        found = chroma_limits(train, train_classes, list(labels), false_reject_rate)
        chroma = {name: round(limit, DECIMALS) for name, limit in found.items()}
    return Judge(
        labels=labels,
        likeness=likeness,
        train=prepare(train, likeness.centre),
        train_ids=list(train_ids),
        held_out=prepare(held_out, likeness.centre),
        copies=copies,
        repeats=repeats,
        chroma=chroma,
        clip=clip,
        least_margins=least_margins,
        classifiers=classifiers,
        least_probability=None if least_probability is None else round(least_probability, DECIMALS),
    )


def judge(fitted: Judge, candidates: Sequence[Candidate], seen: Seen, clip_seen: Seen | None = None) -> list[Judged]:
    """Say of each candidate what speaks against it; a slot's first candidate without a reason is accepted.

    Args:
        fitted: the filters.
        candidates: in the order in which they are judged: earlier ones of a slot win, and repeats lose.
        seen: what was seen of the images, in any order; `Candidate.row` points into it.
        clip_seen: the same rows as the CLIP's extractor sees them; None if it is the same extractor.

    Returns:
        verdicts in the order of the candidates; what is said of one depends on no later one.

    Raises:
        ValueError: a candidate is of an unknown class.
    """
    judged = [Judged(dict.fromkeys(SCORES), [NOT_FINITE]) for _ in candidates]
    present = [number for number, one in enumerate(candidates) if one.row is not None]
    rows = [one.row for one in candidates if one.row is not None]
    chosen = [candidates[number] for number in present]
    images = _Images.of(fitted, seen, clip_seen, rows, [one.class_name for one in chosen])
    train, held_out = (find_nearest(images.pictures, others, rules) for others, rules in _references(fitted))
    found = _inspect(fitted, images, [one.parents for one in chosen], train, held_out)
    _pick(fitted, images, [one.slot for one in chosen], found)
    for number, verdict in zip(present, found, strict=True):
        judged[number] = verdict
    return judged


def false_rejects(
    fitted: Judge, seen: Seen, ids: Sequence[str], classes: Sequence[str], clip_seen: Seen | None = None
) -> dict[str, float]:
    """The share of real images that each filter would refuse.

    Copies are looked for among the training images, the image itself left out. Images of classes that the filters do
    not know are left out.

    Args:
        fitted: the filters.
        seen: n real images, validation images in general.
        ids: of each.
        classes: class folder of each.
        clip_seen: as the CLIP's extractor sees them; None if it is the same extractor.

    Returns:
        share in [0, 1] by reason, for the filters in use, and for `any` of them; nothing if there is no image.
    """
    rows = [row for row, name in enumerate(classes) if name in fitted.labels]
    if not rows:
        return {}
    images = _Images.of(fitted, seen, clip_seen, rows, [classes[row] for row in rows])
    place = {name: row for row, name in enumerate(fitted.train_ids)}
    itself = np.array([place.get(ids[row], -1) for row in rows])
    train = find_nearest(images.pictures, fitted.train, [fitted.likeness.rule], itself)
    found = _inspect(fitted, images, [frozenset({ids[row]}) for row in rows], train, None)
    _pick(fitted, images, rows, found)
    uses = {
        BLANK: True,
        GREY: fitted.chroma is not None,
        COPY_OF_TRAINING: fitted.copies,
        OTHER_CLASS_CLIP: fitted.clip is not None,
        OTHER_CLASS_CLASSIFIER: fitted.classifiers is not None,
        REPEAT: fitted.repeats,
    }
    counts = Counter(reason for verdict in found for reason in verdict.reasons)
    shares = {reason: counts[reason] / len(rows) for reason, used in uses.items() if used}
    shares["any"] = sum(bool(verdict.reasons) for verdict in found) / len(rows)
    return {reason: round(share, DECIMALS) for reason, share in shares.items()}


@dataclass(frozen=True)
class _Images:
    """n images to judge, in their order."""

    seen: Seen
    by_clip: Seen
    pictures: Pictures
    names: list[str]
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, fitted: Judge, seen: Seen, clip_seen: Seen | None, rows: Sequence[int], names: list[str]) -> _Images:
        own = seen.take(rows)
        by_clip = own if clip_seen is None else clip_seen.take(rows)
        return cls(own, by_clip, prepare(own, fitted.likeness.centre), names, _numbers(fitted.labels, names))


def _references(fitted: Judge) -> list[tuple[Pictures, list[Rule]]]:
    likeness = fitted.likeness
    return [(fitted.train, [likeness.rule]), (fitted.held_out, [likeness.rule, likeness.certain])]


def _inspect(
    fitted: Judge,
    images: _Images,
    parents: Sequence[frozenset[str]],
    train: Nearest,
    held_out: Nearest | None,
) -> list[Judged]:
    """What speaks against each image by itself."""
    seen, count = images.seen, len(images.names)
    margin = probability = None
    refused = {BLANK: is_blank(seen), COPY_OF_TRAINING: train.copy & fitted.copies}
    if held_out is not None:
        refused[COPY_OF_HELD_OUT] = held_out.copy
    if fitted.chroma is not None:
        refused[GREY] = is_grey(np.round(seen.chroma, DECIMALS), images.names, fitted.chroma)
    if fitted.clip is not None and fitted.least_margins is not None:
        margin = np.round(margins(fitted.clip, images.by_clip, images.numbers), DECIMALS)
        refused[OTHER_CLASS_CLIP] = margin < fitted.least_margins[images.numbers]
    if fitted.classifiers is not None and fitted.least_probability is not None:
        probability = np.round(own_probability(fitted.classifiers, seen, images.numbers, parents), DECIMALS)
        refused[OTHER_CLASS_CLASSIFIER] = probability < fitted.least_probability
    columns = {
        "spread": told(seen.spread),
        "chroma": told(seen.chroma),
        **nearest_columns("nearest_train", train),
        "nearest_train_id": [None if row < 0 else fitted.train_ids[row] for row in train.row],
        **nearest_columns("nearest_heldout", held_out),
        **({} if margin is None else {"clip_margin": told(margin)}),
        **({} if probability is None else {"class_probability": told(probability)}),
    }
    return write_verdicts(columns, refused, count)


def _pick(fitted: Judge, images: _Images, slots: Sequence[Hashable], judged: Sequence[Judged]) -> None:
    """Add what speaks against images beside others of their class: repeats and surplus."""
    rule = fitted.likeness.rule if fitted.repeats else None
    for number in fitted.labels.values():
        rows = [row for row in np.flatnonzero(images.numbers == number).tolist() if not judged[row].reasons]
        picked = pick(images.pictures.take(rows), [slots[row] for row in rows], rule)
        for row, reason, nearest in zip(rows, picked.reasons, picked.nearest, strict=True):
            judged[row].scores["nearest_accepted"] = nearest
            if reason is not None:
                judged[row].reasons.append(reason)


def _numbers(labels: Mapping[str, int], names: Sequence[str]) -> NDArray[np.int64]:
    unknown = sorted({name for name in names if name not in labels})
    if unknown:
        raise ValueError(f"'{unknown[0]}' is no class that the filters were fitted on")
    return np.array([labels[name] for name in names], dtype=np.int64)
