"""The paper's tables from the arms of a run: which arm stands for which column, and what the brackets hold."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mvc.arms import parse_arm
from mvc.classify.conclude import conclude
from mvc.classify.paper_table import (
    OURS,
    STRATEGIES,
    Row,
    cell,
    main_columns,
    print_paper_tables,
    read_models,
    source_columns,
    strategy_columns,
    synthetic_row,
)
from mvc.classify.table import write_table
from mvc.errors import DataError
from mvc.storage import write_json, write_text

from .made_up_outcomes import CLASSES, outcome


def rows(**accuracies: float) -> list[Row]:
    """Of arms with their accuracies in per cent; "_at_" and "_and_" stand for "@" and "+"."""
    arms = [parse_arm(name.replace("_at_", "@").replace("_and_", "+")) for name in accuracies]
    return [
        Row(arm, arm.augmentation or "default", value / 100)
        for arm, value in zip(arms, accuracies.values(), strict=True)
    ]


def write_results(folder: Path, accuracies: dict[str, float], default: str = "default") -> None:
    arms = [outcome(name, [accuracy], [accuracy]) for name, accuracy in accuracies.items()]
    write_table(folder / "table.csv", conclude(arms, CLASSES, 400, 1000, default).summaries)


def printed(run: Path, width: int = 160) -> str:
    stream = io.StringIO()
    print_paper_tables(run, Console(file=stream, width=width))
    return stream.getvalue()


def cells(text: str, model: str, table: str) -> list[str]:
    """The cells of a backbone's row in a table of the printed ones."""
    lines = text[text.index(table) :].splitlines()
    line = next(line for line in lines if f" {model} " in line)
    return [part.strip() for part in line.strip("│┃ ").split("│")][1:]


def test_columns_of_the_main_tables() -> None:
    made = rows(
        real=94.9,
        real_and_fast_autoaugment=95.9,
        real_and_autoaugment=95.9,
        two_phase=95.6,
        rsp_and_fast_autoaugment=96.2,
        combined_and_autoaugment=90.0,
        two_phase_and_autoaugment=96.3,
        two_phase_and_randaugment=96.6,
        two_phase_and_mixup=99.0,
    )
    assert [column.heading for column in main_columns()] == [
        "Baseline",
        "FAA",
        "AA",
        "RA",
        "Ours(Syn)",
        "Ours(FAA+Syn)",
        "Ours(AA+Syn)",
        "Ours(RA+Syn)",
    ]
    # The first row of the paper's Table 1, less RandAugment: nothing to compare its last column with.
    assert [cell(column, made)[0] for column in main_columns()] == [
        "94.9",
        "95.9",
        "95.9",
        "-",
        "95.6 (+0.7)",
        "96.2 (+0.3)",
        "96.3 (+0.4)",
        "96.6",
    ]


def test_which_arm_stands_for_synthetic_images() -> None:
    def chosen(*names: str) -> str | None:
        made = [Row(parse_arm(name), "default", 0.5) for name in names]
        found = synthetic_row(made, "default", STRATEGIES, OURS)
        return None if found is None else found.arm.name

    assert chosen("combined", "rsp", "two_phase") == "two_phase"
    assert chosen("combined", "rsp") == "rsp"
    assert chosen("two_phase@pretrained", "two_phase", "two_phase@finetuned") == "two_phase@finetuned"
    assert chosen("two_phase:2", "two_phase:4", "two_phase") == "two_phase"
    assert chosen("two_phase:2", "two_phase:4") == "two_phase:2"
    assert chosen("real", "duplicate", "synthetic_only", "two_phase@sdedit") is None


def test_sources_and_strategies() -> None:
    made = rows(
        real_and_autoaugment=96.1,
        two_phase_at_pretrained_and_autoaugment=96.8,
        two_phase_at_finetuned_and_autoaugment=97.2,
        combined_and_autoaugment=95.4,
        rsp_and_autoaugment=96.3,
    )
    found = {column.heading: cell(column, made)[0] for column in source_columns("autoaugment")}
    assert found == {"AA": "96.1", "AA+Syn(PT)": "96.8 (+0.7)", "AA+Syn(FT)": "97.2 (+1.1)"}
    # Sources are compared by one strategy where there is one that both have.
    one = [*made, *rows(rsp_at_pretrained_and_autoaugment=96.0)]
    one = [row for row in one if row.arm.name != "two_phase@finetuned+autoaugment"]
    found = {column.heading: cell(column, one)[0] for column in source_columns("autoaugment")}
    assert found == {"AA": "96.1", "AA+Syn(PT)": "96.0 (-0.1)", "AA+Syn(FT)": "96.3 (+0.2)"}
    found = {column.heading: cell(column, made)[0] for column in strategy_columns("autoaugment")}
    assert found == {"AA": "96.1", "combined": "95.4 (-0.7)", "RSP": "96.3 (+0.2)", "Two-Phase": "97.2 (+1.1)"}


