"""How the UNet computes: attention, memory and compilation. None of it changes what is computed beyond rounding."""

from __future__ import annotations

import os
import shutil
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


def require_compiler() -> None:
    """Find before a long start whether torch.compile has the C++ compiler that it calls.

    Raises:
        EnvironmentFault: there is none.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(name and shutil.which(name) for name in names):
        raise EnvironmentFault(
            "train.compile=true needs a C++ compiler",
            why="neither $CXX nor g++ nor clang++ was found",
            do="install g++, or set train.compile=false",
        )


def compiled(unet: Any) -> Any:
    """Wrap a UNet so that its first forward pass compiles it, which takes minutes.

    The wrapper shares the UNet's parameters and prefixes their names with `_orig_mod.`: names, saving and loading
    go by the UNet itself. Another batch size or image size compiles once more.

    Args:
        unet: as `prepare_unet` leaves it, on its device.

    Raises:
        EnvironmentFault: there is no C++ compiler.
    """
    require_compiler()
    return torch.compile(unet)
