"""torch.compile for a UNet, and what it needs of the machine."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from mvc.errors import EnvironmentFault


def require_compiler(key: str) -> None:
    """Find before a long start whether torch.compile has the C++ compiler that it calls.

    Args:
        key: the setting that asks for it, such as train.compile.

    Raises:
        EnvironmentFault: there is none.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(name and shutil.which(name) for name in names):
        raise EnvironmentFault(
            f"{key}=true needs a C++ compiler",
            why="neither $CXX nor g++ nor clang++ was found",
            do=f"install g++, or set {key}=false",
        )


def compiled(unet: Any, key: str, dynamic: bool | None = None) -> Any:
    """Wrap a UNet so that its first forward pass compiles it, which takes minutes.

    The wrapper shares the UNet's parameters and prefixes their names with `_orig_mod.`: names, saving and loading
    go by the UNet itself. Another batch size or image size compiles once more.

    Args:
        unet: set up, on its device.
        key: the setting that asks for it.
        dynamic: False compiles for each batch size anew, so that no last bit depends on sizes before it.

    Raises:
        EnvironmentFault: there is no C++ compiler.
    """
    require_compiler(key)
    return torch.compile(unet, dynamic=dynamic)
