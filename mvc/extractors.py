"""Networks that turn an image into a vector, for filters and for figures of quality.

Three kinds, all from local safetensors files: a CLIP of transformers (the embedded tiny one among them), a CLIP of
open_clip, and any image network of timm. Only what stands in the library's own list of models is built, so that a name
can never reach for the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from mvc.errors import ConfigError, EnvironmentFault, NumericError
from mvc.loading import file_identity, load_part, part_files, quiet, require_safetensors, require_whole
from mvc.storage import read_json, sha256_json
from mvc.tiny import WEIGHTS

FORMS = (
    "tiny, a folder with a CLIPModel of transformers, open_clip:MODEL:FILE.safetensors or timm:MODEL:FILE.safetensors"
)
"""What may stand for an extractor, in words."""

_OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Extractor:
    """A loaded network.

    Attributes:
        name: for people.
        identity: digest of all that a vector depends on besides the image and the machine.
        width: d, length of a vector.
        embed_image: an RGB image to (d,) float32 on the CPU.
        embed_text: a text to (d,) float32 on the CPU, in the same space; None for networks of images alone.
    """

    name: str
    identity: str
    width: int
    embed_image: Callable[[Image.Image], Tensor]
    embed_text: Callable[[str], Tensor] | None = None

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The vector of one image, by itself: so that it never depends on what it is computed with.

        Args:
            pixels: (H, W, 3) uint8, RGB.

        Returns:
            (d,) float32; its length is the network's own and not 1.

        Raises:
            NumericError: it is not finite.
        """
        with torch.no_grad():
            return _finite(self.embed_image(Image.fromarray(pixels)), f"{self.name}: the features of an image")

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of n texts, each by itself; longer texts than the network takes are cut.

        Returns:
            (n, d) float32, not of length 1. Texts that the tokenizer cannot tell apart have equal rows.

        Raises:
            ConfigError: the network knows no texts.
            NumericError: a vector is not finite.
        """
        if self.embed_text is None:
            raise ConfigError(f"{self.name} knows images only", do="name a CLIP: tiny, a folder, or open_clip:...")
        with torch.no_grad():
            rows = [_finite(self.embed_text(text), f"{self.name}: the features of '{text}'") for text in texts]
        return np.stack(rows) if rows else np.empty((0, self.width), dtype=np.float32)


@dataclass(frozen=True)
class FoundExtractor:
    """An extractor whose files are there; nothing is loaded yet.

    Attributes:
        spec: as the user wrote it.
        name: for people.
        identity: as that of the `Extractor`.
        has_text: whether it knows texts.
        load: loads it on a device; raises EnvironmentFault for files that are damaged or do not fit.
    """

    spec: str
    name: str
    identity: str
    has_text: bool
    load: Callable[[torch.device], Extractor]


def find_extractor(spec: str, key: str = "filter.extractor") -> FoundExtractor:
    """Read a specification and digest the files that it names.

    Args:
        spec: one of FORMS; `auto` is `tiny`.
        key: key of the experiment, for the errors.

    Raises:
        ConfigError: it is none of the forms, names an unknown model, or its file or folder is not there.
        EnvironmentFault: the weights are pickled, or a folder holds no CLIP.
    """
    if spec in ("auto", "tiny"):
        return _found_folder(spec, WEIGHTS / "clip", "the tiny CLIP", key)
    kind, _, rest = spec.partition(":")
    if kind in ("open_clip", "timm"):
        model, _, file = rest.partition(":")
        if not model or not file:
            raise ConfigError(f"{key}: '{spec}' lacks a part", do=f"write {kind}:MODEL:FILE.safetensors")
        path = Path(file).expanduser()
        if not path.is_file():
            raise ConfigError(f"{key}: {path} is no file", do="give the path of the model's safetensors file")
        require_safetensors(path, str(path))
        return (_found_open_clip if kind == "open_clip" else _found_timm)(spec, model, path, key)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{key}: '{spec}' is no extractor", why="no such folder either", do=f"give {FORMS}")
    return _found_folder(spec, folder, f"the CLIP in {folder.name}", key)


def _finite(vector: Tensor, what: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = vector.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise NumericError(f"{what} are not finite", why="the extractor overflows or its weights are damaged")
    return values


def _digest(path: Path) -> str:
    status = path.stat()
    return file_identity(path, status.st_size, status.st_mtime_ns)


def _found_folder(spec: str, folder: Path, name: str, key: str) -> FoundExtractor:
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind != "clip":
        raise EnvironmentFault(
            f"{key}: {folder} holds no CLIPModel",
            why=f"its config.json says {kind}" if kind else "it has no config.json",
            do=f"give {FORMS}",
        )
    files = [[path.name, _digest(path)] for path in part_files(folder)]
    identity = sha256_json(["transformers", version("transformers"), files])
    return FoundExtractor(spec, name, identity, True, partial(_load_folder, folder, name, identity))


def _load_folder(folder: Path, name: str, identity: str, device: torch.device) -> Extractor:
    # Imported here: transformers takes seconds to import.
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = load_part(CLIPModel, folder).to(device)
    try:
        with quiet():
            processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(f"{folder} is not whole", why=" ".join(str(error).split())[:200]) from error

    def embed_image(image: Image.Image) -> Tensor:
        pixels = processor(image, return_tensors="pt").pixel_values.to(device)
        features: Tensor = model.get_image_features(pixel_values=pixels).pooler_output[0]
        return features

    def embed_text(text: str) -> Tensor:
        ids = tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        features: Tensor = model.get_text_features(input_ids=ids.input_ids.to(device)).pooler_output[0]
        return features

    return Extractor(name, identity, model.config.projection_dim, embed_image, embed_text)


def _unknown(key: str, library: str, model: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{key}: {library} has no model '{model}'",
        why=f"it has {len(known)}, such as {', '.join(known[:3])}",
        do=f"take a name of {library}'s own list; models of the hub have to be fetched first",
    )


def _found_open_clip(spec: str, model: str, path: Path, key: str) -> FoundExtractor:
    import open_clip

    if model not in open_clip.list_models():
        raise _unknown(key, "open_clip", model, open_clip.list_models())
    # Files of the hub have it beside them; it says how images are scaled.
    beside = path.with_name(_OPEN_CLIP_CONFIG)
    scaling = read_json(beside).get("preprocess_cfg", {}) if beside.is_file() else {}
    identity = sha256_json(["open_clip", version("open_clip_torch"), model, scaling, _digest(path)])
    load = partial(_load_open_clip, model, path, scaling, identity)
    return FoundExtractor(spec, f"open_clip's {model}", identity, True, load)


def _load_open_clip(
    model_name: str, path: Path, scaling: dict[str, Any], identity: str, device: torch.device
) -> Extractor:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    try:
        model = open_clip.create_model(model_name, load_weights=False, pretrained_text=False)
        open_clip.load_checkpoint(model, str(path))
        tokenizer = open_clip.get_tokenizer(model_name)
        own = {"size": model.visual.image_size}
        transform = image_transform_v2(PreprocessCfg(**{**scaling, **own}), is_train=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _does_not_fit(path, f"open_clip's {model_name}", error) from error
    require_whole(str(path), model)
    model = model.eval().to(device)
    width = int(model.encode_text(tokenizer(["a"]).to(device)).shape[1])

    def embed_image(image: Image.Image) -> Tensor:
        features: Tensor = model.encode_image(transform(image)[None].to(device))[0]
        return features

    def embed_text(text: str) -> Tensor:
        features: Tensor = model.encode_text(tokenizer([text]).to(device))[0]
        return features

    return Extractor(f"open_clip's {model_name}", identity, width, embed_image, embed_text)


def _found_timm(spec: str, model: str, path: Path, key: str) -> FoundExtractor:
    import timm

    if not timm.is_model(model.partition(".")[0]) or ":" in model:
        raise _unknown(key, "timm", model, timm.list_models())
    identity = sha256_json(["timm", version("timm"), model, _digest(path)])
    return FoundExtractor(spec, f"timm's {model}", identity, False, partial(_load_timm, model, path, identity))


def _load_timm(model_name: str, path: Path, identity: str, device: torch.device) -> Extractor:
    import timm
    from safetensors.torch import load_file

    data: Any = timm.data
    try:
        weights = load_file(path)
        model: Any = timm.create_model(model_name, pretrained=False, num_classes=0)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _does_not_fit(path, f"timm's {model_name}", error) from error
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    weights = {key: value for key, value in weights.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    wanted = model.state_dict()
    # Old files lack these counters, which are no weights.
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    require_whole(
        str(path),
        model,
        missing,
        [key for key in weights if key not in wanted],
        [key for key in weights if key in wanted and weights[key].shape != wanted[key].shape],
    )
    model.load_state_dict(weights, strict=False)
    require_whole(str(path), model)
    model = model.eval().to(device)
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)

    def embed_image(image: Image.Image) -> Tensor:
        features: Tensor = model(transform(image)[None].to(device))[0]
        return features

    return Extractor(f"timm's {model_name}", identity, int(model.num_features), embed_image)


def _does_not_fit(path: Path, model: str, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} cannot be loaded as {model}",
        why=json.dumps(" ".join(str(error).split())[:300], ensure_ascii=False),
        do="name the model that the file was made for, and check that the file is whole",
    )
