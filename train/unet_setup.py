"""How the UNet computes: attention and memory. None of it changes what is computed beyond rounding."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from mvc.errors import EnvironmentFault

Attention = Literal["sdpa", "xformers"]


def require_attention(attention: Attention) -> None:
    """Find before a long start whether this machine has what an implementation of attention needs.

    Raises:
        EnvironmentFault: xformers without a CUDA device or without its package.
    """
    if attention != "xformers":
        return
    lacking = [] if torch.cuda.is_available() else ["there is no CUDA device"]
    if find_spec("xformers") is None:
        lacking.append("its package is missing (pip install 'mvc[xformers]')")
    if lacking:
        raise EnvironmentFault(
            "train.attention=xformers cannot be used here",
            why=", and ".join(lacking),
            do="set train.attention=sdpa, torch's own, which needs neither",
        )


def prepare_unet(unet: Any, attention: Attention, gradient_checkpointing: bool, channels_last: bool) -> None:
    """Set how a UNet computes, in place; call it before its optimiser and its moving average are made.

    Args:
        unet: UNet2DConditionModel, with or without LoRA; for xformers on its CUDA device.
        attention: sdpa is torch's scaled_dot_product_attention.
        gradient_checkpointing: compute the activations inside each block again in the backward pass.
        channels_last: memory layout of the convolutions' weights, and so of what they compute; not with adamw8bit.

    Raises:
        EnvironmentFault: xformers cannot be used here.
    """
    require_attention(attention)
    if attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (RuntimeError, ValueError) as error:  # its kernels were built for another torch
            raise EnvironmentFault(
                "xformers does not run here",
                why=" ".join(str(error).split())[:200],
                do="set train.attention=sdpa, or install the version that fits this torch",
            ) from error
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if channels_last:
        unet.to(memory_format=torch.channels_last)
        for layer in unet.modules():
            if getattr(layer, "lora_magnitude_vector", None):  # peft's DoRA views the factors as matrices
                for factor in (*layer.lora_A.values(), *layer.lora_B.values()):
                    factor.to(memory_format=torch.contiguous_format)
