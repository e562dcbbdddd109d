"""The train stage: from images and captions to a model folder, with nothing but the UNet in memory while training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mvc import models
from mvc.captions import read_captions
from mvc.config import Experiment
from mvc.dataset import Dataset, load_index
from mvc.diffusion import widen_conv_in
from mvc.embeddings import load_or_encode as load_or_encode_texts
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.latents import FOLDER as LATENTS
from mvc.latents import Latents, SourceImage, draw_transforms, load_or_encode
from mvc.mixing import content_rows
from mvc.pairs import require_partners
from mvc.progress import say
from mvc.storage import sha256_json

from .batches import ClassText, Materials, Sampling, assemble
from .loop import LAST_STEPS, Recipe, fit

EMBEDDINGS, CAPTIONS, MODEL = "cache/embeddings.safetensors", "captions.jsonl", "model"
_FREE = ("train.checkpointing_steps", "train.checkpoints_total_limit", "model.base", "model.revision")
"""Keys a checkpoint does not depend on; the base model counts by its content."""


def run_train(run: Path, experiment: Experiment) -> None:
    """Fine-tune the base model on the run's training images and publish it as run/model.

    Fills run/cache, run/checkpoints and run/logs on the way, and goes on from what is there.

    Args:
        run: the run folder, with the index and the captions.
        experiment: the sections run, data, mixing, model and train are used.

    Raises:
        ConfigError: image size, batch or precision cannot be used, or checkpoints have other settings.
        DataError: captions are missing, an image cannot be decoded, or a class has a single image.
        EnvironmentFault: the base model cannot be loaded, memory is too small, or the disk is full.
        NumericError: training diverged.
        Stopped: a signal asked for a stop; what was done is saved.
    """
    dataset = load_index(run)
    base = models.resolve_base(experiment.model.base, experiment.model.revision)
    size = models.working_size(base, experiment.data.image_size)
    accelerator = make_accelerator(experiment)
    identity = models.model_identity(base)
    captions = _captions(run, dataset)
    # One process fills the caches, the others read them.
    with accelerator.main_process_first():
        materials = gather_materials(run, experiment, dataset, captions, base, size)
    noise_scheduler = models.load_noise_scheduler(base)
    unet = models.load_unet(base)
    if unet.config.in_channels == unet.config.out_channels:
        widen_conv_in(unet)
    sampling = Sampling(
        seed=experiment.run.seed,
        pairing=experiment.train.pairing,
        coarse=experiment.mixing.coarse,
        fine=experiment.mixing.fine,
        dropout=experiment.train.conditioning_dropout_prob,
        image_latents_scaled=experiment.model.image_latents_scaled,
        timesteps=noise_scheduler.config.num_train_timesteps,
    )
    facts = settings_of(experiment, dataset, captions, identity, size)
    recipe = _recipe(experiment)
    try:
        outcome = fit(
            unet,
            noise_scheduler,
            lambda samples: assemble(materials, sampling, samples),
            run,
            recipe,
            facts,
            accelerator,
        )
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(experiment, accelerator.device) from error
    if accelerator.is_main_process:
        _publish(run, experiment, base, unet, identity, size, noise_scheduler.config.prediction_type)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        pace = f"{outcome.seconds_per_step:.3f} s a step, " if outcome.seconds_per_step else ""
        last = min(LAST_STEPS, recipe.max_train_steps)
        say(
            f"fine-tuned for {recipe.max_train_steps} steps: {pace}loss {outcome.loss:.4f} "
            f"(mean of the last {last}); model in {run / MODEL}"
        )


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises:
        ConfigError: fp16 on a CPU, or more processes than samples in a batch.
        EnvironmentFault: the device asked for is not there.
    """
    device = models.pick_device(experiment.run.device)
    precision = experiment.train.mixed_precision
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.mixed_precision=fp16 needs a CUDA device", do="set train.mixed_precision=no or bf16")
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    if experiment.train.train_batch_size < accelerator.num_processes:
        raise ConfigError(
            f"train.train_batch_size={experiment.train.train_batch_size} is less than one sample for each of "
            f"{accelerator.num_processes} processes",
            do=f"set train.train_batch_size={accelerator.num_processes} or more",
        )
    return accelerator


def _captions(run: Path, dataset: Dataset) -> dict[str, str]:
    records = dataset.split("train")
    if not records:
        raise DataError(f"{run} has no training images", do="run the data stage again with --redo")
    return read_captions(run / CAPTIONS, {record.id: record.class_name for record in records})


