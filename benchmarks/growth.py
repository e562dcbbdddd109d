"""How the cost of what is done once for every image grows with the number of images: it has to be linear.

Each figure is the slope of log processor time over log number at N, 2N, 4N and 8N images: 1 is linear, 2 quadratic.
What a run that goes on does before it draws anything is timed by the clock too.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTokenizer

from mvc import embedding_store, embeddings, latents
from mvc.candidates import pool_of, read_candidates
from mvc.generate.drawing import Work as Drawing
from mvc.generate.drawing import draw_missing
from mvc.generate.filter_stage import run_filter
from mvc.generate.inputs import Inputs, wanted_slots
from mvc.generate.judging import judge_pool, prepare_judging
from mvc.generate.recipes import recipes_of
from mvc.generate.stage import belonging
from mvc.randomness import generator, numpy_generator
from mvc.storage import files_below, sha256_json
from mvc.tiny import WEIGHTS
from mvc.train.batches import ClassText, Materials, assemble

from .pools import CLASSES, REAL, experiment_of, fill, grown, inputs_of, job_table, wanting, write_run
from .results import Gate, Section, Table, finish, parser
from .steps import HOW, RATIO_SHAPE, TOKENS, Frozen, new_frozen

ROUNDS, FACTORS, BATCH = 3, (1, 2, 4, 8), 16
LOW, HIGH, AIM_LOW, AIM_HIGH = 0.8, 1.2, 0.9, 1.1
SCAN_SECONDS = 2.0
IDENTITY = "a text encoder"
MADE, FOUND, TEXTS, STORED, ASSEMBLED, TABLE, DRAWN, POOL = 48, 512, 64, 2048, 500, 2000, 32, 1250
"""N of each measurement: fixed costs are small beside the work, and all of it takes a minute or two."""


@dataclass(frozen=True)
class Work:
    """Something to time: `run` does it for a number of images, undoes what it left behind and gives the seconds."""

    name: str
    sizes: tuple[int, ...]
    run: Callable[[int], float]


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor in one call: other processes, the disk and Python's garbage do not count."""
    gc.collect()
    gc.disable()  # as timeit does it: a collection of all that torch has made takes longer than what is measured
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


