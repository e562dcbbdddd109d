"""Images of a full-size Stable Diffusion 1.5 with random weights on a CUDA GPU, one lever after the other.

    python -m benchmarks.gpu_generate [--pixels 512 256] [--eager]   needs a CUDA device with 24 GiB or more
    python -m benchmarks.gpu_generate --toy [--eager]                the same code at toy size on the CPU, to test it

Images per second of each rung, from diffusers' pipeline image by image to compiled batches of two passes; how the pace
grows with the batch; decoding alone; and how much of the GPU's pace is left when the files go to disk.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from mvc.candidates import write_image
from mvc.compiling import compiled
from mvc.denoise import decode
from mvc.generate.drawing import WRITERS
from mvc.generate.jobs import Job
from mvc.generate.source import MicroBatch, Source, draw
from mvc.images import to_pixels
from mvc.progress import say
from mvc.storage import append_json_lines

from . import gpu_train
from .generate import IMAGE_SCALE, SCALE, Guidance, jobs_of, normal, one_by_one, pipeline_of, source_of
from .gpu_train import matrix_peak, release, wait_for
from .results import Gate, Section, Table, finish, parser
from .steps import TOKENS, Shape, new_frozen, new_unet, new_vae

TARGET, STRETCH = 6.9, 10.3
"""Images/s at 512 px, 20 steps and two passes on an H200: 30 % and 45 % of the peak of its matrix products."""
LEAST_COSINE, LEAST_SHARE, NEAR_BEST = 0.99, 0.95, 0.95
PARITY = 2
"""Images of each rung that are compared with float32, made one by one."""


@dataclass(frozen=True)
class Rung:
    """One way to make images; each of the ladder has one lever more than the one before."""

    name: str
    guidance: Guidance = "paper"
    batched: bool = True
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False

    @property
    def passes(self) -> int:
        """Forward passes of the UNet in a step."""
        return 2 if self.guidance == "paper" else 3


LADDER = (
    Rung("pipeline, image by image, float32", "dual", batched=False),
    Rung("pipeline, image by image, bfloat16", "dual", batched=False, bf16=True),
    Rung("batches, 3 passes, float32", "dual"),
    Rung("+ 2 passes"),
    Rung("+ bfloat16", bf16=True),
    Rung("+ channels last", bf16=True, channels_last=True),
    Rung("+ compile", bf16=True, channels_last=True, compile=True),
)
EAGER = LADDER[-2]
"""The rung that the batch is chosen on: each batch size would be compiled anew."""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        shape: of the models.
        steps: denoising steps.
        batches: tried to find the knee, rising; the ladder uses the one at `middle` until then.
        middle: place in `batches`.
        alone: images in a round of the pipeline.
        to_disk: images at least that are written.
        matrix: side of the square matrices whose product gives the peak.
    """

    shape: Shape
    steps: int
    batches: tuple[int, ...]
    middle: int
    alone: int
    to_disk: int
    matrix: int


FULL = Scale(gpu_train.FULL.shape, 20, (1, 2, 4, 8, 16, 32, 64), 3, 3, 240, 8192)
TOY = Scale(gpu_train.TOY.shape, 3, (1, 2, 4), 1, 2, 6, 128)
SIZES, TOY_SIZE = (512, 256), 32


@dataclass(frozen=True)
class Pace:
    """Images per second, in batches of how many, the most memory taken (0 where the device does not count it), and the
    least cosine of some images with those of float32 made one by one.
    """

    rate: float
    batch: int
    peak_gib: float
    cosine: float


@dataclass(frozen=True)
class Bench:
    """Models and inputs at one size; `unet` changes its memory format on the way up the ladder.

    Attributes:
        scale: how large everything is.
        device: where to compute.
        rounds: timed rounds.
        unet, vae: random weights in float32.
        side: of the latents.
        expected: first images by guidance, by the pipeline in float32.
    """

    scale: Scale
    device: torch.device
    rounds: int
    unet: Any
    vae: Any
    side: int
    expected: dict[Guidance, Tensor]

    def source(self, rung: Rung, steps: int | None = None) -> Source:
        """What a rung draws with."""
        if rung.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        unet = compiled(self.unet, "generate.compile") if rung.compile else self.unet
        plain = source_of(rung.guidance, unet, self.vae, max(self.scale.batches), self.side, self.device)
        steps, autocast = steps or self.scale.steps, torch.bfloat16 if rung.bf16 else None
        return replace(plain, num_inference_steps=steps, autocast=autocast, micro_batch=MicroBatch())


