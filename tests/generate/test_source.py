"""Drawing from a source: each kind against diffusers, memory that is too small, half precision, one image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)

from mvc.denoise import SCHEDULERS, finite, make_scheduler
from mvc.embeddings import time_ids
from mvc.errors import EnvironmentFault
from mvc.generate.jobs import Job
from mvc.generate.source import ClassText, Source, draw, draw_alone
from mvc.mixing import MixingPlan, apply_plan, draw_plan
from mvc.randomness import generator
from tests.mvc.denoising import parts, xl_parts
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, WIDTH, WIDTH_2, sd_scheduler, tiny_unet, tiny_vae, tiny_xl_unet

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SEED, STEPS, TOKENS = 3, 4, 77
IMAGES = {"cat": 3, "dog": 2}


def normal(purpose: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def pixels_of(name: str) -> torch.Tensor:
    """(k, 3, H, W) training images of a class."""
    return normal(f"pixels {name}", IMAGES[name], 3, IMAGE_SIZE, IMAGE_SIZE).clamp(-1, 1)


@torch.no_grad()
def modes_of(vae: Any, name: str) -> torch.Tensor:
    return vae.encode(pixels_of(name)).latent_dist.mode()


def source_of(kind: str, guidance: Any, xl: bool = False, scheduler: str = "dpmsolver++", **changes: Any) -> Source:
    width, vae = WIDTH + WIDTH_2 if xl else WIDTH, tiny_vae()
    conditioned = kind in ("finetuned", "instruct_pix2pix")
    texts = {
        name: ClassText(
            [f"{name}/{number}.png" for number in range(count)],
            # The source with an instruction has one text a class.
            normal(f"text {name}", 1 if kind == "instruct_pix2pix" else count, TOKENS, width),
            TOKENS,
            normal(f"pooled {name}", 1 if kind == "instruct_pix2pix" else count, WIDTH_2) if xl else None,
        )
        for name, count in IMAGES.items()
    }
    scale = vae.config.scaling_factor if kind == "sdedit" else 1.0
    given: dict[str, Any] = {
        "kind": kind,
        "seed": SEED,
        "unet": (tiny_xl_unet if xl else tiny_unet)(0, 8 if conditioned else 4).eval(),
        "vae": vae,
        "device": torch.device("cpu"),
        "new_scheduler": partial(make_scheduler, scheduler, sd_scheduler().config),
        "num_inference_steps": STEPS,
        "guidance": guidance,
        "texts": texts,
        "null": normal("null", TOKENS, width),
        "image_latents": None if kind == "pretrained" else {name: modes_of(vae, name) * scale for name in IMAGES},
        "shape": (4, LATENT_SIZE, LATENT_SIZE),
        "null_pooled": normal("null pooled", WIDTH_2) if xl else None,
        "time_ids": time_ids(IMAGE_SIZE) if xl else None,
        "strength": 0.6 if kind == "sdedit" else 1.0,
    }
    return Source(**{**given, **changes})


def jobs_for(kind: str, count: int = 7, attempt: int = 1) -> list[Job]:
    """Jobs with a guidance of their own each."""
    jobs = []
    for number in range(count):
        name = ("cat", "dog", "cat")[number % 3]
        plan = (
            draw_plan(SEED, name, [number], IMAGES[name], TOKENS, WIDTH, 2, 3).row(0) if kind == "finetuned" else None
        )
        jobs.append(
            Job(
                source=kind,
                class_name=name,
                index=number // 2,
                attempt=attempt + number % 2,
                caption=None if kind == "instruct_pix2pix" else plan["base"] if plan else number % IMAGES[name],
                condition=None if kind == "pretrained" else (number + 1) % IMAGES[name],
                plan=plan,
                guidance_scale=2.0 + 0.75 * number,
                image_guidance_scale=1.25 + 0.125 * number if kind in ("finetuned", "instruct_pix2pix") else None,
            )
        )
    return jobs


def noise_for(job: Job) -> torch.Generator:
    return generator(SEED, f"noise {job.source} {job.class_name}", job.index, job.attempt)


def from_pipeline(pipeline: Any, source: Source, job: Job, text: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """(3, H, W) in [0, 1]; the pipeline's own noise is that of the job."""
    pipeline.set_progress_bar_config(disable=True)
    pooled = source.texts[job.class_name].pooled
    if pooled is not None and source.null_pooled is not None:
        arguments["pooled_prompt_embeds"] = pooled[[job.caption or 0]]
        arguments["negative_pooled_prompt_embeds"] = source.null_pooled[None]
    return pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=source.null[None],
        generator=[noise_for(job)],
        num_inference_steps=STEPS,
        guidance_scale=job.guidance_scale,
        output_type="pt",
        **arguments,
    ).images[0]


