"""Wide residual networks for images of about 32 px (Zagoruyko and Komodakis, 2016, arXiv:1605.07146).

Their usual form: pre-activation blocks of two 3x3 convolutions, no dropout, and a 1x1 convolution as the shortcut where
the shape changes, which takes what the block's first BatchNorm and ReLU give.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = functional.relu(self.bn1(maps))
        residual = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return torch.add(residual, maps if self.shortcut is None else self.shortcut(active))


def _group(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = _Block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(_Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of blocks with 16, 32 and 64 times `width` channels.

    Weights are drawn from the global generator: He's normal of the fan out for convolutions, torch's own for the
    linear head, whose bias starts at 0; BatchNorm starts as the identity.

    Args:
        depth: layers with weights; 6n + 4 for n blocks a group.
        width: factor of all widths but the first convolution's 16.
        classes: number of classes.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has a depth of 6n + 4, such as 28, and not {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.group1 = _group(16, 16 * width, 1, blocks)
        self.group2 = _group(16 * width, 32 * width, 2, blocks)
        self.group3 = _group(32 * width, 64 * width, 2, blocks)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to maps (B, 64 width, S/4, S/4), each side rounded up, none below 0."""
        maps = self.group3(self.group2(self.group1(self.conv1(images))))
        return functional.relu(self.bn(maps))

    def forward_head(self, maps: Tensor) -> Tensor:
        """Maps (B, 64 width, h, w) to (B, classes) logits."""
        logits: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, classes) logits."""
        return self.forward_head(self.forward_features(images))