def new_bench(scale: Scale, pixels: int, rounds: int, device: torch.device) -> Bench:
    """Make the models, and the images that all rungs are compared with."""
    unet, vae = new_unet(scale.shape, device).eval().requires_grad_(False), new_frozen(scale.shape, device).vae
    side = pixels // 2 ** (len(scale.shape.vae["block_out_channels"]) - 1)
    bench = Bench(scale, device, rounds, unet, vae, side, {})
    scales: dict[Guidance, float] = {"dual": IMAGE_SCALE, "paper": SCALE}
    for guidance, image_scale in scales.items():
        source = bench.source(Rung("", guidance))
        jobs, pipeline = jobs_of(guidance, PARITY), pipeline_of(source)
        bench.expected[guidance] = one_by_one(source, pipeline, jobs, image_scale, "pt").cpu()
    return bench


def image_flops(shape: Shape, side: int, passes: int, steps: int) -> float:
    """FLOP of one image, denoising and decoding, counted without computing anything."""
    with torch.device("meta"), torch.no_grad():
        unet, vae = new_unet(shape, torch.device("meta")), new_vae(shape)
        inputs, latents = torch.empty(1, 8, side, side), torch.empty(1, 4, side, side)
        timestep, text = torch.zeros(1, dtype=torch.int64), torch.empty(1, TOKENS, shape.unet["cross_attention_dim"])
        with FlopCounterMode(display=False) as denoising:
            unet(inputs, timestep, text, return_dict=False)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents, return_dict=False)
    return float(passes * steps * denoising.get_total_flops() + decoding.get_total_flops())


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Least cosine over images in [0, 1], (n, 3, H, W) each, with grey as zero."""
    return float(cosine_similarity(ours.flatten(1).double() - 0.5, theirs.flatten(1).double() - 0.5).min())


def peak_gib(device: torch.device) -> float:
    """The most memory taken since the last reset."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def pace_of_pipeline(rung: Rung, bench: Bench) -> Pace:
    """Images one by one by diffusers' pipeline, as most people make them."""
    source = bench.source(replace(rung, bf16=False))
    if rung.bf16:  # its weights are cast, as its users do; ours stay float32 under autocast
        halves = {name: copy.deepcopy(getattr(source, name)).to(torch.bfloat16) for name in ("unet", "vae")}
        source = replace(source, **halves)
    pipeline, jobs = pipeline_of(source), jobs_of(rung.guidance, bench.scale.alone)
    draw_all = partial(one_by_one, source, pipeline, jobs, IMAGE_SCALE, "pt")
    images = draw_all()  # the warm-up
    reset_peak(bench.device)
    spent = [seconds(draw_all, bench.device) for _ in range(bench.rounds)]
    rate = len(jobs) / statistics.median(spent)
    return Pace(rate, 1, peak_gib(bench.device), cosine(images[:PARITY].float(), bench.expected[rung.guidance]))


