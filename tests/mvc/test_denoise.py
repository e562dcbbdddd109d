"""The denoising loop against diffusers' pipelines at equal inputs, and its identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)

from mvc.denoise import SCHEDULERS, decode, make_scheduler
from mvc.diffusion import guidance_terms, text_guidance_terms
from tests.mvc.denoising import BATCH, STEPS, from_pipeline, part, parts, plain_inputs, run, xl_inputs, xl_parts
from tests.tiny_parts import IMAGE_SIZE, tiny_unet, tiny_vae, tiny_xl_unet

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return plain_inputs()


@pytest.fixture(scope="module")
def unet() -> Any:
    # Random weights in all eight channels, so that the image latents matter.
    return tiny_unet(in_channels=8).eval()


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_equals_instruct_pix2pix(unet: Any, inputs: dict[str, Any], name: str, kind: str) -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts(unet, name, kind))
    expected = from_pipeline(
        pipeline, inputs, image=inputs["image_latents"], guidance_scale=7.5, image_guidance_scale=1.5
    )
    found = run(unet, inputs, guidance_terms("dual", 7.5, 1.5), name, kind)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (run(unet, inputs, guidance_terms("dual", 7.5, 1.4), name, kind) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_equals_text_to_image(inputs: dict[str, Any], name: str) -> None:
    unet = tiny_unet().eval()
    pipeline = StableDiffusionPipeline(**parts(unet, name, "epsilon"))
    expected = from_pipeline(pipeline, inputs, guidance_scale=7.5)
    found = run(unet, {**inputs, "image_latents": None}, text_guidance_terms(7.5), name)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("image", [False, True])
def test_equals_sdxl(inputs: dict[str, Any], name: str, image: bool) -> None:
    given, unet = xl_inputs(inputs), tiny_xl_unet(0, 8 if image else 4).eval()
    kind: Any = StableDiffusionXLInstructPix2PixPipeline if image else StableDiffusionXLPipeline
    pooled, null = given["added_cond_kwargs"]["text_embeds"], given["null_text_embeds"].expand(BATCH, -1)
    more = {"image": given["image_latents"], "image_guidance_scale": 1.5} if image else {}
    expected = from_pipeline(
        kind(**xl_parts(unet, name)),
        given,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=null,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        guidance_scale=5.0,
        **more,
    )
    terms = guidance_terms("dual", 5.0, 1.5) if image else text_guidance_terms(5.0)
    if not image:
        given["image_latents"] = None
    torch.testing.assert_close(run(unet, given, terms, name), expected, atol=1e-4, rtol=1e-4)
    given["added_cond_kwargs"]["text_embeds"] = pooled.flip(0)
    assert (run(unet, given, terms, name) - expected).abs().max() > 1e-3


def test_paper_guidance_is_dual_guidance_with_equal_scales(unet: Any, inputs: dict[str, Any]) -> None:
    paper = run(unet, inputs, guidance_terms("paper", 7.5))
    assert torch.equal(paper, run(unet, inputs, guidance_terms("dual", 7.5, 7.5)))
    # All three passes spelled out, so that nothing is left out on either side of the comparison.
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts(unet, "ddim", "epsilon"))
    expected = from_pipeline(
        pipeline, inputs, image=inputs["image_latents"], guidance_scale=7.5, image_guidance_scale=7.5
    )
    torch.testing.assert_close(paper, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("terms", "passes"),
    [
        (guidance_terms("paper", 1.0), 1),
        (guidance_terms("dual", 1.0, 1.0), 1),
        (guidance_terms("paper", 7.5), 2),
        (guidance_terms("dual", 7.5, 1.0), 2),
        (guidance_terms("dual", 7.5, 1.5), 3),
        (guidance_terms("dual", 0.0, 0.5), 2),
        (guidance_terms("paper", 0.0), 1),
    ],
)
def test_a_step_is_one_forward_pass_of_what_counts(unet: Any, inputs: dict[str, Any], terms: Any, passes: int) -> None:
    sizes: list[int] = []
    handle = unet.conv_in.register_forward_hook(lambda module, given, result: sizes.append(len(given[0])))
    run(unet, inputs, terms)
    handle.remove()
    assert sizes == [passes * BATCH] * STEPS


def test_guidance_of_one_is_the_conditioned_model_alone(unet: Any, inputs: dict[str, Any]) -> None:
    """diffusers switches guidance off at 1, so its output is the plain conditioned one."""
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts(unet, "ddim", "epsilon"))
    expected = from_pipeline(
        pipeline, inputs, image=inputs["image_latents"], guidance_scale=1.0, image_guidance_scale=1.0
    )
    torch.testing.assert_close(run(unet, inputs, guidance_terms("paper", 1.0)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_an_image_does_not_depend_on_its_batch(unet: Any, inputs: dict[str, Any], name: str) -> None:
    terms, vae = guidance_terms("dual", 7.5, 1.5), tiny_vae()
    together = run(unet, inputs, terms, name)
    pixels = decode(vae, together)
    for size in (1, 3):
        apart = [run(unet, part(inputs, slice(start, start + size)), terms, name) for start in range(0, BATCH, size)]
        torch.testing.assert_close(torch.cat(apart), together, atol=1e-4, rtol=1e-4)
        levels = (decode(vae, torch.cat(apart)).clamp(-1, 1) * 127.5).round() - (pixels.clamp(-1, 1) * 127.5).round()
        assert levels.abs().max() <= 1 and (levels != 0).float().mean() < 0.01
    assert torch.equal(run(unet, inputs, terms, name), together)


def test_decode_divides_by_the_scaling_factor(inputs: dict[str, Any]) -> None:
    vae = tiny_vae()
    with torch.no_grad():
        expected = vae.decode(inputs["noise"] * 2.0).sample
    assert vae.config.scaling_factor == 0.5
    assert torch.equal(decode(vae, inputs["noise"]), expected)


def test_latents_are_never_clipped() -> None:
    assert make_scheduler("ddim", {"prediction_type": "epsilon"}).config.clip_sample is False


@pytest.mark.parametrize(
    ("guidance", "texts", "images"),
    [("paper", range(1, 9), 1.0), ("dual", range(1, 9), 1.5), ("dual", 5.0, [0.5 * row for row in range(8)])],
)
def test_each_image_can_have_its_own_guidance(
    unet: Any, inputs: dict[str, Any], guidance: Any, texts: Any, images: Any
) -> None:
    found = run(unet, inputs, guidance_terms(guidance, texts, images))
    for row in (1, 2, 5):
        own = guidance_terms(
            guidance,
            float(texts[row]) if isinstance(texts, range) else texts,
            images[row] if isinstance(images, list) else images,
        )
        torch.testing.assert_close(run(unet, inputs, own)[row], found[row], atol=1e-5, rtol=1e-5)
    assert (run(unet, inputs, guidance_terms(guidance, 2.0, 2.0)) - found).abs().max() > 1e-3


def test_own_guidance_has_the_bits_of_common_guidance(unet: Any, inputs: dict[str, Any]) -> None:
    """The same three passes are made, so the row of an image cannot tell whether the others share its scales."""
    scales = [1.1 + 0.7 * row for row in range(BATCH)]
    found = run(unet, inputs, guidance_terms("dual", scales, 1.3))
    for row in (0, 3, 7):
        assert torch.equal(run(unet, inputs, guidance_terms("dual", scales[row], 1.3))[row], found[row])
