"""Checkpoints that a power cut or a bad disk has damaged: the one before is taken, and the result stays the same."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mvc.storage import sha256_file, verified_manifest
from mvc.train.checkpoints import load_newest, save_checkpoint
from tests.train.crash import Point
from tests.train.drill import Drill, Ground, newest, require_equal
from tests.train.test_checkpoints import SETTINGS, equal, state


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    """What a file system leaves that had the size on disk already and the content not yet."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


FILES = ("unet.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.fixture(scope="module")
def trained(ground: Ground) -> Drill:
    """Checkpoints of steps 4 and 6, and no model yet."""
    drill = ground.drill()
    assert drill.train(Point("os.replace", "*/model")) == -signal.SIGKILL, drill.said
    return drill


def test_a_damaged_newest_checkpoint_costs_two_steps(ground: Ground, trained: Drill) -> None:
    drill = ground.copy(trained)
    cut(newest(drill.run) / "optimizer.safetensors")
    assert drill.train() == 0, drill.said
    assert f"checkpoint {drill.run}/checkpoints/step-000006 is damaged; going back" in drill.said
    assert "fine-tuning goes on after step 4 of 6" in drill.said
    require_equal(drill, ground.whole())


def test_without_a_whole_checkpoint_training_starts_afresh_and_says_so(ground: Ground, trained: Drill) -> None:
    drill = ground.copy(trained)
    for step, damage in ((4, zero), (6, flip)):
        damage(drill.run / f"checkpoints/step-{step:06d}/unet.safetensors")
    assert drill.train() == 0, drill.said
    assert "step-000006 is damaged; going back to the one before" in drill.said
    assert "step-000004 is damaged; going back to the start" in drill.said and "goes on after" not in drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file in FILES for damage in (cut, zero, flip)],
)
def test_any_damage_to_any_file_is_noticed(
    ground: Ground, trained: Drill, file: str, damage: Callable[[Path], None]
) -> None:
    drill = ground.copy(trained)
    damage(newest(drill.run) / file)
    assert drill.train() == 0, drill.said
    assert "step-000006 is damaged" in drill.said and "goes on after step 4 of 6" in drill.said
    require_equal(drill, ground.whole())


@pytest.mark.parametrize("key", ["ema_updates", "scaler", "skipped"])
def test_an_entry_that_is_missing_is_never_made_up(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), SETTINGS, keep=2)
    path = tmp_path / "step-000002/state.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    found = load_newest(tmp_path, SETTINGS)
    assert found is not None and equal(found, state(1))
    assert "step-000002 is damaged" in capsys.readouterr().err


def test_no_bit_of_a_manifest_turns_unnoticed(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, state(4), SETTINGS, keep=2)
    path, whole = folder / "manifest.json", verified_manifest(folder)
    content = path.read_bytes()
    unnoticed = []
    for place in range(len(content)):
        turned = bytearray(content)
        turned[place] ^= 1 << place % 7  # one of those that leave it ASCII
        path.write_bytes(bytes(turned))
        if verified_manifest(folder) not in (None, whole):
            unnoticed.append(f"{turned[max(0, place - 20) : place + 20]!r}")
    assert not unnoticed, "\n".join(unnoticed)


@pytest.mark.slow
def test_a_training_never_writes_into_a_published_checkpoint(ground: Ground, trained: Drill) -> None:
    drill = ground.copy(trained)
    before = {path: sha256_file(path) for path in sorted(drill.run.glob("checkpoints/*/*"))}
    assert drill.train() == 0
    assert {path: sha256_file(path) for path in sorted(drill.run.glob("checkpoints/*/*"))} == before
