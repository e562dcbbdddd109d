"""Wide ResNets: number of parameters, the same function as timm's pre-activation blocks, initial weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvc.classify.wide_resnet import WideResNet
from mvc.randomness import generator, seeded_global


def parameters(depth: int, width: int, classes: int) -> int:
    """Counted layer by layer, as the paper's Table 1 draws them."""
    count, before = 27 * 16, 16
    for channels in (16 * width, 32 * width, 64 * width):
        for block in range((depth - 4) // 6):
            shortcut = before * channels if block == 0 and before != channels else 0
            count += 2 * before + 9 * before * channels + 2 * channels + 9 * channels * channels + shortcut
            before = channels
    return count + 2 * before + (before + 1) * classes


@pytest.mark.parametrize(("depth", "width", "count"), [(28, 2, 1_467_610), (28, 10, 36_479_194)])
def test_number_of_parameters_is_that_of_the_paper(depth: int, width: int, count: int) -> None:
    with torch.device("meta"):
        network = WideResNet(depth, width, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == count == parameters(depth, width, 10)


def timm_twin(network: WideResNet, width: int) -> Any:
    """The same network of timm's pre-activation blocks, with the same weights."""
    from timm.layers.create_conv2d import create_conv2d
    from timm.layers.norm_act import BatchNormAct2d
    from timm.models.resnetv2 import ResNetV2

    twin: Any = ResNetV2(
        [len(network.group1)] * 3,
        channels=(16 * width, 32 * width, 64 * width),
        num_classes=network.fc.out_features,
        stem_chs=16,
        basic=True,
        bottle_ratio=1.0,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )
    twin.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    names = {"group1": "stages.0.blocks", "group2": "stages.1.blocks", "group3": "stages.2.blocks"}
    parts = {"bn1": "norm1", "bn2": "norm2", "shortcut": "downsample.conv"}
    weights = {}
    for name, tensor in network.state_dict().items():
        first, *rest = name.split(".")
        if first in names:
            name = ".".join([names[first], rest[0], parts.get(rest[1], rest[1]), rest[2]])
        else:
            name = {"conv1": "stem", "bn": "norm", "fc": "head.fc"}[first] + "." + rest[0]
        # timm's head is a 1x1 convolution.
        weights[name] = tensor.reshape(twin.state_dict()[name].shape)
    twin.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_the_same_blocks_of_timm_compute(training: bool) -> None:
    with seeded_global(0, "test wide"):
        network = WideResNet(16, 2, 5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_var = torch.rand(module.num_features) + 0.5
    twin = timm_twin(network, 2).train(training)
    images = torch.randn(3, 3, 16, 16, generator=generator(0, "test images"))
    with torch.no_grad():
        ours, theirs = network.train(training)(images), twin(images)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_block_without_change_of_shape_adds_to_what_comes_in() -> None:
    network = WideResNet(16, 1, 5).eval()
    block: Any = network.group3[1]
    nn.init.zeros_(block.conv2.weight)
    maps = torch.randn(2, 64, 4, 4, generator=generator(0, "test maps"))
    assert torch.equal(block(maps), maps)


def shape(images: Tensor) -> tuple[int, ...]:
    return tuple(WideResNet(10, 1, 5).forward_features(images).shape)


def test_features_have_a_quarter_of_the_side() -> None:
    assert shape(torch.zeros(2, 3, 32, 32)) == (2, 64, 8, 8)
    assert shape(torch.zeros(2, 3, 29, 29)) == (2, 64, 8, 8)


def test_initial_convolutions_have_the_deviation_of_he() -> None:
    with seeded_global(3, "test wide"):
        network = WideResNet(28, 2, 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            # Four standard errors of a standard deviation.
            error = 4 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=error)
    assert not network.fc.bias.any()


def test_a_depth_that_gives_no_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="6n \\+ 4, such as 28, and not 27"):
        WideResNet(27, 2, 10)
