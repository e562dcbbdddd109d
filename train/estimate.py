"""`mvc estimate`: what a run will take of memory, disk and time, before it is begun; writes nothing into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mvc import models
from mvc.amounts import with_steps
from mvc.config import Experiment
from mvc.config_types import middle
from mvc.denoise import make_scheduler
from mvc.devices import available_memory
from mvc.diffusion import guidance_terms
from mvc.disk import bytes_below, free_bytes, require_space
from mvc.expected import synthetic_count, training_counts
from mvc.families import family_of
from mvc.loading import part_files

from .batches import Materials
from .estimate_page import print_estimate
from .lora import trained
from .measure import ENOUGH, ImagePace, Pace, measure, measure_images, random_materials
from .setup import (
    make_accelerator,
    new_unet,
    noise_scheduler_of,
    out_of_memory,
    recipe_of,
    require_settings,
    sampling_of,
)
from .sizes import Entry, MemoryParts, checkpoint_bytes, file_bytes, memory_parts
from .unet_setup import prepare_unet


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        run: its folder.
        device: where it will be computed.
        parameters, learnt: of the UNet, and how many of them are trained.
        training, synthetic: images to train on and to make.
        memory: what lies on the device, by formula.
        available: bytes that the device can still give, UNet included; None if unknown.
        pace: of training; None if it does not fit into memory.
        images: of encoding and drawing; None if that does not fit.
        disk: bytes by what they are for, of a finished run.
        there, free: bytes that the run folder has, and that its disk has left.
        seconds: by what they are spent on.
    """

    run: Path
    device: str
    parameters: int
    learnt: int
    training: int
    synthetic: int
    memory: MemoryParts
    available: int | None
    pace: Pace | None
    images: ImagePace | None
    disk: Mapping[str, int]
    there: int
    free: int
    seconds: Mapping[str, float]

    @property
    def to_come(self) -> int:
        """Bytes that the run will still write at most."""
        return max(0, sum(self.disk.values()) - self.there)


def run_estimate(experiment: Experiment) -> None:
    """Estimate a run and print it.

    Raises:
        EnvironmentFault: memory or disk is too small; all that could be said was printed.
    """
    found = estimate(experiment)
    print_estimate(found)
    if found.pace is None:
        raise out_of_memory(experiment, torch.device(found.device))
    require_space(found.run, found.to_come, "the whole run")


