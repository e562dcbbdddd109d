"""The whole stage on a tiny made-up run: results, table, verdict, and what is repeated."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mvc.arms import parse_arm
from mvc.classify.classifier import load_classifier
from mvc.classify.comparison import classifier_size
from mvc.classify.evaluation import result_path
from mvc.classify.stage import run_classify
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


def row_of(run: Path, arm: str, seed: int) -> dict[str, Any]:
    return dict(read_json(result_path(run / "results", parse_arm(arm), seed)))


def stamps(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((run / "results").glob("*-seed*.json"))}


def test_whole_comparison(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run_classify(run, experiment())
    rows = {(arm, seed): row_of(run, arm, seed) for arm in ARMS for seed in (0, 1)}
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
        assert row["test_accuracy"] == pytest.approx(sum(row["test_correct"]) / 20) == row["test"]["accuracy"]
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
    mean = 50 * sum(row_of(run, "real", seed)["test_accuracy"] for seed in (0, 1))
    assert f"{mean:.1f} +- " in text


def test_real_runs_are_the_same_whatever_other_arms_and_seeds_there_are(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    run_classify(one, experiment(arms=["real", "rsp"], seeds=[1]))
    run_classify(two, experiment(arms=["rsp@finetuned", "real"], seeds=[0, 1]))
    rows = [row_of(run, "real", 1) for run in (one, two)]
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
    result_path(run / "results", parse_arm("real"), 0).write_text("{")
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
    row = row_of(run, "rsp", 0)
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
    row = row_of(run, "real", 0)
    assert (row["image_size"], row["backbone"]) == (24, "small")


def test_augmentations_and_resnet_run_through_the_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    short = {"arms": ["real", "two_phase"], "seeds": 1, "max_train_steps": 2, "evaluation_steps": 2}
    run_classify(run, experiment(backbone="resnet18", augmentation="randaugment", random_flip=True, **short))
    row = row_of(run, "two_phase", 0)
    # ResNet-18 of torchvision has 11,689,512 parameters with 1000 classes: less 513 * 998 in the head and
    # 64 * 3 * (49 - 9) in the stem.
    assert row["backbone"] == "resnet18" and row["parameters"] == 11_689_512 - 513 * 998 - 64 * 3 * 40


def test_the_test_split_is_not_read_before_all_is_trained_and_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    hidden = tmp_path / "hidden"
    (run / "data" / "images" / "test").rename(hidden)
    with pytest.raises(DataError, match="test"):
        run_classify(run, experiment(arms=["real", "rsp"], seeds=1))
    # Everything but the final evaluation was done without one test image.
    trained = sorted(path.parent.name for path in (run / "cache" / "classifiers").glob("*/classifier.json"))
    assert len(trained) == 2 and not (run / "results" / "real-seed0.json").exists()
    hidden.rename(run / "data" / "images" / "test")
    before = {path: path.stat().st_mtime_ns for path in (run / "cache" / "classifiers").glob("*/model.safetensors")}
    kept: dict[str, bool] = {}
    monkeypatch.setattr("mvc.classify.stage._forget_weights", lambda run, keep: kept.update(done=True))
    run_classify(run, experiment(arms=["real", "rsp"], seeds=1))
    assert kept and {path: path.stat().st_mtime_ns for path in before} == before


def test_openings_of_the_test_split_are_counted_and_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run_classify(run, experiment(arms=["real"], seeds=1))
    run_classify(run, experiment(arms=["real"], seeds=1))
    assert "opened" not in json.dumps(read_json(run / "results" / "verdict.json")["warnings"])
    run_classify(run, experiment(arms=["real"], seeds=1, learning_rate=2e-3))
    run_classify(run, experiment(arms=["real"], seeds=1, learning_rate=3e-3))
    warnings = json.dumps(read_json(run / "results" / "verdict.json")["warnings"])
    assert "the test split was opened 3 times, with different arms or settings" in warnings


def test_a_planted_leak_is_found_and_does_not_count(tmp_path: Path) -> None:
    from PIL import Image

    run = make_run(tmp_path / "run")
    leak = run / "data" / "images" / "test" / "dark" / "000.png"
    # Stored again as another file, so that no digest gives it away: a synthetic image that is a test image.
    import numpy as np

    from mvc.candidates import write_image
    from mvc.synthetic import synthetic_folder

    pixels = np.array(Image.open(leak)).astype(int)
    pixels[::2] = np.clip(pixels[::2] + 2, 0, 255)
    digest = write_image(synthetic_folder(run), "dark/finetuned-000.png", pixels.astype(np.uint8))
    path = synthetic_folder(run) / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["sha256"] = digest
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_classify(run, experiment(arms=["real", "rsp"], seeds=1))
    row = row_of(run, "rsp", 0)
    assert (row["images_test"], row["images_test_left_out"]) == (19, 1) and len(row["test_correct"]) == 19
    assert read_json(run / "results" / "leaks.json") == {"synthetic": ["test/dark/000.png"]}
    warnings = json.dumps(read_json(run / "results" / "verdict.json")["warnings"])
    assert "1 test image is also among the synthetic images and left out, such as test/dark/000.png" in warnings


def test_the_best_classifier_is_published_and_loads_again(tmp_path: Path) -> None:
    import torch

    run = make_run(tmp_path / "run")
    run_classify(run, experiment(arms=["real", "rsp", "combined"], seeds=2))
    network, facts = load_classifier(run / "results" / "classifier")
    row = row_of(run, facts["arm"], facts["seed"])
    rows = [row_of(run, arm, seed) for arm in ("real", "rsp", "combined") for seed in (0, 1)]
    means = {
        arm: sum(one["validation_accuracy"] for one in rows if one["arm"] == arm) for arm in ("real", "rsp", "combined")
    }
    assert means[facts["arm"]] == max(means.values()) and facts["classes"] == ["dark", "light"]
    from mvc.classify.comparison import prepare
    from mvc.classify.sealed import open_test

    comparison = prepare(run, experiment(arms=["real"]))[0]
    test = open_test(comparison.test, {"again": ["key"]})
    with torch.inference_mode():
        predicted = network(next(test.batches(64)).float() / 255).argmax(dim=1)
    assert predicted.tolist() == row["test_predicted"]
    with pytest.raises(DataError, match="holds no whole classifier"):
        load_classifier(run / "results")


def test_several_jobs_give_the_same_results_as_one(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    run_classify(one, experiment(arms=["real", "rsp", "combined"], seeds=2))
    run_classify(two, experiment(arms=["real", "rsp", "combined"], seeds=2, jobs=2))
    tables = [(run / "results" / "table.csv").read_text() for run in (one, two)]
    assert tables[0] == tables[1]


def test_several_backbones_have_a_conclusion_each(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    short = {"arms": ["real", "rsp"], "seeds": 1, "max_train_steps": 2, "evaluation_steps": 2}
    run_classify(run, experiment(backbone=["small", "test_resnet"], **short))
    assert row_of(run, "real", 0)["backbone"] == "small"
    other = run / "results" / "test_resnet"
    assert read_json(other / "real-seed0.json")["backbone"] == "test_resnet" and (other / "verdict.json").exists()


def test_one_class_and_strangers_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "data" / "index.jsonl").read_text().splitlines()]
    (run / "data" / "index.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if (row["class_name"], row["split"]) != ("light", "train"))
    )
    with pytest.raises(DataError, match="class 'light' has no training image"):
        run_classify(run, experiment())
    (run / "data" / "index.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["class_name"] == "dark")
    )
    (run / "data" / "classes.json").write_text(
        json.dumps({"root": "data/images", "classes": [{"folder": "dark", "words": "dark", "label": 0}]})
    )
    with pytest.raises(DataError, match="has one class, 'dark', so there is nothing to tell apart"):
        run_classify(run, experiment(arms=["real"]))


def test_a_synthetic_set_of_other_classes_or_damaged_is_refused(tmp_path: Path) -> None:
    from mvc.synthetic import synthetic_folder

    run = make_run(tmp_path / "run")
    image = synthetic_folder(run) / "dark" / "finetuned-000.png"
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(DataError, match="finetuned-000.png"):
        run_classify(run, experiment(arms=["real", "rsp"]))
    make_synthetic(run)
    path = synthetic_folder(run) / "metadata.jsonl"
    path.write_text(path.read_text().replace('"dark"', '"cat"').replace("dark/", "cat/"))
    with pytest.raises(DataError, match="cat"):
        run_classify(run, experiment(arms=["real", "rsp"]))
