from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file

from mvc.errors import NumericError, Stopped
from mvc.moving_average import MovingAverage
from mvc.stopping import flag
from mvc.storage import read_json_lines
from mvc.train.batches import Batch
from mvc.train.checkpoints import best_checkpoint
from mvc.train.log import LOG, VALIDATION_LOG
from mvc.train.loop import fit
from mvc.train.objective import sample_losses
from mvc.train.recipe import Schedule, learning_rate_at
from mvc.train.step import Watch
from tests.tiny_parts import sd_scheduler
from tests.train.toy import make_batch, recipe, train, wide_unet


def weights(unet: Any) -> dict[str, torch.Tensor]:
    return dict(unet.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stored(run: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("unet", "ema", "optimizer")}


def log(run: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["learning_rate"]) for row in read_json_lines(run / LOG)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "constant_with_warmup"])
def test_learning_rates_are_those_of_diffusers_but_for_the_lost_first_step(schedule: Schedule) -> None:
    how = recipe(max_train_steps=50, lr_warmup_steps=10, lr_scheduler=schedule, learning_rate=0.01)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=10, num_training_steps=50)
    [factor] = reference.lr_lambdas
    rates = [learning_rate_at(step, how) for step in range(50)]
    # In the warm-up ours are one step ahead: diffusers' first step has a rate of 0.
    warm = 0 if schedule == "constant" else 10
    assert rates[:warm] == pytest.approx([0.01 * factor(step + 1) for step in range(warm)])
    assert rates[warm:] == pytest.approx([0.01 * factor(step) for step in range(warm, 50)])
    assert min(rates) > 0


def test_fit_is_a_plain_loop_of_adamw_with_clipping_and_average(tmp_path: Path) -> None:
    trained, outcome = train(tmp_path, max_train_steps=4, max_grad_norm=0.05)
    unet = wide_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    average = MovingAverage(unet.named_parameters(), 0.999)
    losses, norms = [], []
    for step, rate in enumerate((5e-4, 1e-3, 1e-3, 1e-3)):
        optimizer.param_groups[0]["lr"] = rate
        loss = sample_losses(unet, sd_scheduler(), make_batch(range(4 * step, 4 * step + 4))).mean()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(unet.parameters(), 0.05)))
        optimizer.step()
        optimizer.zero_grad()
        average.update(unet.named_parameters())
        losses.append(float(loss.detach()))
    assert min(norms) > 0.05  # clipping took part
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, average.average[name], rtol=1e-5, atol=1e-7)
    for name, value in stored(tmp_path, 4)["unet"].items():
        torch.testing.assert_close(value, unet.state_dict()[name], rtol=1e-5, atol=1e-7)
    assert [row[1] for row in log(tmp_path)] == pytest.approx(losses, rel=1e-6)
    assert outcome.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert [row[2] for row in log(tmp_path)] == [5e-4, 1e-3, 1e-3, 1e-3]


