"""What the train stage does with the options that change what is trained, what is published and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
from PIL import Image
from safetensors.torch import load_file

from mvc import disk, models
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.diffusion import widen_conv_in
from mvc.errors import ConfigError, EnvironmentFault
from mvc.storage import read_json, read_json_lines, verified_manifest
from mvc.train import stage
from mvc.train.checkpoints import best_checkpoint
from mvc.train.lora import load_lora
from mvc.train.setup import require_shardable
from mvc.train.validation import hold_out
from tests.tiny_parts import LATENT_SIZE, WIDTH, write_pipeline
from tests.train.small_run import experiment_for, write_run
from tests.train.toy import normal

UNET = "unet/diffusion_pytorch_model.safetensors"


def published(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(run / "model" / UNET)
    return loaded


def predict(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        sample = normal(2, 8, LATENT_SIZE, LATENT_SIZE)
        predicted: torch.Tensor = unet(sample, torch.tensor([3, 700]), normal(2, 77, WIDTH), return_dict=False)[0]
    return predicted


@pytest.mark.parametrize("dora", [False, True])
def test_lora_trains_the_condition_and_is_published_whole_and_small(tmp_path: Path, dora: bool) -> None:
    run = write_run(tmp_path)
    experiment = experiment_for(run, method="lora", lora_rank=2, lora_dora=dora, learning_rate=1e-2)
    stage.run_train(run, experiment)
    base = models.load_unet(experiment.model.base)
    widen_conv_in(base)
    before, after = base.state_dict(), published(run)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # The new channels learn, and so do the layers asked for; everything else is the base's to the bit.
    assert after["conv_in.weight"][:, 4:].abs().max() > 0
    ends = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert changed == {name for name in before if name.startswith("conv_in") or name.endswith(ends)}
    kind: Any = StableDiffusionInstructPix2PixPipeline
    whole = kind.from_pretrained(run / "model", safety_checker=None).unet
    load_lora(run / "lora", base)
    torch.testing.assert_close(predict(base), predict(whole), rtol=1e-4, atol=1e-5)
    sizes = [sum(path.stat().st_size for path in (run / name).glob("*.safetensors")) for name in ("lora", "model/unet")]
    assert sizes[0] < sizes[1] / 2 and verified_manifest(run / "lora") is not None
    checkpoint = load_file(run / "checkpoints/step-000006/unet.safetensors")
    assert len(checkpoint) < len(before) and any("lora_A" in name for name in checkpoint)


def test_an_interrupted_lora_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, parts = write_run(tmp_path / "whole"), write_run(tmp_path / "parts")
    settings = {"method": "lora", "lora_rank": 2}
    stage.run_train(whole, experiment_for(whole, **settings))
    stage.run_train(parts, experiment_for(parts, **settings))
    for path in ("checkpoints/step-000006/unet.safetensors", f"model/{UNET}"):
        assert (whole / path).read_bytes() == (parts / path).read_bytes()
    # As if it had been killed after step 4.
    for path in (parts / "checkpoints/step-000006").iterdir():
        path.unlink()
    stage.run_train(parts, experiment_for(parts, **settings))
    assert (whole / f"model/{UNET}").read_bytes() == (parts / f"model/{UNET}").read_bytes()


def test_the_best_checkpoint_is_published_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    # At this rate it gets worse after the second step.
    options = {"use_ema": False, "learning_rate": 0.03, "lr_warmup_steps": 0}
    experiment = experiment_for(run, publish="best", validation_samples=8, **options)
    stage.run_train(run, experiment)
    rows = {row["step"]: row["loss"] for row in read_json_lines(run / "logs/validation.jsonl")}
    saved = {step: rows[step] for step in (2, 4, 6)}
    best = best_checkpoint(run / "checkpoints")
    assert best is not None and best.name == f"step-{min(saved, key=lambda step: saved[step]):06d}" != "step-000006"
    saved_weights = load_file(best / "unet.safetensors")
    assert all(torch.equal(value, saved_weights[name]) for name, value in published(run).items())
    assert read_json(run / "model/mvc.json")["steps"] == int(best.name[5:])
    assert f"that of step {int(best.name[5:])}; it is published" in capsys.readouterr().err


def test_held_out_images_are_validated_on_and_never_trained_on(tmp_path: Path) -> None:
    run = write_run(tmp_path, images=5)
    stage.run_train(run, experiment_for(run, validation_share=0.2, validation_samples=6))
    rows = read_json_lines(run / "logs/validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6] and {row["on"] for row in rows} == {"held-out images"}
    held_out = hold_out(0, [record.label for record in load_index(run).split("train")], 0.2)
    assert len(held_out) == 2
    # Another picture in place of a held-out one changes what is validated, and nothing that is trained.
    other = write_run(tmp_path / "other", images=5)
    place = load_index(other).image_path(load_index(other).split("train")[held_out[0]])
    Image.new("RGB", (40, 32), "red").save(place)
    index = read_json_lines(other / "data/index.jsonl")
    index[held_out[0]]["sha256"] = "0" * 64
    (other / "data/index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in index))
    stage.run_train(other, experiment_for(other, validation_share=0.2, validation_samples=6))
    assert read_json_lines(other / "logs/validation.jsonl")[0]["loss"] != rows[0]["loss"]
    assert all(torch.equal(value, published(other)[name]) for name, value in published(run).items())


def test_too_few_images_are_validated_on_as_they_are_and_said_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stage.run_train(run, experiment_for(run, max_train_steps=1, validation_samples=4))
    assert {row["on"] for row in read_json_lines(run / "logs/validation.jsonl")} == {"training images"}


def test_the_changed_noise_schedule_is_published(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_pipeline(tmp_path / "v", prediction_type="v_prediction")
    experiment = experiment_for(run, max_train_steps=1, rescale_betas_zero_snr=True, snr_gamma=5.0, noise_offset=0.1)
    with pytest.raises(ConfigError, match="model that predicts epsilon"):
        stage.run_train(run, experiment)
    base = experiment.model.model_copy(update={"base": str(tmp_path / "v")})
    stage.run_train(run, experiment.model_copy(update={"model": base}))
    kind: Any = DDIMScheduler
    scheduler = kind.from_pretrained(run / "model/scheduler")
    assert scheduler.config.timestep_spacing == "trailing" and scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999 and float(scheduler.alphas_cumprod[999]) < 1e-6


def test_samples_and_tensorboard_are_written_where_asked(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stage.run_train(run, experiment_for(run, sample_steps=4, sample_images=3, report_to=["tensorboard"]))
    names = sorted(path.name for path in (run / "samples").glob("*.png"))
    assert names == ["step-000000.png", "step-000004.png", "step-000006.png"]
    pictures = [Image.open(run / "samples" / name).convert("RGB") for name in names]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[2].tobytes()
    assert list((run / "logs").rglob("events.out.tfevents.*"))


def test_watching_changes_no_bit(tmp_path: Path) -> None:
    quiet, watched = write_run(tmp_path / "quiet"), write_run(tmp_path / "watched")
    stage.run_train(quiet, experiment_for(quiet, validation_samples=0))
    stage.run_train(watched, experiment_for(watched, validation_samples=5, validation_steps=1, sample_steps=1))
    assert (quiet / "model" / UNET).read_bytes() == (watched / "model" / UNET).read_bytes()


def test_a_step_may_be_cut_otherwise_on_the_way(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stage.run_train(run, experiment_for(run, train_batch_size=4))
    again = experiment_for(run, train_batch_size=2, gradient_accumulation_steps=2, gradient_checkpointing=True)
    stage.run_train(run, again)  # the checkpoints are taken as they are
    with pytest.raises(ConfigError, match="samples a step: 4 -> 8"):
        stage.run_train(run, experiment_for(run, train_batch_size=8))


@pytest.mark.parametrize(
    "train, message",
    [
        ({"publish": "best", "validation_samples": 0}, "train.publish=best needs a validation loss"),
        ({"attention": "xformers"}, "train.attention=xformers cannot be used here"),
        (
            {"method": "lora", "lora_targets": ["to_nowhere"]},
            "no layer of the UNet is called or ends with 'to_nowhere'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, train: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path)
    with pytest.raises((ConfigError, EnvironmentFault), match=message):
        stage.run_train(run, experiment_for(run, **train))
    assert not (run / "checkpoints").exists() and not (run / "model").exists()


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(EnvironmentFault, match="too little space in .* for the checkpoints"):
        stage.run_train(run, experiment_for(run))
    assert not (run / "checkpoints").exists()


def test_the_moving_average_may_lie_elsewhere(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    stage.run_train(one, experiment_for(one, max_train_steps=2))
    stage.run_train(other, experiment_for(other, max_train_steps=2, ema_device="cpu"))
    assert (one / "model" / UNET).read_bytes() == (other / "model" / UNET).read_bytes()


def test_every_key_of_the_section_reaches_the_training() -> None:
    """A key that neither the recipe nor the stage reads would be a promise that nothing keeps."""
    folder = Path(stage.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    assert [key for key in Experiment().train.model_dump() if source.count(key) == 0] == []


@pytest.mark.parametrize("train", [{"method": "lora"}, {"ema_device": "cpu"}, {"compile": True}])
def test_what_was_not_tried_with_sharded_weights_is_refused(
    train: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = experiment_for(write_run(tmp_path), **train)
    require_shardable(experiment)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="cannot be used with FSDP"):
        require_shardable(experiment)
