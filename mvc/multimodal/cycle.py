"""Cycle consistency as a filter: what comes back close from another modality is kept, what comes back strange is not.

The glossaries of cross-modal and of multimodal data augmentation, "Cycle-Consistent Augmentation", with the models of
Back-Modality as the two ways (Li et al. 2023, Sec. 2). `score_items` sends items out and back, image -> caption ->
image or text -> image -> text. `score_pairs` begins with pairs, where one half is the way out of the other: it asks
whether an image and a caption belong together. Nothing is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, isfinite
from typing import Any

import numpy as np
from PIL import Image

from mvc.errors import ConfigError
from mvc.extractors import Extractor
from mvc.modality.chain import require_fitting
from mvc.modality.edit_distance import normal_words
from mvc.modality.nodes import Level, Nodes, Path, Sample
from mvc.modality.steps import Item, Modality, Output, Step
from mvc.modality.store import FILE, Store
from mvc.storage import sha256_json

_PART = "cycle"
"""Part of the samples, which keeps the draws of a check apart from those that made what is checked."""
_TOGETHER = 256
"""Items that are looked at together; bounds the memory."""


@dataclass(frozen=True)
class Closeness:
    """How near what came back is to what went out.

    Attributes:
        name: for provenance.
        modality: of both.
        measure: from the original and what came back to a finite number; the larger, the closer.
    """

    name: str
    modality: Modality
    measure: Callable[[Item, Item], float]


@dataclass(frozen=True)
class ImageText:
    """An image and a text that may belong together.

    Attributes:
        index: its number in the whole set, which the draws of a check depend on.
        image: RGB.
        text: not empty.
        part: tells pairs of one index apart.
    """

    index: int
    image: Image.Image
    text: str
    part: str = ""


@dataclass(frozen=True)
class Scored:
    """What is known of an item or a pair after the way back.

    Attributes:
        index, part: as it was given.
        score: mean closeness of what came back; None if nothing did.
        provenance: JSON values: the steps and a digest of all that they depend on, the closeness, the seed, what came
            back on each way and how close it is, and why ways came to nothing.
    """

    index: int
    part: str
    score: float | None
    provenance: dict[str, Any]


@dataclass(frozen=True)
class _Trip:
    sample: Sample
    goal: Item


def share_of_words(original: str, back: str) -> float:
    """Share of a text's words that came back, each as often as it is there; case and punctuation do not count.

    Returns:
        in [0, 1]; 0 for a text without words.
    """
    words, returned = (Counter(normal_words(text).split()) for text in (original, back))
    return (words & returned).total() / max(1, words.total())


words_kept = Closeness("share of words kept", "text", share_of_words)


def text_cosine(extractor: Extractor) -> Closeness:
    """Cosine of the texts' vectors, in [-1, 1]; 0 for one of length 0.

    Args:
        extractor: one that knows texts, such as `find_extractor("tiny").load(device)`.
    """

    def measure(original: Item, back: Item) -> float:
        one, other = extractor.encode_texts([original, back])
        return _cosine(one, other)

    return Closeness(f"cosine of texts by {extractor.name}", "text", measure)


def image_cosine(extractor: Extractor) -> Closeness:
    """Cosine of the images' vectors, in [-1, 1]; 0 for one of length 0."""

    def measure(original: Item, back: Item) -> float:
        one, other = (extractor.encode(np.asarray(image.convert("RGB"))) for image in (original, back))
        return _cosine(one, other)

    return Closeness(f"cosine of images by {extractor.name}", "image", measure)


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def score_items(
    samples: Sequence[Sample],
    there: Step,
    back: Step,
    closeness: Closeness,
    seed: int,
    store: Store,
    returns: int = 1,
) -> list[Scored]:
    """Send items to another modality and back, and measure how close they come back.

    Args:
        samples: items of the modality that `there` takes; no two of one index and part.
        there: F, such as a captioner.
        back: G, such as a text-to-image model.
        closeness: of the modality of the items.
        seed: randomness from (seed, "back-modality cycle" and the part, index, level, path, 1).
        store: where outputs are looked up and kept.
        returns: how often each item is sent out, each time with a draw of its own.

    Returns:
        one for each item, in their order. None of them depends on which others are there.

    Raises:
        ConfigError: modalities do not fit; nothing is loaded before.
        ValueError: two items have one index, returns is below 1, or a closeness is not finite.
        EnvironmentFault: a step lacks what it needs.
        Stopped: a signal asked for a stop; finished batches are in the store.
    """
    levels = [Level(there, returns), Level(back)]
    require_fitting(levels)
    trips = [_Trip(Sample(one.index, one.item, f"{_PART} {one.part}".strip()), one.item) for one in samples]
    return _scores(trips, levels, closeness, seed, store)


