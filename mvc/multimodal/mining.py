"""Hard-example mining: the texts that an image is most easily mistaken for, samples by their loss, and batches of both.

The glossaries of cross-modal and of multimodal data augmentation, "Hard Negative Mining" and "Hard Example Mining";
Faghri et al., "VSE++", BMVC 2018, for hard negatives of image-text retrieval. What looks like a hard negative is often
no negative at all: another caption of the same image, an equal caption, or a text that fits as well as the own one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.randomness import generator

NONE = -1
"""In place of a row where there are fewer negatives than were asked for."""


@dataclass(frozen=True, eq=False)
class Negatives:
    """The hardest negatives of N items, the hardest first.

    Attributes:
        rows: (N, k) int64, rows of the other modality; NONE where there are no more.
        similarities: (N, k) float32 cosines; -inf where there are no more.
    """

    rows: Tensor
    similarities: Tensor


def hard_negatives(
    images: Tensor,
    texts: Tensor,
    count: int,
    *,
    same: Sequence[Sequence[Hashable] | Tensor] = (),
    margin: float | None = None,
    chunk: int = 1024,
) -> Negatives:
    """For each image the most similar texts of other pairs; with the arguments exchanged, for each text the images.

    Memory is that of tables of `chunk` x `chunk` numbers, whatever N is.

    Args:
        images: (N, D) features; they are scaled to length 1.
        texts: (N, D) features of the texts of the same N pairs, in the same space.
        count: k, negatives of each, at least 1.
        same: what else makes a text no negative, each as N values of the pairs: the class, the id of the image where
            several pairs are of one image, the words of the caption. Pairs with an equal value in one of them are no
            negatives of each other.
        margin: texts more similar than the own text's similarity minus this are left out, because they may be as true
            of the image; 0 or more. None leaves none out. With a model that has not learnt yet this leaves few.
        chunk: rows at once.

    Returns:
        The negatives; of equally similar ones the lower row comes first.

    Raises:
        ValueError: shapes or numbers differ, or count, margin or chunk are out of their range; names the value.
    """
    _require_features(images, texts)
    keys = _numbered(same, len(images))
    if count < 1 or chunk < 1 or (margin is not None and not margin >= 0):
        raise ValueError(f"count {count} and chunk {chunk} have to be 1 or more, and margin {margin} 0 or more")
    one, other = (F.normalize(values.float(), dim=1) for values in (images, texts))
    keys = keys.to(one.device)
    found = [_of_rows(start, one, other, keys, count, margin, chunk) for start in range(0, len(one), chunk)]
    return Negatives(torch.cat([rows for rows, _ in found]), torch.cat([values for _, values in found]))


def _of_rows(
    start: int, images: Tensor, texts: Tensor, keys: Tensor, count: int, margin: float | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Rows and similarities of the negatives of images start.. of one chunk, over all chunks of texts."""
    own = slice(start, start + chunk)
    size = len(images[own])
    rows = torch.full((size, count), NONE, device=images.device)
    best = torch.full((size, count), -torch.inf, device=images.device)
    # Of each image and its own text; one by one, so that it cannot differ from chunk to chunk.
    limit = None if margin is None else (images[own] * texts[own]).sum(dim=1, keepdim=True) - margin
    for first in range(0, len(texts), chunk):
        part = slice(first, first + chunk)
        table = images[own] @ texts[part].T
        number = torch.arange(first, first + table.shape[1], device=images.device)
        no_negative = number[None] == torch.arange(start, start + size, device=images.device)[:, None]
        for key in keys:
            no_negative |= key[own, None] == key[None, part]
        if limit is not None:
            no_negative |= table > limit
        table.masked_fill_(no_negative, -torch.inf)
        # What is known comes first and rows ascend, so that a stable sort keeps the lower row of two equal ones.
        values, places = torch.cat([best, table], dim=1).sort(dim=1, descending=True, stable=True)
        candidates = torch.cat([rows, number.expand(size, -1)], dim=1)
        best, rows = values[:, :count], candidates.gather(1, places[:, :count])
    return rows.masked_fill(best == -torch.inf, NONE), best


def hard_examples(losses: Tensor, share: float) -> Tensor:
    """The samples of the largest losses, the largest first; of equal losses the lower number first.

    Args:
        losses: (N,) finite losses of the samples.
        share: of the samples, in (0, 1]; rounded up to whole samples.

    Returns:
        (ceil(share * N),) int64.

    Raises:
        ValueError: the share is outside (0, 1], or a loss is not finite; names both.
    """
    _require_losses(losses)
    if not 0 < share <= 1:
        raise ValueError(f"share {share:g} is outside (0, 1]")
    # A share of 0.1 of 30 is 3 and not 4, whatever 0.1 * 30 is in floating-point numbers.
    return losses.sort(descending=True, stable=True).indices[: ceil(round(share * len(losses), 9))]


