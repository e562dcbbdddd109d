"""The parts of a Stable Diffusion: where they lie, how they are loaded, and how a fine-tuned one is published.

Classes are chosen here, never by what a folder says; mvc/loading.py opens them, mvc/families.py tells the kinds apart.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mvc.embeddings import TextModels
from mvc.errors import ConfigError, EnvironmentFault
from mvc.families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    Family,
    config_path,
    family_of,
    read_json_object,
    zero_null,
)
from mvc.hub import HUB_ID, fetch
from mvc.loading import SUFFIXES, file_identity, load_part, part_files, quiet
from mvc.storage import publish_folder, sha256_json, write_json

FACTS = "mvc.json"
"""File of a published model that keeps what generation has to know, such as `image_latents_scaled`."""


def resolve_base(
    base: str | Path, revision: str | None = None, config: str | None = None, key: str = "model.base"
) -> Path:
    """Find the folder of a model in diffusers' layout, and make sure that it is one we know.

    Args:
        base: "tiny" (embedded), a local folder, a .safetensors file in the original layout, which is converted once,
            or a hub id, which is fetched once and then used offline.
        revision: branch, tag or commit on the hub.
        config: for a file, where its configurations are; see `mvc.single_file.converted`.
        key: key of the experiment that names it, for the errors.

    Raises:
        EnvironmentFault: there is no such folder, it lacks a part, is pickled, or the hub cannot be reached.
        ConfigError: it is another kind of model, or names classes that are not known.
    """
    if str(base) == "tiny":
        from mvc.tiny import WEIGHTS

        folder = WEIGHTS
    elif Path(base).is_dir():
        folder = Path(base)
    elif Path(base).is_file():
        from mvc.single_file import converted

        folder = converted(Path(base), config, revision)
    elif isinstance(base, str) and HUB_ID.match(base):
        parts = dict.fromkeys((*STABLE_DIFFUSION.parts, *STABLE_DIFFUSION_XL.parts))
        folder = fetch(base, revision, [f"{part}/*{suffix}" for part in parts for suffix in SUFFIXES])
    else:
        raise EnvironmentFault(
            f"{key} {base} is not there", do="give `tiny`, a diffusers folder, a .safetensors file or a hub id"
        )
    family_of(folder)
    return folder


def read_config(base: str | Path, part: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of one part as its JSON file has it.

    Raises:
        EnvironmentFault: the file is missing or is not JSON.
    """
    return read_json_object(config_path(resolve_base(base, revision), part))


def vae_factor(base: str | Path, revision: str | None = None) -> int:
    """Pixels along one side of a latent pixel: 8 for Stable Diffusion."""
    return int(2 ** (len(read_config(base, "vae", revision)["block_out_channels"]) - 1))


def image_size_of(base: str | Path, revision: str | None = None) -> int:
    """Side in pixels of the images the base model was trained on: 512 for Stable Diffusion 1.5."""
    return int(read_config(base, "unet", revision)["sample_size"]) * vae_factor(base, revision)


def working_size(base: str | Path, image_size: int | None, revision: str | None = None) -> int:
    """Side in pixels to work at: the one asked for if the VAE can handle it, else the base model's own.

    Raises:
        ConfigError: it is no multiple of the VAE's factor; names the nearest sizes.
    """
    if image_size is None:
        return image_size_of(base, revision)
    factor = vae_factor(base, revision)
    # Every level of the UNet halves the latents again; odd sides in between are handled by diffusers itself.
    if image_size % factor:
        low = image_size // factor * factor
        sizes = [str(size) for size in (low, low + factor) if size]
        raise ConfigError(
            f"data.image_size={image_size} is no multiple of {factor}",
            why=f"the VAE of the base model turns {factor} x {factor} pixels into one",
            do=f"set data.image_size={' or '.join(sizes)}",
        )
    return image_size


def load_unet(base: str | Path, revision: str | None = None) -> Any:
    """Load the UNet2DConditionModel in float32 on the CPU, in evaluation mode.

    Raises:
        EnvironmentFault: its weights are missing, pickled, incomplete, too many or not finite.
        ConfigError: it takes neither latents alone nor latents and condition latents.
    """
    folder = resolve_base(base, revision)
    unet = load_part(UNet2DConditionModel, folder / "unet")
    given, latents = unet.config.in_channels, unet.config.out_channels
    if given not in (latents, 2 * latents):
        raise ConfigError(
            f"the UNet of {base} takes {given} channels",
            why=f"known are {latents} (text to image) and {2 * latents} (InstructPix2Pix); inpainting has 9",
            do="choose another model.base",
        )
    return unet


def load_vae(base: str | Path, revision: str | None = None) -> Any:
    """Load the AutoencoderKL in float32 on the CPU, in evaluation mode; as strict as `load_unet`."""
    return load_part(AutoencoderKL, resolve_base(base, revision) / "vae")


def load_text(base: str | Path, device: torch.device) -> TextModels:
    """Load all tokenizers and text encoders of a base, the encoders on a device.

    Raises:
        EnvironmentFault: one is damaged, or does not fit the UNet.
    """
    folder = resolve_base(base)
    pairs = family_of(folder).text
    return TextModels(
        tuple(load_tokenizer(folder, part=tokenizer) for tokenizer, _ in pairs),
        tuple(load_text_encoder(folder, part=encoder).to(device) for _, encoder in pairs),
        zero_null=len(pairs) > 1 and zero_null(folder),
    )


def load_text_encoder(base: str | Path, revision: str | None = None, part: str = "text_encoder") -> Any:
    """Load one CLIP text encoder in float32 on the CPU, in evaluation mode; as strict as `load_unet`.

    Raises:
        EnvironmentFault: the encoders' width is not the one the UNet attends to.
    """
    folder = resolve_base(base, revision)
    _require_fitting_text(folder)
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    return load_part(kind, folder / part)