def gather_materials(
    run: Path, experiment: Experiment, dataset: Dataset, captions: Mapping[str, str], base: Path, size: int
) -> Materials:
    """The captions' embeddings and the images' moments; text encoder and VAE are gone when it returns.

    Raises:
        DataError: a class has too few images, or one cannot be decoded.
    """
    records = dataset.split("train")
    labels = tuple(record.label for record in records)
    if experiment.train.pairing == "same_class":
        require_partners(labels, dataset.classes)
    device = models.pick_device(experiment.run.device)
    stored = load_or_encode_texts(
        run / EMBEDDINGS,
        captions,
        models.model_identity(base, ["tokenizer", "text_encoder"]),
        lambda: (models.load_tokenizer(base), models.load_text_encoder(base).to(device)),
    )
    texts = []
    for label, name in enumerate(dataset.classes):
        members = [record.id for record in records if record.label == label]
        embeddings, ends = stored.of(members)
        limited = experiment.mixing.rows == "content" and len(members) > 0
        texts.append(ClassText(name, embeddings, content_rows(ends) if limited else embeddings.shape[1]))
    return Materials(
        labels=labels,
        images=_encoded_images(run, experiment, dataset, base, size, device),
        texts=texts,
        null=stored.null,
        scaling_factor=float(models.read_config(base, "vae").get("scaling_factor", 0.18215)),
    )


def _encoded_images(
    run: Path, experiment: Experiment, dataset: Dataset, base: Path, size: int, device: torch.device
) -> Latents:
    train = experiment.train
    images = [SourceImage(record.id, dataset.image_path(record), record.sha256) for record in dataset.split("train")]
    transforms = [
        draw_transforms(experiment.run.seed, number, train.transforms, train.random_flip, train.random_crop)
        for number in range(len(images))
    ]
    return load_or_encode(
        run / LATENTS,
        images,
        transforms,
        size,
        experiment.data.background,
        models.model_identity(base, ["vae"]),
        lambda: models.load_vae(base).to(device),
    )


def settings_of(
    experiment: Experiment, dataset: Dataset, captions: Mapping[str, str], identity: str, size: int
) -> dict[str, Any]:
    """Everything a checkpoint depends on, as flat JSON values."""
    content = experiment.model_dump(mode="json")
    facts: dict[str, Any] = {"run.seed": experiment.run.seed, "data.image_size": size}
    for section in ("mixing", "model", "train"):
        facts.update({f"{section}.{key}": value for key, value in content[section].items()})
    facts = {key: value for key, value in facts.items() if key not in _FREE}
    records = dataset.split("train")
    return {
        **facts,
        "files of model.base": identity,
        "training images": sha256_json([[record.id, record.sha256, record.label] for record in records]),
        "captions": sha256_json(sorted(captions.items())),
    }


def _recipe(experiment: Experiment) -> Recipe:
    train = experiment.train
    return Recipe(
        max_train_steps=train.max_train_steps,
        train_batch_size=train.train_batch_size,
        learning_rate=train.learning_rate,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        lr_scheduler=train.lr_scheduler,
        lr_warmup_steps=train.lr_warmup_steps,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_weight_decay=train.adam_weight_decay,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        use_ema=train.use_ema,
        ema_decay=train.ema_decay,
        checkpointing_steps=train.checkpointing_steps,
        checkpoints_total_limit=train.checkpoints_total_limit,
    )


def _publish(
    run: Path, experiment: Experiment, base: Path, unet: Any, identity: str, size: int, prediction_type: str
) -> None:
    facts = {
        "image_latents_scaled": experiment.model.image_latents_scaled,
        # The name alone: a run can be moved, and its model be given away.
        "base": Path(experiment.model.base).name if Path(experiment.model.base).is_dir() else experiment.model.base,
        "base_identity": identity,
        "steps": experiment.train.max_train_steps,
        "prediction_type": prediction_type,
        "image_size": size,
    }
    models.save_model(run / MODEL, unet.cpu(), base, None, facts)


def _out_of_memory(experiment: Experiment, device: torch.device) -> EnvironmentFault:
    train = experiment.train
    batch, accumulation = train.train_batch_size, train.gradient_accumulation_steps
    half = max(batch // 2, 1)
    return EnvironmentFault(
        f"out of memory on {device} with train.train_batch_size={batch}",
        why="the activations of one micro-batch do not fit; finished checkpoints are kept",
        do=f"set train.train_batch_size={half} train.gradient_accumulation_steps={accumulation * batch // half} "
        "(the same global batch) with --redo, or train.mixed_precision=bf16, or a smaller data.image_size",
    )
