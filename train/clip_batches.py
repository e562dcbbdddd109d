"""Batches of image-caption pairs for a CLIP: which pairs a step has, and each pair as it is shown that time.

Every draw comes from (seed, purpose, sample number), so that neither the number of workers nor that of processes
changes a sample. No image comes twice in a batch: it would be its own negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from mvc.clip.pairs import Pairs
from mvc.errors import MvcError
from mvc.multimodal.drawn import random_affine, random_horizontal_flip, random_resized_crop
from mvc.multimodal.mining import hard_batches
from mvc.multimodal.paired import PairedSample
from mvc.multimodal.policies import Policy, apply_policy
from mvc.randomness import generator, numpy_generator


@dataclass(frozen=True)
class Look:
    """How a pair is shown in training.

    Attributes:
        seed: model seed.
        size: side of the images in pixels.
        crop_scale: random crops have at least this share of the image's area, in (0, 1].
        flip: probability of a mirror image, whose caption has left and right exchanged.
        degrees: largest rotation; 0 for none.
        policy: paired operations that are drawn for each; None for none.
    """

    seed: int
    size: int
    crop_scale: float
    flip: float = 0.0
    degrees: float = 0.0
    policy: Policy | None = None


def shown(look: Look, pairs: Pairs, row: int, number: int) -> tuple[Tensor, str]:
    """A pair as it is shown to one sample: one caption of its image, and both transformed by the same draws.

    Args:
        look: how.
        pairs: the training pairs.
        row: which image.
        number: global number of the sample; randomness from (look.seed, purpose, number).

    Returns:
        (3, S, S) uint8 and the caption.

    Raises:
        DataError: the image cannot be decoded.
    """
    captions = pairs.captions[row]
    chosen = int(numpy_generator(look.seed, "caption of a pair", number).integers(len(captions)))
    sample = PairedSample(pairs.image(row), captions[chosen])
    size, scale = (look.size, look.size), (look.crop_scale, 1.0)
    sample = random_resized_crop(sample, size, look.seed, number, scale=scale)
    if look.flip > 0:
        sample = random_horizontal_flip(sample, look.seed, number, probability=look.flip)
    if look.degrees > 0:
        sample = random_affine(sample, look.seed, number, degrees=look.degrees)
    if look.policy is not None:
        sample = apply_policy(sample, look.policy, look.seed, number)
    return functional.pil_to_tensor(sample.image), sample.caption


def rows_of_steps(
    count: int, batch_size: int, seed: int, steps: range, negatives: Tensor | None = None
) -> Iterator[list[int]]:
    """The images of some steps: epochs of whole batches, in each of which an image comes once at the most.

    Args:
        count: images, at least `batch_size`; those that fill no batch of an epoch are left to another one.
        batch_size: B.
        seed: model seed; randomness from (seed, "pair order", epoch), or as in `mining.hard_batches`.
        steps: from 0.
        negatives: (count, k) rows of `mining.Negatives`: batches hold pairs that are easily mistaken for each other.

    Yields:
        B rows a step.

    Raises:
        ValueError: there are fewer images than a batch needs; names both numbers.
    """
    if count < batch_size:
        raise ValueError(f"a batch of {batch_size} pairs cannot be made of {count} images, each of which comes once")
    epochs: dict[int, list[list[int]]] = {}
    for step in steps:
        epoch, place = divmod(step, count // batch_size)
        if epoch not in epochs:
            epochs = {epoch: _epoch(count, batch_size, seed, epoch, negatives)}
        yield epochs[epoch][place]


def _epoch(count: int, batch_size: int, seed: int, epoch: int, negatives: Tensor | None) -> list[list[int]]:
    if negatives is not None:
        return hard_batches(negatives, batch_size, seed, epoch)
    order = torch.randperm(count, generator=generator(seed, "pair order", epoch)).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


class _Shown(Dataset[tuple[Tensor, str] | MvcError]):
    """Pairs by (row, number of the sample), or why there is none: a worker would add its traceback to an error."""

    def __init__(self, look: Look, pairs: Pairs) -> None:
        self._look, self._pairs = look, pairs

    def __getitem__(self, asked: Any) -> tuple[Tensor, str] | MvcError:
        row, number = asked
        try:
            return shown(self._look, self._pairs, row, number)
        except MvcError as error:
            return error

    def __len__(self) -> int:
        return len(self._pairs)


def _stacked(samples: Sequence[tuple[Tensor, str] | MvcError]) -> tuple[Tensor, list[str]] | MvcError:
    images, captions = [], []
    for sample in samples:
        if isinstance(sample, MvcError):
            return sample
        images.append(sample[0])
        captions.append(sample[1])
    return torch.stack(images), captions


def batches(
    look: Look, pairs: Pairs, asked: Iterable[Sequence[tuple[int, int]]], num_workers: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Some batches in their order, decoded ahead by worker processes where there are any.

    Args:
        look, pairs: as in `shown`.
        asked: (row, number) of each sample of each batch; read as batches are made.
        num_workers: processes that decode; 0 decodes when asked for.

    Yields:
        (b, 3, S, S) uint8 and the b captions.

    Raises:
        DataError: an image cannot be decoded.
    """
    loader: Any = DataLoader(
        _Shown(look, pairs),
        batch_sampler=asked,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_stacked,
        # Workers would otherwise be seeded from the global state, which no sample reads.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, MvcError):
            raise batch
        yield batch
