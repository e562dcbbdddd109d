"""The table of a CLIP comparison from written results: means, differences, intervals and p values by hand, words."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from mvc.errors import DataError
from mvc.storage import read_json
from mvc.train.clip_table import COLUMNS, compared, conclude_clips, print_clips

PLAIN = (300.0, 310.0, 305.0)
MIXGEN = (310.0, 322.0, 313.0)  # differences 10, 12, 8: mean 10, standard deviation 2
MIXUP = (301.0, 309.0, 306.0)  # differences 1, -1, 1: mean 1 / 3, variance 4 / 3
WORSE = (294.0, 303.0, 298.0)  # differences -6, -7, -7: mean -20 / 3, variance 1 / 3
T = 4.302653  # t(0.975, 2) from the table


def row(rsum: float, validation: float | None = 200.0, zero_shot: float | None = None) -> dict[str, Any]:
    """What was measured of a seed, with recalls that can be told apart."""
    text = {"1": rsum / 10, "5": rsum / 5, "10": rsum / 4}
    image = {"1": rsum / 20, "5": rsum / 8, "10": rsum / 6}
    test = {"images": 200, "captions": 400, "text_retrieval": text, "image_retrieval": image, "rsum": rsum}
    return {"test": test, "validation_rsum": validation, "zero_shot_accuracy": zero_shot}


def rows(rsums: tuple[float, ...], validation: float | None = 200.0) -> list[dict[str, Any]]:
    return [row(rsum, validation) for rsum in rsums]


def told(folder: Path, warnings: tuple[str, ...] = (), /, **arms: list[dict[str, Any]]) -> str:
    conclude_clips(folder, arms, warnings)
    return str(read_json(folder / "verdict.json")["sentence"])


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return {line["arm"]: line for line in csv.DictReader(file)}


def p_of(mean: float, variance: float) -> float:
    """Two-sided p of three differences: with two degrees of freedom t has the closed form 1 - t / sqrt(2 + t^2)."""
    t = abs(mean) / math.sqrt(variance / 3)
    return 1 - t / math.sqrt(2 + t * t)


def test_numbers_of_the_table_by_hand(tmp_path: Path) -> None:
    told(tmp_path, none=rows(PLAIN), mixgen=rows(MIXGEN), mixup=rows(MIXUP), policy=rows(WORSE))
    lines = table_of(tmp_path)
    assert list(lines) == ["none", "mixgen", "mixup", "policy"]
    none, mixgen = lines["none"], lines["mixgen"]
    assert float(none["rsum"]) == 305 and float(none["standard_deviation"]) == 5
    assert float(mixgen["rsum"]) == 315 and float(mixgen["standard_deviation"]) == pytest.approx(
        math.sqrt(39), rel=1e-5
    )
    assert none["values"] == "300.0000 310.0000 305.0000" and mixgen["values"] == "310.0000 322.0000 313.0000"
    for kind, shares in (("text_retrieval", (10, 5, 4)), ("image_retrieval", (20, 8, 6))):
        for k, share in zip((1, 5, 10), shares, strict=True):
            assert float(mixgen[f"{kind}@{k}"]) == pytest.approx(315 / share, rel=1e-5)
    assert [none[name] for name in ("difference", "low", "high", "p_value", "zero_shot_accuracy")] == [""] * 5
    for arm, mean, variance in (("mixgen", 10, 4), ("mixup", 1 / 3, 4 / 3), ("policy", -20 / 3, 1 / 3)):
        half = T * math.sqrt(variance / 3)
        found = [float(lines[arm][name]) for name in ("difference", "low", "high")]
        assert found == pytest.approx([mean, mean - half, mean + half], rel=1e-4), arm
    # Holm: the smallest p times 3, the next one times 2, and none below the one before.
    raw = {"mixgen": p_of(10, 4), "mixup": p_of(1 / 3, 4 / 3), "policy": p_of(20 / 3, 1 / 3)}
    assert raw["policy"] < raw["mixgen"] < raw["mixup"]
    expected = {"policy": 3 * raw["policy"], "mixgen": 2 * raw["mixgen"], "mixup": raw["mixup"]}
    for arm, value in expected.items():
        assert float(lines[arm]["p_value"]) == pytest.approx(value, rel=1e-4)
    assert raw["mixgen"] == pytest.approx(stats.ttest_rel(MIXGEN, PLAIN).pvalue)


def test_the_columns_of_the_file(tmp_path: Path) -> None:
    told(tmp_path, none=rows(PLAIN))
    with open(tmp_path / "table.csv", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    assert b"\r" not in (tmp_path / "table.csv").read_bytes()
    assert len(COLUMNS) == len(set(COLUMNS)) == 16


def test_means_are_empty_where_a_seed_has_no_value(tmp_path: Path) -> None:
    own = [row(300, 210, 0.5), row(310, 220, 0.75)]
    part = [row(300, None, None), row(310, 220, 0.5)]
    for one in part:
        del one["test"]["text_retrieval"]["10"], one["test"]["image_retrieval"]["10"]  # fewer than ten test images
    told(tmp_path, none=own, mixgen=part)
    lines = table_of(tmp_path)
    assert float(lines["none"]["validation_rsum"]) == 215 and float(lines["none"]["zero_shot_accuracy"]) == 0.625
    empty = ("validation_rsum", "zero_shot_accuracy", "text_retrieval@10", "image_retrieval@10")
    assert [lines["mixgen"][name] for name in empty] == [""] * 4 and lines["mixgen"]["text_retrieval@5"] == "61"


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        # p of mixgen alone is 0.0131 and its half-width 4.968.
        (
            {"mixgen": MIXGEN},
            r"mixgen helped: RSUM \+10.0 against none .95 % interval \+5.0 to \+15.0, 3 seeds, p = 0.013",
        ),
        ({"policy": WORSE}, r"policy hurt: RSUM -6.7 against none .95 % interval -8.1 to -5.2, 3 seeds, p = 0.0025"),
        (
            {"mixup": MIXUP},
            r"not told: mixup differs from none by \+0.3 RSUM .95 % interval -2.5 to \+3.2, 3 seeds, p = 0.67.; chance",
        ),
        (
            {"mixgen": PLAIN},
            r"not told: mixgen differs from none by \+0.0 RSUM .3 seeds, p = 1.; chance could explain it",
        ),
        # Equal differences: the sign-flip test of three, 2 / 8, and no interval.
        (
            {"mixgen": tuple(v + 9 for v in PLAIN)},
            r"not told: mixgen differs from none by \+9.0 RSUM .3 seeds, p = 0.25",
        ),
        ({}, "not told: without the arm none, or with no other one, nothing is compared"),
    ],
)
def test_what_is_said(arms: dict[str, tuple[float, ...]], sentence: str, tmp_path: Path) -> None:
    found = told(tmp_path, none=rows(PLAIN), **{arm: rows(values) for arm, values in arms.items()})
    assert re.match(sentence, found), found


def test_validation_chooses_the_arm_and_all_arms_count_in_its_p_value(tmp_path: Path) -> None:
    arms = {"mixgen": rows(MIXGEN, 210.0), "mixup": rows(MIXUP, 240.0), "policy": rows(WORSE, 220.0)}
    assert told(tmp_path, none=rows(PLAIN, 999.0), **arms).startswith("not told: mixup differs from none by +0.3")
    arms["mixgen"] = rows(MIXGEN, 250.0)
    # 2 * 0.0131: alone it would be told with half of that.
    assert told(tmp_path, none=rows(PLAIN), **arms).endswith("3 seeds, p = 0.026)")
    more = {name: rows(MIXUP) for name in ("mixgen_a", "mixgen_b", "mixgen_c")}
    found = told(tmp_path, none=rows(PLAIN), mixgen=rows(MIXGEN, 250.0), **more)
    assert found.startswith("not told: mixgen differs from none by +10.0") and "p = 0.052" in found  # times 4


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    found = told(tmp_path, none=rows(PLAIN[:1]), mixgen=rows(MIXGEN[:1]))
    assert found == "not told: one seed cannot tell whether mixgen helps; its RSUM differs from none by +10.0"
    line = table_of(tmp_path)["mixgen"]
    assert float(line["difference"]) == 10
    assert [line[name] for name in ("low", "high", "p_value", "standard_deviation")] == [""] * 4


def test_without_the_arm_none_nothing_is_compared(tmp_path: Path) -> None:
    assert told(tmp_path, mixgen=rows(MIXGEN), mixup=rows(MIXUP)).startswith("not told: without the arm none")
    assert all(line["difference"] == "" for line in table_of(tmp_path).values())
    arms = compared({"mixgen": rows(MIXGEN)})
    assert [(one.arm, one.comparison, one.corrected) for one in arms] == [("mixgen", None, None)]


def test_seeds_are_paired_in_their_order() -> None:
    (_, one), (_, other) = (compared({"none": rows(PLAIN), "mixgen": rows(order)}) for order in (MIXGEN, MIXGEN[::-1]))
    assert one.comparison is not None and other.comparison is not None
    assert one.comparison.difference == other.comparison.difference == 10
    assert other.corrected is not None and one.corrected is not None and other.corrected > one.corrected


def shown(run: Path, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_clips(run, console)
    return console.export_text()


def test_what_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    sentence = told(folder, ("only 6 test images",), none=rows(PLAIN), mixgen=rows(MIXGEN))
    text = shown(tmp_path)
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "305.0 +- 5.0" in lines["none"] and "315.0 +- 6.2" in lines["mixgen"]
    assert all(word in lines["mixgen"] for word in ("31.5", "63.0", "78.8", "15.8", "39.4", "52.5", "+10.0", "0.013"))
    assert "+5.0 to +15.0" in lines["mixgen"] and "zero-shot" not in text
    assert f"verdict: {sentence}" in text and "warning: only 6 test images" in text
    # With zero-shot accuracy a column more, in per cent; one seed has no spread.
    told(folder, none=[row(300, 200, 0.5)], mixgen=[row(310, 200, 0.625)])
    text = shown(tmp_path)
    assert "zero-shot" in text and "50.0" in text and "62.5" in text and "+-" not in text and "warning" not in text


def test_an_unfinished_comparison_is_not_printed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results has no finished comparison(.|\n)*mvc clip"):
        print_clips(tmp_path)
