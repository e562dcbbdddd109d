"""An estimate against what a real run then takes, on the toy models."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from mvc.config import Experiment
from mvc.disk import bytes_below
from mvc.errors import EnvironmentFault, Stopped
from mvc.stopping import flag
from mvc.storage import files_below, sha256_file
from mvc.train import estimate as module
from mvc.train.batches import assemble
from mvc.train.estimate import estimate, run_estimate
from mvc.train.estimate_page import duration_text, print_estimate
from mvc.train.measure import LEAST, MOST, random_materials
from mvc.train.objective import sample_losses
from mvc.train.sizes import Entry, checkpoint_bytes, file_bytes
from mvc.train.stage import run_train
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, sd_scheduler, tiny_xl_unet, write_xl_pipeline
from tests.train.small_run import experiment_for, write_run
from tests.train.toy import sampling, wide_unet


def experiment_in(run: Path, **train: Any) -> Experiment:
    """A short fine-tuning, and a synthetic set of two images a training image."""
    content = experiment_for(run, **train).model_dump()
    content["run"]["dir"] = str(run)
    content["data"]["path"] = str(run.parent / "images")
    content["generate"].update(per_real=2.0, preview=0, num_inference_steps=4)
    return Experiment.model_validate(content)


def state_of(folder: Path) -> dict[str, Any]:
    return {str(path): (path.stat().st_mtime_ns, sha256_file(path)) for path in files_below(folder)}


def test_sizes_are_those_of_the_finished_run_and_nothing_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    experiment = experiment_in(run, random_crop=0.3, transforms=2)
    before, random = state_of(tmp_path), torch.get_rng_state()
    found = estimate(experiment)
    assert torch.equal(torch.get_rng_state(), random)
    assert state_of(tmp_path) == before and found.there == bytes_below(run)
    run_train(run, experiment)

    parameters = sum(value.numel() for value in wide_unet().parameters())
    assert found.parameters == found.learnt == parameters
    assert (found.training, found.synthetic) == (6, 12)
    tensors = len(list(wide_unet().parameters()))
    assert found.memory.total == 20 * parameters + 4 * tensors  # weights, gradients, two moments, average, counts
    for name, made in {
        "best checkpoint": "checkpoints/step-000006",
        "model": "model",
        "latents cache": "cache/latents",
        "caption embeddings": "cache",
    }.items():
        size = bytes_below(run / made) - (bytes_below(run / "cache/latents") if made == "cache" else 0)
        # A cache has a header of its own, a key of 64 letters an entry, which a real one does not feel.
        assert found.disk[name] == pytest.approx(size, rel=0.02, abs=3000), name
    assert found.disk["latents cache"] == 6 * 3 * 8 * LATENT_SIZE**2 * 4
    assert found.disk["synthetic images, at most"] == 12 * 3 * IMAGE_SIZE**2
    assert found.to_come == sum(found.disk.values()) - found.there


def test_seconds_are_those_of_the_steps_times_their_number(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    # Steps 0, 4, 8 and the last are validated, 0, 5 and the last saved.
    changes = {"max_train_steps": 10, "validation_steps": 4, "checkpointing_steps": 5, "validation_samples": 7}
    found = estimate(experiment_in(run, **changes))
    assert found.pace is not None and found.images is not None
    assert LEAST <= len(found.pace.steps) <= MOST and min(found.pace.steps) > 0 < found.images.draw
    assert found.seconds["fine-tuning"] == pytest.approx(found.pace.first + 9 * found.pace.step)
    assert found.seconds["validation loss"] == pytest.approx(5 * 7 * found.pace.validation)
    assert found.seconds["encoding images"] == pytest.approx(6 * found.images.encode)
    assert found.seconds["synthetic images"] == pytest.approx(12 * found.images.draw)
    console = Console(file=StringIO(), width=100)
    print_estimate(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in (f"{found.parameters:,}", "moving average", "latents cache", "fine-tuning", "synthetic images"):
        assert shown in text
    assert not {"does not fit", "too little"} & {part for part in ("does not fit", "too little") if part in text}


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one precision a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "lora_rank": 2, "gradient_checkpointing": True},
        {"mixed_precision": "bf16", "channels_last": True, "use_ema": False, "gradient_accumulation_steps": 2},
    ],
)
def test_other_ways_to_train_are_measured_as_they_are(changes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "images").rename(tmp_path / "images")
    found = estimate(experiment_in(run, **changes))
    assert not run.exists() and found.pace is not None
    assert (found.learnt < 0.2 * found.parameters) == (changes.get("method") == "lora")
    assert (found.memory.average > 0) == changes.get("use_ema", True)
    # The published model is the plain one, whatever was trained; LoRA has longer names meanwhile.
    plain = file_bytes([Entry(name, tuple(value.shape)) for name, value in wide_unet().named_parameters()])
    others = sum(bytes_below(tmp_path / "base" / part) for part in ("vae", "text_encoder", "tokenizer", "scheduler"))
    assert found.disk["model"] == pytest.approx(plain + others, abs=500)


def test_random_samples_have_the_shapes_of_an_sdxl() -> None:
    unet = tiny_xl_unet(in_channels=8)
    materials = random_materials(unet.config, LATENT_SIZE, 5, IMAGE_SIZE)
    batch = assemble(materials, sampling(), range(6))
    assert batch.encoder_hidden_states.shape == (6, 5, unet.config.cross_attention_dim)
    assert batch.time_ids is not None and batch.time_ids[0].tolist() == [32, 32, 0, 0, 32, 32]
    losses = sample_losses(unet, sd_scheduler(), batch)
    assert losses.shape == (6,) and bool(losses.isfinite().all())
    # Means of variance 1 and VAE noise of variance 1.
    assert assemble(materials, sampling(), range(64)).latents.var().item() == pytest.approx(2.0, rel=0.2)


def test_an_sdxl_is_estimated(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_xl_pipeline(tmp_path / "base")
    found = estimate(experiment_in(run))
    unet = tiny_xl_unet(in_channels=8)
    assert found.parameters == sum(value.numel() for value in unet.parameters())
    assert found.disk["best checkpoint"] == checkpoint_bytes(list(unet.named_parameters()), "adamw", True)
    assert found.images is not None and found.images.draw > 0


def test_what_does_not_fit_into_memory_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = experiment_in(write_run(tmp_path))
    monkeypatch.setattr(module, "available_memory", lambda: 100_000)
    with pytest.raises(EnvironmentFault, match="out of memory on cpu with train.train_batch_size=4"):
        run_estimate(experiment)
    shown = capsys.readouterr().out
    assert "does not fit" in shown and "latents cache" in shown


def test_what_does_not_fit_on_the_disk_is_an_error_after_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = experiment_in(write_run(tmp_path))
    monkeypatch.setattr("mvc.disk.free_bytes", lambda folder: 1000)
    monkeypatch.setattr(module, "free_bytes", lambda folder: 1000)
    with pytest.raises(EnvironmentFault, match="too little space in .*run for the whole run"):
        run_estimate(experiment)
    assert "1000 B (too little)" in capsys.readouterr().out


def test_a_signal_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_in(write_run(tmp_path))
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="an estimate keeps nothing"):
        estimate(experiment)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.012, "0.012 s"), (41.4, "41 s"), (725, "12 min 5 s"), (12000, "3 h 20 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
