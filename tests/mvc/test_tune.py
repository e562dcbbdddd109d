"""`mvc tune` on a whole toy run: what it writes, what it keeps, and that the test split is never looked at."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mvc.config import Experiment
from mvc.errors import ConfigError, EnvironmentFault
from mvc.report.tuning import TABLE, TUNE, print_tune
from mvc.storage import exclusive, read_json, sha256_file
from mvc.train.stage import run_train
from mvc.tune import TRADE_OFF, run_tune, stage_before
from tests.generate.toy_run import experiment as toy_experiment
from tests.generate.toy_run import write_run

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

POINTS: list[dict[str, Any]] = [
    {"generate.guidance_scale": 2.0},
    {"generate.guidance_scale": 2.0, "checkpoint": 2},
    {"generate.sources": {"pretrained": 1.0}},
    {"checkpoint": 4, "mixing.coarse": 0},
]


def experiment(run: Path, **tune: Any) -> Experiment:
    content = toy_experiment(run, guidance="paper").model_dump()
    content["run"]["dir"] = str(run)
    train = {"max_train_steps": 4, "train_batch_size": 2, "checkpointing_steps": 2, "validation_samples": 0}
    classify = {"train_batch_size": 4, "augmentation": "none"}
    settings = {"points": POINTS, "per_class": 2, "classifier_steps": 3, "classifier_seeds": 2, **tune}
    content |= {"train": {**train, "lr_warmup_steps": 1}, "classify": classify, "tune": settings}
    return Experiment.model_validate(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned run whose test images were removed before."""
    run = write_run(tmp_path_factory.mktemp("tuned") / "run", held_out=4, tuned=False)
    # The last four pictures of a class are its test images.
    for name, count in (("cat", 4), ("dog", 3)):
        for number in range(count + 4, count + 8):
            (run / "pictures" / name / f"{number}.png").unlink()
    run_train(run, experiment(run))
    run_tune(run, experiment(run))
    return run


def contents(run: Path) -> dict[str, str]:
    files = (path for path in sorted((run / "tune").rglob("*")) if path.is_file())
    return {path.relative_to(run).as_posix(): sha256_file(path) for path in files}


