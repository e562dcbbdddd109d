"""Training steps of a full-size Stable Diffusion 1.5 with random weights on a CUDA GPU, one lever after the other.

    python -m benchmarks.gpu_train [--pixels 512 256]     needs a CUDA device with 40 GiB or more
    python -m benchmarks.gpu_train --toy                  the same code at toy size on the CPU, to test it

Samples per second of each rung, and the share of the device's measured matrix peak that the UNet's own forward and
backward pass take; then the gradients of the fastest rung against those of float32.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mvc.compiling import compiled
from mvc.train.unet_setup import prepare_unet

from .results import Gate, Section, Table, finish, parser
from .steps import (
    TOKENS,
    Clock,
    Data,
    Frozen,
    Shape,
    Step,
    cached_losses,
    encoding_losses,
    new_data,
    new_frozen,
    new_unet,
    own_updates,
    reference_updates,
)

LEAST_COSINE, LEAST_OF_A_TENSOR = 0.999, 0.99


@dataclass(frozen=True)
class Rung:
    """One way to train; each of the ladder has one lever more than the one before."""

    name: str
    cached: bool = False
    bf16: bool = False
    channels_last: bool = False
    own_updates: bool = False
    compile: bool = False


LADDER = (
    Rung("float32, VAE and text in the loop"),
    Rung("+ cached moments and embeddings", cached=True),
    Rung("+ bfloat16", cached=True, bf16=True),
    Rung("+ channels last", cached=True, bf16=True, channels_last=True),
    Rung("+ fused AdamW, foreach average", cached=True, bf16=True, channels_last=True, own_updates=True),
    Rung("+ compile", cached=True, bf16=True, channels_last=True, own_updates=True, compile=True),
)


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        shape: of the models.
        batches: samples a step by side in pixels; halved where the memory is too small.
        images: in the data.
        warm_up, steps: steps before and within each round.
        matrix: side of the square matrices whose product gives the peak.
        parity: samples whose gradients are compared.
    """

    shape: Shape
    batches: dict[int, int]
    images: int
    warm_up: int
    steps: int
    matrix: int
    parity: int


