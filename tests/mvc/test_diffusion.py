from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from mvc.diffusion import (
    add_noise,
    combine,
    conditioning_dropout,
    denoising_loss,
    guidance_terms,
    target_for,
    text_guidance_terms,
    widen_conv_in,
)
from mvc.errors import ConfigError
from mvc.randomness import generator
from tests.tiny_parts import LATENT_SIZE, WIDTH, tiny_unet

TIMESTEPS = torch.tensor([0, 1, 499, 999])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "test"))


def schedule(**changes: Any) -> Any:
    kind: Any = DDPMScheduler
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)


def alpha_bar() -> torch.Tensor:
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)[TIMESTEPS][:, None, None, None].float()


def test_surgery_changes_nothing_whatever_the_condition() -> None:
    before, after = tiny_unet().eval(), tiny_unet().eval()
    # An old bias of zero would hide a lost one.
    for unet in (before, after):
        torch.nn.init.constant_(unet.conv_in.bias, 0.3)
    widen_conv_in(after)
    latents, text = normal(2, 4, LATENT_SIZE, LATENT_SIZE), normal(2, 77, WIDTH, seed=1)
    with torch.no_grad():
        expected = before(latents, TIMESTEPS[:2], text).sample
        for scale in (0.0, 1.0, 100.0):
            condition = scale * normal(2, 4, LATENT_SIZE, LATENT_SIZE, seed=2)
            given = after(torch.cat([latents, condition], 1), TIMESTEPS[:2], text).sample
            assert (given - expected).abs().max() <= 1e-6
    assert torch.equal(after.conv_in.bias, before.conv_in.bias)
    assert torch.equal(after.conv_in.weight[:, :4], before.conv_in.weight)
    assert not after.conv_in.weight[:, 4:].any()
    assert after.config.in_channels == 8 and after.conv_in.weight.requires_grad


def test_surgery_draws_no_global_random_numbers() -> None:
    state = torch.random.get_rng_state()
    unet = tiny_unet()
    widen_conv_in(unet)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_new_channels_learn() -> None:
    unet = tiny_unet()
    widen_conv_in(unet)
    sample = normal(1, 8, LATENT_SIZE, LATENT_SIZE)
    unet(sample, TIMESTEPS[:1], normal(1, 77, WIDTH)).sample.square().mean().backward()
    assert unet.conv_in.weight.grad[:, 4:].abs().max() > 0


def test_noise_closed_form() -> None:
    latents, noise = normal(4, 4, 3, 3), normal(4, 4, 3, 3, seed=1)
    expected = alpha_bar().sqrt() * latents + (1 - alpha_bar()).sqrt() * noise  # Eq. (1)
    torch.testing.assert_close(add_noise(schedule(), latents, noise, TIMESTEPS), expected, rtol=1e-4, atol=1e-5)


def test_targets_closed_form() -> None:
    latents, noise = normal(4, 4, 3, 3), normal(4, 4, 3, 3, seed=1)
    assert torch.equal(target_for(schedule(), latents, noise, TIMESTEPS), noise)
    velocity = alpha_bar().sqrt() * noise - (1 - alpha_bar()).sqrt() * latents
    found = target_for(schedule(prediction_type="v_prediction"), latents, noise, TIMESTEPS)
    torch.testing.assert_close(found, velocity, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="predicts 'sample'"):
        target_for(schedule(prediction_type="sample"), latents, noise, TIMESTEPS)


def test_loss_is_the_mean_square_of_each_sample() -> None:
    model_pred, target = normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    losses = denoising_loss(model_pred, target)
    assert losses.shape == (3,)
    for row in range(3):
        assert float(losses[row]) == pytest.approx(float(((model_pred[row] - target[row]) ** 2).mean()), rel=1e-6)
    assert float(losses.mean()) == pytest.approx(float(torch.nn.functional.mse_loss(model_pred, target)), rel=1e-6)


def test_dropout_intervals() -> None:
    uniform = torch.tensor([0.0, 0.0499, 0.0501, 0.0999, 0.1001, 0.1499, 0.1501, 0.9999])
    text, image = conditioning_dropout(uniform, 0.05)
    assert text.tolist() == [True, True, True, True, False, False, False, False]
    assert image.tolist() == [False, False, True, True, True, True, False, False]
    nothing = conditioning_dropout(uniform, 0.0)
    assert not nothing[0].any() and not nothing[1].any()


@pytest.mark.parametrize("probability", [0.05, 0.2])
def test_dropout_shares(probability: float) -> None:
    count = 100_000
    text, image = conditioning_dropout(torch.rand(count, generator=generator(0, "test")), probability)
    shares = [(text & ~image), (text & image), (~text & image)]
    tolerance = 5 * math.sqrt(probability * (1 - probability) / count)
    for share in shares:
        assert abs(float(share.float().mean()) - probability) < tolerance
    assert abs(float((~text & ~image).float().mean()) - (1 - 3 * probability)) < 3 * tolerance


