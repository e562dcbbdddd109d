from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load_file

from mvc import models
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.diffusion import conditioning_dropout, widen_conv_in
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.images import decode, to_tensor
from mvc.mixing import apply_plan, content_rows, draw_plan
from mvc.pairs import draw_pairs
from mvc.randomness import generator
from mvc.storage import read_json_lines
from mvc.train import stage
from mvc.train.batches import Batch, Sampling, assemble
from mvc.train.objective import sample_losses
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, WIDTH, write_pipeline
from tests.train.small_run import experiment_for, write_run

SHAPE = (4, LATENT_SIZE, LATENT_SIZE)


def one(sample: int, purpose: str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(0, purpose, sample))


def uncached_batch(run: Path, base: Path, samples: range) -> Batch:
    """The same samples with VAE and text encoder in the loop, as the reference training script has them."""
    dataset = load_index(run)
    records = dataset.split("train")
    vae, encoder, tokenizer = models.load_vae(base), models.load_text_encoder(base), models.load_tokenizer(base)
    captions = {row["id"]: row["caption"] for row in read_json_lines(run / "captions.jsonl")}

    def encode_text(text: str) -> torch.Tensor:
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        hidden: torch.Tensor = encoder(ids)[0][0]
        return hidden

    rows: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for number, pair in zip(
            samples, draw_pairs(0, samples, [record.label for record in records], "same_class"), strict=True
        ):
            x, other = (
                vae.encode(to_tensor(decode(dataset.image_path(records[image])), IMAGE_SIZE)[None]).latent_dist
                for image in (pair.image, pair.partner)
            )
            latents = (x.mean + x.std * one(number, "vae noise"))[0] * vae.config.scaling_factor
            name = records[pair.image].class_name
            texts = [encode_text(captions[record.id]) for record in records if record.class_name == name]
            plan = draw_plan(0, name, [number], len(texts), 77, WIDTH, 2, 8)
            text, image = apply_plan(plan, torch.stack(texts))[0], other.mode()[0]
            drop_text, drop_image = conditioning_dropout(torch.rand(1, generator=generator(0, "dropout", number)), 0.2)
            text = encode_text("") if drop_text else text
            image = torch.zeros(SHAPE) if drop_image else image
            timestep = torch.randint(1000, (), generator=generator(0, "timestep", number))
            rows.append((latents, one(number, "noise"), timestep, text, image))
    return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def test_the_cached_step_equals_the_uncached_one(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    experiment = experiment_for(run)
    base = models.resolve_base(experiment.model.base)
    dataset = load_index(run)
    captions = {row["id"]: row["caption"] for row in read_json_lines(run / "captions.jsonl")}
    materials = stage.gather_materials(run, experiment, dataset, captions, base, IMAGE_SIZE)
    samples = range(20)
    sampling = Sampling(0, "same_class", 2, 8, 0.2, False, 1000)
    cached, uncached = assemble(materials, sampling, samples), uncached_batch(run, base, samples)
    for name, value in vars(cached).items():
        torch.testing.assert_close(value, getattr(uncached, name), rtol=1e-5, atol=1e-5, msg=name)
    results = []
    for batch in (cached, uncached):
        unet = models.load_unet(base).train()
        widen_conv_in(unet)
        losses = sample_losses(unet, models.load_noise_scheduler(base), batch)
        losses.mean().backward()
        results.append((losses, {name: value.grad for name, value in unet.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_is_trained_and_opens_in_plain_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    experiment = experiment_for(run)
    stage.run_train(run, experiment)
    said = capsys.readouterr().err
    assert "fine-tuned for 6 steps:" in said and "s a step, loss" in said
    rows = read_json_lines(run / "logs/train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "seconds", "skipped", "loss_by_timestep"}
    facts = json.loads((run / "model/mvc.json").read_text())
    assert facts["steps"] == 6 and facts["image_latents_scaled"] is False and facts["image_size"] == IMAGE_SIZE
    average = load_file(run / "checkpoints/step-000006/ema.safetensors")
    kind: Any = StableDiffusionInstructPix2PixPipeline
    pipeline = kind.from_pretrained(run / "model", safety_checker=None)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, average[name])
    assert average["conv_in.weight"][:, 4:].abs().max() > 0

    # With everything cached, neither VAE nor text encoder nor a training step is needed again.
    for name in ("load_vae", "load_text_encoder"):
        monkeypatch.setattr(models, name, None)
    weights = (run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(run / "model")
    stage.run_train(run, experiment)
    assert (run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_the_result_depends_on_seed_and_data_not_on_the_place(tmp_path: Path) -> None:
    def unet(folder: Path, **changes: Any) -> bytes:
        run = write_run(tmp_path / folder)
        experiment = experiment_for(run, max_train_steps=2)
        stage.run_train(run, experiment.model_copy(update=changes))
        return (run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()

    first = unet(Path("a"))
    assert unet(Path("b")) == first
    assert unet(Path("c"), run=Experiment().run.model_copy(update={"seed": 1, "device": "cpu"})) != first


def test_other_options_train_too(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_pipeline(tmp_path / "v", prediction_type="v_prediction")
    experiment = Experiment.model_validate(
        {
            "run": {"device": "cpu"},
            "data": {"image_size": 16},
            "mixing": {"rows": "content", "coarse": 1, "fine": 0},
            "model": {"base": str(tmp_path / "v"), "image_latents_scaled": True},
            "train": {
                "max_train_steps": 2,
                "train_batch_size": 3,
                "gradient_accumulation_steps": 2,
                "pairing": "self",
                "random_flip": True,
                "random_crop": 0.2,
                "use_ema": False,
            },
        }
    )
    stage.run_train(run, experiment)
    facts = json.loads((run / "model/mvc.json").read_text())
    assert facts["prediction_type"] == "v_prediction" and facts["image_latents_scaled"] is True
    assert facts["image_size"] == 16
    assert len(read_json_lines(run / "logs/train.jsonl")) == 2


def test_a_base_with_8_channels_needs_no_surgery(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    experiment = experiment_for(run, max_train_steps=1)
    stage.run_train(run, experiment)
    again = write_run(tmp_path / "second")
    base = {"base": str(run / "model")}
    stage.run_train(again, experiment.model_copy(update={"model": experiment.model.model_copy(update=base)}))
    assert models.load_unet(again / "model").config.in_channels == 8


def test_only_rows_with_words_are_mixed_where_asked(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    base = models.resolve_base(experiment_for(run).model.base)
    dataset = load_index(run)
    captions = {row["id"]: row["caption"] for row in read_json_lines(run / "captions.jsonl")}
    for rows in ("all", "content"):
        mixing = experiment_for(run).mixing.model_copy(update={"rows": rows})
        experiment = experiment_for(run).model_copy(update={"mixing": mixing})
        materials = stage.gather_materials(run, experiment, dataset, captions, base, IMAGE_SIZE)
        tokens = models.load_tokenizer(base)(list(captions.values())[:3]).input_ids
        ends = torch.tensor([len(ids) - 1 for ids in tokens])
        assert materials.texts[0].rows == (77 if rows == "all" else content_rows(ends))


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    run = write_run(tmp_path, images=1)
    with pytest.raises(DataError, match="fewer than two training images: cat, dog"):
        stage.run_train(run, experiment_for(run))
    run = write_run(tmp_path / "two", images=2)
    experiment = experiment_for(run)
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        stage.run_train(run, experiment_for(run, mixed_precision="fp16"))
    data = experiment.data.model_copy(update={"image_size": 30})
    with pytest.raises(ConfigError, match="image_size=30"):
        stage.run_train(run, experiment.model_copy(update={"data": data}))
    with pytest.raises(EnvironmentFault, match="not there"):
        model = experiment.model.model_copy(update={"base": str(tmp_path / "nothing")})
        stage.run_train(run, experiment.model_copy(update={"model": model}))
    stage.run_train(run, experiment)
    with pytest.raises(ConfigError, match=r"other settings: train.learning_rate: 0.0001 -> 0.1"):
        stage.run_train(run, experiment_for(run, learning_rate=0.1))
    (run / "captions.jsonl").unlink()
    with pytest.raises(DataError, match="captions.jsonl is missing"):
        stage.run_train(run, experiment)
