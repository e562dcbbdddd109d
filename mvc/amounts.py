"""How much an experiment asks for: fine-tuning steps, synthetic images, previews. Arithmetic alone; nothing is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mvc.config import Experiment
from mvc.config_generation import PREVIEWED


def with_steps(experiment: Experiment, images: int) -> Experiment:
    """The experiment with its number of fine-tuning steps, from the number of training images where it is absent.

    Args:
        experiment: section train is used.
        images: training images of the run.
    """
    train = experiment.train
    if train.max_train_steps is not None:
        return experiment
    samples = train.train_batch_size * train.gradient_accumulation_steps
    steps = max(1, math.floor(train.passes * images / samples + 0.5))
    return experiment.model_copy(update={"train": train.model_copy(update={"max_train_steps": steps})})


def synthetic_per_class(
    real: Mapping[str, int], per_real: float, per_class: int | None, balance: bool
) -> dict[str, int]:
    """Synthetic images that are wanted of each class, over all sources.

    Args:
        real: training images of each class.
        per_real: synthetic images per real one; products are rounded, halves up.
        per_class: images of each class, in place of `per_real`.
        balance: fill each class up to what `per_real` gives the largest one, real images included.
    """
    if per_class is not None:
        return dict.fromkeys(real, per_class)
    if balance:
        most = math.floor((1.0 + per_real) * max(real.values(), default=0) + 0.5)
        return {name: most - count for name, count in real.items()}
    return {name: math.floor(per_real * count + 0.5) for name, count in real.items()}


def previewed(experiment: Experiment) -> list[str]:
    """Sources outside the set of which the report shows a few images: of a set by our own models the other one."""
    shares = {source: share for source, share in experiment.generate.sources.items() if share > 0}
    if not experiment.generate.preview or not any(source in shares for source in PREVIEWED):
        return []
    return [source for source in PREVIEWED if source not in shares]


def needs_model(experiment: Experiment) -> bool:
    """Whether the synthetic set, or a preview, needs the fine-tuned model."""
    return experiment.generate.sources.get("finetuned", 0.0) > 0 or "finetuned" in previewed(experiment)


def needs_back_captions(experiment: Experiment) -> bool:
    """Whether the synthetic set has images of back-captioning."""
    return experiment.generate.sources.get("back_captioning", 0.0) > 0
