"""A training of a CLIP that is stopped, damaged or changed: it goes on to the same bits, or says what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mvc.clip.models import Clip
from mvc.clip.pairs import Pairs
from mvc.errors import ConfigError, Stopped
from mvc.progress import Meter
from mvc.stopping import flag
from mvc.storage import read_json
from mvc.train.checkpoints import checkpoints
from mvc.train.clip_loop import ClipFit
from tests.train.clip_runs import equal, rsum_of, toy_pairs, train, weights

Whole = Callable[[str], tuple[dict[str, Tensor], ClipFit, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return toy_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def whole(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An unbroken training of an arm, done once."""

    @cache
    def of(arm: str) -> tuple[dict[str, Tensor], ClipFit, Path]:
        folder = tmp_path_factory.mktemp("whole")
        clip, fitted = train(folder, pairs, arm, evaluate=rsum_of(pairs), keep_best=True)
        return weights(clip), fitted, folder

    return of


@pytest.fixture(autouse=True)
def lowered() -> Iterator[None]:
    yield
    flag.signal = None


class Stopping(Meter):
    """Asks for a stop when so many steps are done."""

    def __init__(self, at: int) -> None:
        super().__init__("test", 8, "steps")
        self._at = at

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        if self.done == self._at and units == 1:
            flag.signal = 15


def stopped_at(folder: Path, pairs: Pairs, arm: str, at: int) -> None:
    """A training that is asked to stop while step `at` is done."""
    with pytest.raises(Stopped, match=f"stopped by a signal; the checkpoint of step {at} is saved"):
        train(folder, pairs, arm, evaluate=rsum_of(pairs), keep_best=True, shown=Stopping(at))
    flag.signal = None
    assert checkpoints(folder / "checkpoints")[0].name == f"step-{at:06d}"


def require_whole(folder: Path, pairs: Pairs, arm: str, whole: Whole) -> None:
    """Go on, and come to weights, moments and curve of the unbroken training, to the bit."""
    clip, fitted = train(folder, pairs, arm, evaluate=rsum_of(pairs), keep_best=True)
    wanted, expected, place = whole(arm)
    assert equal(weights(clip), wanted) and fitted == expected
    for name in ("clip", "optimizer", "mined"):
        one, other = (
            load_file(path / "checkpoints" / "step-000008" / f"{name}.safetensors") for path in (folder, place)
        )
        assert equal(one, other), name


@pytest.mark.parametrize("arm", ["none", "mixgen", "hard_negatives"])
def test_stopped_after_any_step_and_gone_on_gives_the_same_bits(
    arm: str, pairs: Pairs, whole: Whole, tmp_path: Path
) -> None:
    # Step 3 is one with an evaluation and a search for negatives, step 4 one with a checkpoint, step 8 the last one.
    for at in (1, 3, 4, 8):
        stopped_at(tmp_path / str(at), pairs, arm, at)
        require_whole(tmp_path / str(at), pairs, arm, whole)


