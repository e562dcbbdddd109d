"""Same-class pairs (x, x'), drawn afresh every epoch; a sample is known by its global number alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from mvc.errors import DataError
from mvc.randomness import generator


@dataclass(frozen=True)
class Pair:
    """The images of one sample, by number among the training images.

    Attributes:
        image: x, the one to denoise.
        partner: x', the condition.
    """

    image: int
    partner: int


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, images: int) -> tuple[int, ...]:
    """The order of the training images in an epoch, a permutation; randomness from (seed, "order", epoch)."""
    return tuple(torch.randperm(images, generator=generator(seed, "order", epoch)).tolist())


def locate(sample: int, images: int) -> tuple[int, int]:
    """Epoch and position of a sample: batches run on over the end of an epoch, so no image is ever dropped."""
    return divmod(sample, images)


def draw_partner(seed: int, epoch: int, image: int, members: Sequence[int]) -> int:
    """x' for x: uniform among the other images of its class; randomness from (seed, "pair", epoch, image).

    Args:
        seed: run.seed.
        epoch: counted from 0.
        image: number of x.
        members: numbers of the images of its class in ascending order, x among them.
    """
    place = bisect_left(members, image)
    drawn = int(torch.randint(len(members) - 1, (), generator=generator(seed, "pair", epoch, image)))
    return members[drawn + (drawn >= place)]


def draw_pairs(
    seed: int, samples: Sequence[int], labels: Sequence[int], pairing: Literal["same_class", "self"]
) -> list[Pair]:
    """The pairs of some samples (Section 3.3).

    Args:
        seed: run.seed.
        samples: global sample numbers, from 0 over all epochs.
        labels: class of each training image.
        pairing: `same_class` takes another image of the class as x', `self` x itself.
    """
    members = class_members(tuple(labels))
    pairs = []
    for number in samples:
        epoch, position = locate(number, len(labels))
        image = epoch_order(seed, epoch, len(labels))[position]
        if pairing == "self":
            pairs.append(Pair(image, image))
        else:
            pairs.append(Pair(image, draw_partner(seed, epoch, image, members[labels[image]])))
    return pairs


@lru_cache(maxsize=4)
def class_members(labels: tuple[int, ...]) -> Mapping[int, tuple[int, ...]]:
    """Numbers of the images of each class, ascending."""
    members: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        members.setdefault(label, []).append(number)
    return {label: tuple(numbers) for label, numbers in members.items()}


def require_partners(labels: Sequence[int], classes: Sequence[str]) -> None:
    """Refuse classes in which no x' other than x can be had.

    Args:
        labels: class of each training image.
        classes: class folders by label.

    Raises:
        DataError: a class has a single training image, or none; lists all such classes.
    """
    members = class_members(tuple(labels))
    short = [name for label, name in enumerate(classes) if len(members.get(label, ())) < 2]
    if short:
        raise DataError(
            f"classes with fewer than two training images: {', '.join(short)}",
            why="the condition image has to be another one of the same class",
            do="add images, raise data.shots, or set train.pairing=self",
        )
