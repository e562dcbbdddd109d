"""Backbones by name: our own small ones and all of timm's. Which there are, what sides they take, how one is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mvc.errors import ConfigError, EnvironmentFault
from mvc.hub import fetch

from .small_net import SmallNet
from .wide_resnet import WideResNet

SMALL_SIDE = 64
"""Up to this side in pixels `auto` means the small net, and a ResNet keeps its full resolution at the stem."""

Layout = Literal["maps", "maps_last", "tokens", "none"]
"""What a network calls its features: (B, D, h, w), (B, h, w, D), (B, N, D), or no tensor of these."""

_WIDE = {"wrn_28_2": (28, 2), "wrn_28_10": (28, 10)}
_OURS = ("small", *_WIDE)
CLIP = "clip"
"""The backbone that `clip_classifier.py` makes of the CLIP that classify.clip names."""
_USUAL_SIDES = (32, 64, 96, 128, 192, 224, 256, 384)
_PUBLISHED = "model.safetensors"


def known_name(backbone: str) -> str:
    """The name as it is written in the library.

    Args:
        backbone: small, wrn_28_2, wrn_28_10, clip or a model of timm, with the tag of its published weights or without;
            capitals and hyphens do not matter.

    Raises:
        ConfigError: there is none of that name, or no published weights of that tag.
    """
    name = backbone.strip().lower().replace("-", "_")
    if name in (*_OURS, CLIP):
        return name
    # Imported in functions: timm takes seconds to import, and our own networks have no need of it.
    import timm

    model, _, tag = name.partition(".")
    models = timm.list_models()
    if model not in models:
        nearest = get_close_matches(model, [*_OURS, CLIP, *models], n=3, cutoff=0.0)
        raise ConfigError(
            f"no backbone '{backbone}'; nearest: {', '.join(nearest)}",
            do=f"set classify.backbone to {', '.join((*_OURS, CLIP))} or one of timm.list_models()",
        )
    tags = timm.list_pretrained(f"{model}.*")
    if tag and name not in tags:
        nearest = get_close_matches(name, tags, n=3, cutoff=0.0)
        raise ConfigError(
            f"backbone '{backbone}': timm has no weights of the tag '{tag}'"
            + (f"; nearest: {', '.join(nearest)}" if nearest else ""),
            do=f"take a tag of timm.list_pretrained('{model}.*'), or none",
        )
    return name


def check_backbone(backbone: str, image_size: int, pretrained: bool = False) -> None:
    """Tell early whether a backbone exists and takes images of a side, by a pass through it without any numbers.

    Args:
        backbone: as for `known_name`.
        image_size: side in pixels.
        pretrained: whether timm's published weights are wanted; looks at timm's list only, not at the network.

    Raises:
        ConfigError: unknown name, a side that it cannot take, or no published weights.
    """
    name = known_name(backbone)
    if name == CLIP:
        return  # it resizes images itself
    feature_layout(name, image_size)
    if pretrained:
        _hub_id(name)


def bare_network(
    name: str, classes: int, image_size: int, small_stem: bool, published: Path | None = None
) -> nn.Module:
    """Make a network that takes (B, 3, S, S) images; random weights are drawn from torch's global generator.

    Args:
        name: as `known_name` gives it.
        classes: number of classes.
        image_size: side in pixels; transformers are made for it, others do not depend on it.
        small_stem: a 3x3 convolution of stride 1 and no max-pool in place of a ResNet's stem.
        published: weights file, which timm fits to the side of a transformer.
    """
    if name == "small":
        return SmallNet(classes)
    if name in _WIDE:
        return WideResNet(*_WIDE[name], classes)
    import timm

    settings: dict[str, Any] = {"num_classes": classes, "in_chans": 3, "pretrained": published is not None}
    if _config(name).fixed_input_size:
        settings["img_size"] = image_size
    if published is not None:
        settings["pretrained_cfg_overlay"] = {"file": str(published)}
    network: nn.Module = timm.create_model(name, **settings)
    if small_stem and isinstance(network, timm.models.resnet.ResNet):
        _replace_stem(network)
    return network


def _replace_stem(network: Any) -> None:
    stem = nn.Conv2d(3, network.bn1.num_features, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = stem, nn.Identity()


def head_names(network: Any) -> tuple[str, ...]:
    """Names of the last layers, those that give one number a class; some of timm's networks have several."""
    if isinstance(network, SmallNet | WideResNet):
        return ("fc",)
    named = network.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


