"""Time and memory of a few steps of the real loop, on random samples of the right shape; nothing is kept of them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc import latents
from mvc.denoise import decode, denoise
from mvc.diffusion import GuidanceTerm
from mvc.embeddings import time_ids
from mvc.latents import Latents, encode_image
from mvc.progress import Meter, meter
from mvc.randomness import generator
from mvc.stopping import flag

from .batches import Batch, ClassText, Materials, Sampling, assemble
from .memory import peak_memory
from .recipe import Recipe
from .step import Watch, begin, do_step
from .validation import fixed_batches, validation_loss

WARM_UP, LEAST, MOST = 2, 3, 10
"""Steps that are not counted, and how many are."""
ENOUGH, SLOW = 5.0, 30.0
"""Seconds after which at least LEAST steps are enough, and seconds of a step from which a single one is."""


@dataclass(frozen=True)
class Pace:
    """What was measured.

    Attributes:
        first: seconds of the first step, compilation and choice of kernels included.
        steps: seconds of each step that counts.
        peak: GiB, of the accelerator's allocations on CUDA, else of the whole process.
        validation: seconds for one sample of the validation loss.
    """

    first: float
    steps: Sequence[float]
    peak: float
    validation: float

    @property
    def step(self) -> float:
        """Seconds of a step, the median."""
        return statistics.median(self.steps)


def random_materials(config: Any, side: int, tokens: int, image_size: int) -> Materials:
    """Four images of two classes with random moments, captions and, for an SDXL, pooled vectors.

    Args:
        config: of the UNet.
        side: of the latents.
        tokens: rows of a text embedding.
        image_size: side in pixels.
    """

    def normal(purpose: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator(0, f"estimate {purpose}"))

    means = normal("mean", 4, config.out_channels, side, side)
    moments = torch.cat([means, torch.zeros_like(means)], dim=1)
    width, pooled = config.cross_attention_dim, None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    texts = [
        ClassText(
            name,
            normal(name, 2, tokens, width),
            tokens,
            None if pooled is None else normal(f"pooled {name}", 2, pooled),
        )
        for name in ("first", "second")
    ]
    return Materials(
        labels=(0, 0, 1, 1),
        images=Latents([moments], [[(0, row)] for row in range(4)]),
        texts=texts,
        null=normal("null", tokens, width),
        scaling_factor=1.0,
        null_pooled=None if pooled is None else normal("null pooled", pooled),
        time_ids=None if pooled is None else time_ids(image_size),
    )


def measure(
    unet: Any,
    noise_scheduler: Any,
    materials: Materials,
    sampling: Sampling,
    recipe: Recipe,
    accelerator: Accelerator,
) -> Pace:
    """Do some steps of the loop and one batch of the validation loss.

    Args:
        unet: as the train stage makes it; its weights change.
        noise_scheduler: DDPMScheduler.
        materials: of any images; four random ones do, for a step costs the same whatever they show.
        sampling: as in training.
        recipe: as in training.
        accelerator: device and precision.

    Raises:
        torch.OutOfMemoryError: the accelerator's memory is too small.
        Stopped: a signal asked for a stop.
    """
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def make_batch(samples: Sequence[int]) -> Batch:
        return assemble(materials, sampling, samples)

    with tempfile.TemporaryDirectory() as folder:
        # The loop looks for checkpoints in this empty folder and would write its log there; it comes to neither.
        training = begin(unet, Path(folder), recipe, {}, accelerator, Watch())

        def step() -> None:
            do_step(training, noise_scheduler, make_batch)

        with meter("measuring, at most", WARM_UP + MOST, "steps") as shown:
            first = seconds_of(step, device, shown)
            for _ in range(WARM_UP - 1 if first < SLOW else 0):
                seconds_of(step, device, shown)
            times: list[float] = []
            while not _enough(times):
                times.append(seconds_of(step, device, shown))
        peak = peak_memory(device)
    batches = fixed_batches(materials, sampling, [], recipe.train_batch_size, recipe.train_batch_size)

    def validate() -> None:
        validation_loss(unet, noise_scheduler, batches, accelerator)

    return Pace(first, times, peak, seconds_of(validate, device) / recipe.train_batch_size)


def _enough(times: Sequence[float]) -> bool:
    if len(times) >= MOST or (times and max(times) >= SLOW):
        return True
    return len(times) >= LEAST and sum(times) >= ENOUGH


def seconds_of(work: Callable[[], object], device: torch.device, shown: Meter | None = None) -> float:
    """Seconds that some work takes on its device.

    Raises:
        Stopped: a signal asked for a stop.
    """
    flag.check("an estimate keeps nothing")
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    if shown is not None:
        shown.advance()
    return time.perf_counter() - start


@dataclass(frozen=True)
class ImagePace:
    """Seconds that the VAE takes to encode one image, and that one synthetic image takes from noise to pixels."""

    encode: float
    draw: float


def measure_images(
    unet: Any,
    vae: Any,
    materials: Materials,
    new_scheduler: Callable[[], Any],
    terms: Sequence[GuidanceTerm],
    num_inference_steps: int,
    batch_size: int,
    image_size: int,
) -> ImagePace:
    """Encode an image, and denoise and decode a batch for two steps, each once before it counts.

    Args:
        unet: with input channels for x', on its device, as generation has it: in float32.
        vae: on the same device.
        materials: of `random_materials`.
        new_scheduler: makes a fresh sampler.
        terms: passes of the guidance.
        num_inference_steps: of a whole synthetic image.
        batch_size: images at once.
        image_size: side in pixels.

    Raises:
        torch.OutOfMemoryError: the accelerator's memory is too small.
        Stopped: a signal asked for a stop.
    """
    device, measured, count = next(unet.parameters()).device, 2, batch_size
    image_latents = latents.mode(materials.images.moments([0] * count)).to(device)
    text = materials.texts[0].embeddings[[0] * count].to(device)
    pooled, sizes = materials.texts[0].pooled, materials.time_ids
    added = None
    if pooled is not None and sizes is not None:
        added = {"text_embeds": pooled[[0] * count].to(device), "time_ids": sizes.repeat(count, 1).to(device)}

    def draw() -> None:
        denoise(
            unet, new_scheduler(), image_latents, text, materials.null.to(device), image_latents, terms, measured, added
        )

    pixels = torch.zeros(3, image_size, image_size)
    works: list[Callable[[], object]] = [
        lambda: encode_image(vae, pixels),
        draw,
        lambda: decode(vae, image_latents),
    ]
    # The second time counts: the first one chooses kernels.
    encoding, denoising, decoding = ([seconds_of(work, device) for _ in range(2)][1] for work in works)
    return ImagePace(encoding, (denoising / measured * num_inference_steps + decoding) / count)
