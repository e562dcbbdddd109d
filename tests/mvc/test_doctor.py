"""The doctor finds what is broken, on packages that are really installed and on broken ones written here."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from mvc.devices import devices, tried
from mvc.doctor import LEAST_SHARED, check_package, examine, extras, places, programs, requirements, shared_memory
from mvc.findings import Finding, is_broken, print_findings


def install(folder: Path, name: str, version: str, requires: str = "", code: str = "") -> None:
    """A package as pip leaves it behind."""
    facts = folder / f"{name}-{version}.dist-info"
    facts.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (facts / "METADATA").write_text("\n".join([*lines, *([f"Requires-Dist: {requires}"] if requires else []), "", ""]))
    (folder / f"{name}.py").write_text(code)


def test_this_machine_is_healthy(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert not is_broken(found)
    versions = {finding.subject: finding.found for finding in found["packages"]}
    assert len(versions) == len(requirements("mvc")) + 2
    for name in ("mvc", "torch", "diffusers", "peft", "scikit-learn"):
        assert versions[name] == importlib.metadata.version(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("requirement", "module", "found"),
    [
        ("torch>=99", "torch", ", but >=99 is needed"),
        ("no-such-package>=1", "no_such_package", "not installed"),
        ("cracked", "cracked", "1.0, cannot be imported: RuntimeError: undefined symbol"),
        ("torchvision", "torchvision", "0.1, which needs torch ==1.0 and not "),
    ],
)
def test_broken_packages_are_named(
    requirement: str, module: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "cracked", "1.0", code="raise RuntimeError('undefined symbol')")
    install(tmp_path, "torchvision", "0.1", "torch==1.0")
    monkeypatch.syspath_prepend(tmp_path)
    finding = check_package(Requirement(requirement), module)
    assert finding.state == "broken" and found in finding.found and finding.do


@pytest.mark.slow
def test_the_command_ends_with_4_where_torchvision_does_not_fit(tmp_path: Path) -> None:
    install(tmp_path, "torchvision", "0.29.0", "torch==1.0", "raise RuntimeError('torchvision::nms does not exist')")
    command = [sys.executable, "-m", "mvc", "doctor"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 4, done.stderr
    assert "needs torch ==1.0" in " ".join(done.stdout.split()) and "broken: torchvision" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_device_is_judged_by_what_it_computes() -> None:
    assert tried("gpu", "a card", lambda: [0.0, 1.0]) == Finding("gpu", "a card: computes")
    for errors in ([2.0, 0.0], [0.0, float("nan")], [float("nan"), 0.0]):
        finding = tried("gpu", "a card", errors.copy)
        assert finding.state == "broken" and "wrong numbers" in finding.found
    # A dtype that nothing can multiply.
    finding = tried("gpu", "a card", lambda: [float((torch.empty(2, 2, dtype=torch.bits8) @ torch.empty(2, 2))[0, 0])])
    assert finding.state == "broken" and "computing fails" in finding.found


def test_devices_say_memory_threads_and_bf16() -> None:
    found = {finding.subject: finding for finding in devices()}
    assert f"torch uses {torch.get_num_threads()} threads" in found["cpu"].found
    assert found["memory"].found.split()[1].startswith("GiB")
    assert "bf16" in found["cpu arithmetic"].found and found["cpu arithmetic"].state == "ok"
    assert ("cuda:0" in found) == torch.cuda.is_available()


def test_optional_packages_say_how_to_get_them() -> None:
    found = {finding.subject: finding for finding in extras()}
    assert {"bitsandbytes", "xformers"} <= set(found) and "pytest" not in found
    for name, finding in found.items():
        try:
            assert finding.found.startswith(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            assert finding.state == "missing" and finding.do.startswith("pip install 'mvc[")


def test_the_offline_voice_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = programs()
    assert (finding.state, finding.do) == ("missing", "apt-get install flite, or brew install flite")
    (tmp_path / "flite").write_text("#!/bin/sh\n")
    (tmp_path / "flite").chmod(0o755)
    assert programs()[0].found == str(tmp_path / "flite")


def test_places_are_shown_with_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    found = {finding.subject: finding for finding in places(tmp_path)}
    assert found["here"].found.startswith(f"{tmp_path}: ") and "GiB free" in found["here"].found
    assert "there" in found["hub cache (HF_HOME)"].found
    assert found["temporary files"].state == "broken" and "TMPDIR" in found["temporary files"].do


def test_little_shared_memory_is_a_warning() -> None:
    assert shared_memory(LEAST_SHARED).state == "ok"
    finding = shared_memory(64 * 2**20)
    assert finding.state == "warning" and finding.found == "64.0 MiB free" and "--shm-size" in finding.do


def test_what_is_printed_survives_brackets() -> None:
    console = Console(file=StringIO(), width=100)
    print_findings({"packages": [Finding("a[b]", "1 [x]", "broken", "pip install 'a[b]'")]}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a[b]" in text and "1 [x]" in text and "pip install 'a[b]'" in text and "broken: a[b]" in text
