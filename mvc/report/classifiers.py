"""The comparison of classifiers for the page: the verdict, a row for each arm, and the classes that gain or lose.

Files of older runs have fewer fields; what is not there is left out.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvc.paired_test import p_value_text
from mvc.storage import files_like, read_json

from .sections import percent, reading, require

VERDICT, TABLE = "verdict.json", "table.csv"
HEADLINES = {"use": "Use synthetic images", "do not use": "Do not use synthetic images", "not told": "Not told"}
"""Decision -> headline."""
HEADINGS = (
    "accuracy",
    "gain",
    "95 % interval",
    "p",
    "effect size",
    "balanced",
    "macro F1",
    "AUROC",
    "ECE",
    "ratio",
    "diversity",
    "affinity",
    "seeds",
)
"""Columns behind the arm's name, unless they are empty everywhere."""
_EXPLAINED = {
    "gain": "points of accuracy over real, or over the arm that is named: the real one of the same augmentation",
    "95 % interval": "of the gain, with other seeds and other test images",
    "p": "of a paired test over the seeds, Holm-corrected for the number of arms",
    "effect size": "Hedges' g of the paired gains",
    "balanced": "mean recall of the classes",
    "macro F1": "mean F1 of the classes",
    "AUROC": "one class against the rest, mean over the classes; 0.5 is chance",
    "ECE": "expected calibration error: by how many points the stated probability is off on average",
    "ratio": "synthetic images for each real one; of duplicate, repeated ones",
    "diversity": "training loss late in training: high where images stay hard to learn by heart",
    "affinity": "accuracy of a classifier of clean images on the arm's images, less that on clean ones, in points",
}
"""What a heading does not say by itself; said where the table has it."""


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies, as shares; the 95 % interval is None where there is none."""

    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ArmRow:
    """One row of the table.

    Attributes:
        name: of the arm.
        texts: what is below each heading that the table has.
        values: test accuracy of each classifier, in [0, 1].
        gain: over its reference; None for plain `real`.
        best: whether it is the arm chosen on validation.
        over: what it is compared with, where most arms are compared with another one.
    """

    name: str
    texts: list[str]
    values: list[float]
    gain: Gain | None
    best: bool
    over: str


@dataclass(frozen=True)
class Comparison:
    """verdict.json and table.csv of one backbone, as texts.

    Attributes:
        decision: "use", "do not use", "not told", or empty for an older run.
        headline: the decision in words; empty likewise.
        sentence: what it rests on.
        helped: the decision is to use synthetic images.
        facts: (what, value) of the arm chosen on validation.
        warnings: reasons to doubt the verdict.
        headings, arms: the table.
        explained: (heading, what it says) where the heading alone does not.
        test_set: size of the test split, and what that means; empty where unknown.
        best, reference: names of the arm chosen on validation and of what it is compared with; empty where unknown.
        gains, losses: (class folder, change of recall in points, its 95 % interval).
        reliability: how far probabilities can be trusted; empty where unknown.
    """

    decision: str
    headline: str
    sentence: str
    helped: bool
    facts: list[tuple[str, str]]
    warnings: list[str]
    headings: list[str]
    arms: list[ArmRow]
    explained: list[tuple[str, str]]
    test_set: str
    best: str
    reference: str
    gains: list[tuple[str, str, str]] = field(default_factory=list)
    losses: list[tuple[str, str, str]] = field(default_factory=list)
    reliability: str = ""


def read_comparison(folder: Path) -> Comparison:
    """The verdict and the table of a finished comparison.

    Args:
        folder: results/ of a run, or a folder in it.

    Raises:
        DataError: there is none yet, or a file cannot be used.
    """
    path, table = folder / VERDICT, folder / TABLE
    trained = len(files_like(folder, "*-seed*.json"))
    so_far = f"; classifiers measured so far: {trained}" if trained else ""
    require(path, f"No verdict yet: the classifiers have not been compared{so_far}.")
    verdict = read_json(path)
    with reading(path):
        decision, sentence = str(verdict.get("decision") or ""), str(verdict["sentence"])
        helped, best = bool(verdict["helped"]), str(verdict["best_arm"] or "")
        warnings, test_set = [str(text) for text in verdict["warnings"]], str(verdict.get("test_set") or "")
        gains, losses = (_changes(verdict.get(name) or []) for name in ("gains", "losses"))
        facts, reference = _facts(verdict), str(verdict.get("reference") or "")
    require(table, "There is a verdict but no results/table.csv.")
    with reading(table), open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("it holds no arm")
        headings, arms = _table(rows, best)
        reliability = _reliability(rows, best, reference)
    headline = HEADLINES.get(decision, "")
    return Comparison(
        decision=decision,
        headline=headline,
        # A sentence begins with the decision, which the headline says.
        sentence=sentence.partition(": ")[2] or sentence if headline else sentence,
        helped=helped,
        facts=facts,
        warnings=warnings,
        headings=headings,
        arms=arms,
        explained=[(heading, _EXPLAINED[heading]) for heading in headings if heading in _EXPLAINED],
        test_set=test_set,
        best=best,
        reference=reference,
        gains=gains,
        losses=losses,
        reliability=reliability,
    )


def read_further(run: Path) -> list[tuple[str, Comparison]]:
    """The comparisons of the backbones after the first one, by name.

    Raises:
        DataError: a file cannot be used.
    """
    paths = sorted((run / "results").glob(f"*/{VERDICT}"))
    return [(path.parent.name, read_comparison(path.parent)) for path in paths]


def _facts(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the arm chosen on validation, but for what older runs do not tell."""
    if not verdict.get("decision") or not verdict["best_arm"]:
        return []
    facts = [("arm chosen on validation", str(verdict["best_arm"]))]
    if verdict["difference"] is not None:
        gain = f"{percent(verdict['difference'], signed=True)} points"
        interval = _interval(verdict["low"], verdict["high"])
        facts.append((f"gain over {verdict['reference']}", f"{gain} ({interval})" if interval else gain))
    if verdict["p_value"] is not None:
        facts.append(("p, corrected", p_value_text(verdict["p_value"])))
    if verdict["effect_size"] is not None:
        facts.append(("effect size", f"{verdict['effect_size']:.2f}"))
    if verdict["control"] is not None:
        facts.append(("gain over repeated real images", f"{percent(verdict['control'], signed=True)} points"))
    if verdict["ratio"]:
        facts.append(("synthetic images for each real one", f"{verdict['ratio']:.3g}"))
    if verdict["augmentation"]:
        facts.append(("augmentation", str(verdict["augmentation"])))
    return facts


