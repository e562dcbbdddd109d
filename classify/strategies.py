"""Which image fills each slot of each batch: the ways to train with real and synthetic images.

A slot holds an index into [real images | synthetic images]. It depends on (model seed, step) alone, so a
batch can be rebuilt at any time and the arms of one comparison can be paired by seed. Every strategy gets
the same number of steps and fills every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mvc.randomness import numpy_generator

Indices = npt.NDArray[np.int64]

NEEDS_SYNTHETIC = ("duplicate", "combined", "rsp", "two_phase")
"""Strategies that are undefined without synthetic images; `duplicate` needs their number only."""

USES_SYNTHETIC = ("combined", "rsp", "two_phase")
"""Strategies that show synthetic images to the classifier."""


@dataclass(frozen=True)
class Batch:
    """One step's batch.

    Args:
        indices: (batch_size,) int64 into [real images | synthetic images].
        phase: 1, or 2 in the second phase of `two_phase`.
    """

    indices: Indices
    phase: int


@lru_cache(maxsize=8)
def _permutation(seed: int, purpose: str, epoch: int, count: int) -> Indices:
    # Cached because every step of a long epoch asks for the same one.
    order = numpy_generator(seed, purpose, epoch).permutation(count).astype(np.int64)
    order.flags.writeable = False
    return order


def shuffled(seed: int, purpose: str, count: int, step: int, batch_size: int) -> Indices:
    """Slots of step `step` of an endless stream of epochs, each a fresh permutation of range(count).

    A batch may hold the end of one epoch and the start of the next, so that none is ever short.

    Args:
        seed: model seed.
        purpose: name of the stream.
        count: number of images in the pool, at least 1.
        step: step within the stream, from 0.
        batch_size: slots a step.

    Returns:
        (batch_size,) int64 in [0, count).
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    slots = np.empty(batch_size, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        slots[here] = _permutation(seed, purpose, epoch, count)[places[here]]
    return slots


def real(seed: int, step: int, batch_size: int, real_images: int) -> Indices:
    """Epochs of the real images alone: the baseline."""
    return shuffled(seed, "real", real_images, step, batch_size)


def duplicate(seed: int, step: int, batch_size: int, real_images: int, synthetic_images: int) -> Indices:
    """Epochs of a pool of real images repeated to the count of real + synthetic: the control for mere size.

    Each real image lies in the pool floor or ceil(total / real) times; chance by seed, not the order of the
    classes, decides which ones get the one more.
    """
    total = real_images + synthetic_images
    copies, rest = divmod(total, real_images)
    extra = _permutation(seed, "duplicate rest", 0, real_images)[:rest]
    pool = np.concatenate([np.tile(np.arange(real_images, dtype=np.int64), copies), extra])
    return np.asarray(pool[shuffled(seed, "duplicate", total, step, batch_size)])


def combined(seed: int, step: int, batch_size: int, real_images: int, synthetic_images: int) -> Indices:
    """Epochs of real and synthetic images shuffled together."""
    return shuffled(seed, "combined", real_images + synthetic_images, step, batch_size)


def rsp(seed: int, step: int, batch_size: int, real_images: int, synthetic_images: int, probability: float) -> Indices:
    """Random selection with probability: each slot is synthetic with `probability`, else real.

    Real and synthetic images come in epochs of their own, thinned by the draw, so that each image of a kind
    is used about equally often (MVC, Sec. 4.2).
    """
    is_synthetic = numpy_generator(seed, "rsp", step).random(batch_size) < probability
    from_real = shuffled(seed, "rsp real", real_images, step, batch_size)
    from_synthetic = real_images + shuffled(seed, "rsp synthetic", synthetic_images, step, batch_size)
    return np.where(is_synthetic, from_synthetic, from_real)


def phase_steps(strategy: str, steps: int, phase_two_share: float) -> tuple[int, ...]:
    """Steps of each phase: (steps,), or for `two_phase` (first, second), which add up to `steps`.

    Args:
        strategy: name of the strategy.
        steps: optimisation steps in all.
        phase_two_share: share of the steps in phase 2, in (0, 1); phase 2 has at least one step.
    """
    if strategy != "two_phase":
        return (steps,)
    second = max(1, min(steps - 1, round(phase_two_share * steps)))
    return (steps - second, second)


def two_phase(
    seed: int,
    step: int,
    batch_size: int,
    real_images: int,
    synthetic_images: int,
    first_phase_steps: int,
) -> Indices:
    """Phase 1 on real and synthetic images shuffled together, phase 2 on real images only (MVC, Sec. 4.2)."""
    if step < first_phase_steps:
        return shuffled(seed, "phase 1", real_images + synthetic_images, step, batch_size)
    return shuffled(seed, "phase 2", real_images, step - first_phase_steps, batch_size)


def batch(
    strategy: str,
    seed: int,
    step: int,
    steps: int,
    batch_size: int,
    real_images: int,
    synthetic_images: int,
    rsp_probability: float = 0.8,
    phase_two_share: float = 0.3,
) -> Batch:
    """The batch of one step under a strategy.

    Args:
        strategy: real, duplicate, combined, rsp or two_phase.
        seed: model seed.
        step: from 0 to steps - 1.
        steps: optimisation steps in all.
        batch_size: slots a step.
        real_images: number of real training images, at least 1.
        synthetic_images: number of synthetic images; at least 1 except for `real`.
        rsp_probability: for `rsp`.
        phase_two_share: for `two_phase`.

    Raises:
        ValueError: the strategy is unknown, or its images are missing.
    """
    if real_images < 1 or (strategy in NEEDS_SYNTHETIC and synthetic_images < 1):
        raise ValueError(f"{strategy} with {real_images} real and {synthetic_images} synthetic images")
    first = phase_steps(strategy, steps, phase_two_share)[0]
    match strategy:
        case "real":
            indices = real(seed, step, batch_size, real_images)
        case "duplicate":
            indices = duplicate(seed, step, batch_size, real_images, synthetic_images)
        case "combined":
            indices = combined(seed, step, batch_size, real_images, synthetic_images)
        case "rsp":
            indices = rsp(seed, step, batch_size, real_images, synthetic_images, rsp_probability)
        case "two_phase":
            indices = two_phase(seed, step, batch_size, real_images, synthetic_images, first)
        case _:
            raise ValueError(f"unknown strategy '{strategy}'")
    return Batch(indices, 1 if step < first else 2)
