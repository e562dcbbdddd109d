"""Which image fills each slot of each batch: the ways to train with real and synthetic images.

A slot holds an index into [real images | synthetic images]. It depends on (mix, model seed, step) alone, so a
batch can be rebuilt at any time and the arms of one comparison can be paired by seed. Every strategy gets
the same number of steps.

Images come in endless streams of epochs: none is used again before all others of its stream were. A stream is
made and kept in blocks of about an epoch, so a step costs microseconds and memory stays that of a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from mvc.arms import NEEDS_SYNTHETIC, STRATEGIES
from mvc.randomness import numpy_generator

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

_SCOPES = ("slot", "class", "global")
_MODES = ("replace", "append")
_BLOCK = 1024
"""Slots of a block at least, so that the few images of a small set don't cost a block each."""
_ROUNDS = 32
"""Slots of each class in a balanced block at least: a class costs two generators a block."""


# Here and below compared by identity: comparing arrays would be no yes or no, and a mix is the key of caches.
@dataclass(frozen=True, eq=False)
class Slots:
    """One step's batch.

    Args:
        indices: (B',) int64 into [real images | synthetic images]. B' is the batch size, or more under "append".
        weights: (B',) float32 of each slot in the loss, above 0, mean 1.
        phase: 1, or 2 in the second phase of `two_phase`.
    """

    indices: Indices
    weights: Weights
    phase: int


@dataclass(frozen=True, eq=False)
class Mix:
    """Which images a classifier sees.

    Args:
        strategy: one of mvc.arms.STRATEGIES:
            real: the real images alone, the baseline;
            duplicate: real images repeated to the count of real and synthetic ones, the control for mere size;
            synthetic_only: the synthetic images alone;
            combined: real and synthetic images shuffled together;
            rsp: random selection with probability, see the three settings below (MVC, Sec. 4.2);
            two_phase: phase 1 as combined, phase 2 on real images only (MVC, Sec. 4.2);
            weighted: half of each batch real, half synthetic, the real half holding `real_weight` of the loss.
        steps: optimisation steps in all.
        batch_size: slots a step.
        real_labels: (n,) int64 labels of the real training images; () is allowed for synthetic_only.
        synthetic_labels: (m,) int64 labels of the synthetic ones; for `duplicate` their number alone counts.
        rsp_probability: rsp: probability of a synthetic image, in [0, 1].
        rsp_scope: rsp: "slot": each slot by itself, any synthetic image; "class": each slot by itself, a synthetic
            image of the same class as the slot's real one, which stays where its class has none; "global": one
            draw decides for the whole batch, any synthetic images.
        rsp_mode: rsp: "replace": a synthetic image takes the place of the real one; "append": it comes besides it.
            The batch then grows, to twice its size at most, while the number of steps stays: a classifier
            sees as many real images as under `real`, and more images than other arms.
        phase_two_share: two_phase: share of the steps that goes to phase 2, in (0, 1).
        real_weight: weighted: share of the loss that the real images have, in (0, 1).
        balanced: every stream gives each class that has images in it an equal share of its slots.

    Raises:
        ValueError: a name is unknown, or images are missing that the strategy needs; the text says which.
    """

    strategy: str
    steps: int
    batch_size: int
    real_labels: Indices
    synthetic_labels: Indices
    rsp_probability: float = 0.8
    rsp_scope: str = "slot"
    rsp_mode: str = "replace"
    phase_two_share: float = 0.3
    real_weight: float = 0.8
    balanced: bool = False

    def __post_init__(self) -> None:
        for name in ("real_labels", "synthetic_labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        for what, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("rsp_scope", self.rsp_scope, _SCOPES),
            ("rsp_mode", self.rsp_mode, _MODES),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} '{value}'; one of {', '.join(known)}")
        if self.strategy != "synthetic_only" and not len(self.real_labels):
            raise ValueError(f"{self.strategy} needs real images, and there is none")
        if self.strategy in NEEDS_SYNTHETIC and not len(self.synthetic_labels):
            raise ValueError(f"{self.strategy} needs synthetic images, and there is none")
        if self.strategy == "weighted" and self.batch_size < 2:
            raise ValueError(f"weighted needs a batch of a real and a synthetic image, not of {self.batch_size}")

    @cached_property
    def real(self) -> Pool:
        """The real images."""
        return Pool(self.real_labels, self.balanced)

    @cached_property
    def synthetic(self) -> Pool:
        """The synthetic images, counted from 0."""
        return Pool(self.synthetic_labels, self.balanced)

    @cached_property
    def both(self) -> Pool:
        """Real and synthetic images."""
        return Pool(np.concatenate([self.real_labels, self.synthetic_labels]), self.balanced)


