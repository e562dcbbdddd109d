"""One source of synthetic images: its models, what its jobs refer to, and how a batch of jobs becomes pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from mvc.denoise import WHOLE, decode, decode_checked, denoise, finite
from mvc.diffusion import GuidanceTerm, guidance_terms, text_guidance_terms
from mvc.embeddings import EncodedTexts
from mvc.errors import EnvironmentFault
from mvc.mixing import MixingPlan, apply_plan
from mvc.progress import say

from .jobs import Job, draw_noise, draw_step_noise


@dataclass(frozen=True)
class ClassText:
    """The training images of one class and what is known about their captions.

    Attributes:
        ids: k record ids of the training images, sorted; jobs count along them.
        embeddings: (k, m, d) float32 on the CPU, one a caption; instruct_pix2pix: (1, m, d), that of the instruction.
        tokens: rows that mixing may touch.
        pooled: (k, p) or (1, p) float32 pooled vectors; None unless the base is an SDXL.
    """

    ids: list[str]
    embeddings: Tensor
    tokens: int
    pooled: Tensor | None = None


@dataclass
class MicroBatch:
    """How many images are computed at once; what a source learns about the memory while it draws.

    Attributes:
        most: at most so many; None before memory was ever too small.
    """

    most: int | None = None


@dataclass(frozen=True)
class Source:
    """Everything that drawing needs.

    Attributes:
        kind: finetuned, pretrained, sdedit, instruct_pix2pix or back_captioning.
        seed: run.seed.
        unet: on `device`, in float32; of 8 input channels for finetuned and instruct_pix2pix, else of 4 or 8.
        vae: on `device`, in float32.
        device: where to compute.
        new_scheduler: makes a fresh scheduler, because multistep ones keep a state.
        num_inference_steps: denoising steps.
        guidance: kind of guidance; the scales are the jobs' own. `text` for pretrained, sdedit and back_captioning.
        texts: by class folder.
        null: (m, d) embedding of the empty text.
        image_latents: (k, 4, h, w) of the training images by class folder. For finetuned scaled as in training, for
            instruct_pix2pix as its model knows them, for sdedit times the VAE's scaling factor. None for
            pretrained and back_captioning.
        shape: of one sample's latents, (4, h, w).
        null_pooled: (p,) pooled vector of the empty text; None unless the base is an SDXL.
        time_ids: (6,) `mvc.embeddings.time_ids` of the image size; None unless the base is an SDXL.
        autocast: half precision to compute in; None for float32.
        guidance_interval: shares of the noise schedule between which guidance acts.
        eta: noise in each step; above 0 with the scheduler ddim alone.
        strength: sdedit: share of the noise schedule that a real image is sent back through, in (0, 1].
        micro_batch: shared by all draws from this source.
        encode: back_captioning: embeds the jobs' own texts; None where `texts` has them.
    """

    kind: str
    seed: int
    unet: Any
    vae: Any
    device: torch.device
    new_scheduler: Callable[[], Any]
    num_inference_steps: int
    guidance: Literal["paper", "dual", "text"]
    texts: Mapping[str, ClassText]
    null: Tensor
    image_latents: Mapping[str, Tensor] | None
    shape: tuple[int, int, int]
    null_pooled: Tensor | None = None
    time_ids: Tensor | None = None
    autocast: torch.dtype | None = None
    guidance_interval: tuple[float, float] = WHOLE
    eta: float = 0.0
    strength: float = 1.0
    micro_batch: MicroBatch = field(default_factory=MicroBatch)
    encode: Callable[[Sequence[str]], EncodedTexts] | None = None

    @property
    def size(self) -> str:
        """How large an image is, in words."""
        return f"{self.shape[1]} x {self.shape[2]} latents"

    def compute(self, jobs: Sequence[Job]) -> tuple[Tensor, list[bool]]:
        """(B, 3, H, W) pixels of a batch, and which had to be computed in float32 after half precision failed."""
        return _compute(self, jobs)


class Drawable(Protocol):
    """What `draw` needs of a source."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def micro_batch(self) -> MicroBatch:
        """How many images at once."""
        ...

    @property
    def size(self) -> str:
        """How large an image is, in words."""
        ...

    def compute(self, jobs: Sequence[Job]) -> tuple[Tensor, list[bool]]:
        """(B, 3, H, W) pixels of a batch, about [-1, 1], and which were computed again in float32."""
        ...