def test_every_point_has_its_row(finished: Path) -> None:
    summary = read_json(finished / TUNE)
    assert summary["keys"] == ["generate.guidance_scale", "checkpoint", "generate.sources", "mixing.coarse"]
    with open(finished / TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == ["1", "2", "3", "4"]
    # What a point does not set is shown as it is; the checkpoint is the model that it draws with.
    assert [row["checkpoint"] for row in rows] == ["4", "2", "", "4"]
    assert [row["generate.guidance_scale"] for row in rows] == ["2", "2", "3", "3"]
    assert [row["generate.sources"] for row in rows] == ["finetuned 1"] * 2 + ["pretrained 1", "finetuned 1"]
    assert [row["mixing.coarse"] for row in rows] == ["2", "2", "2", "0"]
    for row, point in zip(rows, summary["points"], strict=True):
        assert len(list((finished / row["folder"]).rglob("*.png"))) == 4 == int(row["drawn"])
        assert float(row["class_agreement"]) == point["class_agreement"] in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert float(row["distance_ratio"]) == point["distance_ratio"] > 0
        assert float(row["validation_accuracy"]) == point["validation_accuracy"]["mean"]
        assert len(point["validation_accuracy"]["values"]) == 2
        assert int(row["front"]) == (point["number"] in summary["front"])
    assert summary["real"]["validation"]["images"] == 8 and summary["real"]["train"]["images"] == 7
    assert set(summary["classifiers"]["baselines"]) == {"real", "duplicate"}
    assert summary["classifiers"]["validation_images"] == 8 and summary["classifiers"]["seeds"] == [0, 1]
    assert not (finished / "tune" / "models").exists()
    with Image.open(finished / TRADE_OFF) as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_a_second_time_nothing_is_done_and_nothing_differs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, cached = contents(finished), sorted((finished / "cache").rglob("*"))
    # As a kill leaves it while a checkpoint is drawn from.
    killed = finished / "tune" / "models" / ".tmp-1-run-step-000002"
    killed.mkdir(parents=True)
    (killed / "cache").symlink_to(finished / "cache", target_is_directory=True)
    run_tune(finished, experiment(finished))
    assert contents(finished) == before and not killed.exists()
    assert sorted((finished / "cache").rglob("*")) == cached
    said = capsys.readouterr().err
    assert "tune: 4 of 4 points were drawn before and are kept" in said and "generating" not in said


def test_another_point_repeats_no_other(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = contents(run)
    capsys.readouterr()
    points = [*POINTS[::-1], {"checkpoint": 2, "generate.num_inference_steps": 1}]
    changed = experiment(finished, points=points, classifier_steps=0)
    run_tune(run, changed)
    said = capsys.readouterr().err
    assert "tune: 4 of 5 points were drawn before and are kept" in said
    assert "tune: point 5 of 5: checkpoint 2, num_inference_steps 1" in said
    after = contents(run)
    drawn = {name for name in before if "/points/" in name}
    assert {name: before[name] for name in drawn} == {name: after[name] for name in drawn}
    assert len(set(after) - set(before)) == 4 + 2  # images, candidates.jsonl and point.json
    summary = read_json(run / TUNE)
    numbers = {point["folder"]: point["number"] for point in summary["points"]}
    assert [numbers[point["folder"]] for point in read_json(finished / TUNE)["points"]] == [4, 3, 2, 1]
    assert summary["classifiers"] is None and summary["points"][0]["validation_accuracy"] is None


def test_the_table_is_printed_in_the_order_given(finished: Path) -> None:
    stream = io.StringIO()
    print_tune(finished, Console(file=stream, width=120))
    text = stream.getvalue()
    summary = read_json(finished / TUNE)
    lines = [line.split()[0] for line in text[text.index("─") :].splitlines() if line.strip()]
    firsts = [name for name in lines if name in ("1", "2", "3", "4", "unseen", "training", "real", "duplicate")]
    assert firsts == ["1", "2", "3", "4", "unseen", "training", "real", "duplicate"]
    assert "against 7 training and 8 validation images, by the features of the tiny CLIP" in text
    assert "per cent of 8 validation images, mean of 2 classifiers (small, rsp) of 3 steps" in text
    assert all(note in text for note in summary["notes"]) and str(finished / TRADE_OFF) in text


def test_what_has_to_be_done_first(finished: Path, tmp_path: Path) -> None:
    assert stage_before(experiment(finished)) == "train"
    assert stage_before(experiment(finished, points=[{"generate.sources": {"pretrained": 1}}])) == "caption"
    trained = [{"checkpoint": 3}, {"checkpoint": 9}]
    with pytest.raises(ConfigError, match=r"tune\.points: there is no checkpoint of 3, 9 steps") as caught:
        stage_before(experiment(finished, points=trained))
    assert caught.value.why == "the fine-tuning has kept those of 2, 4"
    assert "another run.dir" in caught.value.do and "train.checkpointing_steps=3" in caught.value.do
    with pytest.raises(ConfigError, match="no checkpoint of 3, 9 steps"):
        run_tune(finished, experiment(finished, points=trained))
    fresh = experiment(finished, points=[], grid={"checkpoint": [1, 2]}).model_dump()
    fresh["run"]["dir"] = str(tmp_path / "new")
    with pytest.raises(ConfigError, match=r"tune\.grid: there will be no checkpoint of 1 steps") as caught:
        stage_before(Experiment.model_validate(fresh))
    assert caught.value.why == "the fine-tuning will keep those of 2, 4"
    assert "train.checkpointing_steps=1 train.checkpoints_total_limit=4" in caught.value.do
    with pytest.raises(ConfigError, match="'mixing.coarser' cannot be tuned"):
        stage_before(experiment(finished, points=[{"mixing.coarser": 1}]))


def test_a_missing_extractor_is_noticed_before_any_work(finished: Path) -> None:
    content = experiment(finished).model_dump()
    content["quality"]["extractor"] = "timm:resnet18:nowhere.safetensors"
    with pytest.raises((ConfigError, EnvironmentFault), match="quality.extractor|nowhere"):
        stage_before(Experiment.model_validate(content))


def test_a_run_in_use_is_left_alone(finished: Path) -> None:
    before = contents(finished)
    with exclusive(finished), pytest.raises(EnvironmentFault, match="is in use by"):
        run_tune(finished, experiment(finished))
    assert contents(finished) == before
