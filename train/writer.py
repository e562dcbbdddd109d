"""When checkpoints are written: at once, or from a copy while the accelerator goes on training."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mvc.errors import EnvironmentFault
from mvc.progress import say

from .checkpoints import TrainingState, save_checkpoint


class CheckpointWriter:
    """Publishes checkpoints one after the other.

    On an accelerator the weights are copied to the host, which takes a second or two, and a thread writes, flushes and
    hashes them, which takes the better part of a minute for a Stable Diffusion. On a CPU that would cost a second
    copy of everything in memory and gain nothing.

    Args:
        folder: run/checkpoints.
        settings: as for `save_checkpoint`.
        keep: as for `save_checkpoint`.
        background: write in a thread.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], keep: int, background: bool) -> None:
        self._folder, self._settings, self._keep = folder, settings, keep
        self._pool = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._running: Future[Path] | None = None

    def save(self, state: TrainingState, needed: bool) -> None:
        """Write a checkpoint once the one before is written.

        Args:
            state: what to save; may change as soon as this returns.
            needed: it has to be on disk when this returns. One that cannot be written is otherwise given up for the
                next one, because a disk that is full now may not be so then.

        Raises:
            EnvironmentFault: a needed one cannot be written.
            NumericError: a weight is not finite, in this one or the one before.
        """
        self.wait()
        if self._pool is not None and not needed:
            self._running = self._pool.submit(self._write, _copied(state))
            return
        try:
            self._write(state)
        except EnvironmentFault as error:
            if needed:
                raise
            _tell(error)

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
            NumericError: a weight was not finite.
        """
        running, self._running = self._running, None
        if running is None:
            return
        try:
            running.result()
        except EnvironmentFault as error:
            _tell(error)

    def close(self) -> None:
        """Wait for what is being written, and for the thread's end.

        Raises:
            NumericError: a weight was not finite.
        """
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _write(self, state: TrainingState) -> Path:
        return save_checkpoint(self._folder, state, self._settings, self._keep)


def _tell(error: EnvironmentFault) -> None:
    say(f"fine-tuning: {error.what} ({error.why}); training goes on, the next checkpoint tries again")


def _copied(state: TrainingState) -> TrainingState:
    """The same state in memory of its own on the host."""

    def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}

    return replace(
        state,
        unet=copies(state.unet),
        ema=copies(state.ema),
        optimizer=copies(state.optimizer),
        scaler=dict(state.scaler),
    )
