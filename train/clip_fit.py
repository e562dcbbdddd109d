"""One training of a CLIP comparison, as its experiment says."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from mvc.clip.models import Clip
from mvc.errors import ConfigError
from mvc.progress import Meter

from .clip_evaluation import measured
from .clip_loop import ClipFit, fit_clip
from .clip_task import ClipTask
from .clip_techniques import Techniques
from .recipe import Recipe


def fit_task(task: ClipTask, clip: Clip, accelerator: Accelerator, shown: Meter, folder: Path) -> ClipFit:
    """Train a CLIP in place, from the newest checkpoint in a folder if there is one.

    Args:
        task: what it is trained by.
        clip: the one to begin with, on the accelerator's device.
        accelerator: device and processes.
        shown: advanced by a step at a time.
        folder: of the checkpoints.

    Raises:
        ConfigError: it has BatchNorm, and would be trained on parts of a batch.
        NumericError, Stopped: as in `fit_clip`.
    """
    _require_whole_batches(task, clip, accelerator)
    train, own, data = task.experiment.train, task.experiment.techniques, task.data
    batch_size = task.experiment.evaluate.batch_size
    recipe = Recipe(
        max_train_steps=train.max_train_steps,
        train_batch_size=train.train_batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=train.lr_warmup_steps,
        adam_beta2=train.adam_beta2,
        adam_weight_decay=train.weight_decay,
        adam_epsilon=1e-6,
        max_grad_norm=train.max_grad_norm,
        checkpointing_steps=train.checkpointing_steps,
        checkpoints_total_limit=train.checkpoints_total_limit,
        validation_steps=train.evaluation_steps,
    )
    return fit_clip(
        clip,
        data.train,
        Techniques(task.arm, own, task.seed, train.train_batch_size),
        recipe,
        folder,
        task.settings,
        accelerator,
        crop_scale=train.crop_scale,
        micro_batch_size=train.micro_batch_size,
        bf16=train.mixed_precision == "bf16",
        mining_steps=own.mining_steps,
        negatives=own.negatives,
        num_workers=train.num_workers,
        evaluate=lambda trained: float(measured(trained, data.validation, batch_size)["rsum"]),
        keep_best=train.publish == "best",
        shown=shown,
    )


def _require_whole_batches(task: ClipTask, clip: Clip, accelerator: Accelerator) -> None:
    train = task.experiment.train
    parts = accelerator.num_processes > 1 or (train.micro_batch_size or train.train_batch_size) < train.train_batch_size
    if parts and any(isinstance(module, _BatchNorm) for module in clip.network.modules()):
        raise ConfigError(
            f"the CLIP {task.experiment.model.name} has BatchNorm, which is trained on whole batches only",
            why="a part of a batch has other statistics, and would make another model",
            do="leave out train.micro_batch_size and train in one process, or take a vision transformer",
        )
