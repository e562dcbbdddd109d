"""The denoising loop's options against diffusers: guidance interval, eta, image to image, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from mvc.denoise import SCHEDULERS, decode, decode_checked, finite, make_scheduler, require_eta, require_interval
from mvc.diffusion import guidance_terms, text_guidance_terms
from mvc.errors import ConfigError
from tests.mvc.denoising import (
    BATCH,
    STEPS,
    draw_from,
    from_pipeline,
    generators,
    parts,
    plain_inputs,
    run,
    xl_inputs,
    xl_parts,
)
from tests.tiny_parts import sd_scheduler, tiny_unet, tiny_vae, tiny_xl_unet

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return plain_inputs()


@pytest.fixture(scope="module")
def unet() -> Any:
    # Random weights in all eight channels, so that the image latents matter.
    return tiny_unet(in_channels=8).eval()


def guide_between(first: int, last: int, text: float, image: float) -> Any:
    """A callback that switches a pipeline's guidance on for steps first..last, and off, but for rounding, elsewhere."""

    def guide(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        inside = first <= step + 1 <= last
        pipeline._guidance_scale = text if inside else 1.0000001
        pipeline._image_guidance_scale = image if inside else 1.0
        return given

    return guide


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_guidance_acts_in_its_interval_alone(unet: Any, inputs: dict[str, Any], name: str) -> None:
    scheduler = make_scheduler(name, sd_scheduler().config)
    scheduler.set_timesteps(STEPS)
    shares = [float(timestep) / 999 for timestep in scheduler.timesteps]
    interval = ((shares[3] + shares[2]) / 2, (shares[1] + shares[0]) / 2)
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts(unet, name, "epsilon"))
    expected = from_pipeline(
        pipeline,
        inputs,
        image=inputs["image_latents"],
        guidance_scale=1.0000001,
        image_guidance_scale=1.0,
        callback_on_step_end=guide_between(1, 2, 7.5, 1.5),
    )
    sizes: list[int] = []
    handle = unet.conv_in.register_forward_hook(lambda module, given, result: sizes.append(len(given[0]) // BATCH))
    found = run(unet, inputs, guidance_terms("dual", 7.5, 1.5), name, guidance_interval=interval)
    handle.remove()
    assert sizes == [1, 3, 3, 1, 1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (run(unet, inputs, guidance_terms("dual", 7.5, 1.5), name) - found).abs().max() > 1e-3


def test_outside_its_interval_a_text_guided_model_sees_its_text(inputs: dict[str, Any]) -> None:
    unet, given = tiny_unet().eval(), {**inputs, "image_latents": None}
    never = run(unet, given, text_guidance_terms(7.5), guidance_interval=(0.99, 1.0))
    assert torch.equal(never, run(unet, given, text_guidance_terms(1.0)))


@pytest.mark.parametrize("interval", [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(unet: Any, inputs: dict[str, Any], interval: Any) -> None:
    with pytest.raises(ConfigError, match=r"guidance_interval=\[.*is no interval of the noise schedule"):
        require_interval(interval)
    with pytest.raises(ConfigError, match="guidance_interval"):
        run(unet, inputs, guidance_terms("paper", 2.0), guidance_interval=interval)
    require_interval((0.4, 0.4))


@pytest.mark.parametrize(("eta", "kind"), [(1.0, "epsilon"), (0.4, "v_prediction")])
def test_eta_is_that_of_diffusers(inputs: dict[str, Any], eta: float, kind: str) -> None:
    unet = tiny_unet().eval()
    pipeline = StableDiffusionPipeline(**parts(unet, "ddim", kind))
    expected = from_pipeline(pipeline, inputs, guidance_scale=3.0, eta=eta, generator=generators())
    each, steps = generators(), []

    def step_noise(step: int) -> torch.Tensor:
        steps.append(step)
        return draw_from(each)

    given = {**inputs, "image_latents": None}
    found = run(unet, given, text_guidance_terms(3.0), "ddim", kind, eta=eta, step_noise=step_noise)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert steps == list(range(STEPS))
    assert (run(unet, given, text_guidance_terms(3.0), "ddim", kind) - found).abs().max() > 1e-2


def test_noise_in_the_steps_needs_ddim_and_somewhere_to_come_from(unet: Any, inputs: dict[str, Any]) -> None:
    for name in SCHEDULERS:
        require_eta(name, 0.0)
    require_eta("ddim", 1.0)
    for name in ("dpmsolver++", "unipc", "euler"):
        with pytest.raises(ConfigError, match=r"eta=0.5 cannot be used with scheduler=(?s:.*)generate.scheduler=ddim"):
            require_eta(name, 0.5)
    for eta in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
            require_eta("ddim", eta)
    with pytest.raises(ValueError, match="no step_noise"):
        run(unet, inputs, guidance_terms("paper", 2.0), eta=0.5)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize(("strength", "kind"), [(0.2, "epsilon"), (0.7, "v_prediction"), (1.0, "epsilon")])
def test_equals_image_to_image(inputs: dict[str, Any], name: str, strength: float, kind: str) -> None:
    unet = tiny_unet().eval()
    pipeline = StableDiffusionImg2ImgPipeline(**parts(unet, name, kind))
    expected = from_pipeline(
        pipeline,
        inputs,
        latents=None,
        image=inputs["image_latents"],
        strength=strength,
        guidance_scale=7.5,
        generator=generators(),
    )
    given = {**inputs, "image_latents": None, "noise": draw_from(generators())}
    more = {"init_latents": inputs["image_latents"], "strength": strength}
    found = run(unet, given, text_guidance_terms(7.5), name, kind, **more)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (run(unet, given, text_guidance_terms(7.5), name, kind) - found).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_equals_image_to_image_of_sdxl(inputs: dict[str, Any], name: str) -> None:
    given, unet = xl_inputs(inputs), tiny_xl_unet().eval()
    kind: Any = StableDiffusionXLImg2ImgPipeline
    expected = from_pipeline(
        kind(**xl_parts(unet, name)),
        given,
        latents=None,
        image=inputs["image_latents"],
        strength=0.6,
        guidance_scale=5.0,
        generator=generators(),
        pooled_prompt_embeds=given["added_cond_kwargs"]["text_embeds"],
        negative_pooled_prompt_embeds=given["null_text_embeds"].expand(BATCH, -1),
    )
    given |= {"image_latents": None, "noise": draw_from(generators())}
    more = {"init_latents": inputs["image_latents"], "strength": 0.6}
    found = run(unet, given, text_guidance_terms(5.0), name, **more)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_weakest_image_to_image_makes_one_step(inputs: dict[str, Any]) -> None:
    unet, given = tiny_unet().eval(), {**inputs, "image_latents": None}
    one, weakest = (
        run(unet, given, text_guidance_terms(2.0), init_latents=inputs["image_latents"], strength=strength)
        for strength in (1 / STEPS, 1e-6)
    )
    assert torch.equal(one, weakest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_half_precision_is_for_the_unet_alone(unet: Any, inputs: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    handle = unet.conv_in.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    terms = guidance_terms("dual", 3.0, 1.5)
    found = run(unet, inputs, terms, name, autocast=dtype)
    handle.remove()
    assert seen == [dtype] * STEPS and found.dtype == torch.float32
    expected = run(unet, inputs, terms, name)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    # Values between those of half precision come of arithmetic in float32.
    assert not torch.equal(found.to(dtype).float(), found)


def test_decoding_is_in_bfloat16_or_float32(inputs: dict[str, Any]) -> None:
    vae = tiny_vae()
    expected = decode(vae, inputs["noise"])
    assert torch.equal(decode(vae, inputs["noise"], torch.float16), expected)
    found = decode(vae, inputs["noise"], torch.bfloat16)
    assert found.dtype == torch.float32 and torch.equal(found.bfloat16().float(), found)
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_an_image_that_bfloat16_spoils_is_decoded_again(inputs: dict[str, Any]) -> None:
    vae, latents = tiny_vae(), inputs["noise"].clone()
    clean = decode(vae, latents, torch.bfloat16)

    def spoil(module: Any, given: Any, result: torch.Tensor) -> None:
        if result.dtype == torch.bfloat16:
            result[2], result[5] = float("inf"), float("nan")

    handle = vae.decoder.conv_out.register_forward_hook(spoil)
    pixels, again = decode_checked(vae, latents, torch.bfloat16)
    assert again == [row in (2, 5) for row in range(BATCH)]
    for row in range(BATCH):
        own = decode(vae, latents[row : row + 1])[0] if again[row] else clean[row]
        assert torch.equal(pixels[row], own)
    latents[2, 0, 0, 0] = float("nan")
    pixels, again = decode_checked(vae, latents, torch.bfloat16)
    assert again == [row == 5 for row in range(BATCH)], "latents that are not finite cannot be decoded at all"
    assert finite(pixels).tolist() == [row != 2 for row in range(BATCH)]
    handle.remove()
    assert decode_checked(vae, inputs["noise"])[1] == [False] * BATCH
