"""Back-captioning by a text-to-image model that is no Stable Diffusion: drawn by its own pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mvc.randomness import generator
from mvc.text_to_image import draw_texts

from .jobs import Job
from .source import MicroBatch


@dataclass(frozen=True)
class PipelineSource:
    """What drawing needs; `source.draw` and `source.draw_alone` draw from it as from a `Source`.

    Attributes:
        kind: back_captioning.
        seed: run.seed; randomness from (seed, "noise" and the job's source and class, index, attempt), as `draw_noise`.
        pipeline: of diffusers, on `device`.
        device: where to compute.
        num_inference_steps: denoising steps.
        image_size: side in pixels.
        micro_batch: shared by all draws from this source.
    """

    kind: str
    seed: int
    pipeline: Any
    device: torch.device
    num_inference_steps: int
    image_size: int
    micro_batch: MicroBatch = field(default_factory=MicroBatch)

    @property
    def size(self) -> str:
        """How large an image is, in words."""
        return f"{self.image_size} x {self.image_size} pixels"

    def compute(self, jobs: Sequence[Job]) -> tuple[Tensor, list[bool]]:
        """(B, 3, H, W) pixels in [-1, 1]; none is computed again in float32, the weights being of one precision."""
        pixels = torch.empty(len(jobs), 3, self.image_size, self.image_size)
        scales = [7.5 if job.guidance_scale is None else job.guidance_scale for job in jobs]
        # A pipeline takes one scale a call; where they are drawn from a range there are as many calls as scales.
        for scale in dict.fromkeys(scales):
            rows = [row for row, own in enumerate(scales) if own == scale]
            noises = [self._noise(jobs[row]) for row in rows]
            texts = [jobs[row].text or "" for row in rows]
            drawn = draw_texts(self.pipeline, texts, noises, self.num_inference_steps, scale, self.image_size)
            pixels[rows] = drawn * 2 - 1
        return pixels, [False] * len(jobs)

    def _noise(self, job: Job) -> torch.Generator:
        return generator(self.seed, f"noise {job.source} {job.class_name}", job.index, job.attempt)
