"""Classifiers: a backbone with its initial weights, which takes images in [0, 1] and can be a linear probe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import seeded_global

from .backbones import (
    SMALL_SIDE,
    Layout,
    bare_network,
    feature_layout,
    head_names,
    known_name,
    published_weights,
)
from .small_net import SmallNet

__all__ = ["SMALL_SIDE", "Normalised", "SmallNet", "build_network", "read_weights", "restore_network"]


class Normalised(nn.Module):
    """A network that takes images in [0, 1] and shifts and scales each channel itself.

    Args:
        network: the network proper, with `forward_features` and `forward_head` as those of timm.
        mean: (3,) channel means that it expects, in [0, 1].
        std: (3,) standard deviations, above 0.
        layout: of what its `forward_features` gives.
        trained: names of the only layers of it that are trained; None for all. The others then stay in evaluation
            mode always: neither weights nor running statistics move, and nothing is dropped.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        layout: Layout = "maps",
        trained: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.layout, self.trained = layout, trained
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(3, 1, 1).clone())
        self.register_buffer("std", std.view(3, 1, 1).clone())
        if trained is not None:
            network.requires_grad_(False)
            for name in trained:
                network.get_submodule(name).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained; the rest stays in evaluation mode."""
        super().train(mode)
        if self.trained is not None:
            self.network.eval()
            for name in self.trained:
                self.network.get_submodule(name).train(mode)
        return self

    def _scaled(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, classes) logits; equals head(features(images))."""
        logits: Tensor = self.network(self._scaled(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The last feature maps: (B, 3, S, S) in [0, 1] to (B, D, h, w).

        The N tokens of a transformer, class token and registers included, are the places of a map (B, D, N, 1).

        Raises:
            ConfigError: the network has no single map of features.
        """
        if self.layout == "none":
            raise ConfigError(
                f"backbone {type(self.network).__name__} has no single map of features",
                do="take another backbone, or an augmentation that mixes no features",
            )
        features: Tensor = self.network.forward_features(self._scaled(images))
        if self.layout == "tokens":
            return features.transpose(1, 2).unsqueeze(3)
        return features.permute(0, 3, 1, 2) if self.layout == "maps_last" else features

    def head(self, features: Tensor) -> Tensor:
        """What follows `features`: (B, D, h, w) to (B, classes) logits."""
        if self.layout == "tokens":
            features = features.squeeze(3).transpose(1, 2)
        elif self.layout == "maps_last":
            features = features.permute(0, 2, 3, 1)
        logits: Tensor = self.network.forward_head(features)
        return logits


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of finite tensors.

    Raises:
        ConfigError: the file is not named *.safetensors.
        EnvironmentFault: it is missing, unreadable or holds a value that is not finite.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} is not a safetensors file", why="other formats can run code", do="convert it")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        raise EnvironmentFault(f"cannot read {path}", why=str(error), do="set classify.weights") from error
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise EnvironmentFault(f"{path}: tensor {name} holds values that are not finite")
    return weights


def _load(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    prefixes = tuple(f"{name}." for name in head_names(network))
    heads = [name for name in wanted if name.startswith(prefixes)]
    given = _with_positions(network, weights)
    if any(name in given and given[name].shape != wanted[name].shape for name in heads):
        # A head of other classes is of no use: the seeded one stays.
        given = {name: tensor for name, tensor in given.items() if name not in heads}
    absent = sorted(name for name in wanted if name not in given and name not in heads)
    # Counters that old files lack and that play no part with a fixed BatchNorm momentum.
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    extra = sorted(name for name in given if name not in wanted)
    wrong = sorted(name for name in given if name in wanted and given[name].shape != wanted[name].shape)
    for kind, names in (("lacks", absent), ("has unknown", extra), ("has another shape of", wrong)):
        if names:
            raise EnvironmentFault(
                f"{path} {kind} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}",
                why="the file does not fit the backbone",
                do="use a file with timm's names for this backbone, and the side in pixels that it was made for",
            )
    network.load_state_dict(given, strict=False)


def _with_positions(network: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with a vision transformer's position embeddings of another side resampled as timm does it."""
    given, own = dict(weights), getattr(network, "pos_embed", None)
    positions = given.get("pos_embed")
    if positions is None or own is None or positions.ndim != 3 or positions.shape == own.shape:
        return given
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models import VisionTransformer

    if not isinstance(network, VisionTransformer) or positions.shape[2] != own.shape[2]:
        return given
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    if int((positions.shape[1] - prefix) ** 0.5) ** 2 == positions.shape[1] - prefix:
        given["pos_embed"] = resample_abs_pos_embed(
            positions, new_size=list(network.patch_embed.grid_size), num_prefix_tokens=prefix
        )
    return given


def _wants_small_stem(given: Mapping[str, Tensor] | None, image_size: int) -> bool:
    if given is not None and "conv1.weight" in given:
        return given["conv1.weight"].shape[-1] == 3
    # Some of timm's ResNets have three convolutions there.
    return image_size <= SMALL_SIDE and not (given is not None and "conv1.0.weight" in given)


def _published(name: str, classes: int, image_size: int) -> tuple[nn.Module, Tensor, Tensor]:
    path, own_classes, mean, std = published_weights(name)
    read_weights(path)
    network = bare_network(name, classes, image_size, small_stem=False)
    try:
        # With the head of the file, because timm looks for absent and unknown names only then.
        whole = bare_network(name, own_classes, image_size, small_stem=False, published=path).state_dict()
    except (RuntimeError, ValueError, KeyError) as error:
        raise EnvironmentFault(
            f"{path} does not fit backbone {name}",
            why=" ".join(str(error).split())[:200],
            do="set classify.image_size to the side that the weights were made for, or fetch them again",
        ) from error
    prefixes = tuple(f"{head}." for head in head_names(network))
    keep_head = classes == own_classes
    given = {key: tensor for key, tensor in whole.items() if keep_head or not key.startswith(prefixes)}
    network.load_state_dict(given, strict=False)
    return network, mean, std


def build_network(
    backbone: str,
    classes: int,
    image_size: int,
    seed: int,
    mean: Tensor,
    std: Tensor,
    weights: Path | None = None,
    pretrained: bool = False,
    train_layers: Literal["all", "head"] = "all",
) -> Normalised:
    """Make a classifier whose random weights depend on (backbone, classes, seed) and their shapes alone.

    A ResNet for images of at most 64 px has a 3x3 stride-1 stem without max-pool, as is usual for CIFAR: the
    ImageNet stem would leave 1x1 feature maps of a 32 px image. With `weights`, the stem is the one in the file, with
    `pretrained` that of ImageNet. Transformers are made for the side of the images.

    Args:
        backbone: small, wrn_28_2, wrn_28_10, or a model of timm.
        classes: number of classes.
        image_size: side in pixels.
        seed: model seed.
        mean: (3,) channel means of the real training images in [0, 1].
        std: (3,) standard deviations.
        weights: safetensors file with pre-trained weights under timm's names, or ours for our own networks; its head
            is dropped where it has other classes, and a vision transformer's positions are resampled to the side.
        pretrained: take timm's published weights, from the hub or its cache; with them go the channel means and
            deviations that they were made with, in place of `mean` and `std`.
        train_layers: all, or head for the last layer alone.

    Returns:
        A network in channels-last layout that takes (B, 3, S, S) float32 in [0, 1].

    Raises:
        ConfigError: no such backbone, a side that it cannot take, no published weights, or a weights file of a kind
            that is not read.
        EnvironmentFault: the weights are missing, broken or do not fit.
    """
    name = known_name(backbone)
    layout = feature_layout(name, image_size)
    given = read_weights(weights) if weights is not None else None
    with seeded_global(seed, "classifier weights"):
        if pretrained:
            network, mean, std = _published(name, classes, image_size)
        else:
            network = bare_network(name, classes, image_size, _wants_small_stem(given, image_size))
    if given is not None and weights is not None:
        _load(network, given, weights)
    trained = head_names(network) if train_layers == "head" else None
    classifier: Normalised = Normalised(network, mean, std, layout, trained).to(memory_format=torch.channels_last)
    return classifier


def restore_network(backbone: str, classes: int, image_size: int, state: Mapping[str, Tensor]) -> Normalised:
    """Make again what `build_network` made, from its state_dict: no other file and no hub is needed.

    The stem and the channel means and deviations are those in the state, wherever the first weights came from.

    Args:
        backbone: as it was given to `build_network`, like the next two.
        classes: number of classes.
        image_size: side in pixels.
        state: the state_dict of the network.

    Returns:
        The network, in channels-last layout.

    Raises:
        ConfigError: no such backbone.
        EnvironmentFault: the state is not one of that backbone, classes and side.
    """
    name = known_name(backbone)
    inner = {key.removeprefix("network."): tensor for key, tensor in state.items()}
    with seeded_global(0, "classifier weights"):
        network = bare_network(name, classes, image_size, _wants_small_stem(inner, image_size))
    try:
        restored = Normalised(network, state["mean"], state["std"], feature_layout(name, image_size))
        restored.load_state_dict(dict(state))
    except (KeyError, RuntimeError) as error:
        raise EnvironmentFault(
            f"the weights are not those of a {name} of {classes} classes for {image_size} px",
            why=" ".join(str(error).split())[:200],
        ) from error
    classifier: Normalised = restored.to(memory_format=torch.channels_last)
    return classifier
