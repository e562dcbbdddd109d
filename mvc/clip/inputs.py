"""Images as a CLIP takes them: resized and cropped as open_clip does it for evaluation, and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .models import Clip

Picture = Image.Image | NDArray[np.uint8] | Tensor
"""An image of any size: PIL, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8, RGB."""


def network_input(images: Sequence[Picture] | Tensor, clip: Clip) -> Tensor:
    """Resize, crop and scale images by open_clip's own transform for evaluation, without any randomness.

    Usually the shorter side becomes S pixels (bicubic), and the centre is taken; another way is taken where the
    model's configuration names one.

    Args:
        images: B images, or a tensor (B, 3, H, W) uint8. Other modes of PIL are made RGB before they are resized;
            open_clip does it afterwards, which spoils palettes.
        clip: whose side, mean and standard deviation are taken.

    Returns:
        (B, 3, S, S) float32 on the CPU.

    Raises:
        ValueError: an array or a tensor of another shape or type; names them.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2  # takes seconds to import

    transform: Any = image_transform_v2(
        PreprocessCfg(size=clip.image_size, **clip.config["preprocess_cfg"]), is_train=False
    )
    rows = [transform(_rgb(image)) for image in images]
    return torch.stack(rows) if rows else torch.empty(0, 3, clip.image_size, clip.image_size)


def normalized(images: Tensor, clip: Clip) -> Tensor:
    """Scale images that have their size already, such as mixed or augmented ones, to what the network takes.

    Args:
        images: (..., 3, S, S); uint8, or float in [0, 1]. Gradients pass.
        clip: whose mean and standard deviation are taken.

    Returns:
        Of the same shape, (image - mean) / std by channel; float32 for uint8, otherwise of the type of `images`.
    """
    values = images if images.is_floating_point() else images.float() / 255
    mean, std = (values.new_tensor(numbers)[:, None, None] for numbers in (clip.mean, clip.std))
    return (values - mean) / std


def _rgb(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image of shape {tuple(image.shape)} and type {image.dtype}: uint8 RGB is needed")
    return Image.fromarray(np.ascontiguousarray(pixels))
