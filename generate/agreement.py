"""Whether an image shows its class, by a CLIP: its class's prompt against all other prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvc.extractors import Extractor
from mvc.features import Seen

PROMPT = "This is an image of {class_name}."
"""What a class is called by; captions begin with the same words."""


@dataclass(frozen=True)
class ClipAgreement:
    """What a CLIP knows of the classes, and how its margins are judged.

    Attributes:
        train: the real training images as this CLIP sees them, rows as those of the other extractor.
        class_texts: (K, d) float32, features of the classes' prompts, in the order of the classes.
        negative_texts: (m, d) float32, of prompts that no image should fit better than its class's; m may be 0.
        threshold: margin below which an image is refused; None finds one for each class.
    """

    train: Seen
    class_texts: NDArray[np.float32]
    negative_texts: NDArray[np.float32]
    threshold: float | None


def clip_agreement(
    extractor: Extractor,
    train: Seen,
    class_words: Mapping[str, str],
    negative_prompts: Sequence[str],
    threshold: float | None,
    prompt: str = PROMPT,
) -> ClipAgreement:
    """Encode the prompts.

    Args:
        extractor: a CLIP.
        train: the real training images as it sees them.
        class_words: words by class folder, in the order of the classes.
        negative_prompts: whole prompts.
        threshold: as in `ClipAgreement`.
        prompt: text with {class_name} in it.

    Raises:
        ConfigError: the extractor knows no texts.
        NumericError: a text's features are not finite.
    """
    texts = [prompt.replace("{class_name}", words) for words in class_words.values()]
    return ClipAgreement(
        train, extractor.encode_texts(texts), extractor.encode_texts(list(negative_prompts)), threshold
    )


def margins(agreement: ClipAgreement, seen: Seen, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much each image fits its class better than anything else.

    Args:
        agreement: the texts.
        seen: n images by the CLIP.
        labels: (n,) int64, index of the class of each.

    Returns:
        (n,) float64 in [-2, 2]: cosine with the class's prompt minus the largest with any other prompt. Classes that
        the tokenizer cannot tell apart give 0 at most. With one class and no negative prompt, the cosine itself.
    """
    if len(seen) == 0:
        return np.empty(0)
    images = _unit(seen.features)
    own_and_others = images @ _unit(agreement.class_texts).T
    place = np.arange(len(images))
    own = own_and_others[place, labels].copy()
    own_and_others[place, labels] = -np.inf
    rivals = own_and_others.max(axis=1)
    if len(agreement.negative_texts):
        rivals = np.maximum(rivals, (images @ _unit(agreement.negative_texts).T).max(axis=1))
    return np.where(np.isfinite(rivals), own - rivals, own)


def margin_limits(
    agreement: ClipAgreement, labels: NDArray[np.int64], classes: int, false_reject_rate: float
) -> NDArray[np.float64]:
    """The margin of each class below which an image is refused, (K,) float64.

    A CLIP finds some classes harder than others, so one threshold for all would refuse most images of those. Each
    class has the median of its real training images, less an allowance that is common to all: the `false_reject_rate`
    quantile of what remains of a margin when the median of the class's other images is taken off. A class with one
    image needs no more than that.

    Args:
        agreement: texts and training images; its own threshold, where given, counts for all classes.
        labels: (n,) int64, class index of each training image; every class has one.
        classes: K.
        false_reject_rate: share in [0, 1).
    """
    if agreement.threshold is not None:
        return np.full(classes, agreement.threshold)
    found = margins(agreement, agreement.train, labels)
    medians, remains = np.zeros(classes), []
    for label in range(classes):
        own = found[labels == label]
        medians[label] = np.median(own)
        if len(own) > 1:
            remains += [own[row] - np.median(np.delete(own, row)) for row in range(len(own))]
    if not remains:
        return np.full(classes, np.quantile(found, false_reject_rate, method="lower"))
    return medians + min(float(np.quantile(remains, false_reject_rate, method="lower")), 0.0)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(
        np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny
    )
    return unit