def _require_fitting_text(folder: Path) -> None:
    """Compare the widths of a base's text encoders with those its UNet expects."""
    kind, unet = family_of(folder), read_json_object(config_path(folder, "unet"))
    encoders = [read_json_object(config_path(folder, encoder)) for _, encoder in kind.text]
    widths = [("", sum(int(one.get("hidden_size", 0)) for one in encoders), unet.get("cross_attention_dim"))]
    if kind.two_encoders:
        sizes = 6 * int(unet.get("addition_time_embed_dim") or 0)
        pooled = int(encoders[-1].get("projection_dim", 0))
        widths.append(("'s pooled vector", pooled, (unet.get("projection_class_embeddings_input_dim") or 0) - sizes))
    for what, given, expected in widths:
        if given != expected:
            raise EnvironmentFault(
                f"the text encoder{what} of {folder} is {given} wide, the UNet expects {expected}",
                why="the two are of different models",
                do="give a base model whose parts belong together",
            )


def load_tokenizer(base: str | Path, revision: str | None = None, part: str = "tokenizer") -> Any:
    """Load one CLIPTokenizer.

    Raises:
        EnvironmentFault: it is missing, or its vocabulary is not its text encoder's.
    """
    base = resolve_base(base, revision)
    folder = base / part
    words = int(read_config(base, part.replace("tokenizer", "text_encoder"))["vocab_size"])
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(f"{folder} cannot be read", why=str(error), do="fetch the base model again") from error
    # Missing vocabulary files give an empty tokenizer without an error, which reads every word as unknown.
    if not words // 2 < len(tokenizer) <= words:
        raise EnvironmentFault(
            f"the tokenizer in {folder} knows {len(tokenizer)} tokens, the text encoder {words}",
            why="its vocabulary files are missing or are another model's",
            do="fetch the base model again",
        )
    return tokenizer


def load_noise_scheduler(base: str | Path, revision: str | None = None) -> Any:
    """A DDPMScheduler with the noise schedule the base model was trained with, for Eq. (1)."""
    folder = resolve_base(base, revision) / "scheduler"
    try:
        with quiet():  # keys of the other scheduler that the folder names
            kind: Any = DDPMScheduler
            return kind.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{folder} cannot be read", why=str(error), do="fetch the base model again") from error


def model_identity(base: str | Path, parts: Sequence[str] | None = None, revision: str | None = None) -> str:
    """sha256 over the configuration and weights of some parts, or of all; each file is read once a process."""
    folder = resolve_base(base, revision)
    chosen = family_of(folder).parts if parts is None else parts
    return sha256_json([[part, _part_identity(folder / part)] for part in chosen])


def text_identity(base: str | Path) -> str:
    """sha256 over everything that the embedding of a text depends on."""
    folder = resolve_base(base)
    kind = family_of(folder)
    identity = model_identity(folder, kind.text_parts)
    return sha256_json([identity, "zeros for the empty text", zero_null(folder)]) if kind.two_encoders else identity


def _part_identity(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in part_files(folder):
        status = path.stat()
        digest.update(f"{path.name}\0{file_identity(path, status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest()


def save_model(
    target: Path,
    unet: Any,
    base: str | Path,
    revision: str | None,
    facts: Mapping[str, Any],
    scheduler_changes: Mapping[str, Any] | None = None,
) -> None:
    """Publish a fine-tuned UNet with the other parts of its base as an InstructPix2Pix pipeline of diffusers.

    Args:
        target: the model folder; `DiffusionPipeline.from_pretrained(target)` opens it.
        unet: UNet2DConditionModel with 8 input channels.
        base: where the other parts come from; their files are copied as they are.
        revision: of the base on the hub.
        facts: JSON values for mvc.json, such as `image_latents_scaled`.
        scheduler_changes: keys of the scheduler's configuration that fine-tuning has changed. A DDIMScheduler is
            published where the base's scheduler does not know one of them.

    Raises:
        EnvironmentFault: the place cannot be written.
    """
    source = resolve_base(base, revision)
    kind = family_of(source)
    scheduler = _changed_scheduler(read_config(source, "scheduler"), scheduler_changes or {})
    with publish_folder(target, {"kind": "model"}) as folder:
        try:
            unet.save_pretrained(folder / "unet", safe_serialization=True)
        except SafetensorError as error:  # a full disk
            raise EnvironmentFault(f"cannot write {target}", why=str(error), do="free some space") from error
        # diffusers notes where the base lay; a model that is given away shall not name a place.
        config = read_json_object(config_path(folder, "unet"))
        write_json(config_path(folder, "unet"), {key: value for key, value in config.items() if key != "_name_or_path"})
        for part in kind.parts[1:]:
            (folder / part).mkdir()
            for path in part_files(source / part):
                shutil.copyfile(path, folder / part / path.name)
        if scheduler_changes:
            write_json(config_path(folder, "scheduler"), scheduler)
        write_json(folder / "model_index.json", _model_index(kind, source, str(scheduler["_class_name"]), facts))
        write_json(folder / FACTS, dict(facts))


def _changed_scheduler(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with changes, of a class that takes all of them."""
    known = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
    name = config["_class_name"] if all(key in known for key in changes) else "DDIMScheduler"
    return {**config, **changes, "_class_name": name}


def _model_index(kind: Family, source: Path, scheduler: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": kind.published,
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler],
    }
    if kind.two_encoders:
        return {
            **index,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": zero_null(source),
            # How diffusers says that condition latents are scaled.
            "is_cosxl_edit": bool(facts.get("image_latents_scaled", False)),
        }
    return {
        **index,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
