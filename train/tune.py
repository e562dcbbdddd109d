"""What `mvc tune` needs of the fine-tuning: which checkpoints there are, and the model folder of one."""

from __future__ import annotations

from pathlib import Path

from mvc import models
from mvc.amounts import with_steps
from mvc.config import Experiment
from mvc.diffusion import ZERO_SNR
from mvc.errors import DataError
from mvc.expected import training_counts
from mvc.storage import MANIFEST, read_json

from .checkpoints import FOLDER, checkpoints
from .lora import merge_lora
from .setup import unet_of_checkpoint


def checkpoint_steps(run: Path, experiment: Experiment) -> list[int]:
    """The fine-tuning steps of which a model can be had, ascending.

    Args:
        run: the run folder. Once its fine-tuning is finished, the checkpoints that were kept count.
        experiment: before that, those that its section train would keep; the best by validation loss, which is kept
            besides, is not known by then.
    """
    if (run / "model" / models.FACTS).exists():
        return sorted(int(path.name.removeprefix("step-")) for path in checkpoints(run / FOLDER))
    if experiment.train.max_train_steps is None:
        experiment = with_steps(experiment, sum(training_counts(run, experiment).values()))
    train = experiment.train
    saved = [*range(train.checkpointing_steps, train.steps, train.checkpointing_steps), train.steps]
    return saved[-train.checkpoints_total_limit :]


def checkpoint_manifest(run: Path, step: int) -> Path:
    """The file that changes whenever a checkpoint does."""
    return run / FOLDER / f"step-{step:06d}" / MANIFEST


def publish_checkpoint(run: Path, experiment: Experiment, step: int, target: Path) -> None:
    """Build the model folder of a checkpoint, as fine-tuning that ended there would have published it.

    Args:
        run: the run folder, its fine-tuning finished.
        experiment: sections run, model and train are used.
        step: one of `checkpoint_steps`.
        target: the folder to write; an existing one is replaced.

    Raises:
        DataError: the fine-tuning is not finished.
        EnvironmentFault: the checkpoint is damaged, or the place cannot be written.
    """
    known = run / "model" / models.FACTS
    if not known.exists():
        raise DataError(f"{run / 'model'} holds no fine-tuned model", do="run `mvc train`")
    train, model = experiment.train, experiment.model
    base = models.resolve_base(model.base, model.revision, model.config)
    unet = unet_of_checkpoint(run / FOLDER / f"step-{step:06d}", base, experiment)
    if train.method == "lora":
        merge_lora(unet)
    changes = ZERO_SNR if train.rescale_betas_zero_snr else None
    models.save_model(target, unet, base, None, {**read_json(known), "steps": step}, changes)
