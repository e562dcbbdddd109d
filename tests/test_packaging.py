"""Every importable folder of the checkout is shipped, and only under `mvc`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mvc", "train", "generate", "classify", "configs")


def test_every_package_folder_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {setuptools["package-dir"][name] for name in setuptools["packages"]}
    inits = (path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
    assert shipped == {path.parent.relative_to(ROOT).as_posix() for path in inits}
    assert all(name.split(".")[0] == "mvc" for name in setuptools["packages"])


def test_constraints_pin_every_requirement_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"]]
    names = {re.split(r"[\[><;]", requirement)[0].strip().lower() for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    normal = {name.replace("_", "-") for name in pins}
    assert {name.replace("_", "-") for name in names} <= normal