def test_a_row_a_backbone_and_the_average_gain(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_results(results, {"real": 0.95, "real+autoaugment": 0.961, "two_phase": 0.96, "two_phase+autoaugment": 0.972})
    write_json(results / "real-seed0.json", {"backbone": "resnet50"})
    write_results(results / "efficientnet_b0", {"real": 0.952, "two_phase": 0.954, "two_phase+randaugment": 0.97})
    assert list(read_models(tmp_path)) == ["resnet50", "efficientnet_b0"]
    text = printed(tmp_path)
    first = ["95.0", "-", "96.1", "-", "96.0 (+1.0)", "-", "97.2 (+1.1)", "-"]
    assert cells(text, "resnet50", "Tables 1 to 3") == first
    assert cells(text, "efficientnet_b0", "Tables 1 to 3") == ["95.2", "-", "-", "-", "95.4 (+0.2)", "-", "-", "97.0"]
    assert cells(text, "Average", "Tables 1 to 3") == ["-", "-", "-", "-", "(+0.6)", "-", "(+1.1)", "-"]
    assert cells(text, "resnet50", "Table 4") == ["96.1", "-", "97.2 (+1.1)"]
    assert cells(text, "resnet50", "Table 5") == ["96.1", "-", "-", "97.2 (+1.1)"]


def test_the_backbone_of_several_data_seeds_is_that_of_their_runs(tmp_path: Path) -> None:
    write_results(tmp_path / "results", {"real": 0.95, "two_phase": 0.96})
    write_json(tmp_path / "seed-0" / "results" / "real-seed0.json", {"backbone": "wrn_28_2"})
    (tmp_path / "results" / ".tmp-7-real-seed0.json").write_text('{"backb')  # what a killed process was writing
    assert list(read_models(tmp_path)) == ["wrn_28_2"]


def test_without_autoaugment_tables_4_and_5_are_about_the_default(tmp_path: Path) -> None:
    write_results(tmp_path / "results", {"real": 0.5, "combined": 0.49, "rsp@pretrained": 0.52})
    text = printed(tmp_path)
    assert cells(text, "classifier", "Table 4") == ["50.0", "52.0 (+2.0)", "49.0 (-1.0)"]
    assert cells(text, "classifier", "Table 5") == ["50.0", "49.0 (-1.0)", "52.0 (+2.0)", "-"]
    assert "Baseline+Syn(PT)" in text


def test_arms_that_name_no_augmentation_belong_to_the_run_s_default(tmp_path: Path) -> None:
    write_results(tmp_path / "results", {"real": 0.5, "two_phase": 0.6, "real+default": 0.4}, default="autoaugment")
    found = cells(printed(tmp_path), "classifier", "Tables 1 to 3")
    assert found == ["40.0", "-", "50.0", "-", "-", "-", "60.0 (+10.0)", "-"]


def test_tables_without_synthetic_columns_are_left_out(tmp_path: Path) -> None:
    write_results(tmp_path / "results", {"real": 0.5, "two_phase+randaugment": 0.6})
    text = printed(tmp_path)
    assert "Tables 1 to 3" in text and "Table 4" not in text and "Table 5" not in text
    write_results(tmp_path / "results", {"real": 0.5, "real+randaugment": 0.6})
    assert printed(tmp_path) == "the paper's tables need an arm with synthetic images; none was trained\n"


def test_a_run_without_results_or_with_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv is missing"):
        print_paper_tables(tmp_path)
    write_text(tmp_path / "results" / "table.csv", "arm,mean\nmagic,0.5\n")
    with pytest.raises(DataError, match=r"table\.csv cannot be used\nwhy: unknown strategy 'magic'"):
        print_paper_tables(tmp_path)
