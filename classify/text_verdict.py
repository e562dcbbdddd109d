"""What a comparison of texts says: whether to use an augmentation, in words, and what should make one doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .doubts import FEW_IMAGES as FEW_TEXTS
from .doubts import sample_doubts
from .outcomes import Outcome, aligned, data_seeds
from .statistics import Summary, binomial_standard_error, summarise
from .verdict import DO_NOT_USE, NOT_TOLD, USE, WORTHWHILE, not_worthwhile, shown_better, shown_worse
from .verdict_words import evidence, p_text, plural, points


@dataclass(frozen=True)
class TextVerdict:
    """The outcome of a comparison of texts, as verdict.json holds it.

    Attributes:
        decision: "use", "do not use" or "not told".
        sentence: the same in words.
        best_arm: the arm with the best mean validation accuracy but `real`; None where there is none.
        seeds: independent samples: data seeds, or model seeds where there is one data seed.
        helped: the decision is "use".
        test_set: its size and the standard error that it implies, in words.
        warnings: reasons to doubt the sentence.
    """

    decision: str
    sentence: str
    best_arm: str | None
    seeds: int
    helped: bool
    test_set: str
    warnings: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def conclude_texts(
    outcomes: Sequence[Outcome], validation_texts: int, test_texts: int, warnings: Sequence[str] = ()
) -> tuple[list[Summary], TextVerdict]:
    """Compare all arms, by the same statistics as arms of images.

    Args:
        outcomes: of all arms, `real` among them, with the same units.
        validation_texts: size of the validation split; 0 where there is none.
        test_texts: size of the test split.
        warnings: reasons to doubt that others found.
    """
    outcomes = aligned(outcomes)
    summaries = summarise(outcomes, "none")
    real = next(one for one in summaries if one.name == "real")
    best = max((one for one in summaries if one is not real), key=_merit, default=None)
    noun = "seed" if len(data_seeds(outcomes[0].units)) == 1 else "data seed"
    count = len(real.samples)
    decision, sentence = _decide(best, summaries, test_texts, plural(count, noun))
    doubts = sample_doubts(summaries, count, noun, decision != NOT_TOLD) if best is not None else []
    doubts += _few(best, validation_texts, test_texts) + list(warnings)
    error = points(binomial_standard_error(float(np.mean(real.samples)), test_texts))
    test_set = f"{plural(test_texts, 'test text')}: an accuracy has a standard error of {error} points"
    name = None if best is None else best.name
    return summaries, TextVerdict(decision, sentence, name, count, decision == USE, test_set, doubts)


def _merit(summary: Summary) -> float:
    return -1.0 if summary.validation_mean is None else summary.validation_mean


def _decide(best: Summary | None, summaries: Sequence[Summary], test_texts: int, samples: str) -> tuple[str, str]:
    if best is None or best.comparison is None:
        return NOT_TOLD, "not told: no arm has augmented texts, so whether they help was not measured"
    found, signed = best.comparison, points(best.comparison.difference, signed=True)
    if found.p_value is None:
        return NOT_TOLD, f"not told: {samples} cannot tell whether {best.name} helps; it differs by {signed} points"
    shown = evidence(found, samples)
    if shown_better(found):
        return USE, f"use {best.name}: it beats real by {points(found.difference)} points ({shown})"
    better = [one for one in summaries if one is not best and shown_better(one.comparison)]
    if better and better[0].comparison is not None and better[0].comparison.corrected is not None:
        other, gain = better[0], better[0].comparison
        why = (
            f"{other.name}, which the validation texts did not choose, beats real by {points(gain.difference)} points "
            f"({p_text(gain.corrected or 0.0)})"
        )
        return NOT_TOLD, f"not told: {best.name} differs from real by {signed} points ({shown}); {why}"
    if shown_worse(found):
        loss = points(-found.difference)
        return DO_NOT_USE, f"do not use them: even the best arm, {best.name}, is {loss} points worse ({shown})"
    if not_worthwhile(found, test_texts):
        return DO_NOT_USE, (
            f"do not use them: the best arm, {best.name}, differs from real by {signed} points ({shown}), so a gain of "
            f"more than {points(WORTHWHILE)} points is unlikely"
        )
    return NOT_TOLD, f"not told: {best.name} differs from real by {signed} points ({shown}); chance could explain it"


def _few(best: Summary | None, validation_texts: int, test_texts: int) -> list[str]:
    found = []
    if not validation_texts:
        found.append("no validation texts: the last weights were used, and the arm is the first one, not the best one")
    elif validation_texts < FEW_TEXTS:
        found.append(f"only {plural(validation_texts, 'validation text')}: the choice of weights and arm is noisy")
    if best is not None and test_texts < FEW_TEXTS:
        found.append(f"only {plural(test_texts, 'test text')}: accuracies on them say little")
    return found
