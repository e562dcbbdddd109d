"""The job table: what each synthetic image is made from, a function of (seed, source, class, index, attempt) alone.

More images, other classes, another batch size or an interruption never change a row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mvc.mixing import draw_plan
from mvc.randomness import derived_seed, generator

from .back_captions import BackTable

Slot = tuple[str, str, int]
"""An image that is wanted: source, class folder, index."""
Range = float | tuple[float, float]


@dataclass(frozen=True)
class Job:
    """One synthetic image to make; numbers of images and captions count within the class.

    Attributes:
        source: one of mvc.config_generation.SOURCES.
        class_name: class folder.
        index: number among the images of this class and source, from 0.
        attempt: 1, or more where earlier draws for the same index were refused.
        caption: which caption of the class is the base of the text embedding; None where no caption is used.
        condition: which training image of the class is x', or is edited; None without one.
        plan: row of the mixing plan; None where the caption is taken as it is.
        guidance_scale: of the text; None for import.
        image_guidance_scale: of the image; None where the guidance has no such scale.
        file: import: path below the imported folder.
        text: back_captioning: what is drawn.
        branch: back_captioning: number of the caption and of its rewrite.
    """

    source: str
    class_name: str
    index: int
    attempt: int
    caption: int | None
    condition: int | None
    plan: dict[str, Any] | None
    guidance_scale: float | None
    image_guidance_scale: float | None
    file: str | None = None
    text: str | None = None
    branch: tuple[int, ...] | None = None

    @property
    def id(self) -> str:
        """Name of the image within its class folder."""
        return f"{self.source}-{self.index:05d}" + (f"-{self.attempt}" if self.attempt > 1 else "")

    @property
    def slot(self) -> Slot:
        """What it is drawn for."""
        return self.source, self.class_name, self.index


@dataclass(frozen=True)
class ClassTable:
    """What the jobs of one class depend on.

    Attributes:
        images: training images, and so captions, of the class.
        tokens: rows of an embedding that mixing may touch.
        width: columns of an embedding.
        coarse: P of Algorithm 1.
        fine: Q of Algorithm 1.
        files: import: the files of the class that the attempt can take, in their order.
        back: back_captioning: the texts of its images; None without that source.
    """

    images: int
    tokens: int
    width: int
    coarse: int
    fine: int
    files: Sequence[str] = ()
    back: BackTable | None = None


@dataclass(frozen=True)
class Scales:
    """Guidance scales of a source, each a number or the range that one is drawn from; None where there is none."""

    text: Range | None
    image: Range | None


def split_by_share(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split a class's synthetic images among the sources by largest remainder.

    Args:
        total: images of the class.
        shares: share of each source, adding up to 1; at equal remainders the earlier source gains.
    """
    # The tiny term keeps 0.29 x 100 = 28.999... from losing a whole image.
    counts = {source: math.floor(share * total + 1e-9) for source, share in shares.items()}
    by_remainder = sorted(shares, key=lambda source: counts[source] - shares[source] * total)
    for source in by_remainder[: total - sum(counts.values())]:
        counts[source] += 1
    return counts


def jobs_of(
    seed: int, source: str, class_name: str, indices: Sequence[int], attempt: int, table: ClassTable, scales: Scales
) -> list[Job]:
    """The jobs of one source and class for some indices; fewer where an imported folder has no more files.

    Args:
        seed: run.seed; randomness from (seed, purpose and class, index, attempt).
        source: one of mvc.config_generation.SOURCES.
        class_name: class folder.
        indices: numbers of the images wanted.
        attempt: from 1; another attempt draws everything afresh.
        table: what is known of the class.
        scales: guidance of the source.
    """
    if source == "import":
        # Later attempts share what no slot has had, so that no file is passed over while an image is lacking.
        numbers = indices if attempt == 1 else range(len(indices))
        return [
            Job(source, class_name, index, attempt, None, None, None, None, None, table.files[number])
            for index, number in zip(indices, numbers, strict=True)
            if number < len(table.files)
        ]
    if source == "back_captioning":
        return [_back_captioned(seed, class_name, index, attempt, table, scales) for index in indices]
    plans = _plans(seed, class_name, indices, attempt, table) if source == "finetuned" else None
    jobs = []
    for place, index in enumerate(indices):
        plan = None if plans is None else plans[place]
        caption, condition = _chosen(seed, source, class_name, index, attempt, table.images)
        if plan is not None:
            caption = int(plan["base"])
        text, image = (
            _drawn(scale, seed, f"{kind} guidance {source} {class_name}", index, attempt)
            for kind, scale in (("text", scales.text), ("image", scales.image))
        )
        jobs.append(Job(source, class_name, index, attempt, caption, condition, plan, text, image))
    return jobs


