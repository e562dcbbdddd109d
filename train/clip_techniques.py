"""What an arm of a CLIP comparison does to its batches: how pairs are shown, mixed, and compared.

A mixing technique draws its plan for the global batch, from (seed, purpose, step) alone; a process that holds a part
of the batch asks for the few pairs of others that its own are mixed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.clip.contrastive import Objective, clip_loss
from mvc.config_clip import MIXGENS, TechniquesSection, techniques_of
from mvc.mixgen import mix_images, mix_texts
from mvc.mixgen_embeddings import mean_text_features, mix_image_features
from mvc.mixgen_plan import MixGenPlan, plan_mixgen
from mvc.multimodal.consistency import cross_modal_geometry, in_modal_geometry
from mvc.multimodal.interpolation import draw_between, interpolate_pairs, slerp
from mvc.multimodal.mixup import draw_mixture, mix
from mvc.multimodal.policies import Policy
from mvc.randomness import numpy_generator

from .clip_batches import Look


@dataclass(frozen=True)
class Techniques:
    """An arm.

    Attributes:
        arm: `none`, or techniques joined by +.
        settings: of the techniques.
        seed: model seed.
        batch_size: B, pairs of a step over all processes.
    """

    arm: str
    settings: TechniquesSection
    seed: int
    batch_size: int

    @cached_property
    def names(self) -> frozenset[str]:
        """The techniques."""
        return frozenset(techniques_of(self.arm))

    @property
    def mines(self) -> bool:
        """Whether batches are made of pairs that are easily mistaken for each other."""
        return "hard_negatives" in self.names

    def look(self, size: int, crop_scale: float) -> Look:
        """How pairs are shown; all arms crop."""
        own = self.settings
        turned = "synchronised" in self.names
        return Look(
            seed=self.seed,
            size=size,
            crop_scale=crop_scale,
            flip=own.flip if turned else 0.0,
            degrees=own.degrees if turned else 0.0,
            policy=Policy(own.operations, own.magnitude) if "policy" in self.names else None,
        )

    def plan(self, step: int) -> MixGenPlan | None:
        """MixGen's plan of the global batch of a step; None where the arm has none."""
        name = next((one for one in MIXGENS if one in self.names), None)
        if name is None:
            return None
        variant = name.removeprefix("mixgen").removeprefix("_")
        random = numpy_generator(self.seed, "mixgen", step)
        return plan_mixgen(
            self.batch_size,
            random,
            "default" if variant in ("", "embedding") else variant,
            self.settings.mixgen_share,
            self.settings.mixgen_mix,
        )

    def places(self, step: int, low: int, high: int) -> list[int]:
        """Which places of the global batch a process needs to make places low to high: those, and partners of them."""
        plan = None if "mixgen_embedding" in self.names else self.plan(step)
        own = list(range(low, high))
        if plan is None:
            return own
        partners = {int(plan.partner[place]) for place in range(low, min(high, len(plan)))}
        return own + sorted(partners - set(own))

    def mixed(
        self, step: int, images: Tensor, captions: Sequence[str], low: int, high: int
    ) -> tuple[Tensor, list[str]]:
        """Places low to high of the batch, mixed at the input level where the arm does that.

        Args:
            step: which.
            images: (n, 3, S, S) float in [0, 1] of `places`, in that order.
            captions: theirs.
            low, high: as in `places`.

        Returns:
            (high - low, 3, S, S) and as many captions.
        """
        own = high - low
        plan = None if "mixgen_embedding" in self.names else self.plan(step)
        if plan is not None and low < len(plan):
            part = _part(plan, self.places(step, low, high), low, high)
            images, captions = mix_images(part, images), mix_texts(part, captions)
        return images[:own], list(captions[:own])

    def objective(self, step: int) -> Objective:
        """From features of the global batch to the loss."""

        def loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
            images, texts = self._features(images, texts, step)
            found = clip_loss(images, texts, logit_scale)
            if "consistency" in self.names:
                found = found + self.settings.consistency_weight * _inconsistency(images, texts)
            return found

        return loss

    def _features(self, images: Tensor, texts: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What is done at the embedding level."""
        if "mixgen_embedding" in self.names:
            plan = self.plan(step)
            assert plan is not None
            images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
            return mix_image_features(plan, images), mean_text_features(plan, texts)
        if "mixup" in self.names:
            mixture = draw_mixture(len(images), self.settings.mixup_alpha, self.seed, step)
            return mix(F.normalize(images, dim=1), mixture), mix(F.normalize(texts, dim=1), mixture)
        if "interpolation" in self.names:
            count = max(1, round(self.settings.interpolation_share * len(images)))
            numbers = range(step * count, (step + 1) * count)
            between = draw_between([0] * len(images), numbers, self.seed)
            images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
            new_images, new_texts = interpolate_pairs(images, texts, between, slerp, slerp)
            return torch.cat([images, new_images]), torch.cat([texts, new_texts])
        return images, texts


def _inconsistency(images: Tensor, texts: Tensor) -> Tensor:
    """CyCLIP's two terms, each the paper's sum divided by the batch."""
    return len(images) * (cross_modal_geometry(images, texts) + in_modal_geometry(images, texts))


def _part(plan: MixGenPlan, places: Sequence[int], low: int, high: int) -> MixGenPlan:
    """The plan of a process's part: places low to high, then those of others that these are mixed with."""
    number = {place: row for row, place in enumerate(places)}
    rows = slice(low, min(high, len(plan)))
    return MixGenPlan(
        batch_size=len(places),
        variant=plan.variant,
        partner=np.array([number[int(place)] for place in plan.partner[rows]], np.int64),
        mix=plan.mix[rows],
        takes_partner=plan.takes_partner[rows],
        token_seed=plan.token_seed[rows],
    )
