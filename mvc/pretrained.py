"""Pretrained models of transformers beside the parts of a Stable Diffusion: found by folder or hub id, loaded whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from mvc.errors import EnvironmentFault
from mvc.loading import file_identity, part_files, quiet
from mvc.storage import sha256_json

FILES = ["*.json", "*.txt", "*.model", "*.spm", "*.jinja", "*.safetensors"]
"""What is fetched of a model: pickled weights are not."""
_OTHERS = (".jinja", ".spm", ".model")
"""Files of chat templates and of sentencepiece's vocabularies; parts of a Stable Diffusion have none."""
_LOADING = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError, SafetensorError)


def find_model(model: str | Path, revision: str | None, what: str, key: str) -> Path:
    """The folder of a model: itself, or where the hub's copy lies, which is fetched once.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        what: how the message calls it, such as "captioning model".
        key: the key that names it.

    Raises:
        EnvironmentFault: it is no folder and cannot be had from the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        # One call for all files: it fails at once without a network, where from_pretrained tries for minutes.
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=FILES))
    except Exception as error:  # each cause raises another kind
        raise cannot_load(model, revision, what, key, error) from error


def cannot_load(
    model: str | Path, revision: str | None, what: str, key: str, error: Exception | str
) -> EnvironmentFault:
    """The error of a model that is missing, unreadable or of another kind."""
    return EnvironmentFault(
        f"cannot load the {what} {model}" + (f" at revision {revision}" if revision else ""),
        why=" ".join(str(error).split())[:300],
        do=f"give {key} a folder or hub id of such a model with safetensors weights",
    )


def load_whole(
    load: Callable[[Path], Any], folder: Path, what: str, key: str, revision: str | None = None, model: str | Path = ""
) -> Any:
    """Run a loader of a tokenizer, processor or the like; what it cannot read is said in our words.

    Raises:
        EnvironmentFault: as `cannot_load`.
    """
    try:
        with quiet():
            return load(folder)
    except _LOADING as error:
        raise cannot_load(model or folder, revision, what, key, error) from error


def load_network(
    kind: Any, folder: Path, device: torch.device, what: str, key: str, new: Sequence[str] = (), **changes: Any
) -> Any:
    """Load a network in float32 for inference; all weights have to be in its safetensors, and finite.

    Args:
        kind: a class of transformers with `from_pretrained`.
        folder: from `find_model`.
        device: where it shall compute.
        what, key: as `find_model`.
        new: patterns of names of weights that may be missing, because they are to be trained.
        **changes: of its configuration.

    Raises:
        EnvironmentFault: it is missing, incomplete, not finite, pickled, or of another kind.
    """

    def load(place: Path) -> Any:
        network, report = kind.from_pretrained(
            place, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **changes
        )
        # transformers would fill gaps with random numbers without an error.
        missing = [name for name in report["missing_keys"] if not any(re.search(pattern, name) for pattern in new)]
        if missing:
            raise ValueError(f"weights are missing: {', '.join(sorted(missing)[:3])}")
        if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
            raise ValueError("weights are not finite")
        return network

    return load_whole(load, folder, what, key).to(device).eval()


def identity_of(folder: Path) -> str:
    """sha256 over all of a model that counts: configuration, vocabularies, chat templates and weights.

    Each file is read once a process.
    """
    found = []
    for path in sorted([*part_files(folder), *(path for path in folder.iterdir() if path.suffix in _OTHERS)]):
        status = path.stat()
        found.append([path.name, file_identity(path, status.st_size, status.st_mtime_ns)])
    return sha256_json(found)