def test_stopped_after_every_step_gives_the_same_bits(pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    for at in range(1, 9):
        stopped_at(tmp_path, pairs, "hard_negatives", at)
    require_whole(tmp_path, pairs, "hard_negatives", whole)


@pytest.mark.parametrize("arm", ["none", "hard_negatives"])
@pytest.mark.parametrize("number", [1, 3])
def test_stopped_within_an_evaluation(arm: str, number: int, pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    calls = 0

    def interrupted(clip: Clip) -> float:
        nonlocal calls
        calls += 1
        flag.signal = 15 if calls == number else None
        return rsum_of(pairs)(clip)

    step = (3, 6, 8)[number - 1]
    with pytest.raises(Stopped, match=f"the checkpoint of step {step} is saved"):
        train(tmp_path, pairs, arm, evaluate=interrupted, keep_best=True)
    assert [point[0] for point in whole(arm)[1].curve] == [3, 6, 8] and calls == number
    # Asked again before the evaluation is made up for, it stops again and loses nothing.
    flag.signal = 15
    with pytest.raises(Stopped, match=f"the checkpoint of step {step} is saved"):
        train(tmp_path, pairs, arm, evaluate=rsum_of(pairs), keep_best=True)
    flag.signal = None
    require_whole(tmp_path, pairs, arm, whole)


def test_stopped_within_a_search_for_negatives(pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    flag.signal = 15
    with pytest.raises(Stopped, match="no step was done yet"):
        train(tmp_path, pairs, "hard_negatives")
    assert not (tmp_path / "checkpoints").exists()
    flag.signal = None
    calls = 0

    def before_the_search(clip: Clip) -> float:
        nonlocal calls
        calls += 1
        found = rsum_of(pairs)(clip)
        flag.signal = 15 if calls == 2 else None  # of step 6, after which negatives are searched for
        return found

    with pytest.raises(Stopped, match="the checkpoint of step 6 is saved"):
        train(tmp_path, pairs, "hard_negatives", evaluate=before_the_search, keep_best=True)
    assert read_json(tmp_path / "checkpoints" / "step-000006" / "state.json")["curve"][-1][0] == 6
    flag.signal = None
    require_whole(tmp_path, pairs, "hard_negatives", whole)


def test_negatives_are_searched_for_anew_as_the_model_changes(pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    stopped_at(tmp_path, pairs, "hard_negatives", 3)
    early = load_file(tmp_path / "checkpoints" / "step-000003" / "mined.safetensors")["negatives"]
    late = load_file(whole("hard_negatives")[2] / "checkpoints" / "step-000008" / "mined.safetensors")["negatives"]
    assert early.shape == late.shape == (12, 2) and not torch.equal(early, late)
    assert all(row not in late[row] and -1 not in late[row] for row in range(12))


@pytest.mark.parametrize("file", ["clip", "best", "optimizer", "mined", "state", "manifest"])
def test_a_damaged_newest_checkpoint_goes_back_to_the_one_before(
    file: str, pairs: Pairs, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole("mixgen")[2], tmp_path, dirs_exist_ok=True)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-000008", "step-000004"]
    (path,) = (tmp_path / "checkpoints" / "step-000008").glob(f"{file}.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    require_whole(tmp_path, pairs, "mixgen", whole)
    said = capsys.readouterr().err
    assert "step-000008 is damaged; going back to the one before" in said and "goes on after step 4 of 8" in said


def test_without_a_whole_checkpoint_it_begins_afresh(
    pairs: Pairs, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(tmp_path, pairs, "mixgen", 2)
    (tmp_path / "checkpoints" / "step-000002" / "clip.safetensors").write_bytes(b"")
    require_whole(tmp_path, pairs, "mixgen", whole)
    said = capsys.readouterr().err.split("is damaged; going back to the start")
    assert len(said) == 2 and "goes on" not in said[1]


def test_a_finished_training_trains_no_more(pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole("none")[2], tmp_path, dirs_exist_ok=True)

    def refuse(clip: Clip) -> float:
        raise AssertionError("nothing is left to do")

    clip, fitted = train(tmp_path, pairs, evaluate=refuse, keep_best=True, shown=Stopping(9))
    assert equal(weights(clip), whole("none")[0]) and fitted == whole("none")[1]


def test_changed_settings_are_refused_by_name(pairs: Pairs, whole: Whole, tmp_path: Path) -> None:
    stopped_at(tmp_path, pairs, "none", 2)
    folder = tmp_path / "checkpoints"
    with pytest.raises(ConfigError, match=r"train\.learning_rate: 0\.01 -> 0\.02") as caught:
        train(tmp_path, pairs, learning_rate=2e-2)
    assert f"delete {folder} to train afresh" in caught.value.do and "--redo" not in str(caught.value)
    with pytest.raises(ConfigError, match="arm: none -> mixgen"):
        train(tmp_path, pairs, "mixgen")
    require_whole(tmp_path, pairs, "none", whole)


@pytest.mark.parametrize("limit", [2, 3])
def test_old_checkpoints_go(limit: int, pairs: Pairs, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpointing_steps": 1, "checkpoints_total_limit": limit, "max_train_steps": 5}
    train(tmp_path, pairs, **options)
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == [f"step-{step:06d}" for step in range(5, 5 - limit, -1)]
