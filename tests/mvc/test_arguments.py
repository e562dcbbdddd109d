"""What a command line means: files, shipped names, run folders, data folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvc.arguments import resolve, shipped_experiments
from mvc.errors import ConfigError
from mvc.pipeline import flat_settings
from mvc.stages import STAGES


def test_data_folder_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My birds!").mkdir()
    monkeypatch.chdir(tmp_path)
    experiment = resolve(["train.max_train_steps=3"], data="My birds!")
    assert experiment.run.dir == "runs/My-birds"
    # Absolute, so that the run goes on from any working folder.
    assert experiment.data.path == str(tmp_path / "My birds!")
    assert experiment.train.max_train_steps == 3


def test_run_dir_comes_from_the_file_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {path: digits}")
    assert resolve([str(path)]).run.dir == "runs/mine"
    assert resolve([str(path), "run.dir=elsewhere/x"]).run.dir == "elsewhere/x"


def test_a_run_folder_stands_for_its_experiment(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text("run: {dir: ''}\ndata: {path: digits, shots: 7}")
    experiment = resolve([str(folder)])
    assert (experiment.data.shots, experiment.run.dir) == (7, str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no images were given"),
        (["absent.yaml"], "there is no experiment file absent.yaml[^$]*shipped ones: .*digits"),
        (["digits", "caltech101"], "two experiments were given"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(arguments)


def test_a_folder_of_images_in_the_place_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mvc run --data"):
        resolve([str(tmp_path)])


@pytest.mark.parametrize("name", sorted(shipped_experiments()))
def test_every_shipped_experiment_is_valid(name: str) -> None:
    path = shipped_experiments()[name]
    changes = [] if name == "digits" else ["data.path=somewhere"]
    experiment = resolve([name, *changes])
    assert experiment.run.dir == f"runs/{name}"
    # The header says what it is for and the command that runs it.
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ") and f"mvc run configs/{name}.yaml" in head


def test_every_setting_belongs_to_a_stage() -> None:
    """A key that no stage depends on could change without anything being made again."""
    experiment = resolve(["digits"])
    covered = {key for stage in STAGES for key in flat_settings(experiment, stage.settings)}
    content = experiment.model_dump(mode="json")
    every = {f"{section}.{key}" for section, values in content.items() for key in values}
    apart = {"run.dir", "run.device", *(key for key in every if key.startswith("tune."))}
    assert every - covered == apart
