"""The command as users meet it: help, dry run, errors without tracebacks, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image


def mvc(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


def test_dry_run_prints_the_whole_experiment_and_writes_nothing(tmp_path: Path) -> None:
    done = mvc("run", "digits", "train.learning_rate=5e-5", "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert float(shown["train"]["learning_rate"]) == 5e-5
    assert shown["data"]["path"] == "digits" and shown["run"]["dir"] == "runs/digits"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "caption", "train", "generate", "classify", "report", "status", "estimate"])
def test_every_command_has_a_dry_run(command: str, tmp_path: Path) -> None:
    done = mvc(command, "digits", "--dry-run", folder=tmp_path)
    assert done.returncode == 0 and "max_train_steps" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "digits", "train.learnign_rate=1"], 2, "did you mean 'train.learning_rate'?"),
        (["run"], 2, "mvc run --data FOLDER"),
        (["run", "--data", "nowhere"], 3, "nowhere"),
        (["status", "digits"], 2, "is not a run folder"),
        (["report", "digits"], 2, "is not a run folder"),
        (["check", "nowhere"], 3, "nowhere"),
    ],
)
def test_errors_are_three_lines_and_a_code(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = mvc(*arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) <= 3


def test_check_shows_what_is_wrong(tmp_path: Path) -> None:
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.linear_gradient("L").resize((32 + number, 32)).convert("RGB")
            image.paste(colour, (number * 3, 0, 12 + number * 3, 20))
            image.save(tmp_path / "pets" / name / f"{number}.png")
    assert mvc("check", "pets", folder=tmp_path).returncode == 0
    (tmp_path / "pets" / "cat" / "bad.jpg").write_text("not a picture")
    done = mvc("check", "pets", folder=tmp_path)
    assert done.returncode == 3
    assert "bad.jpg" in done.stdout and "dog" in done.stdout