@lru_cache(maxsize=64)
def feature_layout(name: str, image_size: int) -> Layout:
    """What the features of a network look like, from a pass through it without any numbers (a tenth of a second or so).

    Raises:
        ConfigError: it cannot take images of that side, or is no classifier; the text says which side it takes.
    """
    if name in _OURS:
        return "maps"
    try:
        return _trial(name, image_size)
    except _Indivisible as error:
        below, patch = image_size // error.patch * error.patch, error.patch
        raise ConfigError(
            f"backbone {name} cannot take images of {image_size} px",
            why=f"its patches of {patch} px do not divide the side",
            do=f"set classify.image_size to {f'{below} or ' if below else ''}{below + patch}",
        ) from error
    except Exception as error:  # each network fails in its own way
        works = _working_side(name, image_size)
        raise ConfigError(
            f"backbone {name} cannot take images of {image_size} px" if works else f"backbone {name} is no classifier",
            why=" ".join(str(error).split())[:200] or type(error).__name__,
            do=f"set classify.image_size to {works}, or name another backbone" if works else "name another backbone",
        ) from error


class _Indivisible(Exception):
    def __init__(self, patch: int) -> None:
        super().__init__(patch)
        self.patch = patch


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Tensors made inside have shapes only, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trial(name: str, side: int) -> Layout:
    with _without_numbers():
        network: Any = bare_network(name, 7, side, side <= SMALL_SIDE)
        # A transformer would leave out what does not fill a patch at the right and at the bottom, without a word.
        cut = getattr(getattr(network, "patch_embed", None), "proj", None)
        if isinstance(cut, nn.Conv2d) and cut.stride == cut.kernel_size and side % cut.stride[0]:
            raise _Indivisible(cut.stride[0])
        features = network.forward_features(torch.empty(2, 3, side, side))
        logits = network.forward_head(features)
    if not isinstance(logits, Tensor) or logits.shape != (2, 7):
        raise ValueError("it does not give one number a class")
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        return "none"
    if features.ndim == 3:
        return "tokens"
    return "maps_last" if getattr(network, "output_fmt", "NCHW") == "NHWC" else "maps"


def _working_side(name: str, image_size: int) -> int | None:
    """The least usual side above one that does not work, or the side that the network was made for."""
    own = int(_config(name).input_size[-1])
    if not _takes(name, own):
        return None
    return next((side for side in _USUAL_SIDES if image_size < side < own and _takes(name, side)), own)


def _takes(name: str, side: int) -> bool:
    try:
        _trial(name, side)
    except Exception:  # as above
        return False
    return True


def _config(name: str) -> Any:
    """What timm knows about the published weights of one of its models, of the first tag where `name` has none."""
    import timm

    return timm.models.get_pretrained_cfg(name)


def _hub_id(name: str) -> str:
    config = None if name in _OURS else _config(name)
    if config is None or not config.hf_hub_id:
        raise ConfigError(
            f"there are no published weights of backbone {name} on the hub",
            do="set classify.pretrained to false or classify.weights to a file, or take one of timm.list_pretrained()",
        )
    return str(config.hf_hub_id)


def published_weights(name: str) -> tuple[Path, int, Tensor, Tensor]:
    """Fetch timm's published weights from the hub, or from its cache on this machine, where no network is needed.

    Returns:
        the safetensors file, its number of classes (0 for no head), (3,) means and (3,) standard deviations of the
        channels that the weights were made with.

    Raises:
        ConfigError: there are none.
        EnvironmentFault: they are not in the cache and cannot be fetched, or are no safetensors.
    """
    hub_id = _hub_id(name)
    do = f"check the network, or get {_PUBLISHED} of {hub_id} by other means and set classify.weights to it"
    what = f"timm's weights of backbone {name} cannot be had from the hub ({hub_id})"
    try:
        path = fetch(hub_id, None, [_PUBLISHED], "classify.pretrained") / _PUBLISHED
    except EnvironmentFault as error:
        raise EnvironmentFault(what, why=error.why, do=do) from error
    if not path.is_file():
        raise EnvironmentFault(what, why=f"it has no {_PUBLISHED}, or the copy on this machine has not", do=do)
    config = _config(name)
    return path, int(config.num_classes), torch.tensor(config.mean), torch.tensor(config.std)