def _changes(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (str(row["class"]), percent(row["difference"], signed=True), _interval(row.get("low"), row.get("high")))
        for row in rows
    ]


def _table(rows: Sequence[Mapping[str, str]], best: str) -> tuple[list[str], list[ArmRow]]:
    """Headings that something is below, and the arms."""
    cells = [_cells(row) for row in rows]
    usual = _usual_reference(rows)
    headings = [heading for heading in HEADINGS if any(own[heading] for own in cells)]
    arms = [
        ArmRow(
            name=row["arm"],
            texts=[own[heading] or "–" for heading in headings],
            values=[float(value) for value in row["values"].split()],
            gain=_gain(row),
            best=row["arm"] == best,
            over="" if row.get("reference") == usual else row.get("reference") or "",
        )
        for row, own in zip(rows, cells, strict=True)
    ]
    return headings, arms


def _usual_reference(rows: Sequence[Mapping[str, str]]) -> str:
    """What most arms are compared with; the first one of equals, empty for an older run."""
    counts = Counter(row["reference"] for row in rows if row.get("reference"))
    return counts.most_common(1)[0][0] if counts else ""


def _cells(row: Mapping[str, str]) -> dict[str, str]:
    """The text below each heading; empty where there is none."""

    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    def shown(name: str, decimals: int) -> str:
        value = number(name)
        return "" if value is None else f"{value:.{decimals}f}"

    def share(name: str, signed: bool = False) -> str:
        value = number(name)
        return "" if value is None else percent(value, signed)

    spread = f" ± {percent(float(row['standard_deviation']))}" if row["standard_deviation"] else ""
    ratio, p_value = number("ratio"), number("p_value")
    return {
        "accuracy": percent(float(row["mean"])) + spread,
        "gain": share("difference", signed=True),
        "95 % interval": _interval(number("low"), number("high")),
        "p": "" if p_value is None else p_value_text(p_value),
        "effect size": shown("effect_size", 2),
        "balanced": share("balanced_accuracy"),
        "macro F1": share("macro_f1"),
        "AUROC": shown("auroc", 3),
        "ECE": share("ece"),
        "ratio": f"{ratio:.3g}" if ratio else "",
        "diversity": shown("diversity", 3),
        "affinity": share("affinity", signed=True),
        "seeds": row["seeds"],
    }


def _gain(row: Mapping[str, str]) -> Gain | None:
    if not row.get("difference"):
        return None
    low, high = (float(row[name]) if row.get(name) else None for name in ("low", "high"))
    return Gain(float(row["difference"]), low, high)


def _reliability(rows: Sequence[Mapping[str, str]], best: str, reference: str) -> str:
    """Calibration errors of the chosen arm and its reference in words."""
    errors = {row["arm"]: percent(float(row["ece"])) for row in rows if row.get("ece")}
    if best not in errors:
        return ""
    text = f"The probabilities of {best} are off by {errors[best]} points on average"
    if reference in errors:
        text += f", those of {reference} by {errors[reference]}"
    return f"{text} (expected calibration error, 15 bins, mean over the seeds)."


def _interval(low: float | None, high: float | None) -> str:
    """ "+1.2 to +5.0", in points; empty where an end is not known."""
    return "" if low is None or high is None else f"{percent(low, signed=True)} to {percent(high, signed=True)}"
