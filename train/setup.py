"""From an experiment to what a training needs: device, UNet, sampling and recipe, with early refusals."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from mvc import models
from mvc.compiling import require_compiler
from mvc.config import Experiment
from mvc.devices import pick_device
from mvc.diffusion import end_at_pure_noise, widen_conv_in
from mvc.errors import ConfigError, EnvironmentFault
from mvc.processes import require_supported, sharded

from .batches import Sampling
from .checkpoints import load_weights
from .lora import add_lora, trained
from .optimizers import require_optimizer
from .recipe import Recipe
from .tracking import require_trackers
from .unet_setup import require_attention

_WAIT = timedelta(hours=12)
"""How long processes wait for the first one to fill the caches; one that dies is noticed by whoever started them."""


def require_settings(experiment: Experiment) -> None:
    """Refuse at once what would fail after the captions, the caches or the model are loaded."""
    train = experiment.train
    if train.publish == "best" and not train.validation_samples:
        raise ConfigError("train.publish=best needs a validation loss", do="set train.validation_samples=64")
    require_optimizer(train.optimizer, train.channels_last)
    require_attention(train.attention)
    require_trackers(train.report_to)
    if train.compile:
        require_compiler("train.compile")


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises:
        ConfigError: fp16 on a CPU, more processes than samples in a batch, or a launcher that asks for what we
            do not support.
        EnvironmentFault: the device asked for is not there.
    """
    device = pick_device(experiment.run.device)
    precision = experiment.train.mixed_precision
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.mixed_precision=fp16 needs a CUDA device", do="set train.mixed_precision=no or bf16")
    require_supported(device.type)
    require_shardable(experiment)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_WAIT)],
    )
    if experiment.train.train_batch_size < accelerator.num_processes:
        raise ConfigError(
            f"train.train_batch_size={experiment.train.train_batch_size} is less than one sample for each of "
            f"{accelerator.num_processes} processes",
            do=f"set train.train_batch_size={accelerator.num_processes} or more",
        )
    return accelerator


def require_shardable(experiment: Experiment) -> None:
    """Refuse what has not been tried with weights that are spread over processes."""
    train = experiment.train
    untried = {
        "train.optimizer=adamw8bit": train.optimizer == "adamw8bit",
        "train.method=lora": train.method == "lora",
        "train.ema_device=cpu": train.use_ema and train.ema_device == "cpu",
        "train.compile=true": train.compile,
    }
    chosen = [name for name, is_chosen in untried.items() if is_chosen]
    if sharded() and chosen:
        raise ConfigError(
            f"{', '.join(chosen)} cannot be used with FSDP",
            why="sharded training supports the whole UNet with AdamW alone",
            do="leave it out, or start plain processes",
        )


def new_unet(base: Path, experiment: Experiment) -> Any:
    """The base's UNet with input channels for x' and, with LoRA, its additions; what is trained requires a gradient.

    Raises:
        ConfigError: train.lora_targets names no layer.
        EnvironmentFault: it cannot be loaded.
    """
    train, unet = experiment.train, models.load_unet(base)
    if unet.config.in_channels == unet.config.out_channels:
        widen_conv_in(unet)
    if train.method == "lora":
        alpha = train.lora_rank if train.lora_alpha is None else train.lora_alpha
        add_lora(unet, train.lora_rank, alpha, train.lora_targets, train.lora_dora, experiment.run.seed)
    return unet


def unet_of_checkpoint(path: Path, base: Path, experiment: Experiment) -> Any:
    """The UNet that a checkpoint stands for, LoRA not merged yet.

    Args:
        path: the checkpoint.
        base: folder of the base model.
        experiment: section train is used.

    Raises:
        EnvironmentFault: the checkpoint is damaged, or the base model cannot be loaded.
    """
    weights = load_weights(path, experiment.train.use_ema)
    unet = new_unet(base, experiment)
    with torch.no_grad():
        for name, value in trained(unet):
            value.copy_(weights[name])
    return unet


def noise_scheduler_of(base: Path, experiment: Experiment) -> Any:
    """The base's noise schedule as a DDPMScheduler, ended at pure noise where the experiment asks for it.

    Raises:
        ConfigError: that is asked for and the base predicts epsilon.
    """
    noise_scheduler = models.load_noise_scheduler(base)
    return end_at_pure_noise(noise_scheduler) if experiment.train.rescale_betas_zero_snr else noise_scheduler


def sampling_of(experiment: Experiment, noise_scheduler: Any) -> Sampling:
    """How samples are drawn."""
    return Sampling(
        seed=experiment.run.seed,
        pairing=experiment.train.pairing,
        coarse=experiment.mixing.coarse,
        fine=experiment.mixing.fine,
        dropout=experiment.train.conditioning_dropout_prob,
        image_latents_scaled=experiment.model.image_latents_scaled,
        timesteps=noise_scheduler.config.num_train_timesteps,
        noise_offset=experiment.train.noise_offset,
    )


def recipe_of(experiment: Experiment) -> Recipe:
    """The part of the `train` section that the loop needs."""
    return Recipe(**{field.name: getattr(experiment.train, field.name) for field in fields(Recipe)})


def out_of_memory(experiment: Experiment, device: torch.device) -> EnvironmentFault:
    """The error for a micro-batch that does not fit, with what to do, the cheapest first."""
    train = experiment.train
    batch, accumulation = train.train_batch_size, train.gradient_accumulation_steps
    half = max(batch // 2, 1)
    return EnvironmentFault(
        f"out of memory on {device} with train.train_batch_size={batch}",
        why="the activations of one micro-batch do not fit; finished checkpoints are kept",
        do=f"set train.train_batch_size={half} train.gradient_accumulation_steps={accumulation * batch // half} "
        "(the same training), train.gradient_checkpointing=true, train.mixed_precision=bf16, train.ema_device=cpu, "
        "train.optimizer=adamw8bit, or a smaller data.image_size",
    )
