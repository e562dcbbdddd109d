"""How many bytes a training takes in memory and on disk, from the shapes of its tensors alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from torch import Tensor

from mvc.disk import bytes_below

from .optimizers import OptimizerName

_FLOAT = 4
"""Bytes of a float32 number; weights, gradients and averages are kept in that precision always."""
_EIGHT_BIT_LEAST, _EIGHT_BIT_BLOCK = 4096, 256
"""adamw8bit: elements from which a tensor's moments have eight bits, and how many of them share a scale."""
_CODES = {4: "F32", 1: "U8", 8: "I64"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: name, shape, and bytes of an element."""

    name: str
    shape: tuple[int, ...]
    width: int = _FLOAT

    @property
    def size(self) -> int:
        """Its bytes."""
        size = self.width
        for side in self.shape:
            size *= side
        return size


def optimizer_entries(parameters: Iterable[tuple[str, Tensor]], optimizer: OptimizerName) -> list[Entry]:
    """The tensors that an optimiser keeps for some parameters once it has done a step."""
    entries = []
    for name, value in parameters:
        shape, count = tuple(value.shape), value.numel()
        if optimizer == "adamw":
            entries += [Entry(f"{name}/{key}", shape) for key in ("exp_avg", "exp_avg_sq")]
            entries.append(Entry(f"{name}/step", ()))
            continue
        small = count < _EIGHT_BIT_LEAST
        entries += [Entry(f"{name}/{key}", shape, _FLOAT if small else 1) for key in ("state1", "state2")]
        scales = (ceil(count / _EIGHT_BIT_BLOCK),)
        entries += [] if small else [Entry(f"{name}/{key}", scales) for key in ("absmax1", "absmax2")]
        entries.append(Entry(f"{name}/step", (), 8))
    return entries


def file_bytes(entries: Sequence[Entry]) -> int:
    """Size of a safetensors file: eight bytes, a JSON header padded to a multiple of eight, and the numbers."""
    header, end = {}, 0
    for entry in sorted(entries, key=lambda entry: (-entry.width, entry.name)):  # the format's own order
        offsets = [end, end + entry.size]
        header[entry.name] = {"dtype": _CODES[entry.width], "shape": list(entry.shape), "data_offsets": offsets}
        end = offsets[1]
    return 8 + 8 * ceil(len(json.dumps(header, separators=(",", ":"))) / 8) + end


def checkpoint_bytes(parameters: Sequence[tuple[str, Tensor]], optimizer: OptimizerName, ema: bool) -> int:
    """Size of a checkpoint: weights, their averages and the optimiser's moments; its few KiB of JSON are left out.

    Args:
        parameters: those that are trained, by name (`lora.trained`); only their shapes are looked at.
        optimizer: 8 bytes a weight with adamw, about 2 with adamw8bit.
        ema: whether there are averages.
    """
    weights = [Entry(name, tuple(value.shape)) for name, value in parameters]
    averages = weights if ema else []
    return sum(file_bytes(part) for part in (weights, averages, optimizer_entries(parameters, optimizer)))


def checkpoints_to_come(folder: Path, checkpoint: int, keep: int) -> int:
    """Bytes that checkpoints will still take at most: the newest, the best, and one that is being written.

    Args:
        folder: run/checkpoints; what is there already counts as written.
        checkpoint: size of one.
        keep: train.checkpoints_total_limit.
    """
    return max(0, (keep + 2) * checkpoint - bytes_below(folder))


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on the device that a training takes besides its activations.

    Attributes:
        weights: of the whole UNet.
        gradients: of what is trained.
        moments: of the optimiser.
        average: of the weights; 0 without it, or if it lies in the memory of the host.
    """

    weights: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.average


def memory_parts(
    every: Sequence[tuple[str, Tensor]],
    trained: Sequence[tuple[str, Tensor]],
    optimizer: OptimizerName,
    average_on_device: bool,
) -> MemoryParts:
    """Add up what lies on the device during training.

    Args:
        every: all parameters of the UNet, by name.
        trained: those that are trained.
        optimizer: its kind.
        average_on_device: there is a moving average, and it lies where the weights are.
    """
    learnt = _FLOAT * sum(value.numel() for _, value in trained)
    return MemoryParts(
        weights=_FLOAT * sum(value.numel() for _, value in every),
        gradients=learnt,
        moments=sum(entry.size for entry in optimizer_entries(trained, optimizer)),
        average=learnt if average_on_device else 0,
    )
