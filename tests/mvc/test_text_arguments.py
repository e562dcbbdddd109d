"""Experiments with texts as a command line gives them, and the schema's own checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvc import config_page
from mvc.config_file import to_yaml
from mvc.config_schema import known_keys
from mvc.config_texts import TextExperiment
from mvc.errors import ConfigError
from mvc.text_arguments import RECORD, TEXTS, resolve_texts


def test_a_folder_alone_is_enough(tmp_path: Path) -> None:
    experiment = resolve_texts([], str(tmp_path))
    assert experiment.data.path == str(tmp_path) and experiment.run.dir == f"runs/{tmp_path.name}"
    assert experiment.classify.model == "tfidf" and experiment.classify.arms == ["real"]


def test_places_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "bert", "flite", "captioner"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.json").write_text("{}")
    experiment = resolve_texts(
        [
            "classify.model=bert",
            "augmentations.a.eda.synonyms=own.json",
            "augmentations.a.imagination.captioner=captioner",
            "augmentations.b.method=back_speech",
        ],
        "data",
    )
    assert experiment.classify.model == str(tmp_path / "bert") and experiment.data.path == str(tmp_path / "data")
    own = experiment.augmentations["a"]
    assert own.eda.synonyms == str(tmp_path / "own.json") and own.imagination.captioner == str(tmp_path / "captioner")
    assert own.imagination.model == "tiny"
    assert experiment.augmentations["b"].speech.speaker == "flite"  # although a folder is called so


def test_a_run_folder_is_its_own_experiment(tmp_path: Path) -> None:
    run = tmp_path / "old"
    run.mkdir()
    own = resolve_texts(["data.shots=3"], str(tmp_path))
    own = own.model_copy(update={"run": own.run.model_copy(update={"dir": ""})})  # as a run writes it
    (run / "experiment.yaml").write_text(to_yaml(own))
    with pytest.raises(ConfigError, match="old is no run of `mvc texts`"):
        resolve_texts([str(run)])
    (run / RECORD).write_text("{}")
    again = resolve_texts([str(run)])
    assert again.run.dir == str(run) and again.data.shots == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.yaml", "b.yaml"], "two experiments were given"),
        (["nothing"], "there is no experiment file nothing(.|\n)*sst2"),
        (["sst2"], "no data were given"),
        (["data.path=x", "augmentations.a.speeech.pitch=null"], "unknown key 'augmentations.a.speeech'"),
        (["data.path=x", "augmentations.a.speech.pich=null"], r"did you mean 'augmentations\.a\.speech\.pitch'"),
        (["data.path=x", "augmentations.a.method=magic"], "augmentations.a.method = 'magic'(.|\n)*one of back_speech"),
        (["data.path=x", "augmentations.a.speech.pitch=[2, 1]"], "does not rise"),
        (["data.path=x", "augmentations.a.speech.pitch=[-30, 1]"], "24 semitones at the most"),
        (["data.path=x", "augmentations.a.speech.stretch=[0.2, 1]"], "a factor from 0.5 to 2"),
        (["data.path=x", "augmentations.a.eda.operations=[]"], "one at least"),
        (["data.path=x", "augmentations.tmix.method=eda"], "an augmentation cannot be called 'tmix'"),
        (["data.path=x", "augmentations.a-b.method=eda"], "cannot be called 'a-b'"),
        (["data.path=x", "classify.arms=[real, eda]"], "classify.arms names eda; known are real, tmix, ssmix"),
        (["data.path=x", "classify.arms=[tmix]"], "arms must hold 'real'"),
        (["data.path=x", "classify.seeds=0"], "seeds must be a positive number"),
        (["data.path=x", "data.text_columns=[a, b, c]"], "data.text_columns"),
        (["data.path=x", "classify.max_train_steps=true"], "true and false are no numbers"),
    ],
)
def test_what_cannot_be_used_is_named(given: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_texts(given)


@pytest.mark.parametrize("name", sorted(TEXTS.shipped()))
def test_shipped_experiments_are_whole_and_read_back(name: str) -> None:
    experiment = resolve_texts([name, "data.path=somewhere"])
    assert set(experiment.classify.arms) - {"real", "tmix", "ssmix"} <= set(experiment.augmentations)
    assert (experiment.data.seeds, len(experiment.classify.seed_list)) == (5, 5)  # the paper's
    assert (experiment.classify.train_batch_size, experiment.classify.learning_rate) == (2, 5e-5)
    head = TEXTS.shipped()[name].read_text().split("\n\n")[0]
    assert "ours: " in head and "# Data: " in head and f"mvc texts configs/texts/{name}.yaml --data FOLDER" in head


def test_the_page_of_keys_is_up_to_date_and_says_what_each_means() -> None:
    page = Path(__file__).parents[2] / "docs" / "text_configuration.md"
    expected = config_page.page(TextExperiment, config_page.TEXTS_HEAD)
    assert page.read_text() == expected, "run: python -m mvc.config_page texts > docs/text_configuration.md"
    assert all(field.description for key, field in known_keys(TextExperiment).items() if "." in key)
