"""Open the folder of one part of a model: strictly, in float32, from safetensors alone.

A checkpoint that lacks a tensor or holds NaN gives noise without an error, and a pickled one can run any program when
it is opened. Both are refused here, whatever the file is called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from mvc.errors import EnvironmentFault
from mvc.storage import sha256_file

SUFFIXES = (".json", ".txt", ".safetensors")
"""Of the files of a part that are ever read or copied."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PLAIN_NAME = re.compile(r"^[\w.-]+\.safetensors$")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|non-ema)[.-]")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence both libraries' progress bars and reports; what they report becomes an error here."""
    loggers: list[Any] = [transformers_logging, diffusers_logging]
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(CRITICAL)
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()


def part_files(folder: Path) -> list[Path]:
    """The files of a part that are used: configuration, vocabulary, and weights that are no half-precision copy."""
    files = (path for path in folder.iterdir() if path.suffix in SUFFIXES and not _VARIANT.search(path.name))
    return sorted(files)


@lru_cache(maxsize=256)
def file_identity(path: Path, size: int, modified: int) -> str:
    """sha256 of a file, read once a process for each size and time of change (ns)."""
    return sha256_file(path)


def is_pickled(path: Path) -> bool:
    """Whether a file is a pickle, by its name or by its first bytes: torch.save writes pickles and zips of them."""
    if path.suffix.lower() in _PICKLED:
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    # The length of a safetensors header may begin with the same two bytes, but JSON follows it at byte 8.
    protocol = start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{"
    return protocol or start[:4] == b"PK\x03\x04"


def require_safetensors(path: Path, what: str) -> None:
    """Refuse a file of weights that is a pickle or no safetensors file at all; reads its first bytes only.

    Args:
        path: the file.
        what: how the message names it.

    Raises:
        EnvironmentFault: it is pickled, or something else.
    """
    if is_pickled(path):
        raise EnvironmentFault(
            f"{what} is a pickled file",
            why="pickled weights can run any program when they are opened, so they are not read",
            do="get the safetensors file of the same model, or convert it on a machine you can lose",
        )
    if path.suffix != ".safetensors":
        raise EnvironmentFault(f"{what} is no safetensors file", do="give a .safetensors file or a diffusers folder")


def load_part(kind: Any, folder: Path) -> Any:
    """Load a model in float32 on the CPU, in evaluation mode.

    Args:
        kind: its class, of diffusers or transformers.
        folder: with its config.json and safetensors.

    Raises:
        EnvironmentFault: its weights are missing, pickled, incomplete, too many or not finite.
    """
    _require_weights(folder)
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise EnvironmentFault(
            f"{folder} cannot be loaded", why=" ".join(str(error).split())[:300], do="fetch the base model again"
        ) from error
    _require_whole(folder, model, report)
    return model.eval()


def _require_weights(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [path.name for path in folder.iterdir() if path.suffix in _PICKLED]
        raise EnvironmentFault(
            f"{folder} has no safetensors weights" + (f", only {', '.join(sorted(pickled))}" if pickled else ""),
            why="pickled weights can run any program when they are opened, so they are not read" if pickled else "",
            do="convert them on a machine you can lose (diffusers: save_pretrained(..., safe_serialization=True))"
            if pickled
            else "fetch the base model again",
        )
    for path in weights:
        require_safetensors(path, str(path))
    # The list of a checkpoint in several files says which ones are opened.
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        try:
            names = set(json.loads(path.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnvironmentFault(f"{path} cannot be read", why=str(error), do="fetch the base model again") from error
        wrong = [str(name) for name in names if not (isinstance(name, str) and _PLAIN_NAME.match(name))]
        if wrong:
            raise EnvironmentFault(
                f"{path} names {listing(sorted(wrong))}",
                why="weights are read from safetensors files beside it, and from nothing else",
                do="fetch the base model again",
            )


def _require_whole(folder: Path, model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    require_whole(
        str(folder),
        model,
        missing=report["missing_keys"],
        # Checkpoints of older transformers keep this counter, which is no weight.
        unknown=[key for key in report["unexpected_keys"] if not key.endswith("position_ids")],
        mismatched=[str(key) for key in report["mismatched_keys"]],
    )


def require_whole(
    what: str,
    model: torch.nn.Module,
    missing: Sequence[str] = (),
    unknown: Sequence[str] = (),
    mismatched: Sequence[str] = (),
) -> None:
    """Refuse a model whose weights are not exactly those it needs, or not finite.

    Raises:
        EnvironmentFault: names what is wrong with which tensors.
    """
    faults = {
        "missing": missing,
        "unknown": unknown,
        "of another shape": mismatched,
        "not finite": [name for name, value in model.state_dict().items() if _not_finite(value)],
    }
    wrong = [f"{fault}: {listing(sorted(names))}" for fault, names in faults.items() if names]
    if wrong:
        raise EnvironmentFault(
            f"{what} is not a whole checkpoint: {'; '.join(wrong)}",
            why="the model would draw noise without an error",
            do="fetch the base model again",
        )


def _not_finite(value: torch.Tensor) -> bool:
    return not value.is_meta and not bool(value.isfinite().all())  # a missing one stays on the meta device


def listing(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
