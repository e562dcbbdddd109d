"""The outside of a drill: runs ready for generation, commands that are killed in it, and what has to come out."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.config import Experiment
from mvc.config_file import to_yaml
from mvc.randomness import numpy_generator
from mvc.storage import files_below, write_json_lines
from tests.tiny_parts import IMAGE_SIZE, write_pipeline
from tests.train import crash

CLASSES = {"cat": 10, "dog": 9}
EXPERIMENT: dict[str, Any] = {
    "run": {"device": "cpu", "seed": 3},
    "data": {"validation_share": 0.2, "test_share": 0.2, "image_size": IMAGE_SIZE},
    "train": {"max_train_steps": 2, "train_batch_size": 2, "checkpointing_steps": 2},
    "generate": {
        "per_class": 10,
        "sources": {"finetuned": 0.7, "sdedit": 0.3},
        "num_inference_steps": 2,
        "batch_size": 4,
        "preview": 2,
    },
    "filter": {"classifier": True, "classifier_threshold": 0.5},
}
"""Two sources in the set and one in the previews; the filters refuse some images in each attempt."""
LATEST = 120.0
"""Seconds after which a process of a drill counts as hanging."""


@cache
def context() -> ForkServerContext:
    """Processes are forked from one that has imported everything and done nothing, which saves seconds a drill."""
    servers = multiprocessing.get_context("forkserver")
    here = ["tests.train.crash", "mvc.generate.stage", "mvc.generate.filter_stage", "sklearn.linear_model"]
    servers.set_forkserver_preload([*here, "sklearn.pipeline", "sklearn.preprocessing"])
    return servers


class Drill:
    """A run folder that is ready for generation, and the commands that generate in it, one after the other.

    Args:
        run: the run folder.
        experiment: file of its settings.
        settings: key=value texts of all commands.
    """

    def __init__(self, run: Path, experiment: Path, *settings: str) -> None:
        self.run, self.experiment, self.settings = run, experiment, settings
        # Not beside the run, whose disk may be full.
        self.output = experiment.with_name(f"{run.name}.txt")
        self.output.touch()

    @property
    def said(self) -> str:
        """What all commands so far have printed."""
        return self.output.read_text()

    def start(
        self, point: crash.Point | None = None, disk: crash.Disk | None = None, command: str = "generate"
    ) -> ForkServerProcess:
        """Start a command on the run; returns once it has printed its first line, or ended."""
        arguments = [command, str(self.experiment), f"run.dir={self.run}", *self.settings]
        before = self.output.stat().st_size
        process = context().Process(target=crash.command, args=(arguments, self.output, point, disk, None))
        process.start()
        end = time.monotonic() + LATEST
        while self.output.stat().st_size == before and process.exitcode is None and time.monotonic() < end:
            time.sleep(0.002)
        return process

    def generate(self, point: crash.Point | None = None, disk: crash.Disk | None = None) -> int:
        """Do `mvc generate` and wait; returns the exit code, below zero that of a signal."""
        return self.finish(self.start(point, disk))

    def finish(self, process: ForkServerProcess) -> int:
        """Exit code of a command; one that hangs is ended and makes the drill fail."""
        process.join(LATEST)
        code = process.exitcode
        if code is None:
            process.kill()
        assert code is not None, f"the command hangs\n{self.said}"
        return code


def lives(process: int) -> bool:
    """Whether a process is there and has not ended; one that has may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers_of(process: ForkServerProcess) -> list[int]:
    """The living workers of a command, in the order in which they were started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if (
                parent == process.pid
                and lives(int(place.name))
                and b"mvc.generate.worker" in (place / "cmdline").read_bytes()
            ):
                found.append(int(place.name))
    return sorted(found)


def wait_for(done: Callable[[], bool], drill: Drill) -> None:
    """Return once something is so; if it does not come to that, the drill fails."""
    end = time.monotonic() + LATEST
    while not done():
        assert time.monotonic() < end, drill.said
        time.sleep(0.005)


class Ground:
    """A folder with images, captions, a fine-tuned toy model and the run folders of drills."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._runs = folder, 0
        self._whole: dict[tuple[str, ...], Path] = {}
        captions = []
        for label, (name, count) in enumerate(CLASSES.items()):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(count):
                drawn = numpy_generator(label, "drill", number).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3))
                Image.fromarray(drawn.astype(np.uint8)).save(folder / "images" / name / f"{number}.png")
                captions.append({"file_name": f"{name}/{number}.png", "text": f"a {number} {name} is {8 - number}"})
        write_json_lines(folder / "images/metadata.jsonl", captions)
        write_pipeline(folder / "base")
        here = {"data": {**EXPERIMENT["data"], "path": str(folder / "images")}, "model": {"base": str(folder / "base")}}
        self.experiment = folder / "drill.yaml"
        self.experiment.write_text(to_yaml(Experiment.model_validate({**EXPERIMENT, **here})))
        self.trained = folder / "trained"
        drill = Drill(self.trained, self.experiment)
        assert drill.finish(drill.start(command="train")) == 0, drill.said

    def drill(self, *settings: str, place: Path | None = None) -> Drill:
        """A run with a fine-tuned model and no image."""
        self._runs += 1
        run = (place or self.folder) / f"run{self._runs}"
        shutil.copytree(self.trained, run)
        return Drill(run, self.experiment, *settings)

    def whole(self, *settings: str) -> Path:
        """The run folder of an uninterrupted generation with these settings."""
        if settings not in self._whole:
            drill = self.drill(*settings)
            assert drill.generate() == 0, drill.said
            self._whole[settings] = drill.run
        return self._whole[settings]


def contents(run: Path) -> dict[str, bytes]:
    """What generation leaves in a run: set, refused images, rows, previews."""
    places = [run / name for name in ("synthetic", "preview")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for place in places for path in files_below(place)}


def require_equal(drill: Drill, whole: Path) -> None:
    """The run came to the files and bytes of the uninterrupted one, and nothing else is left."""
    wanted, found = contents(whole), contents(drill.run)
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    assert not different, f"{different}\n{drill.said}"
    left = sorted(path.relative_to(drill.run).as_posix() for path in drill.run.rglob(".tmp-*"))
    assert not left, f"left behind: {left}\n{drill.said}"