def estimate(experiment: Experiment) -> Estimate:
    """Load the base model, do some steps on random samples, and add up.

    The weights are the real ones, images and captions are not: a step costs the same whatever they show.

    Args:
        experiment: with run.dir set; the run need not exist, and nothing is written into it.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the data folder cannot be used.
        EnvironmentFault: the base model cannot be loaded, or a package is missing.
        Stopped: a signal asked for a stop.
    """
    require_settings(experiment)
    run = Path(experiment.run.dir)
    counts = training_counts(run, experiment)
    experiment = with_steps(experiment, sum(counts.values()))
    train = experiment.train
    base = models.resolve_base(experiment.model.base, experiment.model.revision, experiment.model.config)
    size = models.working_size(base, experiment.data.image_size)
    accelerator = make_accelerator(experiment)
    device = accelerator.device
    unet = new_unet(base, experiment)
    every, learnt = list(unet.named_parameters()), trained(unet)
    average_there = train.use_ema and (train.ema_device == "model" or device.type == "cpu")
    memory = memory_parts(every, learnt, train.optimizer, average_there)
    tokens = int(models.read_config(base, "text_encoder")["max_position_embeddings"])
    materials = random_materials(unet.config, size // models.vae_factor(base), tokens, size)
    training, synthetic = sum(counts.values()), synthetic_count(counts, experiment)
    disk = _disk(experiment, base, unet, materials, training, synthetic * size * size * 3)
    available = _available(device, memory)
    pace, images = None, None
    if available is None or memory.total <= available:
        pace, images = _measured(experiment, base, unet, materials, size, accelerator)
    return Estimate(
        run=run,
        device=str(device),
        parameters=sum(value.numel() for _, value in every),
        learnt=sum(value.numel() for _, value in learnt),
        training=training,
        synthetic=synthetic,
        memory=memory,
        available=available,
        pace=pace,
        images=images,
        disk=disk,
        there=bytes_below(run),
        free=free_bytes(run),
        seconds=_seconds(experiment, pace, images, training * _variants(experiment), synthetic),
    )


def _variants(experiment: Experiment) -> int:
    """Entries of the latents cache for each image."""
    train = experiment.train
    return 1 + (train.transforms if train.random_flip or train.random_crop > 0.0 else 0)


def _available(device: torch.device, memory: MemoryParts) -> int | None:
    """Bytes for the whole training: on a CPU the UNet has been loaded, so its weights are out of what is left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = available_memory()
    return None if left is None else left + memory.weights


def _disk(
    experiment: Experiment, base: Path, unet: Any, materials: Materials, training: int, pixels: int
) -> dict[str, int]:
    """Bytes of a finished run by what they are for; of files with variable size the most they can have."""
    train = experiment.train
    one = checkpoint_bytes(trained(unet), train.optimizer, train.use_ema)
    # LoRA's additions are merged into the published weights.
    plain = [Entry(name, tuple(value.shape)) for name, value in unet.named_parameters() if "lora_" not in name]
    parts = [part for part in family_of(base).parts if part != "unet"]
    others = sum(path.stat().st_size for part in parts for path in part_files(base / part))
    moments = materials.images.shards[0][0].numel()
    text = materials.null.numel() + (0 if materials.null_pooled is None else materials.null_pooled.numel())
    return {
        f"{train.checkpoints_total_limit} newest checkpoints": train.checkpoints_total_limit * one,
        "best checkpoint": one,
        "a checkpoint while it is written": one,
        "model": file_bytes(plain) + others,
        "latents cache": 4 * moments * training * _variants(experiment),
        "caption embeddings": 4 * text * (training + 1),
        "synthetic images, at most": pixels,
    }


def _measured(
    experiment: Experiment, base: Path, unet: Any, materials: Materials, size: int, accelerator: Accelerator
) -> tuple[Pace | None, ImagePace | None]:
    train, generate = experiment.train, experiment.generate
    noise_scheduler = noise_scheduler_of(base, experiment)
    sampling = sampling_of(experiment, noise_scheduler)
    try:
        unet = unet.to(accelerator.device)
        prepare_unet(unet, train.attention, train.gradient_checkpointing, train.channels_last)
        pace = measure(unet, noise_scheduler, materials, sampling, recipe_of(experiment), accelerator)
    except torch.OutOfMemoryError:
        return None, None
    accelerator.free_memory()  # the optimiser's moments
    unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False).eval().requires_grad_(False)
    terms = guidance_terms(generate.guidance, middle(generate.guidance_scale), middle(generate.image_guidance_scale))
    batch_size = generate.batch_size
    if accelerator.device.type == "cpu":  # a few seconds will do: the time is in proportion to the batch
        batch_size = min(batch_size, max(1, int(ENOUGH / (2 * len(terms) * pace.validation))))
    try:
        images = measure_images(
            unet,
            models.load_vae(base).to(accelerator.device),
            materials,
            partial(make_scheduler, generate.scheduler, noise_scheduler.config),
            terms,
            generate.num_inference_steps,
            batch_size,
            size,
        )
    except torch.OutOfMemoryError:
        return pace, None
    return pace, images


def _seconds(
    experiment: Experiment, pace: Pace | None, images: ImagePace | None, encoded: int, synthetic: int
) -> dict[str, float]:
    """Time of each part that was measured; captions, classifiers and sample grids are not."""
    train, seconds = experiment.train, dict[str, float]()
    if images is not None:
        seconds["encoding images"] = images.encode * encoded
    if pace is not None:
        seconds["fine-tuning"] = pace.first + pace.step * (train.steps - 1)
        last = train.steps
        looks = {
            step for every in (train.validation_steps, train.checkpointing_steps) for step in range(0, last, every)
        }
        seconds["validation loss"] = pace.validation * train.validation_samples * len(looks | {last})
    if images is not None:
        seconds["synthetic images"] = images.draw * synthetic
    return seconds
