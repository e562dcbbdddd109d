"""The whole stage on a tiny made-up run: results, table, verdict, and what is repeated."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mvc.classify.stage import classifier_size, result_path, run_classify
from mvc.classify.table import print_table
from mvc.config import ClassifySection, Experiment
from mvc.errors import ConfigError, DataError, Stopped
from mvc.stopping import flag
from mvc.storage import read_json
from mvc.synthetic import read_synthetic

from .runs import COUNTS, make_run, make_synthetic

ARMS = ["real", "duplicate", "combined", "rsp", "two_phase", "two_phase@finetuned", "rsp@pretrained"]


def experiment(data: dict[str, Any] | None = None, **classify: Any) -> Experiment:
    settings = {"arms": ARMS, "seeds": 2, "max_train_steps": 12, "train_batch_size": 8, "evaluation_steps": 4}
    return Experiment.model_validate({"data": data or {}, "classify": {**settings, **classify}})


def stamps(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((run / "results").glob("*-seed*.json"))}


def test_whole_comparison(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run_classify(run, experiment())
    rows = {(arm, seed): read_json(result_path(run, arm, seed)) for arm in ARMS for seed in (0, 1)}
    assert len(stamps(run)) == 14 and (run / "results" / "two_phase-at-finetuned-seed1.json").exists()
    assert {row["steps"] for row in rows.values()} == {12}
    assert {row["parameters"] for row in rows.values()} == {rows["real", 0]["parameters"]}
    assert {row["images_real"] for row in rows.values()} == {COUNTS["train"]}
    synthetic = {arm: rows[arm, 0]["images_synthetic"] for arm in ARMS}
    assert synthetic == dict(zip(ARMS, [0, 0, 12, 12, 12, 8, 4], strict=True))
    for row in rows.values():
        assert [step for step, _, _ in row["validation_curve"]] == [4, 8, 12]
        best = {step: accuracy for step, accuracy, _ in row["validation_curve"]}
        assert row["validation_accuracy"] == best[row["best_step"]] == max(best.values())
        # Test: 10 images of each class, so the accuracy is the mean of the two.
        assert row["test_accuracy"] == pytest.approx(sum(row["per_class"].values()) / 2)
        assert set(row["per_class"]) == {"dark", "light"}
    with open(run / "results" / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["arm"] for line in table] == ARMS
    for line in table:
        values = [rows[line["arm"], seed]["test_accuracy"] for seed in (0, 1)]
        assert [float(value) for value in line["values"].split()] == pytest.approx(values)
        assert float(line["mean"]) == pytest.approx(sum(values) / 2)
    assert table[0]["difference"] == table[0]["p_value"] == "" and table[1]["p_value"] != ""
    verdict = read_json(run / "results" / "verdict.json")
    assert verdict["seeds"] == 2 and verdict["best_arm"] in ARMS[2:]
    assert "only 8 validation images" in " ".join(verdict["warnings"])


def test_the_table_is_printed_with_verdict_and_warnings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"table\.csv is missing"):
        print_table(run)
    run_classify(run, experiment(arms=["real", "rsp"]))
    stream = io.StringIO()
    print_table(run, Console(file=stream, width=80))
    text = stream.getvalue()
    verdict = read_json(run / "results" / "verdict.json")
    assert f"verdict: {verdict['sentence']}" in text and "test set: 20 test images" in text
    assert all(f"warning: {warning}" in text for warning in verdict["warnings"])
    mean = 50 * sum(read_json(result_path(run, "real", seed))["test_accuracy"] for seed in (0, 1))
    assert f"{mean:.1f} +- " in text


def test_real_runs_are_the_same_whatever_other_arms_and_seeds_there_are(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    run_classify(one, experiment(arms=["real", "rsp"], seeds=[1]))
    run_classify(two, experiment(arms=["rsp@finetuned", "real"], seeds=[0, 1]))
    rows = [read_json(result_path(run, "real", 1)) for run in (one, two)]
    for row in rows:
        del row["seconds"]
    assert rows[0] == rows[1]


def test_finished_classifiers_are_not_repeated_and_stale_ones_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    settings: dict[str, Any] = {"arms": ["real", "duplicate", "rsp", "two_phase"], "seeds": 1}
    run_classify(run, experiment(**settings))
    first = stamps(run)
    run_classify(run, experiment(**settings))
    assert stamps(run) == first

    def changed(**more: Any) -> set[str]:
        before = stamps(run)
        run_classify(run, experiment(**{**settings, **more}))
        return {name.removesuffix("-seed0.json") for name, stamp in stamps(run).items() if before.get(name) != stamp}

    settings["rsp_probability"] = 0.5
    assert changed() == {"rsp"}
    settings["seeds"] = 2
    assert changed() == {f"{arm}-seed1.json" for arm in settings["arms"]}
    settings["seeds"] = 1
    assert changed() == set()
    make_synthetic(run, finetuned=6, pretrained=6)  # as many images, other ones
    assert changed() == {"rsp", "two_phase"}
    make_synthetic(run, finetuned=7, pretrained=6)
    assert changed() == {"duplicate", "rsp", "two_phase"}
    result_path(run, "real", 0).write_text("{")
    assert changed() == {"real"}
    settings["learning_rate"] = 2e-3
    assert changed() == {"real", "duplicate", "rsp", "two_phase"}


def test_a_stop_keeps_the_finished_classifiers_and_the_rest_follows(tmp_path: Path) -> None:
    whole, cut = make_run(tmp_path / "whole"), make_run(tmp_path / "cut")
    settings = experiment(arms=["real", "rsp", "combined"], seeds=1)
    run_classify(whole, settings)
    run_classify(cut, experiment(arms=["real"], seeds=1))
    before = stamps(cut)
    flag.signal = 15
    try:
        with pytest.raises(Stopped, match="classifiers that were finished are kept"):
            run_classify(cut, settings)
    finally:
        flag.signal = None
    assert stamps(cut) == before and not (cut / "results" / "verdict.json").exists()
    run_classify(cut, settings)
    assert stamps(cut)["real-seed0.json"] == before["real-seed0.json"]
    tables = [(run / "results" / "table.csv").read_text() for run in (whole, cut)]
    assert tables[0] == tables[1]


def test_arms_without_their_synthetic_images_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    for arm in ("duplicate", "two_phase"):
        with pytest.raises(ConfigError, match=f"arm '{arm}' needs synthetic images\nwhy: .* no image at all"):
            run_classify(run, experiment(arms=["real", arm]))
    make_synthetic(run, finetuned=4, pretrained=0)
    with pytest.raises(ConfigError, match="arm 'rsp@pretrained' needs synthetic images of the source pretrained"):
        run_classify(run, experiment(arms=["real", "rsp@pretrained"]))


def test_real_alone_needs_no_synthetic_set(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    run_classify(run, experiment(arms=["real"], seeds=1))
    verdict = read_json(run / "results" / "verdict.json")
    assert verdict["best_arm"] is None and verdict["helped"] is False


def test_without_validation_the_last_weights_are_used_and_the_row_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"train": 6, "test": 10})
    run_classify(run, experiment(arms=["real", "rsp"], seeds=1))
    row = read_json(result_path(run, "rsp", 0))
    assert row["best_step"] == 12 and row["validation_accuracy"] is None and row["validation_curve"] == []
    assert row["weights_kept"] == "last, there being no validation split"
    assert "no validation images" in json.dumps(read_json(run / "results" / "verdict.json")["warnings"])


def test_empty_test_split_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"train": 6, "validation": 4})
    with pytest.raises(DataError, match="the test split of .* is empty"):
        run_classify(run, experiment())


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"classify\.weights: .*none\.safetensors is missing"):
        run_classify(run, experiment(weights=str(tmp_path / "none.safetensors")))


def test_size_and_backbone_follow_the_images(tmp_path: Path) -> None:
    from mvc.dataset import load_index

    run = make_run(tmp_path / "run")
    made, train = read_synthetic(run), load_index(run).split("train")
    assert classifier_size(ClassifySection(image_size=48), 64, made, train) == 48
    assert classifier_size(ClassifySection(), 64, made, train) == 64
    assert classifier_size(ClassifySection(), None, made, train) == 16
    assert classifier_size(ClassifySection(), None, [], train) == 32
    run_classify(run, experiment({"image_size": 24}, arms=["real"], seeds=1))
    row = read_json(result_path(run, "real", 0))
    assert (row["image_size"], row["backbone"]) == (24, "small")


def test_augmentations_and_resnet_run_through_the_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    short = {"arms": ["real", "two_phase"], "seeds": 1, "max_train_steps": 2, "evaluation_steps": 2}
    run_classify(run, experiment(backbone="resnet18", augmentation="randaugment", random_flip=True, **short))
    row = read_json(result_path(run, "two_phase", 0))
    # ResNet-18 of torchvision has 11,689,512 parameters with 1000 classes: less 513 * 998 in the head and
    # 64 * 3 * (49 - 9) in the stem.
    assert row["backbone"] == "resnet18" and row["parameters"] == 11_689_512 - 513 * 998 - 64 * 3 * 40
