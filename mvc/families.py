"""The families of models that can be fine-tuned, and how a folder is recognised as one of them.

A folder says in its JSON files which classes its parts are of. Here that is only compared with what we know: nothing
is ever imported because a folder names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.errors import ConfigError, EnvironmentFault

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""Folders that every family has."""

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers whose configuration holds the betas of Eq. (1); EDM's and flow matching's does not."""

_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("diffusers", SCHEDULERS),
}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a folder may have and that are never loaded."""


@dataclass(frozen=True)
class Family:
    """What sets one kind of model apart from the others.

    Attributes:
        name: for messages.
        text: tokenizer and text encoder folders, in the order in which the encoders' outputs lie side by side.
        pipelines: classes of diffusers that its folders may name.
        published: the one a fine-tuned model is published as.
    """

    name: str
    text: tuple[tuple[str, str], ...]
    pipelines: tuple[str, ...]
    published: str

    @property
    def parts(self) -> tuple[str, ...]:
        """All its folders, the common ones first."""
        return (*PARTS, *(part for pair in self.text for part in pair if part not in PARTS))

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Folders that the embedding of a caption depends on."""
        return tuple(part for pair in self.text for part in pair)

    @property
    def two_encoders(self) -> bool:
        """Whether there is a pooled vector, and sizes besides it, for the UNet."""
        return len(self.text) > 1


STABLE_DIFFUSION = Family(
    "Stable Diffusion 1.x or 2.x",
    (("tokenizer", "text_encoder"),),
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInstructPix2PixPipeline"),
    "StableDiffusionInstructPix2PixPipeline",
)
STABLE_DIFFUSION_XL = Family(
    "Stable Diffusion XL",
    (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")),
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
    "StableDiffusionXLInstructPix2PixPipeline",
)


def family_of(folder: Path) -> Family:
    """The family of a folder in diffusers' layout, after comparing every class it names with those of the family.

    Args:
        folder: with model_index.json (may be missing) and a folder for each part.

    Raises:
        EnvironmentFault: a part is missing, or a JSON file cannot be read.
        ConfigError: it is another kind of model, or a part is of a class or library that is not known.
    """
    index = read_index(folder)
    two = (folder / "text_encoder_2").is_dir() or index.get("_class_name") in STABLE_DIFFUSION_XL.pipelines
    family = STABLE_DIFFUSION_XL if two else STABLE_DIFFUSION
    kind = index.get("_class_name", family.pipelines[0])
    if kind not in (*STABLE_DIFFUSION.pipelines, *STABLE_DIFFUSION_XL.pipelines):
        raise ConfigError(
            f"{folder} holds a {kind}",
            why=f"{STABLE_DIFFUSION.name} and {STABLE_DIFFUSION_XL.name} can be fine-tuned",
            do="choose another model.base",
        )
    if kind not in family.pipelines:
        raise ConfigError(
            f"{folder} says that it is a {kind} but has a second text encoder", do="choose another model.base"
        )
    missing = [part for part in family.parts if not (folder / part).is_dir()]
    if missing:
        raise EnvironmentFault(
            f"{folder} lacks {', '.join(missing)}",
            why=f"a {family.name} in diffusers' layout has the folders {', '.join(family.parts)}",
            do="give a folder made by save_pretrained, or a hub id",
        )
    for part, entry in index.items():
        # What is no pair of library and class is a setting, and pairs of nothing are parts that are left out.
        if isinstance(entry, list) and entry != [None, None] and part not in _UNUSED:
            _require_known(folder / "model_index.json", part, entry)
    for part in family.parts:
        for name in _named_classes(folder, part):
            _require_known(folder / part, part, [_CLASSES[part][0], name])
    return family


def is_stable_diffusion(folder: Path) -> bool:
    """Whether a folder in diffusers' layout is of a family that our own denoising knows."""
    try:
        family_of(folder)
    except (ConfigError, EnvironmentFault):
        return False
    return True


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder; empty if there is none.

    Raises:
        EnvironmentFault: it cannot be read.
    """
    path = folder / "model_index.json"
    return read_json_object(path) if path.exists() else {}


def config_path(folder: Path, part: str) -> Path:
    """The JSON file that says what a part is."""
    kind = part.removesuffix("_2")
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    return folder / part / names.get(kind, "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """One JSON file of a model.

    Raises:
        EnvironmentFault: it is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read", why=str(error), do="fetch the base model again") from error
    return content


def zero_null(folder: Path) -> bool:
    """Whether the empty text is all zeros, as diffusers' SDXL pipelines have it unless the index says otherwise."""
    return bool(read_index(folder).get("force_zeros_for_empty_prompt", True))


def _named_classes(folder: Path, part: str) -> list[Any]:
    """Classes that a part's own configuration names; one that is missing is missed by whoever loads the part."""
    path = config_path(folder, part)
    if not path.exists():
        return []
    config = read_json_object(path)
    if part.startswith("tokenizer"):
        return [config["tokenizer_class"]] if config.get("tokenizer_class") else []
    if part.startswith("text_encoder"):
        architectures = config.get("architectures") or []
        return architectures if isinstance(architectures, list) else [architectures]
    return [config["_class_name"]] if "_class_name" in config else []


def _require_known(path: Path, part: str, entry: list[Any]) -> None:
    library, names = _CLASSES.get(part, ("", ()))
    if not (len(entry) == 2 and entry[0] == library and entry[1] in names):
        raise ConfigError(
            f"{path} names {'.'.join(str(word) for word in entry)} as its {part}",
            why=f"known there: {', '.join(f'{library}.{name}' for name in names) or 'no such part'}",
            do="choose another model.base; no class is loaded because a folder names it",
        )
