"""Rows of one batch that are shared among the processes of torch's process group; one process without a group."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def process() -> int:
    """Number of this process in the group, counted from 0."""
    return distributed.get_rank() if _several() else 0


def shares(images: int, texts: int, device: torch.device) -> list[int]:
    """How many rows each process has; all have to ask.

    Args:
        images, texts: this process's rows of either kind.
        device: where the processes exchange tensors.

    Raises:
        ValueError: in all processes alike, if one of them has no row, or not as many images as texts.
    """
    own = torch.tensor([images, texts], device=device)
    found = [own]
    if _several():
        found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, own)
    counts = [(int(one[0]), int(one[1])) for one in found]
    for rank, (some, others) in enumerate(counts):
        if some != others or not some:
            of = f" of process {rank}" if len(counts) > 1 else ""
            raise ValueError(f"{some} images and {others} texts{of}: as many of both are needed, and 1 at least")
    return [some for some, _ in counts]


def gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all processes in their order, without a graph; all have to ask.

    Args:
        rows: (counts[process], ...) this process's.
        counts: from `shares`.
    """
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collective calls take tensors of one shape
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(found, padded)
    return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])


def sum_gradients(network: nn.Module) -> None:
    """Add up what each process has in `.grad`; those that are None have to be None in all of them."""
    if not _several():
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    works = [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in works:
        work.wait()
