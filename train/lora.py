"""Low-rank additions (LoRA, DoRA) to a frozen UNet, together with the whole first convolution.

The condition latents enter through new channels of that convolution, which start at zero: additions to attention
alone would never see the image. It is therefore trained in full, and kept in a file of its own, because libraries
that load low-rank additions drop or refuse whole weights among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Conv2d, Linear, Parameter

from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.randomness import seeded_global
from mvc.storage import read_json, write_json

WEIGHTS, CONV_IN, FACTS = "pytorch_lora_weights.safetensors", "conv_in.safetensors", "lora.json"
"""Files of a saved LoRA: the additions by diffusers' names, the first convolution, and rank, alpha, DoRA and layers."""

_METADATA = "lora_adapter_metadata"
"""Under this key of the safetensors file diffusers looks for the settings."""


def add_lora(unet: Any, rank: int, alpha: float, targets: Sequence[str], dora: bool, seed: int) -> None:
    """Freeze a UNet, give some of its layers a low-rank addition, and leave the first convolution to be trained.

    Each chosen layer computes W x + (alpha / rank) B A x (Hu et al. 2021, Section 4.1). B starts at zero, so the UNet
    predicts what it did before. With DoRA the length of each output's weight vector is learned apart from its
    direction (Liu et al. 2024, Eq. 5).

    Args:
        unet: UNet2DConditionModel, after the surgery of its first convolution; changed in place.
        rank: rows of A and columns of B.
        alpha: see above; the scale does not depend on the rank if it grows with it.
        targets: names, or ends of names, of linear layers and convolutions.
        dora: also learn the lengths.
        seed: A is drawn from (seed, "lora").

    Raises:
        ConfigError: a target names no layer, or the first convolution.
    """
    layers = matching_layers(unet, targets)
    with seeded_global(seed, "lora"):
        _inject(unet, rank, alpha, layers, dora)