def guided(terms: Any, both: torch.Tensor, image: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
    passes = {(True, True): both, (False, True): image, (False, False): none}
    return combine(terms, [passes[term.text, term.image] for term in terms])


@pytest.mark.parametrize(("s_t", "s_i"), [(7.5, 1.5), (2.0, 3.0), (0.5, 0.9), (0.0, 2.0), (3.0, 0.0), (0.0, 0.0)])
def test_dual_guidance_is_the_formula_of_instruct_pix2pix(s_t: float, s_i: float) -> None:
    both, image, none = normal(2, 4), normal(2, 4, seed=1), normal(2, 4, seed=2)
    expected = none + s_i * (image - none) + s_t * (both - image)
    found = guided(guidance_terms("dual", s_t, s_i), both, image, none)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_paper_guidance_is_equation_6_and_dual_with_equal_scales(w: float) -> None:
    both, image, none = normal(2, 4), normal(2, 4, seed=1), normal(2, 4, seed=2)
    paper = guidance_terms("paper", w, 99.0)
    assert paper == guidance_terms("dual", w, w)
    torch.testing.assert_close(guided(paper, both, image, none), w * both + (1 - w) * none)  # Eq. (6)
    text_only = text_guidance_terms(w)
    torch.testing.assert_close(
        combine(text_only, [both if term.text else none for term in text_only]), w * both + (1 - w) * none
    )


def test_passes_that_count_nothing_are_not_made() -> None:
    def count(*arguments: Any) -> int:
        return len(guidance_terms(*arguments))

    assert count("dual", 7.5, 1.5) == 3
    assert count("dual", 7.5, 1.0) == 2 and count("dual", 2.0, 2.0) == 2 and count("paper", 7.5) == 2
    assert count("paper", 1.0) == 1 and count("dual", 1.0, 1.0) == 1 and count("paper", 0.0) == 1
    assert len(text_guidance_terms(7.5)) == 2 and len(text_guidance_terms(1.0)) == 1
    single = guidance_terms("dual", 1.0, 1.0)[0]
    assert (single.text, single.image, single.coefficient) == (True, True, 1.0)
    for s_t, s_i in ((7.5, 1.5), (0.3, 4.0)):
        assert sum(term.coefficient for term in guidance_terms("dual", s_t, s_i)) == pytest.approx(1.0)


def test_each_image_can_have_its_own_coefficients() -> None:
    both, image, none = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    texts, images = [7.5, 2.0, 1.0], [1.5, 2.0, 3.0]
    s_t, s_i = torch.tensor(texts)[:, None], torch.tensor(images)[:, None]
    found = guided(guidance_terms("dual", texts, images), both, image, none)
    torch.testing.assert_close(found, none + s_i * (image - none) + s_t * (both - image), rtol=1e-5, atol=1e-5)
    paper = guided(guidance_terms("paper", texts), both, image, none)
    torch.testing.assert_close(paper, s_t * both + (1 - s_t) * none, rtol=1e-5, atol=1e-5)  # Eq. (6)
    text_only = text_guidance_terms(texts)
    found = combine(text_only, [both if term.text else none for term in text_only])
    torch.testing.assert_close(found, s_t * both + (1 - s_t) * none, rtol=1e-5, atol=1e-5)


def test_a_pass_is_left_out_where_it_counts_nothing_for_all_images() -> None:
    # s_I = 1 for all: no pass without any condition. s_T = s_I for one image alone: the pass with the image stays.
    assert [term.coefficient for term in guidance_terms("dual", [7.5, 1.0], 1.0)] == [(7.5, 1.0), (-6.5, 0.0)]
    assert [term.coefficient for term in guidance_terms("paper", [1.0, 3.0])] == [(1.0, 3.0), (0.0, -2.0)]
    assert (
        guidance_terms("paper", [1.0, 1.0]) == guidance_terms("paper", 1.0) and len(guidance_terms("paper", 1.0)) == 1
    )
    assert guidance_terms("dual", [7.5, 7.5], [1.5, 1.5]) == guidance_terms("dual", 7.5, 1.5)
    assert guidance_terms("dual", [2.0], [1.5, 1.5]) == guidance_terms("dual", 2.0, 1.5)
    assert text_guidance_terms([2.0, 2.0]) == text_guidance_terms(2.0) and len(text_guidance_terms([1, 1])) == 1
    with pytest.raises(ValueError):
        guidance_terms("dual", [1.0, 2.0, 3.0], [1.0, 2.0])