@dataclass(frozen=True)
class Drawn:
    """What came of a batch of jobs, image by image.

    Attributes:
        pixels: (B, 3, H, W) float32 on the CPU, about [-1, 1], not clamped; may hold images that are not finite.
        batch_sizes: how many images were computed together with it, itself included.
        batch_places: its place among them, from 0.
        in_float32: computed again in float32, because half precision was not finite.
    """

    pixels: Tensor
    batch_sizes: list[int]
    batch_places: list[int]
    in_float32: list[bool]


def draw(source: Drawable, jobs: Sequence[Job]) -> Drawn:
    """Draw a batch of jobs; each image depends on its job alone, but for the last bits.

    Where memory is too small the micro-batch is halved, for all that this source draws from then on. An image that
    half precision spoils is drawn again alone in float32 with the same noise; the others keep their bits.

    Args:
        source: what to draw with.
        jobs: the batch, all of this source; randomness from (source.seed, the job's source, class, index, attempt).

    Raises:
        EnvironmentFault: the device's memory is too small for a single image.
    """
    pixels: list[Tensor] = []
    sizes: list[int] = []
    places: list[int] = []
    in_float32: list[bool] = []
    while len(sizes) < len(jobs):
        part = jobs[len(sizes) :][: source.micro_batch.most]
        done = _unless_too_large(source, part)
        if done is None:
            source.micro_batch.most = (len(part) + 1) // 2
            say(f"generate: no memory for {len(part)} images at once; going on with {source.micro_batch.most}")
            continue
        pixels.append(done[0])
        in_float32 += done[1]
        sizes += [len(part)] * len(part)
        places += range(len(part))
    return Drawn(torch.cat(pixels), sizes, places, in_float32)


def draw_alone(source: Drawable, job: Job, batch_size: int, batch_place: int) -> Tensor:
    """Draw one job again, bit for bit as it came of a batch on the same machine: (3, H, W) float32 on the CPU.

    The last bits of an image depend on the size of its batch and on its place there, never on what else the batch
    holds. So here it holds copies.

    Args:
        source: what to draw with.
        job: the job.
        batch_size: as `Drawn.batch_sizes` had it.
        batch_place: as `Drawn.batch_places` had it.

    Raises:
        EnvironmentFault: the device's memory is too small for the batch.
    """
    try:
        return source.compute([job] * batch_size)[0][batch_place]
    except RuntimeError as error:
        if _memory_ran_out(error):
            raise _no_memory(source, batch_size) from error
        raise


def _unless_too_large(source: Drawable, jobs: Sequence[Job]) -> tuple[Tensor, list[bool]] | None:
    """`_compute`, or None if memory is too small for more than one image."""
    try:
        return source.compute(jobs)
    except RuntimeError as error:
        if not _memory_ran_out(error):
            raise
        if len(jobs) == 1:
            raise _no_memory(source, 1) from error
    # Out here, where the error no longer holds on to what the batch had taken.
    release_memory()
    return None