def test_without_average_the_last_weights_stay(tmp_path: Path) -> None:
    trained, _ = train(tmp_path, use_ema=False)
    assert equal(weights(trained), stored(tmp_path, 6)["unet"])
    assert stored(tmp_path, 6)["ema"] == {}


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    def same(samples: Sequence[int]) -> Batch:
        return make_batch(range(4))

    train(tmp_path, same, max_train_steps=25, learning_rate=3e-3, checkpointing_steps=100)
    losses = [row[1] for row in log(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_stop_and_resume_equal_the_whole_run_to_the_bit(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(tmp_path / "whole")
    monkeypatch.setattr(flag, "signal", None)

    def stopping(samples: Sequence[int]) -> Batch:
        if samples[0] == 4 * (at - 1):
            flag.signal = 15
        return make_batch(samples)

    with pytest.raises(Stopped, match=f"the checkpoint of step {at} is saved"):
        train(tmp_path / "parts", stopping)
    assert len(log(tmp_path / "parts")) == at
    flag.signal = None
    parts, _ = train(tmp_path / "parts")
    assert equal(weights(parts), weights(whole))
    first, second = stored(tmp_path / "whole", 6), stored(tmp_path / "parts", 6)
    assert all(equal(first[name], second[name]) for name in first)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    kept = sorted(path.name for path in (tmp_path / "parts/checkpoints").iterdir())
    assert kept == [f"step-{max(4, at):06d}", "step-000006"]


def test_a_damaged_checkpoint_costs_steps_but_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = train(tmp_path)
    complete = log(tmp_path)
    path = tmp_path / "checkpoints/step-000006/optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    again, _ = train(tmp_path)
    assert equal(weights(again), weights(whole)) and log(tmp_path) == complete
    said = capsys.readouterr().err
    assert "step-000006 is damaged" in said and "goes on after step 4 of 6" in said


def test_a_finished_training_trains_no_more(tmp_path: Path) -> None:
    whole, outcome = train(tmp_path)

    def refuse(samples: Sequence[int]) -> Batch:
        raise AssertionError("nothing is left to do")

    again, second = train(tmp_path, refuse)
    assert equal(weights(again), weights(whole)) and second.loss == outcome.loss


def test_a_lost_log_tail_is_no_obstacle(tmp_path: Path) -> None:
    train(tmp_path)
    with open(tmp_path / LOG, "ab") as file:
        file.write(b'{"step": 7, "loss": 0.1, "learning_rate": 0.1, "seconds": 0.1}\n{"step": 8, "lo')
    train(tmp_path)
    assert [row[0] for row in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_layouts_of_a_global_batch_give_the_same_training(tmp_path: Path) -> None:
    seen: dict[int, list[int]] = {}
    trained: dict[int, Any] = {}
    for accumulation, batch_size in ((1, 12), (3, 4), (4, 3)):
        samples_seen = seen.setdefault(accumulation, [])

        def noting(samples: Sequence[int], into: list[int] = samples_seen) -> Batch:
            into.extend(samples)
            return make_batch(samples)

        run = tmp_path / str(accumulation)
        trained[accumulation], _ = train(
            run,
            noting,
            max_train_steps=2,
            train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-4,
        )
    assert seen[1] == seen[3] == seen[4] == list(range(24))
    for accumulation in (3, 4):
        moments = stored(tmp_path / str(accumulation), 2)["optimizer"]
        for name, value in stored(tmp_path / "1", 2)["optimizer"].items():
            # The first moment is a tenth of the gradient and a bit of the one before.
            torch.testing.assert_close(moments[name], value, rtol=1e-4, atol=1e-6, msg=name)
        losses = [row[1] for row in log(tmp_path / str(accumulation))]
        assert losses == pytest.approx([row[1] for row in log(tmp_path / "1")], rel=1e-6)


def poisoned_at(*steps: int) -> Callable[[Sequence[int]], Batch]:
    """Batches of four with a NaN in some steps, counted from 1."""

    def poisoned(samples: Sequence[int]) -> Batch:
        batch = make_batch(samples)
        if samples[0] // 4 + 1 in steps:
            batch.noise[0] = float("nan")
        return batch

    return poisoned


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, outcome = train(tmp_path, poisoned_at(3), max_train_steps=4, lr_warmup_steps=0, use_ema=False)
    assert outcome.skipped == 1 and "not finite at step 3, so that step is skipped" in capsys.readouterr().err
    rows = read_json_lines(tmp_path / LOG)
    assert [(row["loss"] is None, row["skipped"]) for row in rows] == [(index == 2, index == 2) for index in range(4)]
    # Weights and moments are those of a training that never saw the third step.
    unet = wide_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    for step in (0, 1, 3):
        sample_losses(unet, sd_scheduler(), make_batch(range(4 * step, 4 * step + 4))).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, unet.state_dict()[name], rtol=1e-5, atol=1e-7)
    moments = stored(tmp_path, 4)["optimizer"]
    assert {float(value) for name, value in moments.items() if name.endswith("/step")} == {3.0}


def test_too_many_such_steps_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"in 2 steps, the last one step 4(.|\n)*last checkpoint is step-000002"):
        train(tmp_path, poisoned_at(3, 4, 5, 6), max_skipped_steps=1)
    assert all(value.isfinite().all() for value in stored(tmp_path, 2)["unet"].values())
    # With the cause gone the same command goes on.
    whole, _ = train(tmp_path / "whole", max_skipped_steps=1)
    again, _ = train(tmp_path, max_skipped_steps=1)
    assert equal(weights(again), weights(whole))


def test_the_count_of_skipped_steps_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag, "signal", None)

    def stopping(samples: Sequence[int]) -> Batch:
        if samples[0] == 8:
            flag.signal = 15
        return poisoned_at(2)(samples)

    with pytest.raises(Stopped):
        train(tmp_path, stopping)
    flag.signal = None
    _, outcome = train(tmp_path, poisoned_at(2, 5))
    assert outcome.skipped == 2


def test_watchers_see_the_average_and_change_nothing(tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "plain")
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    tracked: list[tuple[int, set[str]]] = []
    losses = iter([5.0, 3.0, 4.0, float("nan")])

    def draw(unet: Any, step: int) -> None:
        seen.append((step, {name: value.detach().clone() for name, value in unet.named_parameters()}))

    def track(values: Mapping[str, float], step: int) -> None:
        tracked.append((step, set(values)))

    watch = Watch(lambda unet: next(losses), "held-out images", draw, track)
    unet, how = wide_unet(), recipe(validation_steps=100, sample_steps=4)
    fit(unet, sd_scheduler(), make_batch, tmp_path / "watched", how, {"seed": 0}, Accelerator(cpu=True), watch)
    assert equal(weights(unet), weights(plain))
    assert [step for step, _ in seen] == [0, 4, 6]
    assert equal(seen[1][1], stored(tmp_path / "watched", 4)["ema"])
    assert equal(seen[2][1], weights(plain))
    rows = read_json_lines(tmp_path / "watched" / VALIDATION_LOG)
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 5.0), (2, 3.0), (4, 4.0), (6, None)]
    assert {row["on"] for row in rows} == {"held-out images"}
    assert (4, {"validation_loss"}) in tracked and (3, {"loss", "learning_rate"}) in tracked
    # The best one is kept beside the newest two.
    kept = sorted(path.name for path in (tmp_path / "watched/checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004", "step-000006"]
    best = best_checkpoint(tmp_path / "watched/checkpoints")
    assert best is not None and best.name == "step-000002"


def test_a_full_disk_is_no_end_while_steps_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(tmp_path / "whole", checkpoints_total_limit=3)
    folder = tmp_path / "parts/checkpoints"

    def filling(samples: Sequence[int]) -> Batch:
        # A file in place of the folder that step 4 would be built in refuses it as a full disk does.
        if samples[0] == 12:
            (folder / f".tmp-{os.getpid()}-step-000004").symlink_to("/dev/full")
        return make_batch(samples)

    parts, _ = train(tmp_path / "parts", filling, checkpoints_total_limit=3)
    assert "cannot write" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["step-000002", "step-000006"]
    assert equal(weights(parts), weights(whole))


def test_nothing_is_drawn_from_global_randomness(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "first")
    torch.rand(17)
    state = torch.random.get_rng_state()
    second, _ = train(tmp_path / "second")
    assert equal(weights(first), weights(second))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_moved_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train(tmp_path / "whole")
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped):
        train(tmp_path / "parts")
    flag.signal = None
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    moved, _ = train(tmp_path / "moved")
    assert equal(weights(moved), weights(whole))


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    """A process has one precision; the tests before and after have another."""
    AcceleratorState._reset_state(True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(True)


def test_bf16_is_near_float32_and_keeps_float32_weights(tmp_path: Path, bf16: Accelerator) -> None:
    how, unet = recipe(use_ema=False), wide_unet()
    fit(unet, sd_scheduler(), make_batch, tmp_path / "rough", how, {}, bf16)
    AcceleratorState._reset_state(True)
    train(tmp_path / "exact", use_ema=False)
    rough, exact = ([row[1] for row in log(tmp_path / name)] for name in ("rough", "exact"))
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact
    assert {value.dtype for value in unet.parameters()} == {torch.float32}
