"""Tensors of which each process holds a part (FSDP): whole ones for files, parts of them again after loading."""

from __future__ import annotations

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on its device.

    Args:
        tensor: a plain tensor, or a DTensor that fully_shard has spread over the processes.

    Returns:
        a plain tensor equal in all processes; a plain one is returned as it is. For a DTensor this is a collective
        call: all processes have to make it, in the same order.
    """
    if not torch.distributed.is_initialized():
        return tensor
    # Costs a second to import, which one process can do without.
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(reference: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor; the inverse of `whole`.

    Args:
        reference: the parameter or moment that the tensor belongs to.
        tensor: plain, of the same shape, the same in all processes; on any device.

    Returns:
        spread over the processes as the reference is and on its device, without any communication; the tensor itself
        where the reference is plain.
    """
    if not torch.distributed.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return tensor
    # Every process has read the same file, so none has to send its content to the others.
    given = tensor.to(reference.device)
    return distribute_tensor(given, reference.device_mesh, reference.placements, src_data_rank=None)
