"""Experiment files: YAML's traps, unknown keys, wrong values, and round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mvc import config_page
from mvc.config import Experiment
from mvc.config_file import apply_overrides, read_yaml, to_yaml
from mvc.config_schema import build_experiment, known_keys
from mvc.errors import ConfigError


def read(folder: Path, text: str, *overrides: str) -> Experiment:
    path = folder / "experiment.yaml"
    path.write_text(text)
    content, marks = read_yaml(path)
    apply_overrides(content, marks, list(overrides))
    return build_experiment(content, marks, str(path))


def test_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    # PyYAML itself reads 1e-4 as text.
    assert yaml.safe_load("x: 1e-4") == {"x": "1e-4"}
    assert read(tmp_path, "train: {learning_rate: 1e-4}").train.learning_rate == 1e-4
    assert read(tmp_path, "", "train.learning_rate=5e-5").train.learning_rate == 5e-5


def test_no_and_leading_zeros_and_times_are_not_reinterpreted(tmp_path: Path) -> None:
    text = "train: {mixed_precision: no, max_train_steps: 012}\ndata: {class_names: {no: nothing, 12:30: half past}}"
    experiment = read(tmp_path, text)
    assert experiment.train.mixed_precision == "no"
    assert experiment.train.max_train_steps == 12
    assert experiment.data.class_names == {"no": "nothing", "12:30": "half past"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  learnign_rate: 1e-4",
            r"line 2: unknown key 'train.learnign_rate' \(value 0.0001\)[^$]*train.learning_rate'\?",
        ),
        ("learning_rate: 1", r"unknown key 'learning_rate'[^$]*did you mean 'train.learning_rate'"),
        ("train:\n  seed: 1\n  seed: 2", "line 3: the key 'train.seed' stands here twice"),
        (
            "train:\n  learning_rate: fast",
            r"line 2: train.learning_rate = 'fast'[^$]*allowed: a number > 0 \(default 0.0001\)",
        ),
        ("train: {max_train_steps: true}", "train.max_train_steps = true cannot be used"),
        ("train: {max_train_steps: 1.5}", r"train.max_train_steps = 1.5[^$]*a whole number >= 1"),
        ("train: {checkpoints_total_limit: 1}", "allowed: a whole number >= 2"),
        ("train: {learning_rate: .inf}", "train.learning_rate = '.inf'"),
        ("generate: {scheduler: plms}", r"one of dpmsolver\+\+, unipc, ddim, euler"),
        ("generate: {sources: {finetuned: 0.5}}", "the shares add up to 0.5, not 1"),
        ("classify: {arms: [real, magic]}", "unknown strategy 'magic' in arm 'magic'; one of real, duplicate"),
        ("classify: {arms: [two_phase]}", "arms must hold 'real'"),
        ("classify: {seeds: [1, 1]}", "different numbers"),
        ("captions: {prefix: A photo.}", "must contain {class_name}"),
        ("train: 3", r"train = 3 cannot be used[^$]*a section with keys below it"),
        ("a: [1, 2", "line 1, column .*not valid YAML"),
        ("train:\n\tmax_train_steps: 3", "line 2, column 1: not valid YAML"),
        ("a: &x [1]\nb: *x", "line 2: YAML aliases are not used here"),
        ("- 1", "holds a list"),
    ],
)
def test_wrong_files_are_refused_with_place_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.exit_code == 2
    assert str(tmp_path / "experiment.yaml") in str(caught.value)


def test_wrong_overrides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'train.max_train_steps' is not an override"):
        read(tmp_path, "", "train.max_train_steps")
    with pytest.raises(ConfigError, match="'dir' is a value and has no keys"):
        read(tmp_path, "run: {dir: x}", "run.dir.name=3")
    with pytest.raises(ConfigError, match="override train.lr=1: unknown key 'train.lr'"):
        read(tmp_path, "", "train.lr=1")


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*absent.yaml"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "big.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        read_yaml(tmp_path / "big.yaml")


def test_empty_file_and_empty_sections_are_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Experiment()
    assert read(tmp_path, "train:\ndata:\n") == Experiment()


def test_overrides_win_and_numbers_become_text_where_text_is_due(tmp_path: Path) -> None:
    experiment = read(tmp_path, "run: {seed: 1, dir: a}", "run.seed=2", "run.dir=2024", "classify.seeds=[3, 5]")
    assert (experiment.run.seed, experiment.run.dir) == (2, "2024")
    assert experiment.classify.seed_list == [3, 5]


def test_resolved_yaml_reads_back_equal(tmp_path: Path) -> None:
    experiment = read(tmp_path, "", "train.learning_rate=3e-7", "data.class_names={no: nothing}", "classify.seeds=2")
    assert read(tmp_path, to_yaml(experiment)) == experiment


def test_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().train.max_train_steps = 3  # type: ignore[misc]


def test_keys_that_scripts_rely_on_exist() -> None:
    names = """run.dir run.seed data.path data.shots data.seed data.image_size mixing.coarse mixing.fine model.base
        train.max_train_steps train.checkpointing_steps train.train_batch_size train.gradient_accumulation_steps
        train.learning_rate generate.per_real generate.num_inference_steps generate.guidance_scale
        generate.image_guidance_scale generate.batch_size classify.arms classify.seeds classify.max_train_steps"""
    assert set(names.split()) <= set(known_keys())


def test_the_page_of_keys_is_up_to_date_and_says_what_each_means() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == config_page.page(), "run: python -m mvc.config_page > docs/configuration.md"
    assert all(field.description for key, field in known_keys().items() if "." in key)
