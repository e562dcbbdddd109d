"""What looks at a fine-tuning as the experiment asks for it: validation loss, sample images, trackers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mvc import models
from mvc.config import Experiment
from mvc.config_types import middle
from mvc.diffusion import guidance_terms

from .batches import Materials, Sampling
from .samples import SampleDrawer, sample_inputs
from .step import Watch
from .tracking import Tracking
from .validation import fixed_batches, validation_loss


@contextmanager
def watchers(
    run: Path,
    experiment: Experiment,
    base: Path,
    materials: Materials,
    held_out: Sequence[int],
    sampling: Sampling,
    noise_scheduler: Any,
    accelerator: Accelerator,
) -> Iterator[Watch]:
    """What `loop.fit` is to call; trackers are closed at the end, whatever ends it.

    Args:
        run: the run folder.
        experiment: section train is used, and how section generate draws.
        base: folder of the base model.
        materials: of all training images.
        held_out: numbers of those that are kept from fine-tuning.
        sampling: as in training.
        noise_scheduler: as in training.
        accelerator: device and processes.
    """
    train, validate = experiment.train, None
    if train.validation_samples:
        batch_size = _share(train.train_batch_size, accelerator)
        batches = fixed_batches(materials, sampling, held_out, train.validation_samples, batch_size)

        def validate(unet: Any) -> float:
            return validation_loss(unet, noise_scheduler, batches, accelerator)

    drawer = _drawer(run, experiment, base, materials, sampling, noise_scheduler, accelerator)
    tracking = Tracking(train.report_to, run, experiment.model_dump(mode="json")["train"])
    try:
        yield Watch(
            validate=validate,
            validated_on="held-out images" if held_out else "training images",
            draw=drawer.draw if drawer is not None else None,
            track=tracking.track if train.report_to and accelerator.is_main_process else None,
        )
    finally:
        tracking.close()


def _drawer(
    run: Path,
    experiment: Experiment,
    base: Path,
    materials: Materials,
    sampling: Sampling,
    noise_scheduler: Any,
    accelerator: Accelerator,
) -> SampleDrawer | None:
    train, how = experiment.train, experiment.generate
    if not train.sample_steps:
        return None
    return SampleDrawer(
        run=run,
        inputs=sample_inputs(materials, sampling, train.sample_images, _share(train.train_batch_size, accelerator)),
        scheduler=how.scheduler,
        scheduler_config=noise_scheduler.config,
        terms=guidance_terms(how.guidance, middle(how.guidance_scale), middle(how.image_guidance_scale)),
        num_inference_steps=how.num_inference_steps,
        load_vae=lambda: models.load_vae(base),
        accelerator=accelerator,
    )


def _share(batch_size: int, accelerator: Accelerator) -> int:
    """Samples of one process in a forward pass, for which there is room."""
    return max(1, batch_size // int(accelerator.num_processes))
