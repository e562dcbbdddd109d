"""Runs every benchmark in a process of its own and writes what they found to docs/benchmarks.md.

    python -m benchmarks.run [--rounds N] [--out PAGE]

Leaves with 1 if a gate is missed or a benchmark breaks off; the page is written all the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from .results import Section, gates_table

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "train_step",
    "train_memory",
    "growth",
    "safety",
    "generate",
    "mixing",
    "filters",
    "augment",
    "classify",
    "mixgen_overhead",
)
ON_CUDA = ("gpu_train", "gpu_generate")
WITHOUT_CUDA = (
    "Not measured: this machine has no CUDA device. `python -m benchmarks.gpu_train` and `python -m "
    "benchmarks.gpu_generate` are part of `make bench` where there is one. The second one's gate on an H200 is 6.9 "
    "images/s at 512 px, 20 steps and two passes."
)
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow")


def run_one(name: str, rounds: int | None) -> Section | None:
    """Run a benchmark on one thread; its section, or None if it broke off."""
    print(f"== {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "section.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(found)]
        command += [] if rounds is None else ["--rounds", str(rounds)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        return Section.from_json(found.read_text()) if found.exists() else None


def machine() -> str:
    """What the figures were measured on and with, as a list."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"- {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {gpu}\n"
        f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}\n"
        f"- mvc {version('mvc')}, {libraries}"
    )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def page(sections: dict[str, Section | None], today: date, load: float) -> str:
    """The whole page.

    Args:
        sections: by name, in order; None for a benchmark that broke off.
        today: the date to put on it.
        load: runnable processes of the last minute, when it began.
    """
    gates = [gate for section in sections.values() if section is not None for gate in section.gates]
    parts = [
        "# Benchmarks",
        f"Written by `make bench` on {today.isoformat()}; not meant to be edited. Every ratio is the median over "
        "rounds in which both sides take turns on one thread, so that a busy machine slows both. All models have "
        "random weights: speed does not depend on them.",
        machine(),
        f"When it began, {load:.1f} other processes were running on average.",
        "## Gates",
        "A figure that keeps its gate but misses its aim is `short`: a busy machine can cause that.",
        gates_table(gates).markdown(),
    ]
    for name, section in sections.items():
        heading = section.title if section is not None else name
        body = section.markdown() if section is not None else "Broke off without a result: FAIL."
        parts += [f"## {heading}", f"`python -m benchmarks.{name}`", body]
    if not any(name in sections for name in ON_CUDA):
        parts += ["## On a GPU", WITHOUT_CUDA]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run all, write the page, and return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, help="interleaved rounds; each benchmark has its own default")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to write")
    chosen = options.parse_args()
    load = os.getloadavg()[0]
    names = NAMES + (ON_CUDA if torch.cuda.is_available() else ())
    sections = {name: run_one(name, chosen.rounds) for name in names}
    chosen.out.write_text(page(sections, date.today(), load))
    missed = [name for name, section in sections.items() if section is None or not section.passed]
    short = [gate.what for one in sections.values() if one for gate in one.gates if gate.verdict == "short"]
    print(f"short of the aim: {', '.join(short)}" if short else "all aims are met", flush=True)
    print(f"below a gate or broken off: {', '.join(missed)}" if missed else "all gates hold", flush=True)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
