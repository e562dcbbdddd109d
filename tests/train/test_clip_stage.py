"""A whole comparison of CLIPs: models, rows and table, nothing twice, splits, and what is refused."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from rich.console import Console

from mvc.clip.models import load_clip
from mvc.clip.pairs import read_pairs
from mvc.config_clip import ClipExperiment
from mvc.config_file import read_yaml
from mvc.errors import ConfigError, DataError, EnvironmentFault, NumericError, Stopped
from mvc.stopping import flag
from mvc.storage import read_json, verified_manifest, write_json
from mvc.tiny.world import draw_character, render
from mvc.train import clip_stage
from mvc.train.clip_evaluation import class_folders, measured, zero_shot_accuracy
from mvc.train.clip_stage import run_clip
from mvc.train.clip_table import print_clips
from tests.mvc.clip.clip_toys import json_file, resnet_config
from tests.train.clip_runs import experiment, write_model, write_pairs, write_split

NAMES = [f"{arm}-seed{seed}" for arm in ("mixgen", "none") for seed in (0, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two arms with two seeds."""
    run = tmp_path_factory.mktemp("finished") / "run"
    run_clip(run, experiment(data, run, model))
    return run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: read_json(path) for path in sorted((run / "results").glob("*-seed*.json"))}


def stamps(run: Path) -> dict[str, tuple[int, int]]:
    """When row and model of each arm and seed were written."""
    return {
        path.stem: (path.stat().st_mtime_ns, (run / "models" / path.stem).stat().st_mtime_ns)
        for path in (run / "results").glob("*-seed*.json")
    }


def changed(before: dict[str, tuple[int, int]], run: Path) -> tuple[set[str], set[str]]:
    """Names whose row was written again, and names whose model was."""
    now = stamps(run)
    return tuple(
        {name for name, when in now.items() if before.get(name, (0, 0))[place] != when[place]} for place in (0, 1)
    )  # type: ignore[return-value]


def test_models_open_in_open_clip_and_measure_what_their_rows_say(finished: Path, data: Path) -> None:
    rows, test = rows_of(finished), read_pairs(data, "test")
    assert sorted(rows) == NAMES == sorted(path.name for path in (finished / "models").iterdir())
    for name, row in rows.items():
        folder = finished / "models" / name
        clip = load_clip(folder)
        assert row["identity"] == clip.identity == (verified_manifest(folder) or {})["identity"]
        assert measured(clip, test, 64) == row["test"] and set(row["test"]["text_retrieval"]) == {"1", "5"}
        assert (row["arm"], row["seed"], row["steps"]) == (name.split("-")[0], int(name[-1]), 6)
        assert [step for step, _ in row["curve"]] == [3, 6]
        best = max(row["curve"], key=lambda point: point[1])
        assert (row["best_step"], row["validation_rsum"]) == tuple(best)
        assert measured(clip, read_pairs(data, "validation"), 64)["rsum"] == row["validation_rsum"]
        theirs = open_clip.create_model(f"local-dir:{folder}").eval()
        ids, pictures = clip.tokenize(["a red seven"]), torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(theirs.encode_text(ids), clip.network.encode_text(ids))  # type: ignore[operator]
            assert torch.equal(theirs.encode_image(pictures), clip.network.encode_image(pictures))  # type: ignore[operator]
    assert not list((finished / "checkpoints").iterdir())
    assert len({row["identity"] for row in rows.values()}) == 4


def test_the_table_and_the_verdict_hold_what_the_rows_say(finished: Path) -> None:
    rows = rows_of(finished)
    with open(finished / "results" / "table.csv", newline="") as file:
        table = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(table) == ["none", "mixgen"]
    for arm, line in table.items():
        own = [rows[f"{arm}-seed{seed}"] for seed in (0, 1)]
        values = [row["test"]["rsum"] for row in own]
        assert [float(value) for value in line["values"].split()] == pytest.approx(values, abs=1e-4)
        assert float(line["rsum"]) == pytest.approx(sum(values) / 2, rel=1e-5)
        recalls = [row["test"]["image_retrieval"]["5"] for row in own]
        assert float(line["image_retrieval@5"]) == pytest.approx(sum(recalls) / 2, rel=1e-5)
        assert line["text_retrieval@10"] == ""  # of six images
    verdict = read_json(finished / "results" / "verdict.json")
    assert "mixgen" in verdict["sentence"]
    assert verdict["warnings"] == ["only 6 test images: recalls among so few say little"]
    shown = Console(width=160, file=io.StringIO(), record=True)
    print_clips(finished, shown)
    text = shown.export_text()
    assert f"verdict: {verdict['sentence']}" in text and "warning: only 6 test images" in text
    assert f"{float(table['mixgen']['rsum']):.1f} +- {float(table['mixgen']['standard_deviation']):.1f}" in text


