"""The small convolutional net, for images of about 32 px."""

from __future__ import annotations

from torch import Tensor, nn


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SmallNet(nn.Module):
    """Five 3x3 convolutions with BatchNorm, three of them with stride 2, mean over places, linear head.

    About 0.16 M parameters; square images of any side.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 24, 2), _block(24, 48, 2), _block(48, 48, 1), _block(48, 96, 2), _block(96, 96, 1)
        )
        self.fc = nn.Linear(96, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to maps (B, 96, S/8, S/8), each side rounded up."""
        maps: Tensor = self.features(images)
        return maps

    def forward_head(self, maps: Tensor) -> Tensor:
        """Maps (B, 96, h, w) to (B, classes) logits."""
        logits: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, classes) logits."""
        return self.forward_head(self.forward_features(images))
