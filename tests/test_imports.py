"""The import rules: apps import only mvc and their own folder; mvc imports no app; the command starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPS = ("train", "generate", "classify")
FILES = sorted(path for folder in ("mvc", *APPS) for path in (ROOT / folder).rglob("*.py"))
BANNED = {*APPS, *(f"mvc.{app}" for app in APPS)}
CEILING = 400


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            joint = "" if base.endswith(".") else "."  # `from . import loop` is .loop and not ..loop
            names.update({base, *(f"{base}{joint}{alias.name}" for alias in node.names)})
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_rules(path: Path) -> None:
    for name in imported_names(path):
        head = ".".join(name.split(".")[:2])
        assert not name.startswith(".."), f"`{name}` leaves its folder; import `mvc` absolutely"
        assert name.split(".")[0] not in BANNED and head not in BANNED, (
            f"`{name}`: inside an app use relative imports; share code through mvc"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= CEILING, "one idea a file"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import mvc.cli, sys; print(sorted({'torch', 'diffusers', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_at_once() -> None:
    """The promise is 0.3 s; the bound here leaves room for a busy machine, the best of five runs counts."""
    command = [str(Path(sys.executable).parent / "mvc"), "--help"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - start)
    assert "classify" in shown and "generate" in shown
    assert min(times) < 0.45
