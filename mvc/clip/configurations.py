"""What a CLIP is made of: a configuration in open_clip's form, found by name, file, folder or hub id, and checked."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mvc.errors import ConfigError, EnvironmentFault
from mvc.hub import HUB_ID, fetch
from mvc.loading import is_pickled
from mvc.storage import read_json

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""The two files of a model's folder, as open_clip names them."""

FORMS = f"an architecture of open_clip, a JSON file, or a folder or hub id with {CONFIG} and {WEIGHTS}"
"""What may stand for a model, in words."""

_SCALING = ("mean", "std", "interpolation", "resize_mode")
_TOKENIZER_SETTINGS = {"clean"}
"""Of open_clip's own tokenizer; its others name files of the machine or shorten texts by the global random state."""


@dataclass(frozen=True)
class FoundClip:
    """A model whose configuration is known; nothing is built yet.

    Attributes:
        config: JSON values, `model_cfg` (what open_clip builds a network from) and `preprocess_cfg` (mean, std,
            interpolation, resize_mode: how it scales images).
        weights: the safetensors file that belongs to it; None for an architecture alone.
    """

    config: dict[str, Any]
    weights: Path | None


def find_clip(model: str | Path, revision: str | None = None) -> FoundClip:
    """Find a model's configuration and weights; a hub id is fetched once, JSON and safetensors files only.

    Args:
        model: one of FORMS; a name of an architecture comes before a folder of the same name.
        revision: branch, tag or commit on the hub; of no meaning for the other forms.

    Raises:
        ConfigError: it is none of the forms, or a model that needs more than its folder or has another shape.
        EnvironmentFault: it cannot be had from the hub, or a folder lacks a file.
        DataError: a file is no JSON.
    """
    import open_clip  # takes seconds to import

    name = str(model)
    if name in open_clip.list_models():
        return FoundClip(_checked({"model_cfg": open_clip.get_model_config(name)}, name), None)
    path = Path(model).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".json":
        if not path.is_file():
            raise ConfigError(f"there is no file {path}", why="a CLIP was to be made from it", do=f"give {FORMS}")
        content = read_json(path)
        whole = content if isinstance(content, dict) and "model_cfg" in content else {"model_cfg": content}
        return FoundClip(_checked(whole, str(path)), None)
    if "/" in name and HUB_ID.match(name):
        return _in_folder(_fetched(name, revision))
    raise _unknown(name)


def scaling_beside(weights: Path) -> dict[str, Any]:
    """How images are scaled, by the configuration that lies beside a file of weights; empty if there is none."""
    beside = weights.with_name(CONFIG)
    found = read_json(beside) if beside.is_file() else {}
    return _scaling(found, str(beside)) if isinstance(found, dict) and found.get("preprocess_cfg") else {}


def _in_folder(folder: Path) -> FoundClip:
    if not (folder / CONFIG).is_file():
        raise EnvironmentFault(f"{folder} has no {CONFIG}", why="it holds no CLIP of open_clip", do=f"give {FORMS}")
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.is_file() and is_pickled(path))
        raise EnvironmentFault(
            f"{folder} has no {WEIGHTS}" + (f", only {', '.join(pickled)}" if pickled else ""),
            why="pickled weights can run any program when they are opened, so they are not read" if pickled else "",
            do="get the safetensors file of the same model",
        )
    content = read_json(folder / CONFIG)
    return FoundClip(_checked(content, str(folder / CONFIG)), folder / WEIGHTS)


def _fetched(hub_id: str, revision: str | None) -> Path:
    try:
        return fetch(hub_id, revision, [CONFIG, WEIGHTS])
    except EnvironmentFault as error:
        raise EnvironmentFault(
            f"the CLIP {hub_id} is no local folder and cannot be had from the hub"
            + (f" at revision {revision}" if revision else ""),
            why=error.why,
            do=f"check the name and the network, or give {FORMS}",
        ) from error


def _unknown(name: str) -> ConfigError:
    import open_clip

    names = [known for known in open_clip.list_models() if not _refusal(open_clip.get_model_config(known))]
    lower = {known.lower(): known for known in names}
    nearest = [lower[close] for close in get_close_matches(name.lower(), lower, n=3, cutoff=0.0)]
    return ConfigError(f"no CLIP '{name}'; nearest: {', '.join(nearest)}", do=f"give {FORMS}")


def _checked(content: Any, what: str) -> dict[str, Any]:
    """The configuration with all that is left out filled in; it says the same for the same model."""
    parts = ("vision_cfg", "text_cfg")
    model = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(model, dict) or any(not isinstance(model.get(part), dict) for part in parts):
        raise ConfigError(
            f"{what} is no configuration of a CLIP",
            why="it lacks vision_cfg or text_cfg",
            do="write it as open_clip's own model_configs are written",
        )
    refusal = _refusal(model)
    if refusal:
        raise ConfigError(f"the CLIP {what} cannot be used", why=refusal, do="take one with open_clip's own tokenizer")
    model = deepcopy(model)
    # timm would fetch weights for it, although those of the whole model follow or none are wanted.
    if "timm_model_name" in model["vision_cfg"]:
        model["vision_cfg"]["timm_model_pretrained"] = False
    return {"model_cfg": model, "preprocess_cfg": _scaling(content, what)}


def _refusal(model: dict[str, Any]) -> str:
    """Why a model cannot be built here, from its configuration alone; empty if it can."""
    text, timm_name = model["text_cfg"], str(model["vision_cfg"].get("timm_model_name", ""))
    settings = set(text.get("tokenizer_kwargs") or {}) - _TOKENIZER_SETTINGS
    if "multimodal_cfg" in model:
        return "it is a CoCa, which also writes captions"
    if text.get("hf_model_name"):
        return f"its text encoder {text['hf_model_name']} is built from files of the hub"
    if text.get("hf_tokenizer_name"):
        return f"its tokenizer {text['hf_tokenizer_name']} is built from files of the hub"
    if settings:
        return f"its tokenizer_kwargs set {', '.join(sorted(settings))}"
    return f"its timm_model_name is {timm_name}, which names a place" if ":" in timm_name else ""


def _scaling(content: dict[str, Any], what: str) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    given = content.get("preprocess_cfg") or {}
    usual = PreprocessCfg()
    found = {name: given.get(name) or getattr(usual, name) for name in _SCALING}
    choices = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "longest", "squash")}
    for name, allowed in choices.items():
        if found[name] not in allowed:
            raise ConfigError(f"{what}: {name} is {found[name]}", do=f"set it to {', '.join(allowed)}")
    for name in ("mean", "std"):
        values = found[name]
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3:
            raise ConfigError(f"{what}: {name} is {values}", why="each of three channels needs a number")
        found[name] = [float(value) for value in values]
    return found
