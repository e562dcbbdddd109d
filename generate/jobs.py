"""The job table: what each synthetic image is made from, a function of (seed, source, class, index) alone.

More images, other classes, another batch size or an interruption never change a row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mvc.mixing import draw_plan
from mvc.randomness import derived_seed, generator


@dataclass(frozen=True)
class Job:
    """One synthetic image to make; numbers of images and captions count within the class.

    Attributes:
        source: finetuned or pretrained.
        class_name: class folder.
        index: number among the images of this class and source, from 0.
        caption: which caption of the class is the base of the text embedding.
        condition: which training image of the class is x'; None without image conditioning.
        plan: row of the mixing plan; None where the caption is taken as it is.
    """

    source: str
    class_name: str
    index: int
    caption: int
    condition: int | None
    plan: dict[str, Any] | None

    @property
    def id(self) -> str:
        """Name of the image within its class folder."""
        return f"{self.source}-{self.index:05d}"


def images_per_source(real: int, per_real: float, shares: Mapping[str, float]) -> dict[str, int]:
    """Split a class's synthetic images among the sources by largest remainder.

    Args:
        real: training images of the class.
        per_real: synthetic images per real one; the total is rounded, halves up.
        shares: share of each source, adding up to 1; at equal remainders the earlier source gains.
    """
    total = math.floor(per_real * real + 0.5)
    # The tiny term keeps 0.29 x 100 = 28.999... from losing a whole image.
    counts = {source: math.floor(share * total + 1e-9) for source, share in shares.items()}
    by_remainder = sorted(shares, key=lambda source: counts[source] - shares[source] * total)
    for source in by_remainder[: total - sum(counts.values())]:
        counts[source] += 1
    return counts


def finetuned_jobs(
    seed: int, class_name: str, count: int, images: int, tokens: int, width: int, coarse: int, fine: int
) -> list[Job]:
    """Jobs 0..count-1 of a class for the fine-tuned model: a fresh MVC embedding and a random x' each.

    Args:
        seed: run.seed.
        class_name: class folder.
        count: how many jobs.
        images: training images, and so captions, of the class.
        tokens: rows of an embedding that mixing may touch.
        width: columns of an embedding.
        coarse: P of Algorithm 1.
        fine: Q of Algorithm 1.
    """
    # A seed of its own: with training's the first plans here would repeat those of the first epoch.
    plan = draw_plan(
        derived_seed(seed, "plans for generation"),
        class_name,
        range(count),
        images,
        tokens,
        width,
        coarse,
        fine,
    )
    jobs = []
    for index in range(count):
        row = plan.row(index)
        condition = _uniform(images, seed, f"condition {class_name}", index)
        jobs.append(Job("finetuned", class_name, index, int(row["base"]), condition, row))
    return jobs


def pretrained_jobs(seed: int, class_name: str, count: int, captions: int) -> list[Job]:
    """Jobs 0..count-1 of a class for the untouched text-to-image model: a random real caption each."""
    return [
        Job(
            "pretrained",
            class_name,
            index,
            _uniform(captions, seed, f"caption {class_name}", index),
            None,
            None,
        )
        for index in range(count)
    ]


def _uniform(count: int, seed: int, purpose: str, index: int) -> int:
    return int(torch.randint(count, (), generator=generator(seed, purpose, index)))


def in_batches(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Cut the table of one source into the batches in which it is made, index by index over all classes.

    The batches follow from the table alone, never from what is already done: convolutions round differently
    at other batch sizes, so a batch is repeated whole where an image of it is missing. With the index
    first, a larger `per_real` adds batches at the end and leaves the ones before as they were.
    """
    order = sorted(jobs, key=lambda job: (job.index, job.class_name))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def draw_noise(seed: int, jobs: Sequence[Job], attempt: int, shape: Sequence[int]) -> torch.Tensor:
    """Initial noise of each job, drawn one by one on the CPU so that it does not depend on the batch.

    Args:
        seed: run.seed.
        jobs: the batch.
        attempt: 1, or more after unusable images.
        shape: of one sample's latents, (4, h, w).

    Returns:
        (B, 4, h, w) float32, standard normal.
    """
    samples = [
        torch.randn(
            tuple(shape),
            generator=generator(seed, f"noise {job.source} {job.class_name}", job.index, attempt),
        )
        for job in jobs
    ]
    return torch.stack(samples)
