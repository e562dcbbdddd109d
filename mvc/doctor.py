"""What `mvc doctor` looks at: packages, devices, optional packages, disks and the hub's cache.

Made to work where something is broken: no package of the machine-learning stack is imported with this file, and each
is tried by itself.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mvc.devices import devices
from mvc.disk import existing_parent, free_bytes, size_text
from mvc.findings import Finding
from mvc.walk import counted

SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED = 2**28
"""Bytes of shared memory below which several processes can fail; containers often get 64 MiB."""
LEAST_FREE = 2**30
"""Bytes free on a disk below which it is worth a warning."""


def examine(folder: Path) -> dict[str, list[Finding]]:
    """Look at everything, by heading; nothing is written but a trial file in the temporary folder.

    Args:
        folder: where run folders will lie.
    """
    return {
        "packages": packages(),
        "devices": devices(),
        "optional packages": [*extras(), *programs()],
        "places": places(folder),
    }


def packages() -> list[Finding]:
    """Python, mvc and every package it requires: its version against the bounds, and whether it can be imported."""
    found = [Finding("python", platform.python_version()), Finding("mvc", importlib.metadata.version("mvc"))]
    modules = importlib.metadata.packages_distributions()
    names: dict[str, str] = {}
    for module, distributions in modules.items():
        if not module.startswith("_"):
            for distribution in distributions:
                names.setdefault(_normal(distribution), module)
    for requirement in requirements("mvc"):
        found.append(check_package(requirement, names.get(_normal(requirement.name), requirement.name)))
    return found


def requirements(distribution: str, extra: str = "") -> list[Requirement]:
    """What an installed package requires on this system, without extras or of one extra alone."""
    every = [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    return [
        one
        for one in every
        if ("extra" in str(one.marker or "")) == bool(extra)
        and (not one.marker or one.marker.evaluate({"extra": extra}))
    ]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def check_package(requirement: Requirement, module: str) -> Finding:
    """Whether a package is there, has a version within the bounds, fits its own neighbours, and can be imported."""
    name, again = requirement.name, f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", "broken", again)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, f"{version}, but {requirement.specifier} is needed", "broken", again)
    if name == "torchvision" and (unmet := _unmet(name, "torch")):
        return Finding(name, f"{version}, {unmet}", "broken", "install torch and torchvision together, of one release")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # some say at once which optional parts they lack
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(module)
    except Exception as error:  # a broken compiled library raises all kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Finding(
            name, f"{version}, cannot be imported: {reason}", "broken", f"pip install --force-reinstall {name}"
        )
    finally:
        logging.disable(before)
    return Finding(name, version)


def _unmet(name: str, neighbour: str) -> str:
    """How the installed version of a package that another one requires falls outside its bounds; mostly empty."""
    for requirement in requirements(name):
        if requirement.name == neighbour:
            version = importlib.metadata.version(neighbour)
            if not requirement.specifier.contains(version, prereleases=True):
                return f"which needs {neighbour} {requirement.specifier} and not {version}"
    return ""


def extras() -> list[Finding]:
    """The packages of the project's extras, but for those of development."""
    found = []
    for extra in importlib.metadata.metadata("mvc").get_all("Provides-Extra") or []:
        for requirement in requirements("mvc", extra) if extra != "dev" else []:
            get = f"pip install 'mvc[{extra}]'"
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                found.append(Finding(requirement.name, "not installed", "missing", get))
                continue
            if requirement.specifier.contains(version, prereleases=True):
                found.append(Finding(requirement.name, version))
            else:
                needed = f"{version}, but {requirement.specifier} is needed"
                found.append(Finding(requirement.name, needed, "warning", get))
    return found


def programs() -> list[Finding]:
    """Programs that are no Python packages: the offline voice of back-speech."""
    path = shutil.which("flite")
    if path is None:
        return [Finding("flite", "not installed", "missing", "apt-get install flite, or brew install flite")]
    return [Finding("flite", path)]


def places(folder: Path) -> list[Finding]:
    """Free room where runs lie, in the hub's cache, the temporary folder and the shared memory."""
    found = [_room("here", folder), *_hub()]
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"mvc")
        found.append(_room("temporary files", Path(tempfile.gettempdir())))
    except OSError as error:
        found.append(Finding("temporary files", str(error), "broken", "set TMPDIR to a folder that can be written"))
    if SHARED_MEMORY.is_dir():
        found.append(shared_memory(free_bytes(SHARED_MEMORY)))
    return found


def shared_memory(free: int) -> Finding:
    """What is free of the shared memory; little of it matters to several processes alone."""
    if free < LEAST_SHARED:
        how = "for several processes give the container more (docker run --shm-size=1g)"
        return Finding("shared memory", f"{size_text(free)} free", "warning", how)
    return Finding("shared memory", f"{size_text(free)} free")


def _room(subject: str, folder: Path) -> Finding:
    parent, free = existing_parent(folder), free_bytes(folder)
    text = f"{folder}: {size_text(free)} free"
    if not os.access(parent, os.W_OK):
        return Finding(subject, f"{text}, {parent} cannot be written", "warning", "choose another place")
    return Finding(subject, text, "ok" if free >= LEAST_FREE else "warning")


def _hub() -> list[Finding]:
    """Where models from the hub are kept, and whether it may be asked."""
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except Exception:  # reported among the packages
        return []
    cache = Path(constants.HF_HUB_CACHE)
    room = _room("hub cache (HF_HOME)", cache)
    models = sum(1 for path in cache.glob("models--*") if path.is_dir())
    text = f"{room.found}, {counted(models, 'model')} there"
    offline = "on: only what is in the cache is used" if constants.HF_HUB_OFFLINE else "off"
    return [Finding(room.subject, text, room.state, room.do), Finding("hub offline (HF_HUB_OFFLINE)", offline)]