def assert_same(pixels: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("xl", "scheduler"), [*((False, name) for name in sorted(SCHEDULERS)), (True, "dpmsolver++"), (True, "euler")]
)
def test_sdedit_is_image_to_image_of_diffusers(xl: bool, scheduler: str) -> None:
    source, jobs = source_of("sdedit", "text", xl, scheduler), jobs_for("sdedit")
    kind: Any = StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline
    pipeline = kind(**xl_parts(source.unet, scheduler) if xl else parts(source.unet, scheduler, "epsilon"))
    assert source.image_latents is not None
    for pixels, job in zip(draw(source, jobs).pixels, jobs, strict=True):
        assert job.caption is not None and job.condition is not None
        expected = from_pipeline(
            pipeline,
            source,
            job,
            source.texts[job.class_name].embeddings[[job.caption]],
            image=modes_of(source.vae, job.class_name)[[job.condition]] * source.vae.config.scaling_factor,
            strength=0.6,
        )
        assert_same(pixels, expected)


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("kind", ["finetuned", "instruct_pix2pix"])
def test_images_with_a_condition_are_those_of_diffusers(kind: str, xl: bool) -> None:
    source, jobs, sizes = source_of(kind, "dual", xl), jobs_for(kind), list[int]()
    handle = source.unet.conv_in.register_forward_hook(lambda module, given, result: sizes.append(len(result)))
    drawn = draw(source, jobs)
    handle.remove()
    assert sizes == [3 * len(jobs)] * STEPS
    assert drawn.batch_sizes == [7] * 7 and drawn.batch_places == list(range(7)) and drawn.in_float32 == [False] * 7
    pipe: Any = StableDiffusionXLInstructPix2PixPipeline if xl else StableDiffusionInstructPix2PixPipeline
    pipeline = pipe(**xl_parts(source.unet, "dpmsolver++") if xl else parts(source.unet, "dpmsolver++", "epsilon"))
    for pixels, job in zip(drawn.pixels, jobs, strict=True):
        embeddings = source.texts[job.class_name].embeddings
        text = embeddings if job.plan is None else apply_plan(MixingPlan.from_rows([job.plan]), embeddings)
        expected = from_pipeline(
            pipeline,
            source,
            job,
            text,
            image=pixels_of(job.class_name)[[job.condition or 0]] / 2 + 0.5,
            image_guidance_scale=job.image_guidance_scale,
            **({"height": IMAGE_SIZE, "width": IMAGE_SIZE} if xl else {}),
        )
        assert_same(pixels, expected)


@pytest.mark.parametrize("kind", ["pretrained", "sdedit"])
def test_without_a_condition_a_wide_unet_sees_zeros(kind: str) -> None:
    seen: list[torch.Tensor] = []
    source = source_of(kind, "text", unet=tiny_unet(in_channels=8).eval())
    handle = source.unet.conv_in.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    draw(source, jobs_for(kind, 2))
    handle.remove()
    assert seen and all(sample.shape[1] == 8 and not sample[:, 4:].any() for sample in seen)


