"""Training state on disk: published whole, pruned only afterwards, resumed from the newest that verifies.

There is no random state to keep: every draw comes from the number of its sample.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvc.errors import ConfigError, DataError, EnvironmentFault, NumericError
from mvc.fingerprint import differences
from mvc.progress import say
from mvc.storage import MANIFEST, publish_folder, read_json, remove_leftovers, verified_manifest, write_json

FOLDER = "checkpoints"
"""Below the run folder."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on.

    Attributes:
        step: optimisation steps done.
        unet: weights that are trained, by name.
        ema: averages by name; empty without them.
        ema_updates: how many updates they have seen.
        optimizer: AdamW's moments by "<weight>/<moment>".
        scaler: state of the loss scaler of fp16; empty otherwise.
        skipped: steps so far that changed nothing because a number was not finite.
        validation_loss: at this step, where it was computed.
    """

    step: int
    unet: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    ema_updates: int
    optimizer: Mapping[str, Tensor]
    scaler: Mapping[str, Any]
    skipped: int = 0
    validation_loss: float | None = None


def save_checkpoint(folder: Path, state: TrainingState, settings: Mapping[str, Any], keep: int) -> Path:
    """Publish a checkpoint, then remove the oldest ones beyond `keep`; the best one by validation loss stays.

    Args:
        folder: run/checkpoints.
        state: what to save.
        settings: flat JSON values that the training depends on; resuming needs the same.
        keep: how many to keep, at least 2.

    Raises:
        NumericError: a weight is not finite; nothing was written.
        EnvironmentFault: the disk is full or the place cannot be written; older checkpoints are untouched.
    """
    parts = {"unet": state.unet, "ema": state.ema, "optimizer": state.optimizer}
    more = {"ema_updates": state.ema_updates, "scaler": dict(state.scaler), "skipped": state.skipped}
    return publish_checkpoint(folder, state.step, parts, more, settings, keep, state.validation_loss)


def publish_checkpoint(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    more: Mapping[str, Any],
    settings: Mapping[str, Any],
    keep: int,
    validation_loss: float | None = None,
) -> Path:
    """`save_checkpoint` of any training.

    Args:
        folder: where its checkpoints lie.
        step: optimisation steps done.
        parts: tensors by name, a file for each part.
        more: JSON values of the state.
        settings, keep: as `save_checkpoint`.
        validation_loss: at this step, where it was computed.

    Raises:
        NumericError, EnvironmentFault: as `save_checkpoint`.
    """
    _require_finite(folder, step, parts)
    target = folder / f"step-{step:06d}"
    facts = {"kind": "checkpoint", "step": step, "settings": dict(settings)}
    with publish_folder(target, {**facts, "validation_loss": validation_loss}) as temporary:
        try:
            for name, tensors in parts.items():
                whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                save_file(whole, temporary / f"{name}.safetensors")
        except SafetensorError as error:  # a full disk is reported as one of these
            raise EnvironmentFault(
                f"cannot write {target}", why=str(error), do="free some space and run the same command again"
            ) from error
        write_json(temporary / "state.json", dict(more))
    best = best_checkpoint(folder)
    for path in checkpoints(folder)[keep:]:
        if path != best:
            _remove(path)
    return target


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a kill on the way leaves no half one that looks whole or merely damaged."""
    gone = path.with_name(f".tmp-old-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the least validation loss, the earliest of equals; None if none has any."""
    losses: list[tuple[float, int, Path]] = []
    for path in checkpoints(folder):
        try:
            loss = dict(read_json(path / MANIFEST)).get("validation_loss")
        except (DataError, TypeError, ValueError):
            continue  # a damaged one cannot be the best
        if isinstance(loss, float):
            losses.append((loss, int(path.name.removeprefix("step-")), path))
    return min(losses)[2] if losses else None


def _require_finite(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    values = [value for tensors in parts.values() for value in tensors.values()]
    if not all(bool(value.isfinite().all()) for value in values):
        kept = checkpoints(folder)
        raise NumericError(
            f"weights are not finite after step {step}; this state was not saved",
            why="training diverged",
            do=f"lower train.learning_rate; the last checkpoint is {kept[0] if kept else 'none'}",
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first, unverified."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def load_weights(path: Path, averaged: bool) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, or their averages, by name.

    Raises:
        EnvironmentFault: it is damaged.
    """
    if verified_manifest(path) is None:
        raise EnvironmentFault(
            f"{path} is damaged", why="its files changed after they were written", do=f"delete {path} and go on"
        )
    loaded: dict[str, Tensor] = load_file(path / ("ema.safetensors" if averaged else "unet.safetensors"))
    return loaded


def load_newest(folder: Path, settings: Mapping[str, Any]) -> TrainingState | None:
    """The newest checkpoint that verifies; damaged newer ones are named and removed. None to begin afresh.

    Raises:
        ConfigError: it was made with other settings; names them.
    """
    found = newest_whole(folder, settings)
    if found is None:
        return None
    path, manifest = found
    more = read_json(path / "state.json")
    return TrainingState(
        step=int(manifest["step"]),
        unet=load_file(path / "unet.safetensors"),
        ema=load_file(path / "ema.safetensors"),
        ema_updates=int(more["ema_updates"]),
        optimizer=load_file(path / "optimizer.safetensors"),
        scaler=more["scaler"],
        skipped=int(more["skipped"]),
        validation_loss=manifest["validation_loss"],
    )


def newest_whole(
    folder: Path, settings: Mapping[str, Any], afresh: str = "add --redo"
) -> tuple[Path, Mapping[str, Any]] | None:
    """The newest checkpoint of any training that verifies, and its manifest; as `load_newest`.

    Args:
        folder, settings: as `save_checkpoint`.
        afresh: what a user does to train afresh, for the error.

    Raises:
        ConfigError: it was made with other settings; names them.
    """
    remove_leftovers(folder)
    for path in checkpoints(folder):
        manifest = verified_manifest(path)
        if manifest is None:
            before = "start" if path == checkpoints(folder)[-1] else "one before"
            say(f"training: checkpoint {path} is damaged; going back to the {before}")
            _remove(path)
            continue
        changed = differences(manifest["settings"], dict(settings))
        if changed:
            raise ConfigError(
                f"{path} was made with other settings: {'; '.join(changed[:4])}",
                why="going on from it would mix two experiments",
                do=f"put the old values back, set another run.dir, or {afresh} to train afresh",
            )
        return path, manifest
    return None
