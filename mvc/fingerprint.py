"""What a stage depended on: its settings, and its inputs by content, cheap enough to check at every start."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from mvc.storage import files_below, sha256_file, sha256_json

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "timm",
    "safetensors",
    "numpy",
)


ABSENT = "absent"
"""In place of the digest of a file that is not there."""


def file_digest(path: Path) -> str:
    """sha256 of a file, or ABSENT."""
    return sha256_file(path) if path.is_file() else ABSENT


def listing_digest(folder: Path) -> str:
    """sha256 over names, sizes and modification times below a folder: notices changes without reading all.

    Meant for large things of the user's, data sets and model weights; a file that is rewritten with the
    same size and time is not noticed here (the caches below a run are keyed by content and do notice).
    """
    facts = []
    for path in files_below(folder):
        status = path.stat()
        facts.append([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns])
    return sha256_json(facts)


def place_digest(text: str) -> str:
    """Digest of a model or data set given by local folder, file or hub id: the listing, its facts, or the id itself."""
    path = Path(text)
    if path.is_file():
        return sha256_json([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return listing_digest(path) if path.is_dir() else text


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One text a key whose value differs, such as `train.learning_rate: 0.0001 -> 5e-05`."""
    keys = [*before, *(key for key in now if key not in before)]
    missing = "(not there)"
    return [
        f"{key}: {before.get(key, missing)} -> {now.get(key, missing)}"
        for key in keys
        if before.get(key, missing) != now.get(key, missing)
    ]


def versions() -> dict[str, str]:
    """Versions of mvc, Python and the packages that results depend on."""
    found = {"mvc": importlib.metadata.version("mvc"), "python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Cores, memory and system; accelerators too once torch has been loaded by a stage."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerators"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return facts