def _back_captioned(seed: int, class_name: str, index: int, attempt: int, table: ClassTable, scales: Scales) -> Job:
    """An image of back-captioning; another attempt has other noise and the same text."""
    if table.back is None:
        raise ValueError("the source back_captioning needs back captions")
    image, text = table.back.chosen(seed, class_name, index)
    scale = _drawn(scales.text, seed, f"text guidance back_captioning {class_name}", index, attempt)
    job = Job("back_captioning", class_name, index, attempt, None, image, None, scale, None)
    return replace(job, text=text.text, branch=tuple(text.branch))


def _plans(seed: int, class_name: str, indices: Sequence[int], attempt: int, table: ClassTable) -> list[dict[str, Any]]:
    # A seed of its own: with training's the first plans here would repeat those of the first epoch.
    number = () if attempt == 1 else (attempt,)
    plan = draw_plan(
        derived_seed(seed, "plans for generation", *number),
        class_name,
        indices,
        table.images,
        table.tokens,
        table.width,
        table.coarse,
        table.fine,
    )
    return [plan.row(place) for place in range(len(indices))]


def _chosen(
    seed: int, source: str, class_name: str, index: int, attempt: int, images: int
) -> tuple[int | None, int | None]:
    """Numbers of the caption and of the training image of a job."""
    number = (index,) if attempt == 1 else (index, attempt)
    if source == "pretrained":
        return _uniform(images, seed, f"caption {class_name}", number), None
    condition = _uniform(images, seed, f"condition {class_name}", number)
    # An image that is begun from a real one is described by the caption of that one.
    return (condition if source == "sdedit" else None), condition


def _uniform(count: int, seed: int, purpose: str, index: Sequence[int]) -> int:
    return int(torch.randint(count, (), generator=generator(seed, purpose, *index)))


def _drawn(scale: Range | None, seed: int, purpose: str, index: int, attempt: int) -> float | None:
    if not isinstance(scale, tuple):
        return scale
    low, high = scale
    share = float(torch.rand((), generator=generator(seed, purpose, index, attempt)))
    return round(low + (high - low) * share, 6)


def in_batches(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Cut the table of one source into the batches in which it is made, index by index over all classes.

    The batches follow from the table alone, never from what is already done: convolutions round differently
    at other batch sizes, so a batch is repeated whole where an image of it is missing. With the index
    first, a larger `per_real` adds batches at the end and leaves the ones before as they were.
    """
    order = sorted(jobs, key=lambda job: (job.index, job.class_name))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def draw_noise(seed: int, jobs: Sequence[Job], shape: Sequence[int]) -> torch.Tensor:
    """Initial noise of each job, drawn one by one on the CPU so that it does not depend on the batch.

    Args:
        seed: run.seed.
        jobs: the batch.
        shape: of one sample's latents, (4, h, w).

    Returns:
        (B, 4, h, w) float32, standard normal.
    """
    return _normal(seed, "noise", jobs, shape)


def draw_step_noise(seed: int, jobs: Sequence[Job], shape: Sequence[int], step: int) -> torch.Tensor:
    """Noise that a stochastic scheduler adds in one step, drawn as `draw_noise` draws."""
    return _normal(seed, "step noise", jobs, shape, step)


def _normal(seed: int, purpose: str, jobs: Sequence[Job], shape: Sequence[int], *step: int) -> torch.Tensor:
    samples = [
        torch.randn(
            tuple(shape),
            generator=generator(seed, f"{purpose} {job.source} {job.class_name}", job.index, job.attempt, *step),
        )
        for job in jobs
    ]
    return torch.stack(samples)
