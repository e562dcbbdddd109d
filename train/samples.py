"""The same few images drawn at several steps: what the fine-tuning does to them shows what no loss says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from mvc.denoise import decode, denoise, make_scheduler
from mvc.diffusion import GuidanceTerm
from mvc.images import to_pixels
from mvc.randomness import derived_seed
from mvc.report.grids import write_grid

from .batches import Batch, Materials, Sampling
from .validation import in_turn, plain_batch


@dataclass(frozen=True)
class SampleInputs:
    """What n images are drawn from, on the CPU; fixed for a whole training.

    Attributes:
        classes: class folder of each.
        batches: their noise, mixed embeddings and image latents; `latents` are those of x', to be shown beside.
        null: (m, d) embedding of the empty text.
        null_pooled: (p,) pooled vector of the empty text; None unless the base is an SDXL.
    """

    classes: list[str]
    batches: list[Batch]
    null: Tensor
    null_pooled: Tensor | None


def sample_inputs(materials: Materials, sampling: Sampling, count: int, batch_size: int) -> SampleInputs:
    """Choose what to draw: one class after the other, a training image of it as x', a mixed embedding, and noise.

    Args:
        materials: what training samples are made from.
        sampling: as in training; randomness from (sampling.seed, "samples") and the image's number.
        count: n, how many images; equal for all that come before it.
        batch_size: images denoised at once; as many as in a training step fit, for no activations are kept.
    """
    fixed = replace(sampling, seed=derived_seed(sampling.seed, "samples"))
    chosen = in_turn(fixed.seed, materials.labels, range(len(materials.labels)), count)
    batches = []
    for first in range(0, count, batch_size):
        images = chosen[first : first + batch_size]
        numbers = range(first, first + len(images))
        batches.append(plain_batch(materials, fixed, numbers, images, images, [0] * len(images)))
    classes = [materials.texts[materials.labels[image]].name for image in chosen]
    return SampleInputs(classes, batches, materials.null, materials.null_pooled)


@dataclass(frozen=True)
class SampleDrawer:
    """Draws the images of `SampleInputs` with the weights of the moment and writes them to run/samples.

    Attributes:
        run: the run folder.
        inputs: what to draw.
        scheduler: name in `mvc.denoise.SCHEDULERS`.
        scheduler_config: configuration of the noise scheduler.
        terms: passes of the guidance.
        num_inference_steps: denoising steps.
        load_vae: loads the AutoencoderKL on the CPU; called at the first picture.
        accelerator: device and processes.
    """

    run: Path
    inputs: SampleInputs
    scheduler: str
    scheduler_config: Any
    terms: Sequence[GuidanceTerm]
    num_inference_steps: int
    load_vae: Callable[[], Any]
    accelerator: Accelerator

    def draw(self, model: Any, step: int) -> None:
        """Write run/samples/step-000250.png; nothing is random, so the same weights give the same bytes.

        Every process has to call it, because sharded weights are gathered by all of them together; the main one
        decodes and writes.

        Args:
            model: the UNet on the accelerator's device; left in the mode it was in.
            step: optimisation steps done.

        Raises:
            EnvironmentFault: the file cannot be written.
        """
        training = model.training
        model.eval()
        try:
            drawn = torch.cat(
                [self._denoise(model, batch.to(self.accelerator.device)) for batch in self.inputs.batches]
            )
        finally:
            model.train(training)
        if self.accelerator.is_main_process:
            write_grid(self.run, step, self.inputs.classes, self._conditions, self._pixels(drawn))

    def _denoise(self, model: Any, batch: Batch) -> Tensor:
        """(B, C, h, w) latents on the CPU."""
        device, null_pooled = self.accelerator.device, self.inputs.null_pooled
        return denoise(
            model,
            make_scheduler(self.scheduler, self.scheduler_config),
            batch.noise,
            batch.encoder_hidden_states,
            self.inputs.null.to(device),
            batch.image_latents,
            self.terms,
            self.num_inference_steps,
            batch.added_cond_kwargs,
            None if null_pooled is None else null_pooled.to(device),
        ).cpu()

    @cached_property
    def _vae(self) -> Any:
        return self.load_vae()

    @cached_property
    def _conditions(self) -> list[NDArray[np.uint8]]:
        return self._pixels(torch.cat([batch.latents for batch in self.inputs.batches]))

    def _pixels(self, drawn: Tensor) -> list[NDArray[np.uint8]]:
        """Latents to (H, W, 3) uint8, one by one: decoding several at once takes more memory than a training step."""
        device = self.accelerator.device
        vae = self._vae.to(device)
        try:
            # Weights that diverged still give a picture, which is then grey.
            return [to_pixels(decode(vae, one[None].to(device))[0].nan_to_num(0.0)) for one in drawn]
        finally:
            vae.to("cpu")