@dataclass(frozen=True, eq=False)
class Pool:
    """Images that streams go through in epochs.

    Args:
        labels: (count,) int64, at least one.
        balanced: whether each class gets an equal share of the slots, each in epochs of its own.
    """

    labels: Indices
    balanced: bool

    @cached_property
    def by_class(self) -> dict[int, Indices]:
        """The images of each class that has some, in their order."""
        return _by_label(self.labels)

    @cached_property
    def length(self) -> int:
        """Slots of about an epoch, such that each class fills equally many of every `length` slots."""
        count, classes = len(self.labels), len(self.by_class)
        period = classes if self.balanced else count
        return -(-max(count, _BLOCK, _ROUNDS * classes) // period) * period

    def draw(self, seed: int, purpose: str, step: int, batch_size: int) -> Indices:
        """(batch_size,) int64 images of step `step` of the stream `purpose`; a fresh array."""
        if not self.balanced:
            return shuffled(seed, purpose, len(self.labels), step, batch_size)
        length, start = self.length, step * batch_size
        return _window(lambda number: _balanced_block(self, seed, purpose, number), length, start, batch_size)


def _by_label(labels: Indices) -> dict[int, Indices]:
    order = np.argsort(labels, kind="stable").astype(np.int64)
    names, starts = np.unique(labels[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _window(block_of: Callable[[int], Indices], length: int, start: int, count: int) -> Indices:
    """Places start to start + count of an endless stream that comes in blocks of `length`; a fresh array."""
    parts = []
    for number in range(start // length, (start + count - 1) // length + 1):
        first = number * length
        parts.append(block_of(number)[max(start - first, 0) : start + count - first])
    return np.concatenate(parts)


def _epochs_a_block(count: int) -> int:
    return -(-_BLOCK // count)


@lru_cache(maxsize=8)
def _block(seed: int, purpose: str, count: int, number: int) -> Indices:
    """Epochs of permutations of range(count). Cached because the steps of an epoch ask for the same ones."""
    epochs = _epochs_a_block(count)
    drawn = [numpy_generator(seed, purpose, number * epochs + epoch).permutation(count) for epoch in range(epochs)]
    block = np.concatenate(drawn).astype(np.int64)
    block.flags.writeable = False
    return block


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
    length = count * _epochs_a_block(count)
    return _window(lambda number: _block(seed, purpose, count, number), length, step * batch_size, batch_size)


def _of_class(seed: int, purpose: str, label: int, images: Indices, start: int, count: int) -> Indices:
    """Places start to start + count of the epochs of one class; `start` is a multiple of `count`.

    One generator makes as many epochs as `count` places need: a class of few images goes through many.
    """
    epochs = -(-count // len(images))
    table = np.tile(images, (epochs, 1))

    def block(number: int) -> Indices:
        return numpy_generator(seed, purpose, label, number).permuted(table, axis=1).ravel()

    return _window(block, table.size, start, count)


@lru_cache(maxsize=8)
def _balanced_block(pool: Pool, seed: int, purpose: str, number: int) -> Indices:
    """Rounds in which each class has one slot, in an order of its own; each class in epochs of its own."""
    classes = len(pool.by_class)
    rounds = pool.length // classes
    images = np.empty((rounds, classes), dtype=np.int64)
    for column, (label, members) in enumerate(pool.by_class.items()):
        images[:, column] = _of_class(seed, f"{purpose}, one class", label, members, number * rounds, rounds)
    block = numpy_generator(seed, f"{purpose}, rounds", number).permuted(images, axis=1).ravel()
    block.flags.writeable = False
    return block


@lru_cache(maxsize=4)
def _copies(mix: Mix, seed: int) -> tuple[Indices, Pool]:
    """The pool of `duplicate`: real images repeated to the count of real and synthetic ones.

    Each real image lies in it floor or ceil(total / real) times; chance by seed, not the order of the classes,
    decides which ones get the one more.
    """
    count = len(mix.real_labels)
    copies, rest = divmod(count + len(mix.synthetic_labels), count)
    extra = numpy_generator(seed, "duplicate rest", 0).permutation(count)[:rest]
    images = np.concatenate([np.tile(np.arange(count, dtype=np.int64), copies), extra])
    return images, Pool(mix.real_labels[images], mix.balanced)


@lru_cache(maxsize=4)
def _partners(mix: Mix, seed: int, number: int) -> Indices:
    """For `mix.real.length` slots of the stream "rsp real" a synthetic image of their class; -1 where it has none.

    A class fills equally many of each such stretch of slots, so its epochs go on from stretch to stretch.
    """
    labels = mix.real_labels[mix.real.draw(seed, "rsp real", number, mix.real.length)]
    partners = np.full(len(labels), -1, dtype=np.int64)
    for label, places in _by_label(labels).items():
        members, count = mix.synthetic.by_class.get(label), len(places)
        if members is not None:
            partners[places] = _of_class(seed, "rsp synthetic, one class", label, members, number * count, count)
    return partners


def _rsp(mix: Mix, seed: int, step: int) -> Indices:
    """Random selection with probability (MVC, Sec. 4.2).

    Real and synthetic images come in epochs of their own, thinned by the draws, so that each image of a kind
    is used about equally often.
    """
    size, count = mix.batch_size, len(mix.real_labels)
    draws = numpy_generator(seed, "rsp", step).random(1 if mix.rsp_scope == "global" else size)
    is_synthetic = np.broadcast_to(draws < mix.rsp_probability, (size,))
    from_real = mix.real.draw(seed, "rsp real", step, size)
    if mix.rsp_scope == "class":
        partners = _window(lambda number: _partners(mix, seed, number), mix.real.length, step * size, size)
        is_synthetic = is_synthetic & (partners >= 0)
    else:
        partners = mix.synthetic.draw(seed, "rsp synthetic", step, size)
    if mix.rsp_mode == "append":
        return _in_any_order(seed, step, from_real, count + partners[is_synthetic])
    return np.where(is_synthetic, count + partners, from_real)


def _in_any_order(seed: int, step: int, *parts: Indices) -> Indices:
    # Shuffled, so that every process's share of a batch has images of both kinds.
    return numpy_generator(seed, "order of slots", step).permutation(np.concatenate(parts))


def _halves(mix: Mix, seed: int, step: int) -> tuple[Indices, Weights]:
    """`weighted`: real and synthetic images half and half (the odd one is real), and the weights of the slots."""
    size, count = mix.batch_size, len(mix.real_labels)
    made = size // 2
    from_real = mix.real.draw(seed, "weighted real", step, size - made)
    from_synthetic = count + mix.synthetic.draw(seed, "weighted synthetic", step, made)
    indices = _in_any_order(seed, step, from_real, from_synthetic)
    shares = np.where(indices < count, mix.real_weight / (size - made), (1 - mix.real_weight) / made)
    return indices, (size * shares).astype(np.float32)


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


def slots(mix: Mix, seed: int, step: int) -> Slots:
    """The batch of one step.

    Args:
        mix: the strategy and its images.
        seed: model seed.
        step: from 0 to mix.steps - 1.
    """
    size, count = mix.batch_size, len(mix.real_labels)
    first = phase_steps(mix.strategy, mix.steps, mix.phase_two_share)[0]
    weights = None
    match mix.strategy:
        case "duplicate":
            images, pool = _copies(mix, seed)
            indices = images[pool.draw(seed, "duplicate", step, size)]
        case "synthetic_only":
            indices = count + mix.synthetic.draw(seed, "synthetic_only", step, size)
        case "combined":
            indices = mix.both.draw(seed, "combined", step, size)
        case "rsp":
            indices = _rsp(mix, seed, step)
        case "two_phase" if step < first:
            indices = mix.both.draw(seed, "phase 1", step, size)
        case "two_phase":
            indices = mix.real.draw(seed, "phase 2", step - first, size)
        case "weighted":
            indices, weights = _halves(mix, seed, step)
        case _:
            indices = mix.real.draw(seed, "real", step, size)
    if weights is None:
        weights = np.ones(len(indices), dtype=np.float32)
    return Slots(indices, weights, 1 if step < first else 2)


def seen(mix: Mix, seed: int) -> tuple[int, int]:
    """How many slots real and synthetic images fill over all steps: (real, synthetic). No image is touched."""
    count, real, filled = len(mix.real_labels), 0, 0
    for step in range(mix.steps):
        indices = slots(mix, seed, step).indices
        real += int((indices < count).sum())
        filled += len(indices)
    return real, filled - real