FULL = Scale(
    shape=Shape(
        unet={"sample_size": 64, "cross_attention_dim": 768},
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        text={
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    ),
    batches={512: 64, 256: 256},
    images=64,
    warm_up=3,
    steps=4,
    matrix=8192,
    parity=4,
)
TOY = Scale(
    shape=Shape(
        unet={
            "sample_size": 8,
            "block_out_channels": (8,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
            "norm_num_groups": 4,
        },
        vae={"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        text={
            "vocab_size": 100,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    ),
    batches={32: 4},
    images=8,
    warm_up=1,
    steps=2,
    matrix=256,
    parity=4,
)


@dataclass(frozen=True)
class Pace:
    """Samples per second, at which batch, and the most memory taken (0 where the device does not count it)."""

    samples_per_second: float
    batch: int
    peak_gib: float


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_peak(side: int, rounds: int, device: torch.device) -> float:
    """FLOP/s of the product of two random bfloat16 matrices, the best of the rounds (zeros would look faster)."""
    draw = partial(torch.randn, side, side, device=device, dtype=torch.bfloat16)
    first, second = draw(), draw()
    spent = []
    for _ in range(rounds + 1):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(10):
            first @ second
        wait_for(device)
        spent.append((time.perf_counter() - start) / 10)
    return 2 * side**3 / min(spent[1:])


def unet_flops(shape: Shape, latent_side: int) -> float:
    """FLOP of the UNet's forward and backward pass on one sample, counted without computing anything."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(in_channels=8, out_channels=4, **shape.unet)
        inputs = torch.empty(1, 8, latent_side, latent_side)
        timesteps, text = torch.zeros(1, dtype=torch.int64), torch.empty(1, TOKENS, shape.unet["cross_attention_dim"])
    with FlopCounterMode(display=False) as counter:
        unet(inputs, timesteps, text, return_dict=False)[0].sum().backward()
    return float(counter.get_total_flops())


def autocast_of(rung: Rung, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The context of the forward pass."""
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=rung.bf16)


def step_of(rung: Rung, scale: Scale, frozen: Frozen, data: Data, device: torch.device) -> Step:
    """A fresh UNet and what trains it on a rung."""
    unet = new_unet(scale.shape, device)
    prepare_unet(unet, "sdpa", False, rung.channels_last)
    updates = own_updates(unet, device) if rung.own_updates else reference_updates(unet)
    losses = (cached_losses if rung.cached else encoding_losses)(frozen, data, device)
    model = compiled(unet, "train.compile") if rung.compile else unet
    return Step(model, list(unet.parameters()), losses, *updates, autocast=autocast_of(rung, device))


def pace_of(rung: Rung, scale: Scale, pixels: int, rounds: int, device: torch.device) -> Pace:
    """Train on a rung at the largest batch that fits, by halving."""
    batch = scale.batches[pixels]
    while True:
        try:
            return timed(rung, scale, pixels, batch, rounds, device)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        # Outside of the handler, where the traceback no longer holds the tensors.
        batch //= 2
        release(device)


def timed(rung: Rung, scale: Scale, pixels: int, batch: int, rounds: int, device: torch.device) -> Pace:
    """Median pace over the rounds after a warm-up."""
    step = step_of(rung, scale, new_frozen(scale.shape, device), new_data(scale.shape, scale.images, pixels), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    number, spent = 0, []
    for steps in (scale.warm_up, *[scale.steps] * rounds):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            step(range(number * batch, (number + 1) * batch), Clock())
            number += 1
        wait_for(device)
        spent.append((time.perf_counter() - start) / steps)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return Pace(batch / statistics.median(spent[1:]), batch, peak)


def release(device: torch.device) -> None:
    """Give the memory of what is gone back to the device."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def gradients(rung: Rung, scale: Scale, pixels: int, device: torch.device) -> dict[str, Tensor]:
    """The UNet's gradients of the first samples on a rung, by name."""
    unet = new_unet(scale.shape, device)
    prepare_unet(unet, "sdpa", False, rung.channels_last)
    frozen, data = new_frozen(scale.shape, device), new_data(scale.shape, scale.images, pixels)
    losses = cached_losses(frozen, data, device)
    with autocast_of(rung, device)():
        loss = losses(compiled(unet, "train.compile") if rung.compile else unet, range(scale.parity), Clock()).mean()
    loss.backward()
    return {name: weight.grad.detach().float() for name, weight in unet.named_parameters() if weight.grad is not None}


def cosines(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Cosine of each tensor's two gradients, and under "all" that of all of them together."""
    dots = {name: _dots(ours[name].double(), one.double()) for name, one in theirs.items()}
    dots["all"] = torch.stack(list(dots.values())).sum(0)
    return {name: float(dot / (first * second).sqrt()) for name, (dot, first, second) in dots.items()}


def _dots(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([(first * second).sum(), first.square().sum(), second.square().sum()])


def parity(scale: Scale, pixels: int, device: torch.device) -> tuple[Table, tuple[Gate, Gate]]:
    """Gradients of bfloat16, eager and compiled, against those of float32, eager."""
    plain = gradients(LADDER[1], scale, pixels, device)
    rows, together, least = [], 0.0, 0.0
    for rung in (LADDER[3], LADDER[-1]):
        found = cosines(gradients(rung, scale, pixels, device), plain)
        release(device)
        together = found.pop("all")
        worst = min(found, key=lambda name: found[name])
        least = found[worst]
        below = sum(value < LEAST_COSINE for value in found.values())
        cells = (f"{together:.6f}", f"{least:.4f}, {worst}", f"{below} of {len(found)}")
        rows.append((f"bfloat16, channels last, {'compiled' if rung.compile else 'eager'}", *cells))
    heading = ("gradients against float32", "cosine of all", "least of a tensor", f"tensors below {LEAST_COSINE}")
    gates = (
        Gate("cosine of compiled bfloat16 gradients with float32's", together, low=LEAST_COSINE),
        # A kernel that is wrong for one layer hardly moves the cosine of all.
        Gate("the least of a single tensor", least, low=LEAST_OF_A_TENSOR),
    )
    return Table(heading, tuple(rows)), gates


def ladder_table(scale: Scale, pixels: int, rounds: int, peak: float, device: torch.device) -> Table:
    """Every rung at one size."""
    factor = 2 ** (len(scale.shape.vae["block_out_channels"]) - 1)
    flops = unet_flops(scale.shape, pixels // factor)
    rows: list[tuple[str, ...]] = []
    first = 0.0
    for rung in LADDER:
        pace = pace_of(rung, scale, pixels, rounds, device)
        release(device)
        first = first or pace.samples_per_second
        rate = pace.samples_per_second
        speed = (f"{rate:.1f}", f"{rate / first:.2f}", f"{rate * flops / peak:.1%}")
        rows.append((rung.name, *speed, str(pace.batch), f"{pace.peak_gib:.1f}"))
        print(f"{pixels} px, {rung.name}: {rate:.1f} samples/s", file=sys.stderr, flush=True)
    return Table((f"{pixels} px", "samples/s", "ratio", "share of peak", "batch", "peak GiB"), tuple(rows))


def measure(rounds: int, scale: Scale, sizes: list[int], device: torch.device) -> Section:
    """Peak, the ladder at every size, and the gradients at the first one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = matrix_peak(scale.matrix, rounds, device)
    tables = [ladder_table(scale, pixels, rounds, peak, device) for pixels in sizes]
    table, gates = parity(scale, sizes[0], device)
    return Section(
        title="Training steps on a GPU" if scale is FULL else "Training steps at toy size",
        how=f"Random weights on {name}; its matrix peak is {peak / 1e12:.1f} TFLOP/s (bfloat16, {scale.matrix} x "
        f"{scale.matrix} x {scale.matrix}). The first rung is the body of diffusers' `train_instruct_pix2pix.py`; each "
        "further one adds a lever. The share of the peak counts the UNet's forward and backward pass alone.",
        tables=(*tables, table),
        gates=gates,
    )


def main() -> int:
    """Measure, print, and return the exit code; 4 without a CUDA device."""
    options = parser(__doc__, 3)
    options.add_argument("--toy", action="store_true", help="toy size on the CPU, to test this file")
    options.add_argument("--pixels", type=int, nargs="+", choices=list(FULL.batches), help="all sizes by default")
    chosen = options.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        print("gpu_train: there is no CUDA device here; --toy runs the same code on the CPU", file=sys.stderr)
        return 4
    scale, device = (TOY, torch.device("cpu")) if chosen.toy else (FULL, torch.device("cuda"))
    sizes = list(TOY.batches) if chosen.toy else chosen.pixels or list(FULL.batches)
    return finish(measure(chosen.rounds, scale, sizes, device), chosen)


if __name__ == "__main__":
    sys.exit(main())
