"""Each family of models, fine-tuned for two steps and made to draw, by the stages that a user runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLInstructPix2PixPipeline, StableDiffusionXLPipeline
from PIL import Image

from mvc import models
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.denoise import make_scheduler
from mvc.diffusion import widen_conv_in
from mvc.generate.filter_stage import run_filter
from mvc.generate.stage import run_generate
from mvc.images import decode, to_tensor
from mvc.mixing import MixingPlan, apply_plan, draw_plan
from mvc.pairs import draw_pairs
from mvc.randomness import generator
from mvc.storage import read_json_lines
from mvc.synthetic import read_synthetic
from mvc.train.batches import Sampling, assemble
from mvc.train.materials import gather_materials, training_captions
from mvc.train.objective import sample_losses
from mvc.train.stage import run_train
from tests.original_layout import write_original
from tests.tiny_parts import (
    IMAGE_SIZE,
    LATENT_SIZE,
    WIDTH,
    WIDTH_2,
    write_pipeline,
    write_sd2_pipeline,
    write_xl_pipeline,
)
from tests.train.small_run import experiment_for, write_run

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SETTINGS = {"per_real": 1.0, "num_inference_steps": 2, "guidance": "dual", "guidance_scale": 3.0, "batch_size": 4}


def trained(folder: Path, write: Callable[[Path], object], **model: Any) -> Path:
    """A run with a model fine-tuned for two steps, and a synthetic set of both sources."""
    write(folder / "base")
    run = write_run(folder)
    experiment = experiment_for(run, max_train_steps=2)
    content = experiment.model_dump()
    content["model"] |= model
    run_train(run, type(experiment).model_validate(content))
    generated(run, content)
    return run


def generated(run: Path, content: dict[str, Any]) -> None:
    """Make the synthetic set of a run."""
    content["generate"] |= {**SETTINGS, "image_guidance_scale": 1.5, "sources": {"finetuned": 0.5, "pretrained": 0.5}}
    content["filter"] |= {"classifier": False}  # random pictures show no class
    experiment = Experiment.model_validate(content)
    run_generate(run, experiment)
    run_filter(run, experiment)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(
    ("write", "prediction", "width"),
    [
        (write_sd2_pipeline, "v_prediction", 32),
        (lambda folder: write_pipeline(folder, in_channels=8), "epsilon", WIDTH),
        (write_xl_pipeline, "epsilon", WIDTH + WIDTH_2),
    ],
    ids=["sd2", "instruct-pix2pix", "sdxl"],
)
def test_a_family_trains_and_draws(tmp_path: Path, write: Any, prediction: str, width: int) -> None:
    run = trained(tmp_path, write)
    kind: Any = DiffusionPipeline
    pipeline = kind.from_pretrained(run / "model", use_safetensors=True)
    assert type(pipeline).__name__.endswith("InstructPix2PixPipeline")
    assert pipeline.unet.config.in_channels == 8 and pipeline.unet.config.cross_attention_dim == width
    assert pipeline.scheduler.config.prediction_type == prediction
    before, after = models.load_unet(tmp_path / "base").conv_in.weight, pipeline.unet.conv_in.weight
    assert not torch.equal(after[:, : before.shape[1]], before)
    if before.shape[1] == 4:
        assert after[:, 4:].abs().max() > 0
    images = read_synthetic(run)
    assert {image.source for image in images} == {"finetuned", "pretrained"} and len(images) == 6
    assert all(pixels_of(image.path).shape == (IMAGE_SIZE, IMAGE_SIZE, 3) for image in images)


def noise_of(row: Any) -> torch.Tensor:
    drawn = generator(row["seed"], f"noise {row['source']} {row['class_name']}", row["index"], row["attempt"])
    return torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=drawn)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_sdxl_image_is_what_diffusers_makes_of_its_row(tmp_path: Path, scaled: bool) -> None:
    run = trained(tmp_path, write_xl_pipeline, image_latents_scaled=scaled)
    tuned: Any = StableDiffusionXLInstructPix2PixPipeline
    plain: Any = StableDiffusionXLPipeline
    tuned = tuned.from_pretrained(run / "model", use_safetensors=True)
    plain = plain.from_pretrained(tmp_path / "base", use_safetensors=True)
    # The published model says itself how condition latents are scaled.
    assert tuned.is_cosxl_edit is scaled and tuned.config.force_zeros_for_empty_prompt is True
    captions = {row["id"]: row["caption"] for row in read_json_lines(run / "captions.jsonl")}
    for image in read_synthetic(run)[::2]:
        row, pipeline = image.row, plain if image.source == "pretrained" else tuned
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
        own = sorted(name for name in captions if name.startswith(row["class_name"] + "/"))
        states, null, pooled, null_pooled = pipeline.encode_prompt(
            [captions[name] for name in own], device="cpu", do_classifier_free_guidance=True
        )
        base = own.index(row["caption_base"])
        text = states[[base]] if row["plan"] is None else apply_plan(MixingPlan.from_rows([row["plan"]]), states)
        more = {}
        if image.source == "finetuned":
            real = to_tensor(decode(load_index(run).root / row["source_image"]), IMAGE_SIZE)
            with torch.no_grad():
                latents = pipeline.vae.encode(real[None]).latent_dist.mode()
            more = {"image": latents, "image_guidance_scale": row["image_guidance_scale"]}
        expected = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=null[:1],
            pooled_prompt_embeds=pooled[[base]],
            negative_pooled_prompt_embeds=null_pooled[:1],
            latents=noise_of(row),
            height=IMAGE_SIZE,
            width=IMAGE_SIZE,
            num_inference_steps=row["num_inference_steps"],
            guidance_scale=row["guidance_scale"],
            output_type="np",
            **more,
        ).images
        difference = np.abs(pixels_of(image.path).astype(int) - np.rint(expected[0] * 255).astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_cached_sdxl_step_has_the_gradients_of_an_uncached_one(tmp_path: Path) -> None:
    base = write_xl_pipeline(tmp_path / "base", force_zeros=False)
    run = write_run(tmp_path)
    experiment, dataset = experiment_for(run), load_index(run)
    captions = training_captions(run, dataset)
    materials = gather_materials(run, experiment, dataset, captions, base, IMAGE_SIZE)
    samples, scheduler = range(12), models.load_noise_scheduler(base)
    batch = assemble(materials, Sampling(0, "same_class", 2, 8, 0.2, False, 1000), samples)
    kind: Any = StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(base, use_safetensors=True)
    records = dataset.split("train")
    states, vectors = [], []
    for number, pair in zip(samples, draw_pairs(0, samples, materials.labels, "same_class"), strict=True):
        name = records[pair.image].class_name
        texts = [captions[record.id] for record in records if record.class_name == name]
        own, null, pooled, null_pooled = pipeline.encode_prompt(texts, device="cpu", do_classifier_free_guidance=True)
        plan = draw_plan(0, name, [number], len(texts), 77, WIDTH + WIDTH_2, 2, 8)
        dropped = float(torch.rand((), generator=generator(0, "dropout", number))) < 0.4
        states.append(null[0] if dropped else apply_plan(plan, own)[0])
        vectors.append(null_pooled[0] if dropped else pooled[int(plan.base[0])])

    def gradients(loss_of: Callable[[Any], torch.Tensor]) -> dict[str, torch.Tensor]:
        unet = models.load_unet(base)
        widen_conv_in(unet)
        with torch.no_grad():  # so that the condition matters
            unet.conv_in.weight[:, 4:].normal_(generator=generator(0, "test"))
        loss_of(unet).backward()
        return {name: value.grad for name, value in unet.named_parameters()}

    def uncached(unet: Any) -> torch.Tensor:
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        sizes = pipeline._get_add_time_ids((IMAGE_SIZE,) * 2, (0, 0), (IMAGE_SIZE,) * 2, torch.float32, WIDTH_2)
        added = {"text_embeds": torch.stack(vectors), "time_ids": sizes.repeat(len(samples), 1)}
        predicted = unet(
            torch.cat([noisy, batch.image_latents], 1), batch.timesteps, torch.stack(states), added_cond_kwargs=added
        ).sample
        return torch.nn.functional.mse_loss(predicted, batch.noise)

    ours, theirs = gradients(lambda unet: sample_losses(unet, scheduler, batch).mean()), gradients(uncached)
    assert ours["add_embedding.linear_1.weight"].abs().max() > 0
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_fine_tuned_model_is_drawn_from_with_its_own_scheduler(tmp_path: Path) -> None:
    run = trained(tmp_path, write_sd2_pipeline)
    path = run / "model/scheduler/scheduler_config.json"
    first = {image.row["id"]: image.row["sha256"] for image in read_synthetic(run) if image.class_name == "cat"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "trailing"}))
    generated(run, experiment_for(run).model_dump())
    for image in read_synthetic(run):
        if image.class_name == "cat":
            assert (image.row["sha256"] == first[image.row["id"]]) == (image.source == "pretrained")


def test_a_model_in_one_file_trains_and_draws_as_its_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = trained(tmp_path / "folder", write_sd2_pipeline)
    base = tmp_path / "folder" / "base"
    file = write_original(tmp_path / "model.safetensors", base, "sd2")
    run = trained(tmp_path / "file", write_sd2_pipeline, base=str(file), config=str(base))
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert (run / weights).read_bytes() == (expected / weights).read_bytes()
    digests = [[image.row["sha256"] for image in read_synthetic(one)] for one in (run, expected)]
    assert digests[0] == digests[1]
    assert json.loads((run / "model/mvc.json").read_text())["base"] == "model.safetensors"