def test_the_run_says_how_it_was_made(finished: Path, data: Path) -> None:
    content, _ = read_yaml(finished / "experiment.yaml")
    again = ClipExperiment.model_validate(content)
    assert again.data.path == str(data) and again.run.dir == "" and again.train.arms == ["none", "mixgen"]
    assert set(read_json(finished / "clip.json")) == {"versions", "hardware"}


def test_a_second_call_trains_nothing(copy: Path, data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, table = stamps(copy), (copy / "results" / "table.csv").read_text()
    run_clip(copy, experiment(data, copy, model))
    assert changed(before, copy) == (set(), set()) and (copy / "results" / "table.csv").read_text() == table
    said = capsys.readouterr().err
    assert "12 images to train with, 4 images to validate with, 6 images to test with; 16 training captions" in said
    assert "4 of 4 models were trained before and are kept" in said
    # Keys that change no result repeat nothing either.
    free = {"checkpointing_steps": 3, "num_workers": 1, "micro_batch_size": 2, "checkpoints_total_limit": 4}
    run_clip(copy, experiment(data, copy, model, train=free, techniques={"mixup_alpha": 0.7}))
    assert changed(before, copy) == (set(), set())


def test_a_new_arm_or_seed_is_trained_alone(copy: Path, data: Path, model: Path) -> None:
    before = stamps(copy)
    run_clip(copy, experiment(data, copy, model, train={"arms": ["none", "mixgen", "mixup+synchronised"]}))
    new = {"mixup-and-synchronised-seed0", "mixup-and-synchronised-seed1"}
    assert changed(before, copy) == (new, new)
    assert len((copy / "results" / "table.csv").read_text().splitlines()) == 4
    before = stamps(copy)
    run_clip(copy, experiment(data, copy, model, train={"seeds": [1, 4]}))
    assert changed(before, copy) == ({"none-seed4", "mixgen-seed4"},) * 2
    with open(copy / "results" / "table.csv", newline="") as file:
        assert [len(row["values"].split()) for row in csv.DictReader(file)] == [2, 2]


def test_what_an_arm_depends_on_is_trained_again(copy: Path, data: Path, model: Path) -> None:
    before, first = stamps(copy), rows_of(copy)
    run_clip(copy, experiment(data, copy, model, techniques={"mixgen_share": 0.5}))
    assert changed(before, copy) == ({"mixgen-seed0", "mixgen-seed1"},) * 2
    run_clip(copy, experiment(data, copy, model))
    again = rows_of(copy)
    for name in NAMES:  # to the bit
        assert again[name]["identity"] == first[name]["identity"] and again[name]["test"] == first[name]["test"]
    before = stamps(copy)
    run_clip(copy, experiment(data, copy, model, train={"learning_rate": 5e-3}))
    assert changed(before, copy) == (set(NAMES), set(NAMES))


def test_a_damaged_model_or_row_is_made_again(copy: Path, data: Path, model: Path) -> None:
    first = rows_of(copy)
    row = dict(first["none-seed0"])
    write_json(copy / "results" / "none-seed0.json", {**row, "key": "another"})
    weights = copy / "models" / "none-seed0" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (copy / "results" / "mixgen-seed1.json").unlink()
    before = stamps(copy)
    run_clip(copy, experiment(data, copy, model))
    assert changed(before, copy) == ({"none-seed0", "mixgen-seed1"}, {"none-seed0", "mixgen-seed1"})
    drop = ("seconds",)
    for name, again in rows_of(copy).items():
        assert {k: v for k, v in again.items() if k not in drop} == {
            k: v for k, v in first[name].items() if k not in drop
        }


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of two digits, test images and others."""
    root = tmp_path_factory.mktemp("classes")
    for number in range(200, 260):
        drawn = draw_character(0, number)
        if drawn.word in ("three", "seven"):
            folder = root / ("test" if number % 3 else "train") / drawn.word
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(drawn)).save(folder / f"{number}.png")
    return root


def test_other_prompts_or_classes_are_measured_without_training(
    copy: Path, data: Path, model: Path, classes: Path
) -> None:
    def measure(**evaluate: Any) -> None:
        before = stamps(copy)
        run_clip(copy, experiment(data, copy, model, evaluate=evaluate))
        assert changed(before, copy) == (set(NAMES), set())

    before = {name: row["test"] for name, row in rows_of(copy).items()}
    measure(classes=str(classes), templates=["a {}.", "the {}."])
    folders = class_folders(classes)
    for name, row in rows_of(copy).items():
        clip = load_clip(copy / "models" / name)
        assert row["zero_shot_accuracy"] == zero_shot_accuracy(clip, folders, ["a {}.", "the {}."], 64)
        assert row["test"] == before[name]
    with open(copy / "results" / "table.csv", newline="") as file:
        shares = {row["arm"]: float(row["zero_shot_accuracy"]) for row in csv.DictReader(file)}
    expected = [rows_of(copy)[f"none-seed{seed}"]["zero_shot_accuracy"] for seed in (0, 1)]
    assert shares["none"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    measure(classes=str(classes))
    other = Path(shutil.copytree(classes, copy.parent / "classes"))
    next((other / "test" / "three").iterdir()).unlink()
    measure(classes=str(other))
    assert len(class_folders(other).images) == len(folders.images) - 1
    measure()
    assert {row["zero_shot_accuracy"] for row in rows_of(copy).values()} == {None}
    # Prompts matter to nothing without classes.
    before_last = stamps(copy)
    run_clip(copy, experiment(data, copy, model, evaluate={"templates": ["one {}"]}))
    assert changed(before_last, copy) == (set(), set())


def test_other_test_pairs_are_measured_without_training(copy: Path, data: Path, model: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(data, tmp_path / "pairs"))
    shutil.rmtree(more / "test")
    write_split(more / "test", 8, 40)
    before = stamps(copy)
    run_clip(copy, experiment(more, copy, model))
    assert changed(before, copy) == (set(NAMES), set())
    assert {row["test"]["images"] for row in rows_of(copy).values()} == {8}
    write_split(more / "train", 13, 60)
    run_clip(copy, experiment(more, copy, model))
    assert changed(before, copy) == (set(NAMES), set(NAMES))


def test_test_images_that_other_splits_share_are_left_out_and_told(data: Path, model: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(data, tmp_path / "pairs"))
    shutil.copy(more / "train" / "003.png", more / "test" / "017.png")
    shutil.copy(more / "validation" / "013.png", more / "test" / "018.png")
    one = {"arms": ["none"], "seeds": 1, "max_train_steps": 1}
    run_clip(tmp_path / "run", experiment(more, tmp_path / "run", model, train=one))
    assert rows_of(tmp_path / "run")["none-seed0"]["test"]["images"] == 4
    verdict = read_json(tmp_path / "run" / "results" / "verdict.json")
    assert verdict["warnings"][0] == "2 test images are also in training or validation, and left out"
    assert verdict["sentence"].startswith("not told")
    for number in range(16, 22):
        shutil.copy(more / "train" / "000.png", more / "test" / f"{number:03d}.png")
    with pytest.raises(DataError, match="0 images to test"):
        run_clip(tmp_path / "run", experiment(more, tmp_path / "run", model, train=one))


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": 20}, [14, 2, 4]),
        ({"train": 20, "test": 5}, [18, 2, 5]),
        ({"train": 20, "validation": 3}, [16, 3, 4]),
    ],
)
def test_splits_that_are_missing_are_cut_off(
    splits: dict[str, int], sizes: list[int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"arms": ["none"], "seeds": 1, "max_train_steps": 1}
    pairs = write_pairs(tmp_path / "pairs", splits)
    run_clip(tmp_path / "run", experiment(pairs, tmp_path / "run", model, train=one))
    row, said = rows_of(tmp_path / "run")["none-seed0"], capsys.readouterr().err
    assert [int(part.split()[0]) for part in said.split("clip: ")[1].split(";")[0].split(", ")] == sizes
    assert row["test"]["images"] == sizes[2]
    # Other shares and another data seed are other splits.
    share = {"test_share": 0.3, "validation_share": 0.2}
    run_clip(tmp_path / "run", experiment(pairs, tmp_path / "run", model, train=one, data=share))
    assert rows_of(tmp_path / "run")["none-seed0"]["identity"] != row["identity"]


def test_without_validation_weights_the_last_ones_are_published(data: Path, model: Path, tmp_path: Path) -> None:
    last = {"publish": "last", "seeds": 1, "arms": ["none"]}
    run_clip(tmp_path, experiment(data, tmp_path, model, train=last))
    row = rows_of(tmp_path)["none-seed0"]
    assert row["best_step"] == 6 and row["validation_rsum"] == row["curve"][-1][1]


def test_a_trained_clip_is_trained_further(finished: Path, data: Path, tmp_path: Path) -> None:
    start = finished / "models" / "none-seed0"
    one = {"arms": ["none"], "seeds": 2, "max_train_steps": 1, "learning_rate": 1e-9}
    run_clip(tmp_path / "run", experiment(data, tmp_path / "run", start, train=one))
    before = load_clip(start).network.state_dict()
    for seed in (0, 1):
        after = load_clip(tmp_path / "run" / "models" / f"none-seed{seed}").network.state_dict()
        assert all(torch.allclose(after[name], value, atol=1e-7) for name, value in before.items())


def test_a_stop_keeps_what_was_done_and_the_rest_follows(
    finished: Path, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings, real = tmp_path / "run", experiment(data, tmp_path / "run", model), clip_stage._measured
    kept: dict[str, tuple[int, int]] = {}
    for number in (1, 2, 2):  # within the first, second and third measurement on test pairs
        calls = iter(range(number - 1, -1, -1))

        def stopping(task: Any, clip: Any, left: Iterator[int] = calls) -> dict[str, Any]:
            flag.signal = None if next(left) else 15
            return real(task, clip)

        monkeypatch.setattr(clip_stage, "_measured", stopping)
        with pytest.raises(Stopped, match="run the same command again to go on"):
            run_clip(run, settings)
        flag.signal = None
        assert len(stamps(run)) == len(kept) + number - 1 and kept.items() <= stamps(run).items()
        assert not (run / "results" / "verdict.json").exists()
        kept = stamps(run)
    monkeypatch.undo()
    run_clip(run, settings)
    assert kept.items() <= stamps(run).items()
    for name in ("table.csv", "verdict.json"):
        assert (run / "results" / name).read_bytes() == (finished / "results" / name).read_bytes()
    assert not list((run / "checkpoints").iterdir())


def test_checkpoints_of_a_finished_training_are_removed(copy: Path, data: Path, model: Path) -> None:
    left = copy / "checkpoints" / "none-seed1" / "step-000006"
    left.mkdir(parents=True)  # as by a kill between row and removal
    run_clip(copy, experiment(data, copy, model))
    assert not left.parent.exists()


def test_what_is_lacking_is_said_before_anything_is_trained(
    data: Path, model: Path, classes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    resnet = json_file(tmp_path, resnet_config())
    one = write_pairs(tmp_path / "one", {"train": 8, "test": 1, "validation": 3})
    for error, message, own in (
        (
            ConfigError,
            "train_batch_size=13 is more than the 12 training images",
            experiment(data, run, model, train={"train_batch_size": 13}),
        ),
        (DataError, "1 image to test", experiment(one, run, model)),
        (DataError, "has no training pairs", experiment(write_pairs(tmp_path / "test", {"test": 6}), run, model)),
        (
            EnvironmentFault,
            "there is no file .*none.safetensors",
            experiment(data, run, model, model={"weights": str(tmp_path / "none.safetensors")}),
        ),
        (ConfigError, "no CLIP 'VIT-B'", experiment(data, run, Path("VIT-B"))),
        (DataError, "nowhere", experiment(data, run, model, evaluate={"classes": str(tmp_path / "nowhere")})),
        (ConfigError, "has BatchNorm", experiment(data, run, resnet, train={"micro_batch_size": 2})),
        (ConfigError, "image_root is given", experiment(data, run, model, data={"image_root": str(tmp_path)})),
    ):
        with pytest.raises(error, match=message):
            run_clip(run, own)
        assert not (run / "models").exists() and not (run / "results").exists()
    for record, what in (("run.json", "images"), ("texts.json", "texts")):
        (run / record).write_text("{}")
        with pytest.raises(ConfigError, match=f"is a run of {what}"):
            run_clip(run, experiment(data, run, model))
        (run / record).unlink()


def test_a_diverged_training_leaves_no_row(data: Path, model: Path, tmp_path: Path) -> None:
    settings = experiment(data, tmp_path, model, train={"learning_rate": 1e30, "lr_warmup_steps": 0})
    with pytest.raises(NumericError, match="not finite"):
        run_clip(tmp_path, settings)
    assert rows_of(tmp_path) == {}


def test_nothing_depends_on_the_number_of_workers(finished: Path, data: Path, model: Path, tmp_path: Path) -> None:
    settings = experiment(data, tmp_path, model, train={"seeds": 1, "num_workers": 2})
    run_clip(tmp_path, settings)
    for name in ("none-seed0", "mixgen-seed0"):
        assert rows_of(tmp_path)[name]["identity"] == rows_of(finished)[name]["identity"]