def matching_layers(unet: Any, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers and convolutions that are called, or end with, one of the targets.

    Raises:
        ConfigError: a target names no layer; says what the layers are called. Or it names the first convolution.
    """
    layers = _layers(unet)
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if target == "conv_in":
            raise ConfigError(
                "train.lora_targets holds conv_in",
                why="the first convolution is always trained in full",
                do="take it out of train.lora_targets",
            )
        if not found:
            raise ConfigError(
                f"train.lora_targets: no layer of the UNet is called or ends with '{target}'",
                why=f"its layers end with {', '.join(_endings(layers))}",
                do="choose among these; a longer end chooses fewer layers",
            )
        chosen.update(found)
    if not chosen:
        raise ConfigError("train.lora_targets is empty", do="name layers, such as to_q, or set train.method=full")
    return [name for name in layers if name in chosen]


def _layers(unet: Any) -> list[str]:
    kinds = (Linear, Conv2d)
    return [name for name, module in unet.named_modules() if isinstance(module, kinds) and name != "conv_in"]


def _endings(layers: Sequence[str]) -> list[str]:
    """The shortest ends of names that say something: to_q, and to_out.0 where the last word is a number."""
    ends = set()
    for name in layers:
        words = name.split(".")
        first = next(place for place in range(len(words) - 1, -1, -1) if not words[place].isdigit())
        ends.add(".".join(words[first:]))
    return sorted(ends)


def _inject(unet: Any, rank: int, alpha: float, layers: Sequence[str], dora: bool) -> None:
    kind: Any = LoraConfig  # declares an integer alpha, but computes with any number
    unet.add_adapter(kind(r=rank, lora_alpha=alpha, target_modules=list(layers), use_dora=dora))
    unet.conv_in.requires_grad_(True)


def trained(unet: Any) -> list[tuple[str, Parameter]]:
    """The parameters that are trained, by name and in the UNet's order: all of them without LoRA."""
    return [(name, parameter) for name, parameter in unet.named_parameters() if parameter.requires_grad]


def save_lora(folder: Path, unet: Any) -> None:
    """Write the low-rank additions and the first convolution; the files are equal to the byte for equal weights.

    diffusers' `unet.load_lora_adapter(folder, prefix=None, use_safetensors=True)` reads the additions; whoever uses
    it has to put conv_in.safetensors into a widened first convolution besides. `load_lora` does both.

    Args:
        folder: exists, such as the temporary one of `mvc.storage.publish_folder`.
        unet: after `add_lora` or `load_lora`.

    Raises:
        EnvironmentFault: the place cannot be written, or the disk is full.
    """
    config = unet.peft_config["default"]
    layers = [name for name, module in unet.named_modules() if isinstance(module, BaseTunerLayer)]
    facts = {"rank": config.r, "alpha": config.lora_alpha, "dora": config.use_dora, "layers": layers}
    # These four alone, because other versions of peft refuse keys they don't know.
    settings = {"r": config.r, "lora_alpha": config.lora_alpha, "use_dora": config.use_dora, "target_modules": layers}
    try:
        metadata = {_METADATA: json.dumps(settings, sort_keys=True)}
        save_file(_on_cpu(get_peft_model_state_dict(unet)), folder / WEIGHTS, metadata)
        save_file(_on_cpu(unet.conv_in.state_dict()), folder / CONV_IN)
    except (SafetensorError, OSError) as error:
        raise EnvironmentFault(f"cannot write {folder}", why=str(error), do="free some space") from error
    write_json(folder / FACTS, facts)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def load_lora(folder: Path, unet: Any) -> None:
    """Put what `save_lora` wrote on a UNet of the same base, ready to predict or to be trained further.

    Args:
        folder: with the three files.
        unet: UNet2DConditionModel without LoRA, after the surgery of its first convolution; changed in place.

    Raises:
        EnvironmentFault: a file is missing or damaged, or belongs to another UNet; the UNet is as it was.
    """
    try:
        facts = read_json(folder / FACTS)
        additions, conv_in = load_file(folder / WEIGHTS), load_file(folder / CONV_IN)
        rank, alpha, dora = int(facts["rank"]), float(facts["alpha"]), bool(facts["dora"])
        layers = [str(name) for name in facts["layers"]]
    except (DataError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unusable(folder, " ".join(str(error).split())[:200]) from error
    strange = sorted(set(layers) - set(_layers(unet)))
    faults = [f"the UNet has no layer {strange[0]}"] if strange else []
    faults += _faults("conv_in.", conv_in, unet.conv_in.state_dict())
    if faults or not layers:
        raise _unusable(folder, "; ".join(faults[:4]) or "it holds no layers")
    with seeded_global(0, "replaced at once"):  # the initial weights are drawn, whoever wants them or not
        _inject(unet, rank, alpha, layers, dora)
    faults = _faults("", additions, get_peft_model_state_dict(unet))
    if faults:
        _remove(unet)
        raise _unusable(folder, "; ".join(faults[:4]))
    set_peft_model_state_dict(unet, additions)
    unet.conv_in.load_state_dict(conv_in)


def _faults(prefix: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{prefix}{name} is missing" for name in sorted(expected.keys() - given.keys())]
    faults += [f"{prefix}{name} is unknown" for name in sorted(given.keys() - expected.keys())]
    for name in sorted(given.keys() & expected.keys()):
        if given[name].shape != expected[name].shape:
            shapes = f"{tuple(given[name].shape)}, the UNet {tuple(expected[name].shape)}"
            faults.append(f"{prefix}{name} has the shape {shapes}")
        elif not bool(given[name].isfinite().all()):
            faults.append(f"{prefix}{name} is not finite")
    return faults


def _unusable(folder: Path, why: str) -> EnvironmentFault:
    do = "give the base model it was trained on, or train it again"
    return EnvironmentFault(f"{folder} is no LoRA for this UNet", why=why, do=do)


@torch.no_grad()
def merge_lora(unet: Any) -> None:
    """Add the low-rank products to the weights they belong to and forget them: a plain UNet is left, in place.

    Its keys are those of a UNet that never had LoRA and all its weights can be trained again. It predicts the same up
    to rounding (1e-5 in float32).

    Args:
        unet: after `add_lora` or `load_lora`; a plain one is left as it is.
    """
    unet.fuse_lora()
    _remove(unet)


def _remove(unet: Any) -> None:
    unet.unload_lora()
    unet.requires_grad_(True)
