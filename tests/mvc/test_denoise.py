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

from mvc.denoise import SCHEDULERS, decode, denoise, make_scheduler, usable
from mvc.diffusion import guidance_terms, text_guidance_terms
from mvc.embeddings import time_ids
from mvc.randomness import generator
from tests.mvc.text_models import clip_tokenizer, second_text_encoder, text_encoder
from tests.tiny_parts import (
    IMAGE_SIZE,
    LATENT_SIZE,
    WIDTH,
    WIDTH_2,
    sd_scheduler,
    tiny_unet,
    tiny_vae,
    tiny_xl_unet,
)

STEPS, BATCH, TOKENS = 5, 8, 77

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def draw(purpose: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return {
        "noise": draw("noise", BATCH, 4, LATENT_SIZE, LATENT_SIZE),
        "encoder_hidden_states": draw("text", BATCH, TOKENS, WIDTH),
        "null_hidden_states": draw("null", TOKENS, WIDTH),
        "image_latents": draw("image", BATCH, 4, LATENT_SIZE, LATENT_SIZE),
    }


@pytest.fixture(scope="module")
def unet() -> Any:
    # Random weights in all eight channels, so that the image latents matter.
    return tiny_unet(in_channels=8).eval()


def run(unet: Any, inputs: dict[str, Any], terms: Any, name: str = "ddim", kind: str = "epsilon") -> torch.Tensor:
    return denoise(
        unet, make_scheduler(name, sd_scheduler(kind).config), **inputs, terms=terms, num_inference_steps=STEPS
    )


def part(inputs: dict[str, Any], chosen: slice) -> dict[str, Any]:
    return {name: value if name == "null_hidden_states" else value[chosen] for name, value in inputs.items()}


def from_pipeline(pipeline: Any, inputs: dict[str, Any], **arguments: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    null = inputs["null_hidden_states"].expand(BATCH, -1, -1)
    return pipeline(
        prompt_embeds=inputs["encoder_hidden_states"],
        negative_prompt_embeds=null,
        latents=inputs["noise"].clone(),
        num_inference_steps=STEPS,
        output_type="latent",
        **arguments,
    ).images


def parts(unet: Any, name: str, kind: str) -> dict[str, Any]:
    return {
        "vae": tiny_vae(),
        "text_encoder": text_encoder(0, WIDTH),
        "tokenizer": clip_tokenizer(),
        "unet": unet,
        "scheduler": make_scheduler(name, sd_scheduler(kind).config),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


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


def xl_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        **inputs,
        "encoder_hidden_states": draw("xl text", BATCH, TOKENS, WIDTH + WIDTH_2),
        "null_hidden_states": draw("xl null", TOKENS, WIDTH + WIDTH_2),
        "added_cond_kwargs": {
            "text_embeds": draw("pooled", BATCH, WIDTH_2),
            "time_ids": time_ids(IMAGE_SIZE).repeat(BATCH, 1),
        },
        "null_text_embeds": draw("null pooled", WIDTH_2),
    }


def xl_parts(unet: Any, name: str) -> dict[str, Any]:
    own = {name: value for name, value in parts(unet, name, "epsilon").items() if "safety" not in name}
    own.pop("feature_extractor")
    return {**own, "text_encoder_2": second_text_encoder(0, WIDTH_2), "tokenizer_2": clip_tokenizer()}


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


def test_flat_and_non_finite_images_are_not_usable() -> None:
    pixels = draw("pixels", 6, 3, 8, 8).clamp(-1, 1)
    pixels[1, 0, 3, 3] = float("nan")
    pixels[2, 2, 7, 7] = float("inf")
    pixels[3] = 0.2
    pixels[4] = torch.tensor([1.0, -1.0, 0.3]).view(3, 1, 1) + 1e-3 * draw("ripple", 3, 8, 8).clamp(-1, 1)
    assert usable(pixels).tolist() == [True, False, False, False, False, True]


def test_latents_are_never_clipped() -> None:
    assert make_scheduler("ddim", {"prediction_type": "epsilon"}).config.clip_sample is False
