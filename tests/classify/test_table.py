"""table.csv holds what was found, and prints with the verdict below it."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from mvc.classify.conclude import Conclusion, Outcome, conclude
from mvc.classify.table import COLUMNS, print_table, write_table
from mvc.errors import DataError
from mvc.storage import write_json

from .made_up_outcomes import CLASSES, outcome

REAL = [0.80, 0.82, 0.81, 0.79, 0.83]
BETTER = [0.84, 0.85, 0.86, 0.82, 0.84]


def written(run: Path, outcomes: list[Outcome]) -> Conclusion:
    found = conclude(outcomes, CLASSES, 400, 1000, "default")
    write_table(run / "results" / "table.csv", found.summaries)
    write_json(run / "results" / "verdict.json", asdict(found.verdict))
    return found


def printed(run: Path, width: int = 100) -> str:
    stream = io.StringIO()
    print_table(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_every_column_is_filled(tmp_path: Path) -> None:
    ours = outcome("rsp+mixup", BETTER, REAL)
    ours = Outcome(**{**vars(ours), "diversity": 0.25, "affinity": 0.875})
    found = written(tmp_path, [outcome("real", REAL, REAL), ours])
    with open(tmp_path / "results" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    comparison = found.summaries[1].comparison
    assert comparison is not None and comparison.low is not None and comparison.effect_size is not None
    texts = {"arm": "rsp+mixup", "seeds": "5", "auroc": "", "augmentation": "mixup", "reference": "real"}
    texts["values"] = "0.840000 0.850000 0.860000 0.820000 0.840000"
    assert {name: rows[1][name] for name in texts} == texts
    numbers = {"mean": 0.842, "validation_mean": 0.81, "difference": 0.032, "balanced_accuracy": 0.5, "macro_f1": 0.25}
    numbers |= {
        "ece": 0.05,
        "ratio": 4,
        "diversity": 0.25,
        "affinity": 0.875,
        "p_value": 0.008489,
        "low": comparison.low,
    }
    numbers |= {"effect_size": comparison.effect_size, "standard_deviation": 0.0148324}
    assert {name: float(rows[1][name]) for name in numbers} == pytest.approx(numbers, rel=1e-3)
    empty = ("difference", "p_value", "low", "high", "effect_size", "auroc", "diversity", "affinity", "reference")
    assert [rows[0][name] for name in empty] == [""] * len(empty) and rows[0]["ratio"] == "0"


def test_the_report_reads_it(tmp_path: Path) -> None:
    from mvc.report.classifiers import read_comparison

    found = written(tmp_path, [outcome("real", REAL, REAL), outcome("rsp", BETTER, REAL)])
    page = read_comparison(tmp_path / "results")
    assert found.verdict.sentence.endswith(page.sentence) and page.helped and page.warnings == found.verdict.warnings
    assert [(arm.name, arm.best) for arm in page.arms] == [("real", False), ("rsp", True)]
    assert page.arms[1].values == BETTER and page.arms[0].gain is None and "+3.2" in page.arms[1].texts


def test_it_is_printed_with_the_verdict_and_the_warnings(tmp_path: Path) -> None:
    arms = [outcome("real", REAL[:3], REAL[:3]), outcome("duplicate", REAL[:3]), outcome("rsp", BETTER[:3], BETTER[:3])]
    found = written(tmp_path, arms)
    text, comparison = printed(tmp_path), found.summaries[2].comparison
    assert "difference to real" in text and "81.0 +- 1.0" in text and "against" not in text
    assert comparison is not None and comparison.low is not None and comparison.high is not None
    assert "+4.0" in text and f"{100 * comparison.low:+.1f} to {100 * comparison.high:+.1f}" in text
    assert f"verdict: {found.verdict.sentence}" in text and "test set: 1000 test images" in text
    assert all(f"warning: {warning}" in text for warning in found.verdict.warnings) and found.verdict.warnings


def test_several_references_are_named(tmp_path: Path) -> None:
    names = ("real", "real+mixup", "rsp", "rsp+mixup")
    written(tmp_path, [outcome(name, BETTER if "rsp" in name else REAL, REAL) for name in names])
    lines = [line.split() for line in printed(tmp_path).splitlines() if "rsp+mixup" in line]
    assert "real+mixup" in lines[0] and "difference to real" not in printed(tmp_path)


def test_one_seed_prints_no_interval(tmp_path: Path) -> None:
    written(tmp_path, [outcome("real", [0.8], [0.8]), outcome("rsp", [0.9], [0.9])])
    text = printed(tmp_path, 80)
    assert "90.0" in text and "+10.0" in text and "+-" not in text and " to +" not in text


def test_no_comparison_yet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv is missing\ndo: run `mvc classify`"):
        print_table(tmp_path)
