"""Processor and accelerators: what `mvc doctor` says of them, even where torch does not work, and which one is used."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvc.disk import size_text
from mvc.errors import EnvironmentFault
from mvc.findings import Finding
from mvc.fingerprint import hardware

if TYPE_CHECKING:
    import torch

_NVIDIA = Path("/proc/driver/nvidia")
"""There while the driver is loaded."""


def devices() -> list[Finding]:
    """The processor and each accelerator: memory, precision, and whether a small product comes out right."""
    try:
        torch: Any = import_module("torch")
    except Exception as error:  # reported among the packages
        return [Finding("torch", f"cannot be imported ({type(error).__name__})", "broken", "see above")]
    facts = hardware()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else facts["cores"]
    found = [
        Finding("system", f"{facts['system']}, {facts['machine']}"),
        Finding(
            "cpu", f"{facts['cores']} cores, {usable} for this process, torch uses {torch.get_num_threads()} threads"
        ),
        _memory(facts.get("memory_gib")),
        tried("cpu arithmetic", f"float32 and bf16, {_cpu_bf16()}", lambda: _product_errors(torch, "cpu")),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        found += _cuda_device(torch, number)
    if not count:
        found.append(_no_cuda(torch, [str(one.message) for one in caught]))
    if torch.backends.mps.is_available():
        found.append(tried("mps", "Apple GPU", lambda: _product_errors(torch, "mps")))
    return found


def _cpu_bf16() -> str:
    """Whether the processor has instructions for bf16, where the system tells."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    if not re.search(r"^(flags|Features)\s*:", text, re.MULTILINE):
        return "speed of bf16 unknown"
    return "bf16 fast" if re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", text) else "bf16 slow (no instructions for it)"


def _memory(total: float | None) -> Finding:
    """Memory of the machine, and how much of it this process can have."""
    if total is None:
        return Finding("memory", "unknown", "warning")
    available = available_memory()
    return Finding("memory", f"{total:.1f} GiB" + (f", {size_text(available)} available" if available else ""))


def available_memory() -> int | None:
    """Bytes of the machine's memory that this process can still have, within its container; None if unknown."""
    info = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE) if info.exists() else None
    if found is None:
        return None
    available, group = 1024 * int(found[1]), Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except OSError:
        pass  # no container, or one of the older kind
    return available


def _product_errors(torch: Any, device: str) -> list[float]:
    """Errors of two small products on a device, bf16 and float32, relative to their bounds (1 is allowed)."""
    exact = torch.arange(16.0).reshape(4, 4)
    wanted = exact @ exact.T
    errors = []
    for dtype, bound in ((torch.bfloat16, 2.0**-7), (torch.float32, 2.0**-9)):  # float32 may be TF32
        moved = exact.to(device, dtype)
        errors.append(float(((moved @ moved.T).float().cpu() - wanted).abs().max() / wanted.abs().max()) / bound)
    return errors


def tried(subject: str, words: str, errors_of: Callable[[], Sequence[float]]) -> Finding:
    """Whether computing on a device works: no fault, no NaN, and the right numbers.

    Args:
        subject: the device.
        words: its facts.
        errors_of: computes something and returns errors relative to what is allowed.
    """
    try:
        errors = errors_of()
    except Exception as fault:  # drivers raise all kinds
        reason = " ".join(str(fault).split())[:200]
        return Finding(subject, f"{words}: computing fails: {reason}", "broken", "check the driver and torch's build")
    if not all(error <= 1.0 for error in errors):  # a NaN is not
        return Finding(subject, f"{words}: gives wrong numbers", "broken", "check the driver and torch's build")
    return Finding(subject, f"{words}: computes")


def _cuda_device(torch: Any, number: int) -> list[Finding]:
    name = f"cuda:{number}"
    try:
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        bf16 = facts.major >= 8
        words = f"{facts.name}, compute capability {facts.major}.{facts.minor}, bf16 {'yes' if bf16 else 'emulated'}"
        memory = f"{size_text(free)} of {size_text(total)} free"
    except Exception as error:  # drivers raise all kinds
        return [Finding(name, " ".join(str(error).split())[:200], "broken", "check the driver and torch's build")]
    return [tried(name, words, lambda: _product_errors(torch, name)), Finding(f"{name} memory", memory)]


def _no_cuda(torch: Any, reasons: list[str]) -> Finding:
    """Why there is no CUDA device; a card without a working driver is worth a warning, no card is none."""
    if torch.version.cuda is None and torch.version.hip is None:
        return Finding("cuda", "torch was built without it", "missing")
    if _NVIDIA.exists() or reasons:
        why = " ".join(" ".join(reasons).split())[:200] or "there is a driver, but torch sees no device"
        return Finding("cuda", why, "warning", f"torch was built for CUDA {torch.version.cuda}: update the driver")
    return Finding("cuda", "no device", "missing")


def pick_device(name: str) -> torch.device:
    """The device to compute on: `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        EnvironmentFault: the device asked for is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there.get(name, False):
        raise EnvironmentFault(f"there is no device {name} here", why="run.device or --device names it", do="give auto")
    return torch.device(name)
