"""One classifier by several processes: each takes its part of every batch, and all keep the same weights.

Gradients are averaged by DistributedDataParallel so that the loss is the mean over all images of a batch. As long as
torch's process group is not up there is one process, and every function here gives back what it got.

On CUDA, BatchNorm takes its statistics over all processes. torch has no such layer for a CPU: there they are those of
each process's part, so that a network with BatchNorm is another one in several CPU processes (not a worse one while
parts are large); the running statistics of process 0 count. Mixing augmentations find partners within a part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from itertools import count
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mvc import processes
from mvc.errors import ConfigError

_WAIT = timedelta(hours=1)
"""How long processes wait for the first one to validate; one that dies is noticed by whoever started them."""
_GROUPS = count()


def join(device: torch.device) -> torch.device:
    """Form a process group with the other processes of the command, if there are any.

    It ends with `mvc.processes.together`, and can then be formed again.

    Args:
        device: what all of them compute on.

    Returns:
        The device of this process: one GPU each.

    Raises:
        ConfigError: more processes than devices, or a launcher asks for what is not supported.
        EnvironmentFault: one of them did not come.
    """
    if not processes.several():
        return device
    processes.require_supported(device.type)
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if device.type == "cuda":
        device = torch.device("cuda", processes.local_rank())
        torch.cuda.set_device(device)
    processes.gather()  # holds the store, which otherwise would end with the group that was made in it
    store, rank, size = next(iter(rendezvous("env://")))
    # A place of its own in the store: addresses of an earlier group, as that of a fine-tuning, would be dialled again.
    store = PrefixStore(f"classify/{next(_GROUPS)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WAIT)
    return device


def size() -> int:
    """How many processes train the classifier together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def spread(objective: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module whose result is the loss so that gradients are averaged over the processes.

    Whatever passes through the network has to be inside that module, or its gradients are not averaged.

    Args:
        objective: its parameters become those of process 0; its BatchNorm layers are exchanged on CUDA.
        device: where it is.
    """
    if size() == 1:
        return objective
    if device.type == "cuda":
        # timm's and not torch's, which would drop the activation of timm's own BatchNorm layers.
        layers: Any = import_module("timm.layers")
        objective = layers.convert_sync_batchnorm(objective)
    with warnings.catch_warnings():
        # torch has begun to rename the option, and its minor versions do not share the new name.
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False)


def part(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a batch that are this process's: every n-th of them.

    Args:
        images: (B, ...), the same in all processes.
        targets: (B, C).

    Returns:
        Images and targets of the part. Targets are scaled by the size of the part against the mean one, so that the
        mean over processes of mean losses is the mean over all B rows where parts are unequal too.

    Raises:
        ConfigError: there are fewer rows than processes.
    """
    total = size()
    if total == 1:
        return images, targets
    if len(images) < total:
        raise ConfigError(
            f"a batch of {len(images)} images for {total} processes",
            do=f"set classify.train_batch_size={total} or more",
        )
    own = targets[distributed.get_rank() :: total]
    return images[distributed.get_rank() :: total], own * (len(own) * total / len(targets))


def mean(values: Tensor) -> Tensor:
    """Mean over the processes of tensors of one shape; all of them have to ask."""
    if size() == 1:
        return values
    summed = values.clone()
    distributed.all_reduce(summed)
    return summed / size()


def share_buffers(network: nn.Module) -> None:
    """Give all processes the buffers of process 0, such as running statistics."""
    if size() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def of_first(scores: Callable[[], tuple[float, float]], device: torch.device) -> tuple[float, float]:
    """What process 0 finds: it alone computes, and all get the same numbers and decide alike.

    Args:
        scores: what to compute.
        device: where the processes exchange tensors.
    """
    if size() == 1:
        return scores()
    own = scores() if distributed.get_rank() == 0 else (0.0, 0.0)
    told = torch.tensor(own, dtype=torch.float64, device=device)
    distributed.broadcast(told, 0)
    first, second = told.tolist()
    return first, second