VARIANTS: list[dict[str, Any]] = [
    {"kind": "finetuned", "guidance": "paper"},
    {"kind": "finetuned", "guidance": "dual", "guidance_interval": (0.3, 0.8), "autocast": torch.bfloat16},
    {"kind": "pretrained", "guidance": "text", "scheduler": "ddim", "eta": 0.7},
    {"kind": "sdedit", "guidance": "text", "scheduler": "unipc", "autocast": torch.float16},
    {"kind": "instruct_pix2pix", "guidance": "dual", "xl": True, "scheduler": "euler"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: str(variant["kind"]))
def test_an_image_depends_on_its_job_and_on_its_batch_in_the_last_bits_alone(variant: dict[str, Any]) -> None:
    source, jobs = source_of(**variant), jobs_for(variant["kind"])
    together = draw(source, jobs).pixels
    half = source.autocast is not None
    for size in (1, 4):
        batches = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        apart = torch.cat([draw(source, batch).pixels for batch in batches])
        torch.testing.assert_close(apart, together, atol=0.05 if half else 1e-4, rtol=0.05 if half else 1e-4)
    assert torch.equal(draw(source, jobs).pixels, together)
    other = draw(source, [replace(job, attempt=job.attempt + 1) for job in jobs]).pixels
    assert bool(((other - together).abs().flatten(1).amax(1) > 0.01).all())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: str(variant["kind"]))
def test_an_image_alone_has_the_bits_that_it_had_in_its_batch(variant: dict[str, Any]) -> None:
    source, jobs = source_of(**variant), jobs_for(variant["kind"])
    drawn = draw(source, jobs)
    for row in (0, 2, 6):
        alone = draw_alone(source, jobs[row], drawn.batch_sizes[row], drawn.batch_places[row])
        assert torch.equal(alone, drawn.pixels[row])


def test_noise_in_the_steps_is_drawn_for_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    source, jobs = source_of("pretrained", "text", scheduler="ddim", eta=1.0), jobs_for("pretrained", 2)
    pixels = draw(source, jobs).pixels
    # The same job but for its number: nothing but the noise of start and steps can differ.
    twins = [jobs[0], replace(jobs[0], index=99)]
    assert not torch.equal(*draw(source, twins).pixels)
    monkeypatch.setattr("mvc.generate.source.draw_noise", lambda seed, given, shape: torch.ones(len(given), *shape))
    first, second = draw(source, twins).pixels
    assert (first - second).abs().max() > 0.01
    assert torch.equal(*draw(replace(source, eta=0.0), twins).pixels)
    assert not torch.equal(draw(replace(source, eta=0.0), jobs).pixels, pixels)


@contextmanager
def memory_for(
    source: Source, images: int, error: Callable[[], Exception] = torch.OutOfMemoryError
) -> Iterator[list[int]]:
    """Let the UNet run out of memory above a number of images; yields the sizes that were tried."""
    tried: list[int] = []

    def check(module: Any, given: Any) -> None:
        size = len(given[0]) // 2  # two passes
        tried.append(size)
        if size > images:
            raise error()

    handle = source.unet.conv_in.register_forward_pre_hook(check)
    try:
        yield tried
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")]
)
def test_too_little_memory_halves_the_micro_batch_and_gives_the_same_images(
    capsys: pytest.CaptureFixture[str], error: Any
) -> None:
    source, jobs = source_of("finetuned", "paper"), jobs_for("finetuned")
    expected = draw(source, jobs).pixels
    with memory_for(source, 2, error) as tried:
        drawn = draw(source, jobs)
        assert [size for size in tried if size > 2] == [7, 4]
        torch.testing.assert_close(drawn.pixels, expected, atol=1e-4, rtol=1e-4)
        assert drawn.batch_sizes == [2, 2, 2, 2, 2, 2, 1] and drawn.batch_places == [0, 1, 0, 1, 0, 1, 0]
        assert source.micro_batch.most == 2
        said = capsys.readouterr().err
        assert "no memory for 7 images at once; going on with 4" in said and "going on with 2" in said
        tried.clear()
        assert torch.equal(draw(source, jobs).pixels, drawn.pixels)
        assert max(tried) == 2, "once halved it stays so"
    assert torch.equal(draw_alone(source, jobs[5], 2, 1), drawn.pixels[5])


