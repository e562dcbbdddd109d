"""What a command was given, as one experiment of its kind, with a kind of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mvc.config import RunSection
from mvc.config_file import to_yaml
from mvc.config_types import Positive, Section
from mvc.errors import ConfigError
from mvc.kinds import Kind, resolve_kind


class Place(Section):
    path: str = ""
    form: str = "auto"


class Loaf(Section):
    grams: Positive = 500
    seeds: list[str] = ["none"]


class Bread(Section):
    run: RunSection = RunSection()
    data: Place = Place()
    loaf: Loaf = Loaf()


BREAD = Kind(command="bake", schema=Bread, record="bread.json", folders="a folder of flour", lacking="write --data")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolve(*arguments: str, data: str | None = None) -> Bread:
    return resolve_kind(BREAD, arguments, data)


def write(path: Path, **sections: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections))
    return path


def test_the_place_of_the_data_is_enough_and_names_the_run() -> None:
    own = resolve(data="sacks/rye flour/")
    assert own.data.path == "sacks/rye flour/" and own.run.dir == "runs/rye-flour" and own.loaf == Loaf()
    assert resolve("data.path=x").run.dir == "runs/run"


def test_a_file_is_read_overrides_win_and_the_option_wins_over_the_file(here: Path) -> None:
    write(here / "my" / "rye.yaml", data={"path": "sack", "form": "fine"}, loaf={"grams": 700})
    own = resolve("my/rye.yaml", "loaf.seeds=[linseed, sesame]")
    assert (own.data.path, own.loaf.grams, own.loaf.seeds) == ("sack", 700, ["linseed", "sesame"])
    assert own.run.dir == "runs/rye"
    other = resolve("my/rye.yaml", "loaf.grams=800", data="barrel")
    assert (other.data.path, other.data.form, other.loaf.grams, other.run.dir) == ("barrel", "fine", 800, "runs/rye")
    assert resolve("my/rye.yaml", "run.dir=elsewhere").run.dir == "elsewhere"


def test_a_run_folder_is_its_own_experiment(here: Path) -> None:
    first = resolve("loaf.grams=900", data="sack")
    shown = first.model_copy(update={"run": first.run.model_copy(update={"dir": ""})})  # as a run writes it
    run = here / "runs" / "old"
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(to_yaml(shown))
    message = "runs/old is no run of `mvc bake`(.|\n)*for a folder of flour write: mvc bake --data runs/old"
    with pytest.raises(ConfigError, match=message):
        resolve("runs/old")
    (run / "bread.json").write_text("{}")
    again = resolve("runs/old", "loaf.grams=901")
    assert again == first.model_copy(
        update={"run": RunSection(dir="runs/old"), "loaf": first.loaf.model_copy(update={"grams": 901})}
    )
    # By its file it is an experiment like any other, which goes on in the folder of the same name.
    assert resolve("runs/old/experiment.yaml").run.dir == "runs/old"
    (run / "experiment.yaml").unlink()
    with pytest.raises(ConfigError, match="is no run of"):
        resolve("runs/old")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.yaml", "b.yaml"], "two experiments were given: a.yaml and b.yaml(.|\n)*give one"),
        (["absent.yaml"], "there is no experiment file absent.yaml"),
        ([], "no data were given(.|\n)*write --data"),
        (["loaf.grams=1"], "no data were given"),
        (["data.path=x", "loaf.gram=1"], r"override loaf.gram=1: unknown key 'loaf.gram'(.|\n)*'loaf\.grams'"),
        (["data.path=x", "loaf.grams=0"], "allowed: a whole number >= 1"),
        (["data.path=x", "oven.heat=1"], r"unknown key 'oven'|unknown key 'oven\.heat'"),
        (["data.path=x", "=1"], "override"),
    ],
)
def test_what_cannot_be_used_is_named(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(*given)
    assert caught.value.exit_code == 2


def test_a_wrong_file_is_named_with_its_line(here: Path) -> None:
    (here / "rye.yaml").write_text("data: {path: x}\nloaf:\n  grams: many\n")
    with pytest.raises(ConfigError, match="rye.yaml, line 3: loaf.grams = 'many'"):
        resolve("rye.yaml")
    (here / "flat.yaml").write_text("data: sack\n")
    with pytest.raises(ConfigError, match="flat.yaml: 'data' is a value and has no keys(.|\n)*mvc bake --dry-run"):
        resolve("flat.yaml", data="barrel")
    (here / "empty.yaml").write_text("data:\n")
    assert resolve("empty.yaml", data="barrel").data.path == "barrel"


def test_shipped_experiments_are_those_of_its_folder() -> None:
    assert BREAD.shipped() == {}
    texts = Kind("texts", Bread, "bread.json", "a folder of flour", "write --data").shipped()
    assert "sst2" in texts and all(path.suffix == ".yaml" and path.parent.name == "texts" for path in texts.values())