def hardness_weights(losses: Tensor, temperature: float) -> Tensor:
    """Weights of samples in a loss: N * softmax(losses / temperature), of mean 1.

    Args:
        losses: (N,) finite losses of the samples; no gradient goes through them.
        temperature: above 0, in units of the loss: e times the weight for each so much of loss. The larger it is, the
            more equal are the weights.

    Returns:
        (N,) float32.

    Raises:
        ValueError: the temperature is no number above 0, or a loss is not finite; names both.
    """
    _require_losses(losses)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature:g} is no number above 0")
    return len(losses) * (losses.detach().float() / temperature).softmax(dim=0)


def hard_batches(negatives: Tensor, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch in batches of samples that are hard for each other; each sample is in exactly one of them.

    A batch begins with the next sample, in the order of (seed, "hard batches", epoch), that is in no batch yet. Its
    negatives that are in none join it, the hardest first, then theirs, until it is full. Where no more are known, it
    goes on from the next sample. The last batch holds what is left; full ones come in a drawn order, because late
    ones find fewer of their negatives free. Samples that are no negatives of each other may still meet.

    Args:
        negatives: (N, k) rows, as of `Negatives`; NONE is passed over.
        batch_size: 1 or more.
        seed: of the training.
        epoch: counted from 0.

    Returns:
        batches of row numbers.

    Raises:
        ValueError: batch_size is below 1, or there is no such row; names the value.
    """
    total = len(negatives)
    wrong = negatives[(negatives < NONE) | (negatives >= total)]
    if negatives.ndim != 2 or batch_size < 1 or len(wrong):
        bad = f" with {int(wrong[0])}" if len(wrong) else ""
        raise ValueError(
            f"negatives {tuple(negatives.shape)}{bad} have to be (N, k) rows from {NONE} to N - 1, "
            f"and batch_size {batch_size} 1 or more"
        )
    random = generator(seed, "hard batches", epoch)
    order, hard = torch.randperm(total, generator=random).tolist(), negatives.tolist()
    free = set(order)
    walk = _walk(order, hard, free, batch_size)
    batches = [list(batch) for batch in walk]
    full = [batch for batch in batches if len(batch) == batch_size]
    shuffled = [full[place] for place in torch.randperm(len(full), generator=random).tolist()]
    return shuffled + batches[len(full) :]


def _walk(order: list[int], hard: list[list[int]], free: set[int], batch_size: int) -> Iterator[list[int]]:
    """Batches one after the other; takes their samples out of `free`."""
    begin = iter(order)
    while free:
        batch: list[int] = []
        looked_at = 0
        while free and len(batch) < batch_size:
            if looked_at == len(batch):
                start = next(row for row in begin if row in free)
                batch.append(start)
                free.remove(start)
                continue
            for row in hard[batch[looked_at]]:
                if row in free and len(batch) < batch_size:
                    batch.append(row)
                    free.remove(row)
            looked_at += 1
        yield batch


def _require_features(images: Tensor, texts: Tensor) -> None:
    if images.ndim != 2 or images.shape != texts.shape or not images.numel():
        raise ValueError(f"features are {tuple(images.shape)} and {tuple(texts.shape)}, not of one shape (N, D)")
    for name, values in (("images", images), ("texts", texts)):
        bad = (~values.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"the features of row {int(bad[0])} of the {name} are not finite")


def _numbered(same: Sequence[Sequence[Hashable] | Tensor], count: int) -> Tensor:
    """(len(same), N) int64: equal numbers for equal values."""
    rows = []
    for place, values in enumerate(same):
        if len(values) != count:
            raise ValueError(f"same[{place}] has {len(values)} values for {count} pairs")
        known: dict[Hashable, int] = {}
        # Numbers of a tensor are tensors, each of which would be a value of its own.
        plain: Sequence[Hashable] = values.tolist() if isinstance(values, Tensor) else values
        rows.append([known.setdefault(value, len(known)) for value in plain])
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), count)


def _require_losses(losses: Tensor) -> None:
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses are {tuple(losses.shape)}, not (N,) of 1 at least")
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"the loss of sample {int(bad[0])} is {float(losses[bad[0]]):g}")