def score_pairs(
    pairs: Sequence[ImageText], step: Step, closeness: Closeness, seed: int, store: Store, returns: int = 1
) -> list[Scored]:
    """Measure how close one half of each pair is to what a step makes of the other half.

    With a captioner the text of a pair is compared with what is said of its image: text -> image -> text, of which the
    way out is there already. With a text-to-image model the image is compared with what is drawn of its text.

    Args:
        pairs: no two of one index and part.
        step: image -> text or text -> image.
        closeness: of the modality that the step gives.
        seed, store: as in `score_items`.
        returns: how often the step is taken, each time with a draw of its own.

    Returns:
        one for each pair, as `score_items`.

    Raises:
        ConfigError, ValueError, EnvironmentFault, Stopped: as `score_items`.
    """
    if {step.takes, step.gives} != {"image", "text"}:
        raise ConfigError(
            f"{step.name} makes {step.gives} of {step.takes}",
            why="a pair is an image and a text",
            do="give a captioner or a text-to-image model",
        )
    trips = []
    for pair in pairs:
        halves: dict[str, Item] = {"image": pair.image, "text": pair.text}
        sample = Sample(pair.index, halves[step.takes], f"{_PART} {pair.part}".strip())
        trips.append(_Trip(sample, halves[step.gives]))
    return _scores(trips, [Level(step, returns)], closeness, seed, store)


def at_least(scored: Sequence[Scored], threshold: float) -> list[Scored]:
    """Those that came back as close as a threshold, in their order."""
    if not isfinite(threshold):
        raise ValueError(f"threshold {threshold} is no finite number")
    return [one for one in scored if one.score is not None and one.score >= threshold]


def best_share(scored: Sequence[Scored], share: float) -> list[Scored]:
    """The closest ones, in their order; of equally close ones the earlier. What did not come back is never among them.

    Args:
        scored: all of them.
        share: of all, in (0, 1]; rounded up.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share:g} is outside (0, 1]")
    known = [(-one.score, place) for place, one in enumerate(scored) if one.score is not None]
    best = {place for _, place in sorted(known)[: ceil(round(share * len(scored), 9))]}
    return [one for place, one in enumerate(scored) if place in best]


def _scores(
    trips: Sequence[_Trip], levels: Sequence[Level], closeness: Closeness, seed: int, store: Store
) -> list[Scored]:
    _require(trips, levels, closeness)
    paths = list(product(*(range(level.count) for level in levels)))
    facts = {
        "steps": [level.step.name for level in levels],
        "identity": sha256_json([level.step.identity for level in levels]),
        "closeness": closeness.name,
        "seed": seed,
    }
    scored = []
    for start in range(0, len(trips), _TOGETHER):
        some, nodes = trips[start : start + _TOGETHER], Nodes(levels, seed, store)
        nodes.fill([(trip.sample, path) for trip in some for path in paths])
        scored += [_scored(trip, paths, nodes, closeness, facts) for trip in some]
    return scored


def _scored(trip: _Trip, paths: Sequence[Path], nodes: Nodes, closeness: Closeness, facts: dict[str, Any]) -> Scored:
    index, part = trip.sample.index, trip.sample.part.removeprefix(_PART).strip()
    came_back: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for path in paths:
        end = nodes.trail(trip.sample, path)[-1]
        if not isinstance(end, Output):
            refused[end.why] += 1
            continue
        close = float(closeness.measure(trip.goal, end.value))
        if not isfinite(close):
            raise ValueError(f"{closeness.name} of item {index} is {close}")
        text = {"text": end.value} if isinstance(end.value, str) else {}
        file = {FILE: end.facts[FILE]} if FILE in end.facts else {}
        came_back.append({"branch": list(path), "closeness": close, **text, **file})
    score = sum(one["closeness"] for one in came_back) / len(came_back) if came_back else None
    return Scored(index, part, score, {**facts, "score": score, "came_back": came_back, "refused": dict(refused)})


def _require(trips: Sequence[_Trip], levels: Sequence[Level], closeness: Closeness) -> None:
    gives, first = levels[-1].step.gives, levels[0]
    if closeness.modality != gives:
        raise ConfigError(
            f"{closeness.name} compares {closeness.modality}, and {levels[-1].step.name} gives {gives}",
            do=f"give a closeness of {gives}",
        )
    if first.count < 1 or (first.count > 1 and not first.step.random):
        raise ValueError(
            f"returns {first.count}: it is 1 or more, and 1 where the step ({first.step.name}) draws nothing"
        )
    seen: set[tuple[str, int]] = set()
    for trip in trips:
        key = (trip.sample.part, trip.sample.index)
        if key in seen:
            raise ValueError(f"the index {trip.sample.index} is there twice, and draws depend on it")
        seen.add(key)
