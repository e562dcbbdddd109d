"""The outside of a drill: runs that are ready for training, processes that train in them, and what has to come out."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.config_file import to_yaml
from mvc.randomness import numpy_generator
from mvc.storage import files_below, read_json_lines, verified_manifest, write_json_lines
from mvc.train.checkpoints import checkpoints
from tests.tiny_parts import IMAGE_SIZE, write_pipeline
from tests.train import crash
from tests.train.small_run import CLASSES, experiment_for

SETTINGS = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 2, "lr_warmup_steps": 2}
LOOKING = {"validation_share": 0.25, "validation_samples": 3, "validation_steps": 1}
DRAWING = {"sample_steps": 3, "sample_images": 2}
"""Validation at every step and a few pictures, so that a row or a picture too few or too many is noticed."""
LORA = ("train.method=lora", "train.lora_rank=2")
LATEST = 120.0
"""Seconds after which a process of a drill counts as hanging."""


@cache
def context() -> ForkServerContext:
    """Processes are forked from one that has imported everything and done nothing, which saves seconds a drill."""
    servers = multiprocessing.get_context("forkserver")
    servers.set_forkserver_preload(["tests.train.crash"])
    return servers


class Drill:
    """A run folder and the processes that train in it, one after the other.

    Args:
        run: the run folder.
        settings: key=value texts of all of them.
    """

    def __init__(self, run: Path, settings: Sequence[str]) -> None:
        self.run, self.settings = run, tuple(settings)
        self._output = run.with_name(f"{run.name}.txt")

    @property
    def said(self) -> str:
        """What all processes so far have printed."""
        return self._output.read_text()

    def start(
        self, point: crash.Point | None = None, disk: crash.Disk | None = None, until_training: bool = False
    ) -> ForkServerProcess:
        """Start `mvc train` on the run; with `until_training` return once it trains or has ended."""
        arguments = ["train", str(self.run.parent / "drill.yaml"), f"run.dir={self.run}", *self.settings]
        heard, begun = context().Pipe(duplex=False)
        values = (arguments, self._output, point, disk, begun if until_training else None)
        process = context().Process(target=crash.command, args=values)
        process.start()
        begun.close()
        if until_training:
            assert heard.poll(LATEST), self.said
        heard.close()
        return process

    def train(self, point: crash.Point | None = None, disk: crash.Disk | None = None) -> int:
        """Start `mvc train` and wait; returns the exit code, below zero that of a signal."""
        return finished(self.start(point, disk))


def finished(process: ForkServerProcess) -> int:
    """Exit code of a process; one that hangs is ended and makes the drill fail."""
    process.join(LATEST)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code is not None, "the process hangs"
    return code


class Ground:
    """A folder with images, captions, a toy base model and the run folders of drills."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._runs = folder, 0
        self._whole: dict[tuple[str, ...], Path] = {}
        captions = []
        for label, name in enumerate(CLASSES):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(8):
                drawn = numpy_generator(label, "drill", number).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3))
                Image.fromarray(drawn.astype(np.uint8)).save(folder / "images" / name / f"{number}.png")
                captions.append({"file_name": f"{name}/{number}.png", "text": f"a {number} {name} is {8 - number}"})
        write_json_lines(folder / "images/metadata.jsonl", captions)
        write_pipeline(folder / "base")
        experiment = experiment_for(folder / "run", **SETTINGS, **LOOKING, **DRAWING)
        data = experiment.data.model_copy(update={"path": str(folder / "images")})
        generate = experiment.generate.model_copy(update={"num_inference_steps": 2})
        changed = experiment.model_copy(update={"data": data, "generate": generate})
        (folder / "drill.yaml").write_text(to_yaml(changed))

    def drill(self, *settings: str) -> Drill:
        """A run with nothing done."""
        self._runs += 1
        return Drill(self.folder / f"run{self._runs}", settings)

    def whole(self, *settings: str) -> Path:
        """The run folder of an uninterrupted training with these settings."""
        if settings not in self._whole:
            drill = self.drill(*settings)
            assert drill.train() == 0, drill.said
            self._whole[settings] = drill.run
        return self._whole[settings]

    def copy(self, drill: Drill) -> Drill:
        """Another run in the state of this one."""
        other = self.drill(*drill.settings)
        shutil.copytree(drill.run, other.run)
        return other


def verified(run: Path) -> list[str]:
    """Names of the checkpoints that are whole, newest first."""
    return [path.name for path in checkpoints(run / "checkpoints") if verified_manifest(path) is not None]


def newest(run: Path) -> Path:
    """The newest checkpoint, whole or not."""
    return checkpoints(run / "checkpoints")[0]


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, without the seconds that a step took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_json_lines(path)]


def require_equal(drill: Drill, whole: Path) -> None:
    """The run came to the bytes of the uninterrupted one: weights, averages, moments, pictures, model, and its logs."""
    run = drill.run
    for name in (f"checkpoints/{newest(whole).name}", "model", "lora", "samples"):
        wanted, found = _contents(whole / name), _contents(run / name)
        different = sorted(file for file in wanted.keys() | found.keys() if wanted.get(file) != found.get(file))
        assert not different, f"{name}: {different}\n{drill.said}"
    for name in ("logs/train.jsonl", "logs/validation.jsonl"):
        assert rows(run / name) == rows(whole / name), f"{name}\n{drill.said}"
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob(".tmp-*"))
    assert not left, f"left behind: {left}\n{drill.said}"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)}


@contextmanager
def frozen(process: ForkServerProcess) -> Iterator[None]:
    """Hold a process where it is, so that what it leaves on disk can be looked at as a kill would leave it."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        waited_for_stop(process)
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def waited_for_stop(process: ForkServerProcess) -> None:
    """Wait until a process has stopped or ended."""
    end = time.monotonic() + LATEST
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state in "TtZX":
            return
        time.sleep(0.001)
    raise AssertionError("the process does not stop")
