"""CLIPs of open_clip: a network with its tokenizer and its scaling of images, loaded strictly, and saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mvc.errors import ConfigError, EnvironmentFault
from mvc.loading import require_safetensors, require_whole
from mvc.randomness import seeded_global
from mvc.storage import publish_folder, sha256_json, write_json

from .configurations import CONFIG, WEIGHTS, find_clip, scaling_beside

_BUILDING = (TypeError, ValueError, KeyError, RuntimeError, AttributeError, AssertionError, ZeroDivisionError)
"""What open_clip and timm raise for a configuration that makes no network."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP and all that is needed to give it texts and images.

    Attributes:
        network: open_clip's CLIP or CustomTextCLIP, float32; `encode_image`, `encode_text`, and `logit_scale`, the
            logarithm of what cosines are multiplied by.
        tokenize: a list of B texts to (B, L) int64 on the CPU; longer ones are cut at L tokens.
        image_size: S, side in pixels.
        mean: of the three channels, for values in [0, 1].
        std: standard deviations of them.
        identity: sha256 of configuration and weights as they were loaded; `identity_of` tells that of later ones.
        config: JSON values in the form of open_clip_config.json.
    """

    network: nn.Module
    tokenize: Callable[[Sequence[str]], Tensor]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: str
    config: dict[str, Any]


def load_clip(
    model: str | Path,
    weights: str | Path | None = None,
    revision: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Clip:
    """Load a CLIP in evaluation mode, in float32; models that need a tokenizer or text encoder of the hub are refused.

    Args:
        model: a name of open_clip's architectures, such as ViT-B-32; a JSON file as open_clip's model_configs or as
            open_clip_config.json; a folder with open_clip_config.json and open_clip_model.safetensors; or the hub id
            of such a folder.
        weights: safetensors file with exactly the network's tensors. None takes those of the folder; an architecture
            then has random weights, which depend on (seed, configuration) alone. Where an open_clip_config.json lies
            beside the file, it says how images are scaled.
        revision: branch, tag or commit on the hub.
        seed: of the random weights; the draw is (seed, "CLIP weights").
        device: where the network shall compute.

    Raises:
        ConfigError: unknown name, a configuration that makes no network, or one of the refused models.
        EnvironmentFault: no such file, or weights that are pickled, missing, unknown, of another shape or not finite;
            names them.
        DataError: a configuration is no JSON.
    """
    found = find_clip(model, revision)
    path = found.weights if weights is None else Path(weights).expanduser()
    config = found.config
    if path is not None and path != found.weights:
        _require_file(path)
        config = {**config, "preprocess_cfg": scaling_beside(path) or config["preprocess_cfg"]}
    network = _built(config["model_cfg"], config["preprocess_cfg"], seed, str(model))
    if path is not None:
        load_weights(network, path)
    return _whole(network, config, device, str(model))


def new_clip(config: dict[str, Any], seed: int = 0) -> Clip:
    """A CLIP on the CPU with random weights, from the configuration of another one.

    Args:
        config: as `Clip.config`.
        seed: of the random weights, as in `load_clip`.

    Raises:
        ConfigError: it makes no network.
    """
    what = "of this configuration"
    network = _built(config["model_cfg"], config["preprocess_cfg"], seed, what)
    return _whole(network, config, "cpu", what)


def _whole(network: Any, config: dict[str, Any], device: str | torch.device, what: str) -> Clip:
    return Clip(
        network=network.eval().to(device),
        tokenize=_tokenizer(config["model_cfg"]["text_cfg"], what),
        image_size=_side(network, what),
        mean=tuple(config["preprocess_cfg"]["mean"]),
        std=tuple(config["preprocess_cfg"]["std"]),
        identity=identity_of(network, config),
        config=config,
    )


def save_clip(clip: Clip, folder: str | Path) -> str:
    """Write a CLIP as a folder, whole or not at all; `load_clip` reads it back to the bit.

    open_clip opens it as `local-dir:FOLDER`.

    Args:
        clip: its network may have been trained since it was loaded.
        folder: replaced if it is there.

    Returns:
        the identity of what was written, which is that of the CLIP that will be loaded from it.

    Raises:
        EnvironmentFault: the disk is full or the place cannot be written.
    """
    identity = identity_of(clip.network, clip.config)
    with publish_folder(Path(folder), {"kind": "clip", "identity": identity}) as temporary:
        write_json(temporary / CONFIG, clip.config)
        try:
            save_file(_on_cpu(clip.network), temporary / WEIGHTS)
        except SafetensorError as error:
            raise EnvironmentFault(f"cannot write {folder}", why=str(error), do="free some space") from error
    return identity


def identity_of(network: nn.Module, config: dict[str, Any]) -> str:
    """sha256 of a configuration and of the weights as they are now, hexadecimal.

    It doesn't depend on the file that weights came from, nor on the device.

    Args:
        network: its state is read.
        config: as `Clip.config`.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_on_cpu(network).items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return sha256_json([config, digest.hexdigest()])


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def _built(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], seed: int, what: str) -> Any:
    """A network on the CPU with random weights, which depend on seed and configuration alone."""
    from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg

    settings = dict(model_cfg)
    kind = CustomTextCLIP if settings.pop("custom_text", False) else CLIP
    try:
        with seeded_global(seed, "CLIP weights"), torch.device("cpu"):
            network = kind(**settings)
    except _BUILDING as error:
        raise ConfigError(
            f"open_clip cannot build the CLIP {what}",
            why=" ".join(str(error).split())[:300] or type(error).__name__,
            do="correct its vision_cfg and text_cfg",
        ) from error
    set_model_preprocess_cfg(network, {**preprocess_cfg, "size": network.visual.image_size})
    return network.float()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise EnvironmentFault(f"{path} is no file", why="it was to hold a CLIP's weights", do="correct the path")
    require_safetensors(path, str(path))