def test_what_was_done_before_memory_ran_out_is_kept() -> None:
    source, jobs = source_of("pretrained", "text"), jobs_for("pretrained", 5)
    source.micro_batch.most = 3
    expected = draw(source, jobs)
    assert expected.batch_sizes == [3, 3, 3, 2, 2]
    seen: list[int] = []

    def fail_once(module: Any, given: Any) -> None:
        seen.append(len(given[0]) // 2)
        if seen.count(2) == 1 and seen[-1] == 2:
            raise torch.OutOfMemoryError

    handle = source.unet.conv_in.register_forward_pre_hook(fail_once)
    drawn = draw(source, jobs)
    handle.remove()
    assert seen == [3] * STEPS + [2] + [1] * STEPS * 2 and drawn.batch_sizes == [3, 3, 3, 1, 1]
    assert torch.equal(drawn.pixels[:3], expected.pixels[:3])
    torch.testing.assert_close(drawn.pixels, expected.pixels, atol=1e-4, rtol=1e-4)


def test_memory_for_no_image_at_all_is_an_error_that_says_what_to_do() -> None:
    source, jobs = source_of("finetuned", "paper"), jobs_for("finetuned", 3)
    with (
        memory_for(source, 0),
        pytest.raises(EnvironmentFault, match="out of memory on cpu with a single image") as info,
    ):
        draw(source, jobs)
    for key in ("generate.mixed_precision=bf16", "data.image_size", "model.base"):
        assert key in info.value.do
    with memory_for(source, 2), pytest.raises(EnvironmentFault, match="with 3 images at once"):
        draw_alone(source, jobs[0], 3, 0)
    with (
        memory_for(source, 0, lambda: RuntimeError("shapes differ")),
        pytest.raises(RuntimeError, match="shapes differ"),
    ):
        draw(source, jobs)


@contextmanager
def spoilt(module: Any, rows: list[int], value: float) -> Iterator[None]:
    """Write something that is not finite into rows of what a module gives in half precision."""

    def spoil(module: Any, given: Any, result: torch.Tensor) -> None:
        if result.dtype != torch.float32:
            for row in rows:
                result[row] = value

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [[3], [0, 6]])
def test_an_image_that_half_precision_spoils_is_redone_alone(precision: torch.dtype, rows: list[int]) -> None:
    source, jobs = source_of("finetuned", "paper", autocast=precision), jobs_for("finetuned")
    clean = draw(source, jobs)
    assert clean.in_float32 == [False] * 7 and bool(finite(clean.pixels).all())
    with spoilt(source.unet.conv_out, rows, float("nan")):
        drawn = draw(source, jobs)
        assert drawn.in_float32 == [row in rows for row in range(7)]
        for row, job in enumerate(jobs):
            own = draw(replace(source, autocast=None), [job]).pixels[0] if row in rows else clean.pixels[row]
            assert torch.equal(drawn.pixels[row], own)
    # Only what is spoilt itself differs, and by no more than the precision.
    torch.testing.assert_close(drawn.pixels, clean.pixels, atol=0.05, rtol=0.05)


def test_a_spoilt_image_is_redone_alone_in_the_same_way() -> None:
    source, jobs = source_of("pretrained", "text", autocast=torch.bfloat16), jobs_for("pretrained", 4)
    with spoilt(source.unet.conv_out, list(range(8)), float("nan")):
        drawn = draw(source, jobs)
        assert drawn.in_float32 == [True] * 4
        assert torch.equal(draw_alone(source, jobs[2], 4, 2), drawn.pixels[2])


def test_pixels_that_bfloat16_spoils_are_decoded_again() -> None:
    source, jobs = source_of("sdedit", "text", autocast=torch.bfloat16), jobs_for("sdedit", 4)
    clean = draw(source, jobs)
    with spoilt(source.vae.decoder.conv_out, [1], float("inf")):
        drawn = draw(source, jobs)
    assert drawn.in_float32 == [False, True, False, False] and bool(finite(drawn.pixels).all())
    assert torch.equal(drawn.pixels[[0, 2, 3]], clean.pixels[[0, 2, 3]])
    assert 0 < (drawn.pixels[1] - clean.pixels[1]).abs().max() < 0.05


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_what_is_not_finite_in_float32_either_is_handed_back(precision: torch.dtype | None) -> None:
    source, jobs = source_of("pretrained", "text", autocast=precision), jobs_for("pretrained", 4)
    clean = draw(source, jobs).pixels
    source.texts["dog"].embeddings[jobs[1].caption or 0] = float("nan")
    drawn = draw(source, jobs)
    assert finite(drawn.pixels).tolist() == [True, False, True, True]
    assert drawn.in_float32 == [False, precision is not None, False, False]
    assert torch.equal(drawn.pixels[[0, 2, 3]], clean[[0, 2, 3]])
