"""Whole comparisons with the backbone clip on a made-up run: with MixGen, twice the same, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mvc.arms import AUGMENTATIONS, parse_arm
from mvc.classify.backbones import check_backbone, known_name
from mvc.classify.classifier import load_classifier
from mvc.classify.comparison import prepare
from mvc.classify.evaluation import result_path
from mvc.classify.stage import run_classify
from mvc.classify.sweep import tasks_of
from mvc.classify.training import _network
from mvc.classify.tune import prepare_short_runs
from mvc.clip.models import load_clip, save_clip
from mvc.config import Experiment
from mvc.errors import ConfigError, EnvironmentFault
from mvc.storage import read_json, write_json
from tests.mvc.clip.clip_toys import json_file, toy_clip, vit_config

from .runs import make_run, picture

ARMS = ["real", "real+mixgen"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights, saved as a trained one is."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(toy_clip(folder), folder / "model")
    return folder / "model"


def experiment(model: Path, **classify: Any) -> Experiment:
    settings = {"backbone": "clip", "clip": str(model), "arms": ARMS, "seeds": 1, "learning_rate": 1e-3}
    steps = {"max_train_steps": 6, "train_batch_size": 8, "evaluation_steps": 3}
    return Experiment.model_validate({"classify": {**settings, **steps, **classify}, "run": {"device": "cpu"}})


def row_of(run: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    return dict(read_json(result_path(run / "results", parse_arm(arm), seed)))


def digests(folder: Path) -> dict[str, str]:
    """Of all files of the results but times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.match("*-seed*.json"):
                content = json.dumps({**json.loads(content), "seconds": 0}).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def test_a_comparison_from_images_to_the_classifier(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    run_classify(run, experiment(model))
    rows = {arm: row_of(run, arm) for arm in ARMS}
    own = sum(weight.numel() for weight in load_clip(model).network.parameters())
    for arm, row in rows.items():
        assert (row["backbone"], row["parameters"], row["steps"]) == ("clip", own, 6)
        assert row["augmentation"] == ("mixgen" if arm == "real+mixgen" else "default")
        assert [step for step, _, _ in row["validation_curve"]] == [3, 6] and len(row["test_correct"]) == 20
    # The same batches, of which MixGen has mixed a quarter.
    assert rows["real"]["slots_real"] == rows["real+mixgen"]["slots_real"] == 48
    assert rows["real"]["training_loss"] != rows["real+mixgen"]["training_loss"]
    with open(run / "results" / "table.csv", newline="") as file:
        table = {line["arm"]: line for line in csv.DictReader(file)}
    assert list(table) == ARMS
    # A classifier of clean images cannot judge mixed ones.
    assert table["real"]["affinity"] != "" and table["real+mixgen"]["affinity"] == ""
    assert read_json(run / "results" / "verdict.json")["best_arm"] is None

    network, facts = load_classifier(run / "results" / "classifier")
    assert facts["classes"] == ["dark", "light"] and facts["backbone"] == "clip"
    assert facts["clip"] == {
        "config": load_clip(model).config,
        "captions": [["a photo of a dark."], ["a photo of a light."]],
    }
    images = np.stack([np.array(Image.open(path)) for path in sorted((run / "data/images/test").glob("*/*.png"))])
    labels = [label for label in (0, 1) for _ in range(10)]
    with torch.no_grad():
        named = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(dim=1).tolist()
    right = sum(one == other for one, other in zip(named, labels, strict=True)) / 20
    assert right == pytest.approx(row_of(run, facts["arm"], facts["seed"])["test_accuracy"])


def test_the_same_bytes_on_repetition(tmp_path: Path, model: Path) -> None:
    found = []
    for name in ("one", "two"):
        torch.rand(3)  # the state of the process is no input
        run = make_run(tmp_path / name, synthetic=False)
        run_classify(run, experiment(model))
        found.append(digests(run / "results"))
    rows = {result_path(run, parse_arm(arm), 0).name for arm in ARMS}
    assert found[0] == found[1] and {*rows, "table.csv", "verdict.json", "classifier/model.safetensors"} <= set(
        found[0]
    )


def test_it_begins_zero_shot_for_every_seed(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    classes = read_json(run / "data" / "classes.json")
    classes["classes"][0]["words"] = "quite dark"  # the words of the folder dark
    write_json(run / "data" / "classes.json", classes)
    comparison = prepare(run, experiment(model, seeds=2, templates=["a {}.", "one {}"]))[0]
    assert comparison.captions == [["a quite dark.", "one quite dark"], ["a light.", "one light"]]
    whole = load_clip(model).network.state_dict()
    for task in tasks_of(comparison, comparison.arms[0]):
        state = _network(task).state_dict()
        assert state.keys() == {f"network.{name}" for name in whole}
        assert all(torch.equal(state[f"network.{name}"], value) for name, value in whole.items())


def test_other_templates_and_weights_are_trained_anew(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    own = tmp_path / "model"
    shutil.copytree(model, own)

    def keys(**changes: Any) -> set[str]:
        comparison = prepare(run, experiment(own, **changes))[0]
        return {comparison.key(arm, None, 0) for arm in comparison.arms}

    first = keys()
    assert len(first) == 2 and keys() == first and keys(arms=["real", "real+mixgen", "real+mixup"]) > first
    assert not keys(templates=["{}"]) & first
    save_clip(toy_clip(tmp_path, seed=1), own)
    assert not keys() & first


def test_synthetic_images_are_mixed_with_real_ones(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run")
    arms = ["real", "rsp+mixgen", "two_phase@finetuned+mixgen"]
    run_classify(run, experiment(model, arms=arms, balance="weights", label_smoothing=0.1, ema_decay=0.9))
    assert [row_of(run, arm)["images_synthetic"] for arm in arms] == [0, 12, 8]
    assert all(np.isfinite(row_of(run, arm)["training_loss"]) for arm in arms)


def test_two_backbones_have_a_table_each(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    run_classify(run, experiment(model, backbone=["small", "clip"], arms=["real"], max_train_steps=2))
    assert row_of(run, "real")["backbone"] == "small"
    assert read_json(run / "results" / "clip" / "real-seed0.json")["backbone"] == "clip"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": "ViT-B-32"}, r"classify\.clip=ViT-B-32 is an architecture without weights\nwhy: class captions mean"),
        ({"clip": "ViT-B-23"}, "no CLIP 'ViT-B-23'; nearest: .*ViT-B-32"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, model: Path, changes: dict[str, Any], message: str) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    with pytest.raises(ConfigError, match=message):
        run_classify(run, experiment(model, **changes))
    assert not (run / "results").exists()


def test_folders_that_hold_no_clip_and_short_runs_are_refused(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", synthetic=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EnvironmentFault, match=r"empty has no open_clip_config\.json"):
        run_classify(run, experiment(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"short runs of the backbone clip(.|\n)*set tune\.classifier_steps=0"):
        prepare_short_runs(run, experiment(model), 16)
    with pytest.raises(ConfigError, match=r"toy\.json is an architecture without weights"):
        run_classify(run, experiment(json_file(tmp_path, vit_config())))


def mvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvc", "classify", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280, check=False)


def test_the_command_shows_the_keys_and_refuses_in_three_lines(tmp_path: Path) -> None:
    keys = ["classify.backbone=clip", "classify.clip=FOLDER", "classify.arms=[real, real+mixgen]"]
    shown = yaml.safe_load(mvc(tmp_path, *keys, "data.path=x", "--dry-run").stdout)["classify"]
    assert (shown["backbone"], shown["clip"], shown["arms"]) == ("clip", "FOLDER", ["real", "real+mixgen"])
    assert shown["templates"] == ["a photo of a {}."]
    done = mvc(tmp_path, "classify.backbone=small", "classify.arms=[real, real+mixgen]", "data.path=x")
    assert done.returncode == 2 and "arm 'real+mixgen' mixes captions, which backbone clip alone reads" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3


def test_the_backbone_is_known_by_name() -> None:
    assert known_name(" CLIP") == "clip"
    check_backbone("clip", 7)  # images of any side are resized
    with pytest.raises(ConfigError, match="no backbone 'clpi'; nearest: clip(.|\n)*wrn_28_10, clip or one of timm"):
        known_name("clpi")


def test_the_page_names_every_augmentation_and_the_keys() -> None:
    page = (Path(__file__).parents[2] / "docs" / "classifying.md").read_text()
    assert [name for name in AUGMENTATIONS if f"`{name}`" not in page] == []
    assert all(text in page for text in ("classify.backbone=clip", "classify.clip", "`classify.templates`", "(clip.md"))


@pytest.mark.slow
def test_the_command_from_a_folder(tmp_path: Path, model: Path) -> None:
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "FOLDER" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(picture(label, 5, number)).save(tmp_path / "FOLDER" / name / f"{number}.png")
    words = [
        "--data",
        "FOLDER",
        "classify.backbone=clip",
        f"classify.clip={model}",
        "classify.arms=[real, real+mixgen]",
    ]
    few = ["classify.seeds=1", "classify.max_train_steps=4", "train.max_train_steps=1", "generate.per_real=0.2"]
    done = mvc(tmp_path, *words, *few)
    assert done.returncode == 0, done.stderr
    assert "real+mixgen" in done.stdout and (tmp_path / "runs/FOLDER/results/classifier/model.safetensors").exists()