def seconds_of(work: Work) -> list[float]:
    """Mean seconds at each size, over so many calls that every size takes about as long as the largest."""
    repeats = [work.sizes[-1] // size for size in work.sizes]
    return [
        statistics.fmean(work.run(size) for _ in range(times)) for size, times in zip(work.sizes, repeats, strict=True)
    ]


def source_images(folder: Path, images: int) -> list[latents.SourceImage]:
    """One small picture under many digests: each counts as an image of its own."""
    path = folder / "picture.png"
    if not path.exists():
        pixels = numpy_generator(0, "growth").integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return [latents.SourceImage(f"{number}.png", path, sha256_json(number)) for number in range(images)]


def fill_latents(cache: Path, folder: Path, images: int, frozen: Frozen) -> None:
    """Fill or find the latents cache of some images."""
    sources = source_images(folder, images)
    plain = [[latents.Transform()]] * images
    latents.load_or_encode(cache, sources, plain, 16, "white", "vae", lambda: frozen.vae)


def latents_made(folder: Path, frozen: Frozen) -> Callable[[int], float]:
    """Decoding, encoding and writing of every image."""

    def run(images: int) -> float:
        cache = folder / "made"
        seconds = timed(lambda: fill_latents(cache, folder, images, frozen))
        shutil.rmtree(cache)
        return seconds

    return run


def latents_found(folder: Path, frozen: Frozen, sizes: Sequence[int]) -> Callable[[int], float]:
    """Reading and checking a cache that is complete."""
    before: Path | None = None
    for images in sizes:
        cache = folder / f"latents-{images}"
        if before is not None:
            shutil.copytree(before, cache)
        fill_latents(cache, folder, images, frozen)
        before = cache
    return lambda images: timed(lambda: fill_latents(folder / f"latents-{images}", folder, images, frozen))


def captions_of(images: int) -> dict[str, str]:
    """Captions by id, all different."""
    return {f"{number:05}.png": f"This is an image of number {number}." for number in range(images)}


def find_embeddings(store: Path, images: int, text: embeddings.TextModels) -> None:
    """Fill or find the store of the embeddings of some captions."""
    embedding_store.load_or_encode(store, captions_of(images), IDENTITY, lambda: text)


def embeddings_made(folder: Path, text: embeddings.TextModels) -> Callable[[int], float]:
    """Tokenising, encoding and writing of every caption."""

    def run(images: int) -> float:
        store = folder / "made.safetensors"
        seconds = timed(lambda: find_embeddings(store, images, text))
        store.unlink()
        return seconds

    return run


def embeddings_found(folder: Path, text: embeddings.TextModels, sizes: Sequence[int]) -> Callable[[int], float]:
    """Reading and checking a store that is complete, of short embeddings: long ones would measure the CPU's cache."""
    for images in sizes:
        captions, numbers = captions_of(images), torch.randn((images, 4, 16), generator=generator(0, "growth store"))
        ends = torch.zeros(images, dtype=torch.int64)
        stored = embeddings.CaptionEmbeddings(numbers, numbers[0].clone(), ends, [*captions])
        texts = [embedding_store.text_digest(text) for text in captions.values()]
        embedding_store.save_embeddings(folder / f"{images}.safetensors", stored, texts, IDENTITY)
    return lambda images: timed(lambda: find_embeddings(folder / f"{images}.safetensors", images, text))


def new_materials(images: int) -> Materials:
    """Random moments and embeddings of some images in ten classes."""
    moments = torch.randn((images, 8, 16, 16), generator=generator(0, "growth moments"))
    texts = torch.randn((images // CLASSES, TOKENS, 64), generator=generator(0, "growth texts"))
    return Materials(
        labels=tuple(image % CLASSES for image in range(images)),
        images=latents.Latents([moments], [[(0, image)] for image in range(images)]),
        texts=[ClassText(str(label), texts, TOKENS) for label in range(CLASSES)],
        null=torch.zeros(TOKENS, 64),
        scaling_factor=0.18215,
    )


def epoch_assembled(sizes: Sequence[int]) -> Callable[[int], float]:
    """Pairs, mixing, noise and gathering of the batches of one epoch."""
    materials = {images: new_materials(images) for images in sizes}

    def epoch(images: int) -> None:
        for first in range(0, images, BATCH):
            assemble(materials[images], HOW, range(first, first + BATCH))

    return lambda images: timed(lambda: epoch(images))


def preparation_work(folder: Path) -> list[Work]:
    """What is done for every real image before and in training; fills what has to be there before."""
    frozen = new_frozen(RATIO_SHAPE, torch.device("cpu"))
    text = embeddings.TextModels((CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer"),), (frozen.text_encoder,))
    made, found, texts, stored, assembled = (
        tuple(first * factor for factor in FACTORS) for first in (MADE, FOUND, TEXTS, STORED, ASSEMBLED)
    )
    return [
        Work("latents cache, made", made, latents_made(folder, frozen)),
        Work("latents cache, found complete", found, latents_found(folder, frozen, found)),
        Work("embeddings, made", texts, embeddings_made(folder, text)),
        Work("embeddings, found complete", stored, embeddings_found(folder, text, stored)),
        Work("an epoch's batches assembled", assembled, epoch_assembled(assembled)),
    ]


def job_table_made(inputs: Inputs) -> Callable[[int], float]:
    """The jobs of all images, with their plans, and their recipes."""

    def table(images: int) -> None:
        wanted = wanting(inputs, images)
        recipes_of(wanted, job_table(wanted)[1])

    return lambda images: timed(lambda: table(images))


def images_drawn(run: Path, inputs: Inputs) -> Callable[[int], float]:
    """Loading of the models, denoising, decoding and writing of every image."""

    def drawn(images: int) -> float:
        jobs = job_table(wanting(inputs, DRAWN * FACTORS[-1]))[1][:images]
        seconds = timed(lambda: draw_missing(Drawing(inputs, pool_of(run), {}), jobs))
        shutil.rmtree(run / "synthetic")
        return seconds

    return drawn


@dataclass(frozen=True)
class Pools:
    """Runs with finished pools, by the number of their images."""

    inputs: dict[int, Inputs]

    @classmethod
    def of(cls, first: Path, sizes: Sequence[int]) -> Pools:
        """Fill pools of some sizes, each an extension of the one before."""
        found, run = {}, first
        for images in sizes:
            run = grown(run, first.with_name(f"pool-{images}"))
            found[images] = inputs_of(run, images)
            fill(run, found[images])
        return cls(found)

    def scan(self, images: int) -> None:
        """What a run that goes on does first: read the rows, make their recipes again, compare every file."""
        inputs = self.inputs[images]
        if len(belonging(inputs, pool_of(inputs.run), wanted_slots(inputs))) != images:
            raise RuntimeError("a finished image was not found again")

    def judged(self, images: int) -> float:
        """All filters that need no network, on features that are known; fitting them is not counted."""
        inputs = self.inputs[images]
        judging = prepare_judging(inputs.run, experiment_of(images), inputs.dataset, inputs.image_size)
        pool = pool_of(inputs.run)
        rows = read_candidates(pool).values()
        return timed(lambda: judge_pool(judging, pool, rows))

    def bytes_of(self, images: int) -> int:
        """Bytes of all files of a pool."""
        return sum(path.stat().st_size for path in files_below(pool_of(self.inputs[images].run).accepted))

    def filtered(self, images: int) -> float:
        """The whole filter stage, on features that are known."""
        return timed(lambda: run_filter(self.inputs[images].run, experiment_of(images)))


def generation_work(folder: Path, pools: Pools) -> list[Work]:
    """What the generate and filter stages do for every image."""
    inputs = inputs_of(write_run(folder / "drawn"), CLASSES)
    table, drawn = (tuple(first * factor for factor in FACTORS) for first in (TABLE, DRAWN))
    stored = tuple(pools.inputs)
    return [
        Work("job table", table, job_table_made(inputs)),
        Work("images drawn", drawn, images_drawn(folder / "drawn", inputs)),
        Work("pool judged", stored, pools.judged),
        Work("filter stage", stored, pools.filtered),
        Work("resume scan", stored, lambda images: timed(lambda: pools.scan(images))),
    ]


def wall_seconds(work: Callable[[], object]) -> float:
    """Seconds of the clock in one call, with all that slows it down."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(rounds: int) -> Section:
    """Time all sizes of all work in turn; the slope is the median of the rounds' slopes."""
    torch.set_num_threads(1)
    images = POOL * FACTORS[-1]
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet, redirect_stderr(quiet):
        folder = Path(name)
        pools = Pools.of(write_run(folder / "first"), [POOL * factor for factor in FACTORS])
        works = [*preparation_work(folder), *generation_work(folder, pools)]
        for work in works:
            work.run(work.sizes[0])
        seconds = [[seconds_of(work) for work in works] for _ in range(rounds)]
        # The least is what it takes; the rest is what other programs took.
        scan, size = min(wall_seconds(partial(pools.scan, images)) for _ in range(rounds + 2)), pools.bytes_of(images)
    found = [found_of(work, [one[number] for one in seconds]) for number, work in enumerate(works)]
    heading = ("work", "N", "N: s", "2N: s", "4N: s", "8N: s", "ms an image at 8N", "slope")
    return Section(
        title="Growth with the number of images",
        how=f"The same work for N, 2N, 4N and 8N images, all in turn, {rounds} rounds; the slope is that of log "
        "processor time over log number, so 1 is linear. Images of 16 or 32 px and small models, so that bookkeeping "
        f"would show. Pools have {CLASSES} classes of {REAL} real images; features are known before.",
        tables=(Table(heading, tuple(row for row, _ in found)),),
        notes=(
            f"The resume scan of {images:,} images reads and compares every file; the figure by the clock is the least "
            f"of {rounds + 2}. The files hold {size / 2**20:.0f} MiB; with larger ones the disk and sha256 decide.",
        ),
        gates=(
            *(gate for _, gate in found),
            Gate(f"resume scan of {images:,} images", scan, high=SCAN_SECONDS, unit=" s"),
        ),
    )


def found_of(work: Work, seconds: Sequence[Sequence[float]]) -> tuple[tuple[str, ...], Gate]:
    """Row and gate of some work, from the seconds at each size in each round."""
    middle = statistics.median(slope(work.sizes, times) for times in seconds)
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    gate = Gate(f"slope: {work.name}", middle, LOW, HIGH, aim_low=AIM_LOW, aim_high=AIM_HIGH)
    each = 1e3 * medians[-1] / work.sizes[-1]
    row = (work.name, str(work.sizes[0]), *(f"{one:.3f}" for one in medians), f"{each:.3f}", f"{middle:.2f}")
    return row, gate


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
