"""Training state on disk: published whole, pruned only afterwards, resumed from the newest that verifies.

There is no random state to keep: every draw comes from the number of its sample.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvc.errors import ConfigError, EnvironmentFault, NumericError
from mvc.fingerprint import differences
from mvc.progress import say
from mvc.storage import publish_folder, read_json, remove_leftovers, verified_manifest, write_json

FOLDER = "checkpoints"
"""Below the run folder."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on.

    Attributes:
        step: optimisation steps done.
        unet: weights by name.
        ema: averages by name; empty without them.
        ema_updates: how many updates they have seen.
        optimizer: AdamW's moments by "<weight>/<moment>".
        scaler: state of the loss scaler of fp16; empty otherwise.
    """

    step: int
    unet: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    ema_updates: int
    optimizer: Mapping[str, Tensor]
    scaler: Mapping[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state by "<weight>/<moment>"; `names` are those of its parameters in its order."""
    state = optimizer.state_dict()["state"]
    return {f"{names[number]}/{key}": value for number, row in state.items() for key, value in row.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        state.setdefault(numbers[name], {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, state: TrainingState, settings: Mapping[str, Any], keep: int) -> Path:
    """Publish a checkpoint, then remove the oldest ones beyond `keep`.

    Args:
        folder: run/checkpoints.
        state: what to save.
        settings: flat JSON values that the training depends on; resuming needs the same.
        keep: how many to keep, at least 2.

    Raises:
        NumericError: a weight is not finite; nothing was written.
        EnvironmentFault: the disk is full or the place cannot be written; older checkpoints are untouched.
    """
    _require_finite(folder, state)
    target = folder / f"step-{state.step:06d}"
    parts = {"unet": state.unet, "ema": state.ema, "optimizer": state.optimizer}
    with publish_folder(target, {"kind": "checkpoint", "step": state.step, "settings": dict(settings)}) as temporary:
        try:
            for name, tensors in parts.items():
                whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                save_file(whole, temporary / f"{name}.safetensors")
        except SafetensorError as error:  # a full disk is reported as one of these
            raise EnvironmentFault(
                f"cannot write {target}", why=str(error), do="free some space and run the same command again"
            ) from error
        write_json(temporary / "state.json", {"ema_updates": state.ema_updates, "scaler": dict(state.scaler)})
    for path in checkpoints(folder)[keep:]:
        shutil.rmtree(path)
    return target


def _require_finite(folder: Path, state: TrainingState) -> None:
    values = [*state.unet.values(), *state.ema.values(), *state.optimizer.values()]
    if not all(bool(value.isfinite().all()) for value in values):
        kept = checkpoints(folder)
        raise NumericError(
            f"weights are not finite after step {state.step}; this state was not saved",
            why="training diverged",
            do=f"lower train.learning_rate; the last checkpoint is {kept[0] if kept else 'none'}",
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first, unverified."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def load_newest(folder: Path, settings: Mapping[str, Any]) -> TrainingState | None:
    """The newest checkpoint that verifies; damaged newer ones are named and removed. None to begin afresh.

    Raises:
        ConfigError: it was made with other settings; names them.
    """
    remove_leftovers(folder)
    for path in checkpoints(folder):
        manifest = verified_manifest(path)
        if manifest is None:
            say(f"training: checkpoint {path} is damaged; going back to the one before")
            shutil.rmtree(path)
            continue
        changed = differences(manifest["settings"], dict(settings))
        if changed:
            raise ConfigError(
                f"{path} was made with other settings: {'; '.join(changed[:4])}",
                why="going on from it would mix two experiments",
                do="put the old values back, set another run.dir, or add --redo to train afresh",
            )
        more = read_json(path / "state.json")
        return TrainingState(
            step=int(manifest["step"]),
            unet=load_file(path / "unet.safetensors"),
            ema=load_file(path / "ema.safetensors"),
            ema_updates=int(more["ema_updates"]),
            optimizer=load_file(path / "optimizer.safetensors"),
            scaler=more["scaler"],
        )
    return None
