"""Every command that the README and the experiments' headers show can be given as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_commands(page: Path) -> list[str]:
    """Lines of the code blocks, continuation lines joined, comments cut off."""
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines if re.match(r"\s*(mvc|make) ", line)]


ALL = sorted({command for page in PAGES for command in shown_commands(page)})
MVC = [command for command in ALL if command.startswith("mvc ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("readme")
    for name in ("FOLDER/cat", "FOLDER/dog"):
        (place / name).mkdir(parents=True)
        for number in range(3):
            image = Image.linear_gradient("L").rotate(40 * number).resize((40, 40))
            image.save(place / name / f"{number}.png")
    (place / "configs").symlink_to(ROOT / "configs")
    return place


def test_the_readme_shows_the_two_commands_and_the_main_job() -> None:
    shown = shown_commands(ROOT / "README.md")
    assert {"make demo", "make test", "mvc run --data FOLDER", "mvc check FOLDER"} <= set(shown)


@pytest.mark.parametrize("command", MVC)
def test_shown_mvc_commands_are_understood(command: str, folder: Path) -> None:
    words = shlex.split(command)[1:]
    if words[0] in ("regenerate", "export", "clip-evaluate"):  # these want a finished run or a model
        words = [words[0], "--help"]
    elif words[0] not in ("check", "doctor"):  # the two that take no experiment
        words.append("--dry-run")
    done = subprocess.run(
        [sys.executable, "-m", "mvc", *words], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr


def test_shown_make_targets_exist() -> None:
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    wanted = {word for command in ALL if command.startswith("make ") for word in command.split()[1:] if "=" not in word}
    assert wanted and wanted <= set(rules)


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
