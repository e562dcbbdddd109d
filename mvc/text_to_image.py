"""Any text-to-image model of diffusers, by its own pipeline: for models that are no Stable Diffusion too."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from mvc.errors import ConfigError, EnvironmentFault
from mvc.families import read_index
from mvc.hub import HUB_ID, fetch
from mvc.loading import SUFFIXES, file_identity, part_files, quiet, require_safetensors
from mvc.storage import sha256_json

_LIBRARIES = ("diffusers", "transformers")
_CHECKERS = ("safety_checker", "requires_safety_checker")


def find_text_to_image(model: str | Path, revision: str | None, key: str) -> Path:
    """The folder of a text-to-image model in diffusers' layout.

    Args:
        model: "tiny" (embedded), a folder, or a hub id, which is fetched once.
        revision: branch, tag or commit on the hub.
        key: key of the experiment that names it, for the errors.

    Raises:
        EnvironmentFault: there is no such folder, it is pickled, or the hub cannot be reached.
        ConfigError: it is no pipeline, or names classes of other packages than diffusers and transformers.
    """
    if str(model) == "tiny":
        from mvc.tiny import WEIGHTS

        folder = WEIGHTS
    elif Path(model).is_dir():
        folder = Path(model)
    elif HUB_ID.match(str(model)):
        folder = fetch(str(model), revision, [f"*/*{suffix}" for suffix in SUFFIXES], key)
    else:
        raise EnvironmentFault(f"{key} {model} is not there", do="give `tiny`, a diffusers folder or a hub id")
    _require_known(folder, key)
    return folder


def _parts(folder: Path) -> dict[str, list[Any]]:
    """The parts that a folder's model_index.json names: library and class of each."""
    index = read_index(folder)
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}


def _require_known(folder: Path, key: str) -> None:
    if not isinstance(read_index(folder).get("_class_name"), str):
        raise ConfigError(
            f"{key} {folder} is no pipeline of diffusers",
            why="its model_index.json is missing or names no class of diffusers",
            do="give a folder made by save_pretrained, or a hub id",
        )
    for name, entry in _parts(folder).items():
        # A folder may bring classes of its own as Python files; nothing of a model is ever run here.
        if entry[0] not in _LIBRARIES and name not in _CHECKERS:
            raise ConfigError(
                f"{key} {folder}: its part {name} is of the package {entry[0]}",
                why="only classes of diffusers and transformers are loaded",
                do="choose another model",
            )
        for path in (folder / name).glob("*"):
            if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors") and not _is_spare(path):
                require_safetensors(path, str(path))


def _is_spare(path: Path) -> bool:
    """Whether a pickled file lies beside safetensors, which are read in its place."""
    return path.suffix != ".safetensors" and any(path.parent.glob("*.safetensors"))


def text_to_image_identity(folder: Path) -> str:
    """sha256 over the configuration and weights of all parts; each file is read once a process."""
    found = []
    for name in sorted(_parts(folder)):
        for path in part_files(folder / name) if (folder / name).is_dir() else []:
            status = path.stat()
            found.append([f"{name}/{path.name}", file_identity(path, status.st_size, status.st_mtime_ns)])
    return sha256_json(["text to image", found])


def load_text_to_image(folder: Path, device: torch.device, dtype: torch.dtype, key: str) -> Any:
    """Load the pipeline of a folder without a safety checker, which would paint images black.

    Args:
        folder: from `find_text_to_image`.
        device: where to compute.
        dtype: of all weights.
        key: as there.

    Raises:
        EnvironmentFault: it is no text-to-image model, or incomplete, or its weights are not finite.
    """
    kinds: Any = DiffusionPipeline
    index = read_index(folder)
    # Parts that the folder leaves out have to be left out by name, too.
    without = {name: None for name, entry in index.items() if entry == [None, None] or name == "safety_checker"}
    try:
        with quiet():
            pipeline = kinds.from_pretrained(folder, dtype=dtype, use_safetensors=True, **without).to(device)
        takes = inspect.signature(pipeline.__call__).parameters
        if "image" in takes or not {"prompt", "num_inference_steps", "guidance_scale"} <= set(takes):
            raise ValueError(f"a {type(pipeline).__name__} draws from something else than a text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise EnvironmentFault(
            f"cannot load the text-to-image model {folder}",
            why=" ".join(str(error).split())[:300],
            do=f"give {key} a folder or hub id of such a model of diffusers with safetensors weights",
        ) from error
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            bad = [own for own, value in part.state_dict().items() if value.is_meta or not bool(value.isfinite().all())]
            if bad:
                raise EnvironmentFault(
                    f"{folder / name} is not a whole checkpoint: missing or not finite: {', '.join(bad[:3])}",
                    why="the model would draw noise without an error",
                    do="fetch it again",
                )
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_texts(
    pipeline: Any,
    texts: Sequence[str],
    generators: Sequence[torch.Generator],
    num_inference_steps: int,
    guidance_scale: float,
    image_size: int | None,
) -> Tensor:
    """Draw an image of each text.

    Args:
        pipeline: from `load_text_to_image`.
        texts: the prompts.
        generators: of each, on the CPU, so that an image does not depend on its batch but for rounding.
        num_inference_steps: denoising steps.
        guidance_scale: of the text.
        image_size: side in pixels; the model's own when None.

    Returns:
        (B, 3, H, W) float32 on the CPU, in [0, 1]; not finite where half precision failed.
    """
    size = {} if image_size is None else {"height": image_size, "width": image_size}
    with quiet(), torch.no_grad():  # it would say of each long text that its end is lost
        images = pipeline(
            prompt=list(texts),
            generator=list(generators),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="pt",
            **size,
        ).images
    drawn: Tensor = images.float().cpu()
    return drawn
