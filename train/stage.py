"""The train stage: from images and captions to a model folder, with nothing but the UNet in memory while training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mvc import models
from mvc.amounts import with_steps
from mvc.config import Experiment
from mvc.dataset import Dataset, load_index
from mvc.diffusion import ZERO_SNR
from mvc.disk import require_space
from mvc.progress import say
from mvc.stages import TRAIN_FREE
from mvc.storage import publish_folder, sha256_json

from .batches import Materials, assemble
from .checkpoints import FOLDER as CHECKPOINTS
from .checkpoints import best_checkpoint, checkpoints
from .loop import LAST_STEPS, Outcome, fit
from .lora import merge_lora, save_lora, trained
from .materials import gather_materials, training_captions
from .setup import (
    make_accelerator,
    new_unet,
    noise_scheduler_of,
    out_of_memory,
    recipe_of,
    require_settings,
    sampling_of,
    unet_of_checkpoint,
)
from .sizes import checkpoint_bytes, checkpoints_to_come
from .unet_setup import prepare_unet
from .validation import hold_out, without
from .watchers import watchers

MODEL, LORA = "model", "lora"
"""Below the run folder: the whole model, and with LoRA also its small files."""
_FREE = (*TRAIN_FREE, "train.train_batch_size", "train.gradient_accumulation_steps")
"""Keys a checkpoint does not depend on; of the last two the product counts, and the base model by its content."""


def run_train(run: Path, experiment: Experiment) -> None:
    """Fine-tune the base model on the run's training images and publish it as run/model.

    Fills run/cache, run/checkpoints and run/logs on the way, and goes on from what is there.

    Args:
        run: the run folder, with the index and the captions.
        experiment: the sections run, data, mixing, model and train are used.

    Raises:
        ConfigError: a setting cannot be used, or checkpoints have other settings.
        DataError: captions are missing, an image cannot be decoded, or a class has a single image.
        EnvironmentFault: the base model cannot be loaded, memory or disk is too small.
        NumericError: training diverged.
        Stopped: a signal asked for a stop; what was done is saved.
    """
    require_settings(experiment)
    dataset = load_index(run)
    experiment = with_steps(experiment, len(dataset.split("train")))
    train = experiment.train
    base = models.resolve_base(experiment.model.base, experiment.model.revision, experiment.model.config)
    size = models.working_size(base, experiment.data.image_size)
    accelerator = make_accelerator(experiment)
    noise_scheduler = noise_scheduler_of(base, experiment)
    identity = models.model_identity(base)
    captions = training_captions(run, dataset)
    # One process fills the caches, the others read them.
    with accelerator.main_process_first():
        materials = gather_materials(run, experiment, dataset, captions, base, size)
    facts = settings_of(experiment, dataset, captions, identity, size)
    outcome = _fit(run, experiment, base, materials, noise_scheduler, facts, accelerator)
    if accelerator.is_main_process:
        facts = {
            "image_latents_scaled": experiment.model.image_latents_scaled,
            # The name alone: a run can be moved, and its model be given away.
            "base": Path(experiment.model.base).name if Path(experiment.model.base).exists() else experiment.model.base,
            "base_identity": identity,
            "prediction_type": noise_scheduler.config.prediction_type,
            "image_size": size,
        }
        publish(run, experiment, base, facts)
        _tell(run, train.steps, outcome)
    accelerator.wait_for_everyone()


def _fit(
    run: Path,
    experiment: Experiment,
    base: Path,
    materials: Materials,
    noise_scheduler: Any,
    facts: Mapping[str, Any],
    accelerator: Accelerator,
) -> Outcome:
    train = experiment.train
    sampling = sampling_of(experiment, noise_scheduler)
    held_out = hold_out(sampling.seed, materials.labels, train.validation_share)
    seen = without(materials, held_out)
    unet = new_unet(base, experiment)
    size = checkpoint_bytes(trained(unet), train.optimizer, train.use_ema)
    if accelerator.is_main_process:
        needed = checkpoints_to_come(run / CHECKPOINTS, size, train.checkpoints_total_limit)
        require_space(run, needed, "the checkpoints of the training")
    try:
        unet.to(accelerator.device)
        prepare_unet(unet, train.attention, train.gradient_checkpointing, train.channels_last)
        with watchers(run, experiment, base, materials, held_out, sampling, noise_scheduler, accelerator) as watch:
            return fit(
                unet,
                noise_scheduler,
                lambda samples: assemble(seen, sampling, samples),
                run,
                recipe_of(experiment),
                facts,
                accelerator,
                watch,
            )
    except torch.OutOfMemoryError as error:
        raise out_of_memory(experiment, accelerator.device) from error


def settings_of(
    experiment: Experiment, dataset: Dataset, captions: Mapping[str, str], identity: str, size: int
) -> dict[str, Any]:
    """Everything a checkpoint depends on, as flat JSON values."""
    content = experiment.model_dump(mode="json")
    facts: dict[str, Any] = {"run.seed": experiment.run.seed, "data.image_size": size}
    for section in ("mixing", "model", "train"):
        facts.update({f"{section}.{key}": value for key, value in content[section].items()})
    by_content = ("model.base", "model.revision", "model.config")
    facts = {key: value for key, value in facts.items() if key not in (*_FREE, *by_content)}
    records = dataset.split("train")
    return {
        **facts,
        "samples a step": recipe_of(experiment).samples,
        "files of model.base": identity,
        "training images": sha256_json([[record.id, record.sha256, record.label] for record in records]),
        "captions": sha256_json(sorted(captions.items())),
    }


def publish(run: Path, experiment: Experiment, base: Path, facts: Mapping[str, Any]) -> None:
    """Build the model folder from the last checkpoint, or from the best one.

    From the checkpoint and not from memory, so that what is published is what was saved, however the training's
    own copy was wrapped, sharded or compiled.

    Args:
        run: the run folder.
        experiment: section train is used.
        base: folder of the base model.
        facts: for the model's mvc.json; the step is added.

    Raises:
        EnvironmentFault: the checkpoint is damaged, or the place cannot be written.
    """
    train, folder = experiment.train, run / CHECKPOINTS
    source = (best_checkpoint(folder) if train.publish == "best" else None) or checkpoints(folder)[0]
    unet = unet_of_checkpoint(source, base, experiment)
    step = int(source.name.removeprefix("step-"))
    if train.method == "lora":
        with publish_folder(run / LORA, {"kind": "lora"}) as folder:
            save_lora(folder, unet)
        merge_lora(unet)
    changes = ZERO_SNR if train.rescale_betas_zero_snr else None
    models.save_model(run / MODEL, unet, base, None, {**facts, "steps": step}, changes)
    if train.publish == "best":
        say(f"the best checkpoint by validation loss is that of step {step}; it is published")


def _tell(run: Path, steps: int, outcome: Outcome) -> None:
    pace = f"{outcome.seconds_per_step:.3f} s a step, " if outcome.seconds_per_step else ""
    skipped = f", {outcome.skipped} steps skipped" if outcome.skipped else ""
    say(
        f"fine-tuned for {steps} steps: {pace}loss {outcome.loss:.4f} "
        f"(mean of the last {min(LAST_STEPS, steps)}){skipped}; model in {run / MODEL}"
    )
