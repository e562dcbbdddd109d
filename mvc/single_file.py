"""One .safetensors file in the original layout, as trainers and model exchanges pass it on, made a diffusers folder.

It is converted once, by diffusers, into a cache of the user's that is keyed by content. What such a file lacks is the
configuration of its parts and the tokenizer; they come from a folder or from the usual repository of its kind.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from mvc.errors import ConfigError, EnvironmentFault
from mvc.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family, config_path, family_of, read_json_object
from mvc.hub import HUB_ID, fetch
from mvc.loading import file_identity, quiet, require_safetensors, require_whole
from mvc.progress import say
from mvc.storage import MANIFEST, publish_folder, sha256_json, write_json

_FORMAT = 1
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_CONFIGURATION = (".json", ".txt")


@dataclass(frozen=True)
class _Layout:
    """How one kind of model lies in a file.

    Attributes:
        family: what it becomes.
        prefixes: first part of the names of each text encoder's tensors; the first one tells the kind.
        repository: on the hub, with its configurations.
    """

    family: Family
    prefixes: Mapping[str, str]
    repository: str


_LAYOUTS = (
    _Layout(
        STABLE_DIFFUSION_XL,
        {"text_encoder_2": "conditioner.embedders.1.model.", "text_encoder": "conditioner.embedders.0.transformer."},
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
    _Layout(
        STABLE_DIFFUSION,
        {"text_encoder": "cond_stage_model.transformer."},
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    _Layout(STABLE_DIFFUSION, {"text_encoder": "cond_stage_model.model."}, "stabilityai/stable-diffusion-2-1"),
)
_NOT_USED = re.compile(
    # Counters and what other uses need; SD 2 was trained without the last layer of its text encoder.
    r"position_ids$|logit_scale$|attn_mask$|^first_stage_model\.(loss|model_ema)\."
    r"|^cond_stage_model\.model\.(text_projection$|transformer\.resblocks\.23\.)"
)


def cache_folder() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/mvc, or ~/.cache/mvc."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvc"


def converted(path: Path, config: str | None = None, revision: str | None = None) -> Path:
    """The folder in diffusers' layout that a file was converted to, now or earlier.

    Args:
        path: a .safetensors file in the original layout of SD 1.x, SD 2.x or SDXL.
        config: folder or hub id of a diffusers model of the same kind, of which only JSON and vocabulary files are
            read; None is the usual repository of the kind.
        revision: of the hub id.

    Raises:
        EnvironmentFault: the file is pickled, damaged or not whole, its configuration cannot be had, or the cache
            cannot be written.
        ConfigError: it is another kind of model, or the configuration is another kind's.
    """
    require_safetensors(path, f"model.base {path}")
    shapes, dtype = _tensors(path)
    layout = _layout_of(path, shapes)
    given = _configuration(layout, config, revision)
    if family_of(given) is not layout.family:
        raise ConfigError(
            f"model.config {config or layout.repository} is of another kind than model.base {path}",
            why=f"the file holds a {layout.family.name}",
            do="set model.config to the folder or hub id of a model of that kind",
        )
    with _configured(given, layout, shapes) as folder:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        contents = [[file.relative_to(folder).as_posix(), file.read_text()] for file in files]
        status = path.stat()
        identity = file_identity(path, status.st_size, status.st_mtime_ns)
        target = cache_folder() / "models" / sha256_json([_FORMAT, identity, contents])[:32]
        if not (target / MANIFEST).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            # The processes of one training all come here at once.
            with FileLock(target.with_suffix(".lock")):
                if not (target / MANIFEST).exists():
                    say(f"{path.name}: converting it once, into {target}")
                    _convert(path, folder, layout, shapes, dtype, target)
    return target


def _tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Shapes by name, and the type that loses nothing: the half precision that all have, else float32."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {part.get_dtype() for part in slices.values()} - {"I64", "I32", "U8", "BOOL"}
    except (SafetensorError, OSError, ValueError) as error:
        raise EnvironmentFault(
            f"model.base {path} cannot be read", why=" ".join(str(error).split())[:300], do="fetch the file again"
        ) from error
    halves = {"F16": torch.float16, "BF16": torch.bfloat16}
    return shapes, halves.get(next(iter(types)), torch.float32) if len(types) == 1 else torch.float32


def _layout_of(path: Path, shapes: Mapping[str, Any]) -> _Layout:
    has_parts = _CONV_IN in shapes and any(name.startswith(_VAE) for name in shapes)
    # EDM's noise schedule, as in CosXL and Playground, is not that of Eq. (1).
    if has_parts and not any(name.startswith("edm_") for name in shapes):
        for layout in _LAYOUTS:
            if any(name.startswith(next(iter(layout.prefixes.values()))) for name in shapes):
                return layout
    raise ConfigError(
        f"model.base {path} holds no model that is known",
        why="a file needs UNet, VAE and text encoders of SD 1.x, SD 2.x or SDXL, named as in the original code",
        do="give such a file, or a folder in diffusers' layout",
    )


def _configuration(layout: _Layout, config: str | None, revision: str | None) -> Path:
    if config is not None and Path(config).is_dir():
        return Path(config)
    place = config or layout.repository
    if not HUB_ID.match(place):
        raise EnvironmentFault(f"model.config {place} is not there", do="give a diffusers folder or a hub id")
    patterns = [f"{part}/*{suffix}" for part in layout.family.parts for suffix in _CONFIGURATION]
    return fetch(place, revision, patterns, "model.config")


@contextmanager
def _configured(given: Path, layout: _Layout, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Path]:
    """A temporary folder with nothing but the configurations, so that no weights can come from anywhere else."""
    with TemporaryDirectory(prefix="mvc-") as name:
        folder = Path(name)
        for part in layout.family.parts:
            (folder / part).mkdir()
            for file in sorted((given / part).iterdir()):
                if file.suffix in _CONFIGURATION and ".index." not in file.name:
                    shutil.copyfile(file, folder / part / file.name)
        unet = read_json_object(config_path(folder, "unet"))
        # An InstructPix2Pix differs in this alone.
        write_json(config_path(folder, "unet"), {**unet, "in_channels": shapes[_CONV_IN][1]})
        scheduler = read_json_object(config_path(folder, "scheduler"))
        if "v_pred" in shapes:  # a mark that trainers of v-prediction models leave
            write_json(config_path(folder, "scheduler"), {**scheduler, "prediction_type": "v_prediction"})
        index = read_json_object(given / "model_index.json")
        kept = {key: value for key, value in index.items() if key in layout.family.parts or not isinstance(value, list)}
        plain = layout.family.pipelines[0]
        unused = (
            {} if layout.family.two_encoders else {"safety_checker": [None, None], "feature_extractor": [None, None]}
        )
        write_json(folder / "model_index.json", {**kept, **unused, "_class_name": plain})
        yield folder


def _convert(
    path: Path,
    configuration: Path,
    layout: _Layout,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    target: Path,
) -> None:
    kind: Any = StableDiffusionXLPipeline if layout.family.two_encoders else StableDiffusionPipeline
    try:
        with quiet():
            pipeline = kind.from_single_file(
                str(path), config=str(configuration), torch_dtype=dtype, local_files_only=True
            )
    except Exception as error:  # what is wrong with a file shows in many ways
        why = " ".join(str(error).split())[:300]
        raise EnvironmentFault(
            f"model.base {path} cannot be converted",
            why="it lacks weights that its configuration asks for" if "meta tensor" in why else why,
            do="fetch the file again, or set model.config to a model of the same kind",
        ) from error
    weights = {"unet": _UNET, "vae": _VAE, **layout.prefixes}
    for part, prefix in weights.items():
        _require_all(path, part, getattr(pipeline, part), prefix, shapes)
    facts = {"kind": "converted model", "file": path.name, "diffusers": diffusers.__version__}
    with publish_folder(target, facts) as folder:
        shutil.copytree(configuration, folder, dirs_exist_ok=True)
        try:
            for part in weights:
                getattr(pipeline, part).save_pretrained(folder / part, safe_serialization=True)
        except SafetensorError as error:  # a full disk
            raise EnvironmentFault(f"cannot write {target}", why=str(error), do="free some space") from error


def _require_all(path: Path, part: str, model: Any, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare what the file has of a part with what became of it: diffusers leaves out and passes over in silence."""
    missing = [name for name, value in model.state_dict().items() if value.is_meta]
    # A conversion renames, splits and reshapes, but the amount of numbers stays.
    given = sum(
        torch.Size(shape).numel()
        for name, shape in shapes.items()
        if name.startswith(prefix) and not _NOT_USED.search(name)
    )
    used = sum(value.numel() for name, value in model.state_dict().items() if not name.endswith("position_ids"))
    unknown = [f"{given - used} numbers below {prefix}"] if given > used and not missing else []
    require_whole(f"the {part} of model.base {path}", model, missing, unknown)
