"""Which folders are taken for which family, and that nothing is loaded because a folder names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mvc import families
from mvc.errors import ConfigError, EnvironmentFault
from mvc.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, family_of
from tests.tiny_parts import write_pipeline, write_xl_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {"sd": write_pipeline(place / "sd"), "xl": write_xl_pipeline(place / "xl")}


@pytest.fixture
def copies(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_families_by_their_parts(copies: dict[str, Path]) -> None:
    for name, family in (("sd", STABLE_DIFFUSION), ("xl", STABLE_DIFFUSION_XL)):
        assert family_of(copies[name]) is family
        (copies[name] / "model_index.json").unlink()
        assert family_of(copies[name]) is family
    assert STABLE_DIFFUSION.parts == families.PARTS and not STABLE_DIFFUSION.two_encoders
    assert STABLE_DIFFUSION_XL.parts == (*families.PARTS, "tokenizer_2", "text_encoder_2")
    assert STABLE_DIFFUSION_XL.text_parts == ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


def test_parts_that_are_never_loaded_may_be_of_any_class(copies: dict[str, Path]) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change(copies["sd"] / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    assert family_of(copies["sd"]) is STABLE_DIFFUSION


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("sd", "model_index.json", {"_class_name": "FluxPipeline"}, "holds a FluxPipeline"),
        ("sd", "model_index.json", {"_class_name": ["pipeline", "Mine"]}, "holds a .'pipeline', 'Mine'."),
        ("sd", "model_index.json", {"unet": ["evil", "UNet2DConditionModel"]}, "names evil.UNet2D.* as its unet"),
        ("sd", "model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}, "names diffusers.UNet3D"),
        ("sd", "model_index.json", {"extra": ["os", "system"]}, "names os.system as its extra\nwhy.*no such part"),
        ("xl", "model_index.json", {"text_encoder_2": ["transformers", "T5EncoderModel"]}, "T5EncoderModel as its"),
        ("sd", "unet/config.json", {"_class_name": "UNetMotionModel"}, "unet names diffusers.UNetMotionModel"),
        ("sd", "vae/config.json", {"_class_name": ["evil", "VAE"]}, "vae names diffusers"),
        ("sd", "scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler as its"),
        ("xl", "text_encoder_2/config.json", {"architectures": ["CLIPModel"]}, "CLIPModel as its text_encoder_2"),
        ("xl", "tokenizer_2/tokenizer_config.json", {"tokenizer_class": "Mine"}, "transformers.Mine as its"),
        ("xl", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "has a second text encoder"),
    ],
)
def test_unknown_classes_are_refused(
    copies: dict[str, Path], name: str, file: str, changes: dict[str, Any], message: str
) -> None:
    change(copies[name] / file, **changes)
    with pytest.raises(ConfigError, match=message):
        family_of(copies[name])


def test_missing_parts_and_damaged_files_are_named(copies: dict[str, Path]) -> None:
    # SDXL's refiner has the second encoder alone.
    shutil.rmtree(copies["xl"] / "text_encoder")
    with pytest.raises(EnvironmentFault, match=r"lacks text_encoder\nwhy: a Stable Diffusion XL"):
        family_of(copies["xl"])
    (copies["sd"] / "vae/config.json").write_text("[1]")
    with pytest.raises(EnvironmentFault, match="vae/config.json cannot be read\nwhy: it is no JSON object"):
        family_of(copies["sd"])


def test_the_empty_text_is_zeros_unless_the_index_says_otherwise(copies: dict[str, Path]) -> None:
    index = copies["xl"] / "model_index.json"
    assert families.zero_null(copies["xl"])
    change(index, force_zeros_for_empty_prompt=False)
    assert not families.zero_null(copies["xl"])
    index.unlink()
    assert families.zero_null(copies["xl"])