def load_weights(network: nn.Module, path: Path) -> None:
    """Put weights into a network; those that are there have to be those it has, and finite.

    Raises:
        EnvironmentFault: the file cannot be read, or tensors are missing, unknown, of another shape or kind, or not
            finite; names them.
    """
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EnvironmentFault(f"{path} cannot be read", why=str(error), do="get the file again") from error
    wanted = network.state_dict()
    try:
        require_whole(
            str(path),
            network,
            [name for name in wanted if name not in found],
            [name for name in found if name not in wanted],
            [_words(name, found[name]) for name in wanted if name in found and not _alike(found[name], wanted[name])],
        )
        network.load_state_dict(found)
        require_whole(str(path), network)
    except EnvironmentFault as error:
        raise EnvironmentFault(
            error.what,
            why="the CLIP would be another one without an error",
            do="name the model that the file was made for, and check that the file is whole",
        ) from error


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()


def _words(name: str, value: Tensor) -> str:
    return f"{name} ({'x'.join(map(str, value.shape)) or 'one number'}, {str(value.dtype).removeprefix('torch.')})"


def _tokenizer(text_cfg: dict[str, Any], what: str) -> Callable[[Sequence[str]], Tensor]:
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer

    length = text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    tokenizer: Any = SimpleTokenizer(context_length=length, **(text_cfg.get("tokenizer_kwargs") or {}))
    known = text_cfg.get("vocab_size", tokenizer.vocab_size)
    if known < tokenizer.vocab_size:
        raise ConfigError(
            f"the CLIP {what} has a vocab_size of {known}",
            why=f"open_clip's tokenizer knows {tokenizer.vocab_size} tokens",
            do=f"set vocab_size to {tokenizer.vocab_size}",
        )
    return lambda texts: tokenizer(list(texts))


def _side(network: Any, what: str) -> int:
    size = network.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise ConfigError(f"the CLIP {what} takes images of {height} x {width}", do="take one of square images")
    return int(height)
