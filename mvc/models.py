"""The parts of a Stable Diffusion: where they lie, how they are loaded, and how a fine-tuned one is published.

Loading is strict, because a checkpoint that lacks a tensor or holds NaN gives noise without an error. Classes are
chosen here by name, never by what a folder says, and only safetensors are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from logging import CRITICAL
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from mvc.errors import ConfigError, EnvironmentFault
from mvc.storage import publish_folder, sha256_file, sha256_json, write_json

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
FACTS = "mvc.json"
"""File of a published model that keeps what generation has to know, such as `image_latents_scaled`."""

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_SUFFIXES = (".json", ".txt", ".safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|non-ema)[.-]")


def resolve_base(base: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a Stable Diffusion in diffusers' layout.

    Args:
        base: "tiny" (embedded), a local folder, or a hub id, which is fetched once and then used offline.
        revision: branch, tag or commit on the hub.

    Raises:
        EnvironmentFault: there is no such folder, it lacks a part, or the hub cannot be reached.
        ConfigError: it is another kind of model, such as SDXL.
    """
    if str(base) == "tiny":
        from mvc.tiny import WEIGHTS

        folder = WEIGHTS
    elif Path(base).is_dir():
        folder = Path(base)
    elif isinstance(base, str) and _HUB_ID.match(base):
        folder = _fetch(base, revision)
    else:
        raise EnvironmentFault(f"model.base {base} is not there", do="give `tiny`, a diffusers folder or a hub id")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise EnvironmentFault(
            f"model.base {base} lacks {', '.join(missing)}",
            why=f"a Stable Diffusion in diffusers' layout has the folders {', '.join(PARTS)}",
            do="give a folder made by save_pretrained, or a hub id",
        )
    if (folder / "text_encoder_2").is_dir():
        raise ConfigError(
            f"model.base {base} has two text encoders, as SDXL has",
            why="Stable Diffusion 1.x and 2.x are supported",
            do="choose another base",
        )
    return folder


def _fetch(base: str, revision: str | None) -> Path:
    patterns = ["model_index.json", *(f"{part}/*{suffix}" for part in PARTS for suffix in _SUFFIXES)]
    try:
        # The exact files and no pickled ones; what is in the hub's cache already needs no network.
        fetched = snapshot_download(
            base, revision=revision, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"]
        )
    except Exception as error:  # offline, unknown, gated, timed out: each raises another kind
        raise EnvironmentFault(
            f"model.base {base} is no local folder and cannot be had from the hub"
            + (f" at revision {revision}" if revision else ""),
            why=" ".join(str(error).split())[:200],
            do="check the name and the network, or give the path of a local diffusers folder",
        ) from error
    return Path(fetched)


def pick_device(name: str) -> torch.device:
    """The device to compute on: `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        EnvironmentFault: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there.get(name, False):
        raise EnvironmentFault(f"run.device={name}: there is no such device here", do="set run.device=auto")
    return torch.device(name)


def read_config(base: str | Path, part: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of one part as its JSON file has it.

    Raises:
        EnvironmentFault: the file is missing or is not JSON.
    """
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    path = resolve_base(base, revision) / part / names.get(part, "config.json")
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read", why=str(error), do="fetch the base model again") from error


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
    """
    return _load(UNet2DConditionModel, base, "unet", revision)


def load_vae(base: str | Path, revision: str | None = None) -> Any:
    """Load the AutoencoderKL in float32 on the CPU, in evaluation mode; as strict as `load_unet`."""
    return _load(AutoencoderKL, base, "vae", revision)


def load_text_encoder(base: str | Path, revision: str | None = None) -> Any:
    """Load the CLIPTextModel in float32 on the CPU, in evaluation mode; as strict as `load_unet`.

    Raises:
        EnvironmentFault: its width is not the one the UNet attends to.
    """
    width = read_config(base, "unet", revision)["cross_attention_dim"]
    given = read_config(base, "text_encoder", revision).get("hidden_size")
    if given != width:
        raise EnvironmentFault(
            f"the text encoder of {base} is {given} wide, the UNet expects {width}",
            why="the two are of different models",
            do="give a base model whose parts belong together",
        )
    return _load(CLIPTextModel, base, "text_encoder", revision)


def load_tokenizer(base: str | Path, revision: str | None = None) -> Any:
    """Load the CLIPTokenizer.

    Raises:
        EnvironmentFault: it is missing, or its vocabulary is not the text encoder's.
    """
    folder = resolve_base(base, revision) / "tokenizer"
    words = int(read_config(base, "text_encoder", revision)["vocab_size"])
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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence both libraries' progress bars and reports; what they report becomes an error here."""
    loggers: list[Any] = [transformers_logging, diffusers_logging]
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(CRITICAL)
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()