def reset_peak(device: torch.device) -> None:
    """Begin to count the most memory taken anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def pace_of(rung: Rung, bench: Bench, batch: int) -> Pace:
    """Images in batches as the generate stage makes them; where memory is too small it halves the batch by itself."""
    if not rung.batched:
        return pace_of_pipeline(rung, bench)
    source, jobs = bench.source(rung), jobs_of(rung.guidance, batch)
    # Two steps compile, take the memory and find the batch that fits; the micro-batch is shared with what is timed.
    drawn = draw(replace(source, num_inference_steps=2), jobs)
    reset_peak(bench.device)
    spent = []
    for _ in range(bench.rounds):
        start = time.perf_counter()
        drawn = draw(source, jobs)  # the images are on the CPU when it returns
        spent.append(time.perf_counter() - start)
    if any(drawn.in_float32):
        raise RuntimeError(f"{rung.name}: {sum(drawn.in_float32)} images were not finite and drawn again")
    images = drawn.pixels[:PARITY].div(2).add(0.5).clamp(0, 1)
    same = cosine(images, bench.expected[rung.guidance][: len(images)])
    return Pace(batch / statistics.median(spent), drawn.batch_sizes[0], peak_gib(bench.device), same)


def sweep(bench: Bench) -> dict[int, Pace]:
    """Pace at every batch size that fits."""
    found: dict[int, Pace] = {}
    for batch in bench.scale.batches:
        pace = pace_of(EAGER, bench, batch)
        release(bench.device)
        if pace.batch < batch:
            break
        found[batch] = pace
        say(f"batch {batch}: {pace.rate:.2f} images/s, {pace.peak_gib:.1f} GiB")
    return found


def knee(found: dict[int, Pace]) -> int:
    """The smallest batch that is nearly as fast as the fastest."""
    best = max(pace.rate for pace in found.values())
    return next(batch for batch, pace in sorted(found.items()) if pace.rate >= NEAR_BEST * best)


def climb(rungs: Sequence[Rung], bench: Bench) -> tuple[dict[str, Pace], dict[int, Pace]]:
    """Pace of each rung, and of each batch size; the last rungs use the batch at the knee."""
    paces: dict[str, Pace] = {}
    swept: dict[int, Pace] = {}
    for rung in rungs:
        if rung == EAGER:
            swept = sweep(bench)
            paces[rung.name] = swept[knee(swept)]
        else:
            batch = knee(swept) if swept else bench.scale.batches[bench.scale.middle]
            paces[rung.name] = pace_of(rung, bench, batch)
        release(bench.device)
        say(f"{rung.name}: {paces[rung.name].rate:.2f} images/s")
    return paces, swept


def decoding(bench: Bench) -> Table:
    """Milliseconds of decoding alone, in both precisions."""
    images = bench.scale.batches[bench.scale.middle]
    latents = normal("latents", images, 4, bench.side, bench.side).to(bench.device) * bench.vae.config.scaling_factor
    rows = []
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        work = partial(decode, bench.vae, latents, dtype)
        work()
        reset_peak(bench.device)
        spent = statistics.median(seconds(work, bench.device) for _ in range(bench.rounds))
        rows.append((name, f"{1e3 * spent / images:.1f}", str(images), f"{peak_gib(bench.device):.1f}"))
    return Table(("decoding alone", "ms an image", "batch", "peak GiB"), tuple(rows))


def write_while_drawing(source: Source, batches: Sequence[list[Job]], folder: Path, threads: int) -> float:
    """Images/s with files and rows on disk, written as the generate stage does; without threads before going on."""
    pending: list[Future[str]] = []

    def collect() -> None:
        append_json_lines(folder / "rows.jsonl", [{"sha256": one.result()} for one in pending])
        pending.clear()

    start, number = time.perf_counter(), 0
    with ThreadPoolExecutor(max(threads, 1)) as writers:
        for batch in batches:
            drawn = draw(source, batch)
            collect()
            for pixels in drawn.pixels:
                pending.append(writers.submit(write_image, folder, f"{number:05}.png", to_pixels(pixels)))
                number += 1
            if not threads:
                collect()
        collect()
    return number / (time.perf_counter() - start)


def end_to_end(rung: Rung, bench: Bench, batch: int) -> tuple[Table, float]:
    """Pace with and without files, and the share that is left of it when threads write them."""
    source, jobs = bench.source(rung), jobs_of(rung.guidance, batch)
    draw(replace(source, num_inference_steps=2), jobs)
    batches = [jobs] * max(3, math.ceil(bench.scale.to_disk / batch))
    plain = batch * len(batches) / seconds(lambda: [draw(source, one) for one in batches], bench.device)
    with tempfile.TemporaryDirectory() as name:
        threaded = write_while_drawing(source, batches, Path(name), WRITERS)
    with tempfile.TemporaryDirectory() as name:
        in_turn = write_while_drawing(source, batches[:2], Path(name), 0)
    release(bench.device)
    found = {"GPU only": plain, f"PNG files by {WRITERS} threads": threaded, "PNG files before the next batch": in_turn}
    rows = [(name, f"{rate:.2f}", f"{rate / plain:.1%}") for name, rate in found.items()]
    heading = (f"{batch * len(batches)} images, {rung.name.removeprefix('+ ')}", "images/s", "share")
    return Table(heading, tuple(rows)), threaded / plain


def ladder_table(pixels: int, paces: dict[str, Pace], bench: Bench, peak: float) -> Table:
    """Every rung at one size."""
    flops = {passes: image_flops(bench.scale.shape, bench.side, passes, bench.scale.steps) for passes in (2, 3)}
    first = next(iter(paces.values())).rate
    rows = []
    for rung in (one for one in LADDER if one.name in paces):
        pace = paces[rung.name]
        speed = (f"{pace.rate:.2f}", f"{3600 * pace.rate:.0f}", f"{pace.rate / first:.2f}")
        share = f"{pace.rate * flops[rung.passes] / peak:.1%}"
        rows.append((rung.name, *speed, share, str(pace.batch), f"{pace.peak_gib:.1f}", f"{pace.cosine:.5f}"))
    heading = ("images/s", "images/GPU-hour", "ratio", "share of peak", "batch", "peak GiB", "cosine")
    return Table((f"{pixels} px", *heading), tuple(rows))


def sweep_table(pixels: int, swept: dict[int, Pace]) -> Table:
    """Every batch size that fits."""
    rows = tuple((str(batch), f"{pace.rate:.2f}", f"{pace.peak_gib:.1f}") for batch, pace in swept.items())
    return Table((f"batch at {pixels} px, {EAGER.name.removeprefix('+ ')}", "images/s", "peak GiB"), rows)


def measure(rounds: int, scale: Scale, sizes: Sequence[int], device: torch.device, eager: bool = False) -> Section:
    """Peak, and at every size the ladder, the batches, decoding and the files."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = matrix_peak(scale.matrix, rounds, device)
    rungs = [rung for rung in LADDER if not (eager and rung.compile)]
    tables: list[Table] = []
    gates: list[Gate] = []
    for pixels in sizes:
        bench = new_bench(scale, pixels, rounds, device)
        paces, swept = climb(rungs, bench)
        table, share = end_to_end(rungs[-1], bench, knee(swept))
        tables += [ladder_table(pixels, paces, bench, peak), sweep_table(pixels, swept), decoding(bench), table]
        gates.append(Gate(f"{pixels} px: least cosine", min(one.cosine for one in paces.values()), low=LEAST_COSINE))
        if scale is FULL:
            gates.append(Gate(f"{pixels} px: files, share of the GPU's pace", share, low=LEAST_SHARE))
        if pixels == 512 and "H200" in name:
            best = max(pace.rate for pace in paces.values())
            gates.append(Gate(f"{pixels} px: {scale.steps} steps, 2 passes", best, low=TARGET, unit=" images/s"))
        del bench
        release(device)
    return Section(
        title="Generation on a GPU" if scale is FULL else "Generation at toy size",
        how=f"Random weights on {name}; its matrix peak is {peak / 1e12:.1f} TFLOP/s (bfloat16, {scale.matrix} x "
        f"{scale.matrix} x {scale.matrix}). {scale.steps} steps of UniPC, decoding included. The first two rungs are "
        "diffusers' `StableDiffusionInstructPix2PixPipeline`; the others are the generate stage's `draw`, each with a "
        "lever more. The share of the peak counts UNet and decoder; the cosine is the least of some images with those "
        "that the pipeline makes in float32 at the same guidance.",
        tables=tuple(tables),
        gates=tuple(gates),
        notes=(
            f"The aim on an H200 is {TARGET} images/s at 512 px, 20 steps and 2 passes (30% of its peak), or "
            f"{TARGET * 3600:.0f} an hour; {STRETCH} would be 45%.",
        ),
    )


def main() -> int:
    """Measure, print, and return the exit code; 4 without a CUDA device."""
    options = parser(__doc__, 3)
    options.add_argument("--toy", action="store_true", help="toy size on the CPU, to test this file")
    options.add_argument("--eager", action="store_true", help="leave out the compiled rung, which takes minutes")
    options.add_argument("--pixels", type=int, nargs="+", choices=SIZES, default=[512], help="512 by default")
    chosen = options.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        print("gpu_generate: there is no CUDA device here; --toy runs the same code on the CPU", file=sys.stderr)
        return 4
    scale, device = (TOY, torch.device("cpu")) if chosen.toy else (FULL, torch.device("cuda"))
    sizes = [TOY_SIZE] if chosen.toy else chosen.pixels
    return finish(measure(chosen.rounds, scale, sizes, device, chosen.eager), chosen)


if __name__ == "__main__":
    sys.exit(main())