def _memory_ran_out(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _no_memory(source: Drawable, images: int) -> EnvironmentFault:
    many = "a single image" if images == 1 else f"{images} images at once"
    return EnvironmentFault(
        f"out of memory on {source.device} with {many}",
        why="an image is made again as it was, in a batch of the same size"
        if images > 1
        else f"all guidance passes of a step are computed together, at {source.size}",
        do="set generate.mixed_precision=bf16, a smaller data.image_size or a smaller model.base, or free the device "
        "of other programs; finished images are kept",
    )


def _compute(source: Source, jobs: Sequence[Job]) -> tuple[Tensor, list[bool]]:
    """(B, 3, H, W) pixels of a batch, and which of them had to be computed in float32 after half precision failed."""
    latents = _denoise(source, jobs, source.autocast)
    pixels, again = decode_checked(source.vae, latents, source.autocast)
    if source.autocast is not None:
        spoilt = ~(finite(latents).cpu() & finite(pixels))
        for row in spoilt.nonzero().flatten().tolist():
            pixels[row] = decode(source.vae, _denoise(source, [jobs[row]], None))[0]
            again[row] = True
    return pixels, again


def _denoise(source: Source, jobs: Sequence[Job], autocast: torch.dtype | None) -> Tensor:
    """(B, 4, h, w) latents of a batch on the device."""

    def there(value: Tensor | None) -> Any:
        return None if value is None else value.to(source.device)

    added = _added_cond_kwargs(source, jobs)
    return denoise(
        source.unet,
        source.new_scheduler(),
        there(draw_noise(source.seed, jobs, source.shape)),
        there(_hidden_states(source, jobs)),
        there(source.null),
        there(_image_latents(source, jobs)),
        _terms(source, jobs),
        source.num_inference_steps,
        None if added is None else {name: there(value) for name, value in added.items()},
        there(source.null_pooled),
        guidance_interval=source.guidance_interval,
        eta=source.eta,
        step_noise=lambda step: draw_step_noise(source.seed, jobs, source.shape, step),
        init_latents=there(_of_training_images(source, jobs)) if source.kind == "sdedit" else None,
        strength=source.strength,
        autocast=autocast,
    )


def _terms(source: Source, jobs: Sequence[Job]) -> list[GuidanceTerm]:
    text, image = (
        [1.0 if scale is None else scale for scale in scales]
        for scales in ([job.guidance_scale for job in jobs], [job.image_guidance_scale for job in jobs])
    )
    return text_guidance_terms(text) if source.guidance == "text" else guidance_terms(source.guidance, text, image)


def _hidden_states(source: Source, jobs: Sequence[Job]) -> Tensor:
    """(B, m, d) text embeddings of a batch, mixed where a job has a plan (Algorithm 1)."""
    states = source.null.new_empty(len(jobs), *source.null.shape)
    if source.encode is not None:
        states[:] = source.encode([job.text or "" for job in jobs]).embeddings
        return states
    for name in sorted({job.class_name for job in jobs}):
        rows = [row for row, job in enumerate(jobs) if job.class_name == name]
        own, embeddings = [jobs[row] for row in rows], source.texts[name].embeddings
        plans = [job.plan for job in own if job.plan is not None]
        if plans:
            states[rows] = apply_plan(MixingPlan.from_rows(plans), embeddings)
        else:
            states[rows] = embeddings[[job.caption or 0 for job in own]]
    return states


def _added_cond_kwargs(source: Source, jobs: Sequence[Job]) -> dict[str, Tensor] | None:
    """What an SDXL takes besides: each base caption's pooled vector, mixed or not, and the image size."""
    if source.null_pooled is None or source.time_ids is None:
        return None
    pooled = source.null_pooled.new_empty(len(jobs), len(source.null_pooled))
    if source.encode is not None:
        said = source.encode([job.text or "" for job in jobs]).pooled
        pooled = pooled if said is None else said
    for row, job in enumerate(jobs if source.encode is None else []):
        own = source.texts[job.class_name].pooled
        if own is not None:
            pooled[row] = own[job.caption or 0]
    return {"text_embeds": pooled, "time_ids": source.time_ids.repeat(len(jobs), 1)}


def _image_latents(source: Source, jobs: Sequence[Job]) -> Tensor | None:
    """(B, 4, h, w) latents of each x'; zeros for a UNet that expects some where there are none."""
    if source.kind in ("finetuned", "instruct_pix2pix"):
        return _of_training_images(source, jobs)
    if source.unet.config.in_channels == 2 * source.shape[0]:
        return torch.zeros(len(jobs), *source.shape)
    return None


def _of_training_images(source: Source, jobs: Sequence[Job]) -> Tensor:
    """(B, 4, h, w) latents of the training image of each job."""
    if source.image_latents is None:
        raise ValueError(f"the source {source.kind} needs image_latents")
    return torch.stack([source.image_latents[job.class_name][job.condition or 0] for job in jobs])