def _load(kind: Any, base: str | Path, part: str, revision: str | None) -> Any:
    folder = resolve_base(base, revision) / part
    if not any(folder.glob("*.safetensors")):
        pickled = [path.name for path in folder.iterdir() if path.suffix in _PICKLED]
        raise EnvironmentFault(
            f"{folder} has no safetensors weights" + (f", only {', '.join(sorted(pickled))}" if pickled else ""),
            why="pickled weights can run any program when they are opened, so they are not read" if pickled else "",
            do="convert them on a machine you can lose (diffusers: save_pretrained(..., safe_serialization=True))"
            if pickled
            else "fetch the base model again",
        )
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise EnvironmentFault(
            f"{folder} cannot be loaded", why=" ".join(str(error).split())[:300], do="fetch the base model again"
        ) from error
    _require_whole(folder, model, report)
    return model.eval()


def _require_whole(folder: Path, model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    faults = {
        "missing": report["missing_keys"],
        # Checkpoints of older transformers keep this counter, which is no weight.
        "unknown": [key for key in report["unexpected_keys"] if not key.endswith("position_ids")],
        "of another shape": [str(key) for key in report["mismatched_keys"]],
        "not finite": [name for name, value in model.state_dict().items() if _not_finite(value)],
    }
    wrong = [f"{fault}: {_listing(sorted(names))}" for fault, names in faults.items() if names]
    if wrong:
        raise EnvironmentFault(
            f"{folder} is not a whole checkpoint: {'; '.join(wrong)}",
            why="the model would draw noise without an error",
            do="fetch the base model again",
        )


def _not_finite(value: torch.Tensor) -> bool:
    return not value.is_meta and not bool(value.isfinite().all())  # a missing one stays on the meta device


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def part_files(folder: Path) -> list[Path]:
    """The files of a part that are used: configuration, vocabulary, and weights that are no half-precision copy."""
    files = (path for path in folder.iterdir() if path.suffix in _SUFFIXES and not _VARIANT.search(path.name))
    return sorted(files)


def model_identity(base: str | Path, parts: Sequence[str] = PARTS, revision: str | None = None) -> str:
    """sha256 over the configuration and weights of some parts; each file is read once a process."""
    folder = resolve_base(base, revision)
    return sha256_json([[part, _part_identity(folder / part)] for part in parts])


def _part_identity(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in part_files(folder):
        status = path.stat()
        digest.update(f"{path.name}\0{_file_identity(path, status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_identity(path: Path, size: int, modified: int) -> str:
    return sha256_file(path)


def save_model(target: Path, unet: Any, base: str | Path, revision: str | None, facts: Mapping[str, Any]) -> None:
    """Publish a fine-tuned UNet with the other parts of its base as an InstructPix2Pix pipeline of diffusers.

    Args:
        target: the model folder; `StableDiffusionInstructPix2PixPipeline.from_pretrained(target)` opens it.
        unet: UNet2DConditionModel with 8 input channels.
        base: where the other parts come from; their files are copied as they are.
        revision: of the base on the hub.
        facts: JSON values for mvc.json, such as `image_latents_scaled`.

    Raises:
        EnvironmentFault: the place cannot be written.
    """
    source = resolve_base(base, revision)
    scheduler = read_config(base, "scheduler", revision)["_class_name"]
    with publish_folder(target, {"kind": "model"}) as folder:
        try:
            unet.save_pretrained(folder / "unet", safe_serialization=True)
        except SafetensorError as error:  # a full disk
            raise EnvironmentFault(f"cannot write {target}", why=str(error), do="free some space") from error
        for part in PARTS[1:]:
            (folder / part).mkdir()
            for path in part_files(source / part):
                shutil.copyfile(path, folder / part / path.name)
        write_json(folder / "model_index.json", _model_index(str(scheduler)))
        write_json(folder / FACTS, dict(facts))


def _model_index(scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
