"""AdamW in float32 or with moments of eight bits, and its state as named tensors that go on to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from mvc.errors import ConfigError, EnvironmentFault

from .sharding import like

OptimizerName = Literal["adamw", "adamw8bit"]

_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""Constants that every quantised tensor of bitsandbytes refers to, and what the optimiser calls them."""


def require_optimizer(name: OptimizerName, channels_last: bool = False) -> None:
    """Find before a long start whether `make_optimizer` can do its work.

    Args:
        name: as there.
        channels_last: whether weights will have that memory layout.

    Raises:
        EnvironmentFault: adamw8bit without bitsandbytes.
        ConfigError: adamw8bit with channels_last weights.
    """
    if name != "adamw8bit":
        return
    if channels_last:
        raise ConfigError(
            "train.optimizer=adamw8bit and train.channels_last=true do not go together",
            why="bitsandbytes lays the weights out anew at its first step, and the moments would not follow",
            do="switch one of the two off",
        )
    _bitsandbytes()


def _bitsandbytes() -> Any:
    try:
        return import_module("bitsandbytes.optim")
    except (ImportError, OSError) as error:  # OSError: its compiled part does not fit this system
        raise EnvironmentFault(
            "train.optimizer=adamw8bit needs the package bitsandbytes",
            why=" ".join(str(error).split())[:200],
            do="pip install 'mvc[8bit]', or set train.optimizer=adamw",
        ) from error


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
    device: torch.device,
) -> torch.optim.Optimizer:
    """Make an optimiser with decoupled weight decay (Loshchilov and Hutter 2019) and bias correction.

    Args:
        name: adamw keeps two float32 moments a weight, 8 bytes; adamw8bit two of eight bits with a scale for each 256,
            2.03 bytes (Dettmers et al. 2022), but float32 for tensors below 4096 elements.
        parameters: float32, already on the device and in their final memory layout.
        learning_rate: may be changed in the parameter groups afterwards.
        betas: decay of the two moments.
        weight_decay: of every parameter alike.
        epsilon: added to the root of the second moment.
        device: where the parameters are; one fused kernel on CUDA and CPU, where it takes a third of the time.

    Raises:
        EnvironmentFault: adamw8bit without bitsandbytes.
        ConfigError: adamw8bit with channels_last weights.
    """
    chosen = list(parameters)
    common: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": epsilon, "weight_decay": weight_decay}
    if name == "adamw":
        fused = device.type in ("cuda", "cpu")
        return torch.optim.AdamW(chosen, **common, fused=fused, foreach=not fused)
    require_optimizer(name, channels_last=not all(value.is_contiguous() for value in chosen))
    made: torch.optim.Optimizer = _bitsandbytes().AdamW8bit(chosen, **common)
    return made


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The state by "<weight>/<key>", such as "conv_in.weight/exp_avg"; empty before the first step.

    Args:
        optimizer: of `make_optimizer`, or accelerate's wrapper of one.
        names: of its parameters, in its order.

    Returns:
        the state's own tensors, not copies; counts that are integers become int64 scalars. Constant tables are left
        out.
    """
    tensors = {}
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if key not in _TABLES:
                tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`: the next step is the same to the bit; learning rates and such stay.

    Args:
        optimizer: of the same kind, over the same parameters.
        names: of its parameters, in its order.
        tensors: whole ones; copied to where the parameters are, or this process's part of them with FSDP.
    """
    parameters = dict(zip(names, _parameters(optimizer), strict=True))
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for place, value in tensors.items():
        name, _, key = place.rpartition("/")
        state.setdefault(numbers[name], {})[key] = _as_kept(parameters[name], value)
    tables = getattr(getattr(optimizer, "optimizer", optimizer), "name2qmap", {})
    for row in state.values():
        if "absmax1" in row:
            row.update({key: tables[table] for key, table in _TABLES.items()})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _as_kept(parameter: Parameter, value: Tensor) -> Tensor | int:
    if value.dtype == torch.int64:
        return int(value)
    if value.shape != parameter.shape:
        return value.clone()
    # In the memory layout of the weight, because fused kernels refuse a mixture; a part of it where those are sharded.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(like(parameter, value))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
