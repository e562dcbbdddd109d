"""Experiments with CLIPs as a command line gives them, and the shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mvc.cli import app
from mvc.clip_arguments import CLIPS, RECORD, resolve_clip
from mvc.config_clip import MIXGENS, ClipExperiment
from mvc.config_file import to_yaml
from mvc.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_alone_is_enough(here: Path) -> None:
    (here / "photos").mkdir()
    own = resolve_clip([], "photos")
    assert own.data.path == str(here / "photos") and own.run.dir == "runs/photos" and own.model.name == "tiny"


def test_places_become_absolute_and_names_stay(here: Path) -> None:
    for name in ("photos", "images", "tiny", "classes", "mine"):
        (here / name).mkdir()
    (here / "start.safetensors").write_bytes(b"")
    places = ["data.image_root=images", "evaluate.classes=classes", "model.weights=start.safetensors"]
    own = resolve_clip(["model.name=mine", *places], "photos")
    assert own.model.name == str(here / "mine") and own.model.weights == str(here / "start.safetensors")
    assert own.data.image_root == str(here / "images") and own.evaluate.classes == str(here / "classes")
    assert resolve_clip([], "photos").model.name == "tiny"  # although a folder is called so
    hub = resolve_clip(["model.name=laion/some-clip", "model.revision=main"], "photos")
    assert (hub.model.name, hub.model.revision, hub.model.weights) == ("laion/some-clip", "main", None)


def test_a_pattern_of_files_becomes_absolute_too(here: Path) -> None:
    own = resolve_clip([], "shards/train-{000..010}.tar")
    assert own.data.path == str(here / "shards" / "train-{000..010}.tar")
    assert own.run.dir.startswith("runs/train-") and "{" not in own.run.dir


def test_a_file_and_a_run_folder_are_experiments(here: Path) -> None:
    (here / "photos").mkdir()
    (here / "night.yaml").write_text("data: {path: photos}\ntrain: {arms: [none, mixup], learning_rate: 1e-5}\n")
    own = resolve_clip(["night.yaml", "train.seeds=3"])
    assert (own.train.arms, own.train.learning_rate, own.train.seed_list) == (["none", "mixup"], 1e-5, [0, 1, 2])
    assert own.run.dir == "runs/night" and own.data.path == str(here / "photos")
    run = here / "runs" / "night"
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(
        to_yaml(own.model_copy(update={"run": own.run.model_copy(update={"dir": ""})}))
    )
    with pytest.raises(ConfigError, match="runs/night is no run of `mvc clip`(.|\n)*mvc clip --data runs/night"):
        resolve_clip(["runs/night"])
    (run / RECORD).write_text("{}")
    assert resolve_clip(["runs/night"]) == own.model_copy(
        update={"run": own.run.model_copy(update={"dir": "runs/night"})}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.yaml", "b.yaml"], "two experiments were given"),
        (["nothing"], "there is no experiment file nothing(.|\n)*shipped ones: flickr30k, variants"),
        (["variants"], "no data were given(.|\n)*mvc clip --data FOLDER"),
        (["sst2"], "there is no experiment file sst2"),
        (["data.path=x", "train.arsm=[none]"], r"did you mean 'train\.arms'"),
    ],
)
def test_what_cannot_be_used_is_named(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_clip(given)


def test_every_shipped_experiment_is_found_by_name() -> None:
    shipped = CLIPS.shipped()
    assert sorted(shipped) == sorted(path.stem for path in (ROOT / "configs" / "clip").glob("*.yaml"))
    assert sorted(shipped) == ["flickr30k", "variants"]


@pytest.mark.parametrize("name", sorted(CLIPS.shipped()))
def test_shipped_experiments_are_whole_and_read_back(name: str, here: Path) -> None:
    own = resolve_clip([name], "somewhere")
    assert own.run.dir == f"runs/{name}" and own.train.arms[:2] == ["none", "mixgen"]
    assert ClipExperiment.model_validate(own.model_dump(mode="json")) == own
    (here / "again.yaml").write_text(to_yaml(own))
    assert resolve_clip(["again.yaml"]) == own
    head = CLIPS.shipped()[name].read_text().split("\n\n")[0]
    assert "The paper " in head and "ours: " in head and f"mvc clip configs/clip/{name}.yaml --data " in head


def test_what_the_shipped_experiments_compare() -> None:
    flickr, variants = (resolve_clip([name], "x") for name in ("flickr30k", "variants"))
    # MixGen, Sec. 3.1: batches of 512, a weight decay of 0.02, and 1e-5 at the end of its schedule.
    assert (flickr.train.learning_rate, flickr.train.weight_decay, flickr.train.train_batch_size) == (1e-5, 0.02, 512)
    assert 512 % (flickr.train.micro_batch_size or 1) == 0 and flickr.train.seed_list == [0, 1, 2]
    assert variants.train.arms == ["none", *MIXGENS] and variants.model.name == "tiny"
    assert variants.techniques == flickr.techniques == ClipExperiment().techniques


def test_a_dry_run_prints_the_experiment_and_writes_nothing(here: Path) -> None:
    arguments = ["clip", "variants", "--data", "photos", "train.learning_rate=3e-7", "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    shown = yaml.safe_load(done.stdout)
    assert float(shown["train"]["learning_rate"]) == 3e-7 and shown["run"]["dir"] == "runs/variants"
    (here / "shown.yaml").write_text(done.stdout)
    assert resolve_clip(["shown.yaml"]) == resolve_clip(["variants", "train.learning_rate=3e-7"], "photos")
    assert [path.name for path in here.iterdir()] == ["shown.yaml"]
