"""The experiment of `mvc clip`: defaults, arms, what is refused and why, the page of its keys, and the help."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mvc import config_page
from mvc.cli import app
from mvc.clip.zero_shot import TEMPLATES
from mvc.clip_arguments import resolve_clip
from mvc.config_clip import (
    MIXGENS,
    MIXINGS,
    TECHNIQUES,
    TRANSFORMS,
    ClipExperiment,
    ClipTrainSection,
    TechniquesSection,
    techniques_of,
)
from mvc.config_schema import known_keys
from mvc.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


def test_defaults_are_mixgens_and_clips() -> None:
    own = ClipExperiment()
    assert own.train.arms == ["none", "mixgen"] and own.model.name == "tiny" and own.data.path == ""
    # MixGen, Sec. 2.1: a quarter of the batch, lambda 0.5.
    assert (own.techniques.mixgen_share, own.techniques.mixgen_mix) == (0.25, 0.5)
    # CLIP's own for ViT-B/32 (Radford et al., Tables 18 and 20).
    assert (own.train.learning_rate, own.train.adam_beta2, own.train.weight_decay) == (5e-4, 0.98, 0.2)
    assert own.train.seed_list == [0] and own.train.micro_batch_size is None
    # CyCLIP's weight of each of its terms (Goel et al.).
    assert own.techniques.consistency_weight == 0.25
    assert own.evaluate.templates == [TEMPLATES[0]] and own.evaluate.classes is None


def test_an_arm_names_its_techniques() -> None:
    assert techniques_of("none") == [] and techniques_of("mixgen") == ["mixgen"]
    assert techniques_of("mixgen_a+policy+hard_negatives") == ["mixgen_a", "policy", "hard_negatives"]


def test_every_technique_and_every_pair_that_goes_together_is_an_arm() -> None:
    assert ClipTrainSection(arms=["none", *TECHNIQUES]).arms[1:] == list(TECHNIQUES)
    assert len(TECHNIQUES) == len(set(TECHNIQUES)) == 13 and set(MIXGENS) < set(MIXINGS)
    for one in TECHNIQUES:
        for other in TECHNIQUES:
            alike = {one, other} <= set(MIXINGS) or {one, other} <= set(TRANSFORMS) or one == other
            if alike:
                with pytest.raises(ValueError, match="twice"):
                    ClipTrainSection(arms=[f"{one}+{other}"])
            else:
                assert ClipTrainSection(arms=[f"{one}+{other}"]).arms == [f"{one}+{other}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.arms=[]", "arms must hold each arm once, and one at least"),
        ("train.arms=[none, none]", "arms must hold each arm once"),
        ("train.arms=[mixgen+policy, policy+mixgen]", "arms must hold each arm once"),
        ("train.arms=[mixup+mixup]", r"arm 'mixup\+mixup' names a technique twice"),
        ("train.arms=[mixgne]", "arm 'mixgne' names 'mixgne'; known are none by itself, mixgen, mixgen_a"),
        ("train.arms=[none+mixgen]", r"arm 'none\+mixgen' names 'none'; known are none by itself"),
        ("train.arms=['']", "arm '' names ''"),
        ("train.arms=[mixgen+mixup]", r"'mixgen\+mixup' would mix pairs twice; take one of mixgen, .*interpolation"),
        ("train.arms=[synchronised+policy]", "would transform pairs twice; take one of synchronised, policy"),
        ("train.arms=mixgen", "valid list"),
        ("train.seeds=0", "seeds must be a positive number of seeds or a list of different numbers"),
        ("train.seeds=[1, 1]", "different numbers"),
        ("train.max_train_steps=0", "allowed: a whole number >= 1"),
        ("train.max_train_steps=true", "true and false are no numbers"),
        ("train.train_batch_size=1", "allowed: a whole number >= 2"),
        ("train.micro_batch_size=0", "a whole number >= 1 or null"),
        ("train.micro_batch_size=65", "micro_batch_size=65 is larger than train.train_batch_size=64"),
        ("train.learning_rate=0", "a number > 0"),
        ("train.learning_rate=.nan", "train.learning_rate = '.nan' cannot be used"),
        ("train.lr_warmup_steps=-1", "a whole number >= 0"),
        ("train.adam_beta2=1", "> 0 and < 1"),
        ("train.weight_decay=-0.1", "a number >= 0"),
        ("train.max_grad_norm=0", "a number > 0"),
        ("train.mixed_precision=fp16", "one of no, bf16"),
        ("train.crop_scale=0", "> 0 and <= 1"),
        ("train.checkpointing_steps=0", ">= 1"),
        ("train.checkpoints_total_limit=1", ">= 2"),
        ("train.evaluation_steps=0", ">= 1"),
        ("train.publish=first", "one of best, last"),
        ("train.num_workers=-1", ">= 0"),
        ("train.arm=[none]", r"did you mean 'train\.arms'"),
        ("data.form=zip", "one of auto, imagefolder, json, parquet, webdataset"),
        ("data.validation_share=1", "> 0 and < 1"),
        ("data.test_share=0", "> 0 and < 1"),
        ("model.nam=x", r"did you mean 'model\.name'"),
        ("techniques.mixgen_share=0", "> 0 and <= 1"),
        ("techniques.mixgen_mix=1.1", ">= 0 and <= 1"),
        ("techniques.mixup_alpha=0", "> 0"),
        ("techniques.interpolation_share=1.5", "> 0 and <= 1"),
        ("techniques.flip=-0.1", ">= 0 and <= 1"),
        ("techniques.degrees=46", ">= 0 and <= 45"),
        ("techniques.operations=-1", ">= 0"),
        ("techniques.magnitude=11", ">= 0 and <= 10"),
        ("techniques.consistency_weight=0", "> 0"),
        ("techniques.negatives=0", ">= 1"),
        ("techniques.mining_steps=0", ">= 1"),
        ("techniques.search_trials=16", ">= 0 and <= 15"),
        ("techniques.search_steps=0", ">= 1"),
        ("evaluate.batch_size=0", ">= 1"),
        ("evaluate.templates=[]", "there is no template"),
        ("evaluate.templates=[a photo]", r"the template 'a photo' must have \{\} exactly once"),
        ("evaluate.templates=['{} and {}']", r"the template '\{\} and \{\}' must have \{\} exactly once"),
        ("run.device=tpu", "one of auto, cpu, cuda, mps"),
    ],
)
def test_what_cannot_be_used_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_clip(["data.path=x", change])
    assert caught.value.exit_code == 2


def test_values_at_the_limits_are_taken() -> None:
    changes = ["train.micro_batch_size=64", "techniques.mixgen_mix=0", "techniques.degrees=45", "train.crop_scale=1"]
    more = ["techniques.magnitude=0", "techniques.operations=0", "train.seeds=[7, 3]", "evaluate.templates=['{}']"]
    own = resolve_clip(["data.path=x", *changes, *more])
    assert (own.train.micro_batch_size, own.techniques.mixgen_mix, own.techniques.degrees) == (64, 0.0, 45.0)
    assert own.train.seed_list == [7, 3] and own.evaluate.templates == ["{}"]


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TechniquesSection().flip = 0.1


def test_the_page_of_keys_is_up_to_date_and_says_what_each_means() -> None:
    expected = config_page.page(ClipExperiment, config_page.CLIP_HEAD)
    page = (DOCS / "clip_configuration.md").read_text()
    assert page == expected, "run: python -m mvc.config_page clip > docs/clip_configuration.md"
    assert all(field.description for key, field in known_keys(ClipExperiment).items() if "." in key)


def test_the_guide_names_every_technique_and_no_unknown_key() -> None:
    guide = (DOCS / "clip.md").read_text()
    short = ("mixgen_b", "mixgen_c", "mixgen_d")  # which it gives as a range
    assert all(f"`{name}`" in guide for name in TECHNIQUES if name not in short)
    sections = ("train", "model", "techniques", "evaluate")
    words = {word.strip("'\"`(),.;:").split("=")[0] for word in guide.split()}
    keys = {word for word in words if word.partition(".")[0] in sections and word.partition(".")[2]}
    assert len(keys) > 6 and keys <= set(known_keys(ClipExperiment))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("clip", ("[EXPERIMENT]", "[KEY=VALUE]", "train.seeds=3", "--data", "--dry-run", "--num-processes")),
        (
            "clip-evaluate",
            ("MODEL", "--data", "--split", "--classes", "--template", "--weights", "--batch-size", "--device"),
        ),
    ],
)
def test_help_names_what_a_command_takes(command: str, words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"})
    assert done.exit_code == 0
    assert all(word in done.output for word in words), done.output
    assert command in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "140", "TERM": "dumb"}).output
