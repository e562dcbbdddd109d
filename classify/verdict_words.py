"""The outcome of a comparison in plain words."""

from __future__ import annotations

from mvc.paired_test import Comparison, p_value_text

from .statistics import Summary


def points(share: float, signed: bool = False) -> str:
    """A share as percentage points with one decimal; never "-0.0"."""
    value = round(100 * share, 1) + 0.0
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def p_text(p_value: float) -> str:
    """ "p = 0.012", or "p < 0.001"."""
    text = p_value_text(p_value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def plural(count: int, noun: str) -> str:
    """ "1 seed", "2 seeds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(texts: list[str], most: int = 4) -> str:
    """ "a, b and 3 more"."""
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def described(summary: Summary) -> str:
    """An arm and how many synthetic images it had: "rsp@finetuned with 4 synthetic a real image"."""
    if summary.arm.ratio is not None or not summary.ratio:
        return summary.name
    return f"{summary.name} with {summary.ratio:.2g} synthetic a real image"


def evidence(found: Comparison, samples: str) -> str:
    """ "95 % interval 1.1 to 5.2, 5 seeds, p = 0.012", of a comparison with two samples at least."""
    parts = []
    if found.low is not None and found.high is not None:
        parts.append(f"95 % interval {points(found.low)} to {points(found.high)}")
    parts.append(samples)
    if found.corrected is not None:
        parts.append(p_text(found.corrected))
    return ", ".join(parts)


def gain_sentence(best: Summary, found: Comparison, samples: str) -> str:
    """Of an arm that beats its reference."""
    gain = points(found.difference)
    return (
        f"use synthetic images: {described(best)} beats {found.reference} by {gain} points ({evidence(found, samples)})"
    )


def loss_sentence(best: Summary, found: Comparison, samples: str) -> str:
    """Of a best arm that its reference beats."""
    return (
        f"do not use synthetic images: even the best arm, {described(best)}, is {points(-found.difference)} points "
        f"worse than {found.reference} ({evidence(found, samples)})"
    )


def no_use_sentence(best: Summary, found: Comparison, samples: str, worthwhile: float) -> str:
    """Of a best arm whose gain is too small to matter."""
    return (
        f"do not use synthetic images: the best arm, {described(best)}, differs from {found.reference} by "
        f"{points(found.difference, signed=True)} points ({evidence(found, samples)}), so a gain of more than "
        f"{points(worthwhile)} points is unlikely"
    )


def open_sentence(best: Summary, found: Comparison, samples: str, why: str) -> str:
    """Of a best arm that may or may not be better."""
    return (
        f"not told: {described(best)} differs from {found.reference} by {points(found.difference, signed=True)} points "
        f"({evidence(found, samples)}); {why}"
    )
