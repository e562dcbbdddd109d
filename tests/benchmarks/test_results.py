"""Gates hold or fail as their bounds say, and a section survives the way from a benchmark's process to the page."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import pytest

from benchmarks.results import Gate, Section, Table, finish, parser
from benchmarks.run import NAMES, ON_CUDA, ROOT, page


def section(value: float) -> Section:
    return Section(
        title="Something",
        how="This against that.",
        tables=(Table(("what", "s"), (("a", "1.25"), ("long name", "10"))),),
        gates=(Gate("ratio", value, low=1.35, aim_low=1.38),),
        notes=("A note.",),
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (1.35, 1.35, None, True),
        (1.3499, 1.35, None, False),
        (0.03, None, 0.03, True),
        (0.0301, None, 0.03, False),
        (0.95, 0.9, 1.1, True),
        (1.2, 0.9, 1.1, False),
        (0.8, 0.9, 1.1, False),
        (math.nan, 0.9, 1.1, False),
        (math.nan, None, 1.0, False),
        (math.inf, 1.0, None, False),
    ],
)
def test_a_gate_holds_within_its_bounds_alone(value: float, low: float, high: float, passed: bool) -> None:
    assert Gate("figure", value, low, high).passed is passed


def test_gates_say_their_bounds() -> None:
    assert Gate("a", 1.5, low=1.35).row() == ("a", "1.5", "at least 1.35", "ok")
    assert Gate("b", 4.5678, high=3.0, unit=" %").row() == ("b", "4.568 %", "at most 3 %", "FAIL")
    assert Gate("c", 1.0, low=0.9, high=1.1).row() == ("c", "1", "0.9 to 1.1", "ok")


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.29, "FAIL"), (1.3, "short"), (1.39, "short"), (1.4, "ok"), (math.nan, "FAIL")]
)
def test_a_gate_with_an_aim_says_when_it_is_short_of_it(value: float, verdict: str) -> None:
    gate = Gate("ratio", value, low=1.3, unit=" x", aim_low=1.4)
    assert gate.verdict == verdict and gate.passed is (verdict != "FAIL")
    assert gate.bounds == "at least 1.3 x (aim at least 1.4)"


@pytest.mark.parametrize(("value", "verdict"), [(0.85, "short"), (0.9, "ok"), (1.1, "ok"), (1.15, "short")])
def test_an_aim_may_have_two_ends(value: float, verdict: str) -> None:
    gate = Gate("slope", value, 0.8, 1.2, aim_low=0.9, aim_high=1.1)
    assert gate.row()[2:] == ("0.8 to 1.2 (aim 0.9 to 1.1)", verdict)


def test_tables_are_aligned_markdown() -> None:
    assert section(2.0).tables[0].markdown().splitlines() == [
        "| what      |    s |",
        "| --------- | ---: |",
        "| a         | 1.25 |",
        "| long name |   10 |",
    ]


def test_a_section_comes_back_from_its_json() -> None:
    assert Section.from_json(section(2.0).to_json()) == section(2.0)


@pytest.mark.parametrize(("value", "code"), [(1.4, 0), (1.3, 1)])
def test_a_benchmark_leaves_with_its_verdict(
    value: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parser("words", 5).parse_args(["--json", str(tmp_path / "found.json")])
    assert options.rounds == 5
    assert finish(section(value), options) == code
    shown = capsys.readouterr().out
    assert shown.startswith("## Something\n\nThis against that.\n\n| what")
    assert ("FAIL" in shown) is bool(code)
    assert Section.from_json((tmp_path / "found.json").read_text()) == section(value)


def test_the_page_has_every_gate_first_and_says_what_broke_off() -> None:
    text = page({"good": section(1.4), "poor": section(1.2), "gone": None}, date(2026, 1, 2), 0.25)
    assert "Written by `make bench` on 2026-01-02" in text and "0.2 other processes" in text
    summary = text.split("## Gates")[1].split("##")[0]
    assert "| 1.4 " in summary.replace("|      1.4 ", "| 1.4 ") and "FAIL" in summary
    assert "## Something\n\n`python -m benchmarks.poor`\n\nThis against that." in text
    assert "## gone\n\n`python -m benchmarks.gone`\n\nBroke off without a result: FAIL." in text
    assert "no CUDA device" in text and "benchmarks.gpu_generate" in text
    for name in ON_CUDA:
        assert "no CUDA device" not in page({name: section(1.4)}, date(2026, 1, 2), 0.0)


def test_every_benchmark_of_the_page_is_there() -> None:
    for name in (*NAMES, *ON_CUDA):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
