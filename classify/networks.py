"""The classifiers: a small convolutional net for 32 px, and timm's ResNets."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import seeded_global

SMALL_SIDE = 64
"""Up to this side in pixels `auto` means the small net, and a ResNet keeps its full resolution at the stem."""
_HEAD = ("fc.weight", "fc.bias")


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SmallNet(nn.Module):
    """Five 3x3 convolutions with BatchNorm, three of them with stride 2, mean over places, linear head.

    About 0.16 M parameters; any square input of at least 8 px.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 24, 2), _block(24, 48, 2), _block(48, 48, 1), _block(48, 96, 2), _block(96, 96, 1)
        )
        self.fc = nn.Linear(96, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, classes) logits."""
        logits: Tensor = self.fc(self.features(images).mean(dim=(2, 3)))
        return logits


class Normalised(nn.Module):
    """A network that takes images in [0, 1] and shifts and scales each channel itself.

    Args:
        network: the network proper.
        mean: (3,) channel means of the real training images, in [0, 1].
        std: (3,) their standard deviations, above 0.
    """

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(3, 1, 1).clone())
        self.register_buffer("std", std.view(3, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, classes) logits."""
        logits: Tensor = self.network((images - self.mean) / self.std)
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


def _load(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    given = dict(weights)
    for name in _HEAD:
        # A head of other classes is of no use: the seeded one stays.
        if name in given and given[name].shape != wanted[name].shape:
            for head in _HEAD:
                given.pop(head, None)
    absent = sorted(name for name in wanted if name not in given and name not in _HEAD)
    # Counters that old files lack and that play no part with a fixed BatchNorm momentum.
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]
    extra = sorted(name for name in given if name not in wanted)
    wrong = sorted(name for name in given if name in wanted and given[name].shape != wanted[name].shape)
    for kind, names in (("lacks", absent), ("has unknown", extra), ("has another shape of", wrong)):
        if names:
            raise EnvironmentFault(
                f"{path} {kind} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}",
                why="the file does not fit the backbone",
                do="use a file with timm's names for this backbone",
            )
    network.load_state_dict(given, strict=False)


def _resnet(name: str, classes: int, small_stem: bool) -> nn.Module:
    # Imported here: timm takes a second to import, and the small net has no need of it.
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=3)
    if small_stem:
        stem = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        network.conv1, network.maxpool = stem, nn.Identity()
    return network


def build_network(
    backbone: str,
    classes: int,
    image_size: int,
    seed: int,
    mean: Tensor,
    std: Tensor,
    weights: Path | None = None,
) -> nn.Module:
    """Make a classifier whose initial weights depend on (backbone, classes, seed) alone.

    A ResNet for images of at most 64 px has a 3x3 stride-1 stem without max-pool, as is usual for CIFAR: the
    ImageNet stem would leave 1x1 feature maps of a 32 px image. With `weights`, the stem is the one in the file.

    Args:
        backbone: small, resnet18 or resnet50.
        classes: number of classes.
        image_size: side in pixels.
        seed: model seed.
        mean: (3,) channel means of the real training images in [0, 1].
        std: (3,) standard deviations.
        weights: safetensors file with pre-trained weights under timm's names; its head is dropped where it
            has other classes.

    Returns:
        A network in channels-last layout that takes (B, 3, S, S) float32 in [0, 1].

    Raises:
        ConfigError: the weights file is of a kind that is not read.
        EnvironmentFault: the weights are missing, broken or do not fit.
    """
    given = read_weights(weights) if weights is not None else None
    small_stem = image_size <= SMALL_SIDE
    if given is not None and "conv1.weight" in given:
        small_stem = given["conv1.weight"].shape[-1] == 3
    with seeded_global(seed, "classifier weights"):
        network = SmallNet(classes) if backbone == "small" else _resnet(backbone, classes, small_stem)
    if given is not None and weights is not None:
        _load(network, given, weights)
    return Normalised(network, mean, std).to(memory_format=torch.channels_last)
