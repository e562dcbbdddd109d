"""The mathematics of fine-tuning and guidance as pure functions, each with its equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mvc.errors import ConfigError


@dataclass(frozen=True)
class GuidanceTerm:
    """One forward pass of the guided prediction.

    Attributes:
        text: conditioned on the text embedding; on the empty text's otherwise.
        image: conditioned on the image latents; on zero latents otherwise.
        coefficient: factor of the pass, or one for each image of the batch; those of all passes add up to 1.
    """

    text: bool
    image: bool
    coefficient: float | tuple[float, ...]


def widen_conv_in(unet: Any) -> None:
    """Give a text-to-image UNet the input channels for the condition latents, in place (Section 3.1, Eq. 4).

    The first convolution goes from C to 2C input channels. Old weights and bias are kept and the new weights are
    zero, so right afterwards the UNet computes what it did before, whatever the condition.

    Args:
        unet: UNet2DConditionModel.
    """
    old = unet.conv_in
    # The usual constructor would draw from the global random numbers.
    skip_init: Any = torch.nn.utils.skip_init
    new = skip_init(
        torch.nn.Conv2d,
        2 * old.in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


def add_noise(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Diffuse latents to their timesteps.

    Args:
        noise_scheduler: DDPMScheduler.
        latents: (B, C, h, w), times the scaling factor.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) int64 in [0, num_train_timesteps).
    """
    noisy: Tensor = noise_scheduler.add_noise(latents, noise, timesteps)  # Eq. (1)
    return noisy


def target_for(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet has to predict, by the base model's prediction type; arguments as in `add_noise`.

    Raises:
        ConfigError: the prediction type is neither epsilon nor v_prediction.
    """
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    raise ConfigError(
        f"model.base predicts '{kind}'",
        why="fine-tuning knows the prediction types epsilon and v_prediction",
        do="choose another base model",
    )


def denoising_loss(model_pred: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample, (B, C, h, w) => (B,) float32; its mean over samples estimates Eq. (4)."""
    return (model_pred.float() - target.float()).square().flatten(1).mean(1)


def signal_to_noise(noise_scheduler: Any, timesteps: Tensor) -> Tensor:
    """SNR(t) = alpha_bar / (1 - alpha_bar) of some timesteps, (B,) int64 => (B,) float32 on their device."""
    alphas: Tensor = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alphas / (1.0 - alphas)


def min_snr_weights(noise_scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's loss that keeps easy timesteps from ruling the gradient, (B,) int64 => (B,) float32.

    With the target epsilon min(SNR, gamma) / SNR, with v min(SNR, gamma) / (SNR + 1). A schedule that ends at pure
    noise has SNR = 0 there, so with v its very last timestep counts nothing.

    Args:
        noise_scheduler: DDPMScheduler.
        timesteps: of the samples.
        gamma: 5 in the paper.

    Source:
        Efficient Diffusion Training via Min-SNR Weighting Strategy, Section 3.4.
    """
    snr = signal_to_noise(noise_scheduler, timesteps)
    divisor = snr + 1.0 if noise_scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / divisor


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What changes in a scheduler's configuration when the schedule ends at pure noise: sampling has to start there."""


def end_at_pure_noise(noise_scheduler: Any) -> Any:
    """The same scheduler with betas rescaled so that SNR = 0 at the last timestep.

    Args:
        noise_scheduler: DDPMScheduler.

    Raises:
        ConfigError: the model predicts epsilon, which at pure noise is its input and teaches nothing.

    Source:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, Section 3.
    """
    if noise_scheduler.config.prediction_type == "epsilon":
        raise ConfigError(
            "train.rescale_betas_zero_snr=true cannot be used with a model that predicts epsilon",
            why="at pure noise epsilon is the input itself, and the image could not be computed from it",
            do="leave it out, or choose a base that predicts v",
        )
    return type(noise_scheduler).from_config(noise_scheduler.config, **ZERO_SNR)


def conditioning_dropout(uniform: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Which samples lose a condition, so that guidance has its unconditional passes (InstructPix2Pix, Section 3.2).

    Args:
        uniform: (B,) one draw r in [0, 1) a sample.
        probability: u, at most 1/3.

    Returns:
        (B,) bool, text replaced by the empty one: r < 2u; and (B,) bool, image replaced by zeros: u <= r < 3u.
        So text alone, both, and image alone are dropped with probability u each.
    """
    drop_text = uniform < 2 * probability
    drop_image = (uniform >= probability) & (uniform < 3 * probability)
    return drop_text, drop_image


def guidance_terms(
    guidance: Literal["paper", "dual"],
    guidance_scale: float | Sequence[float],
    image_guidance_scale: float | Sequence[float] = 1.0,
) -> list[GuidanceTerm]:
    """The passes of a guided prediction and their coefficients; passes that count 0 times for all images are left out.

    Args:
        guidance: `paper` is Eq. (6), w e(T, I) + (1 - w) e(0, 0); `dual` guides text and image apart,
            e(0, 0) + s_I [e(0, I) - e(0, 0)] + s_T [e(T, I) - e(0, I)].
        guidance_scale: w or s_T, at least 0; no value switches guidance off but 1. One number, or one for each image.
        image_guidance_scale: s_I, at least 0, likewise; used by `dual` alone.

    Raises:
        ValueError: there are more scales of one kind than of the other.
    """
    texts = _for_each_image(guidance_scale)
    images = _for_each_image(image_guidance_scale) if guidance == "dual" else texts
    count = max(len(texts), len(images))
    scales = list(zip(_repeated(texts, count), _repeated(images, count), strict=True))
    # Both at once, because Eq. (6) is the second form with s_T = s_I = w:
    # e = s_T e(T, I) + (s_I - s_T) e(0, I) + (1 - s_I) e(0, 0)
    return _terms(
        (True, True, [text for text, _ in scales]),
        (False, True, [image - text for text, image in scales]),
        (False, False, [1.0 - image for _, image in scales]),
    )


def text_guidance_terms(guidance_scale: float | Sequence[float]) -> list[GuidanceTerm]:
    """Guidance of a text-to-image UNet without image latents: w e(T) + (1 - w) e(0); w as in `guidance_terms`."""
    scales = _for_each_image(guidance_scale)
    return _terms((True, False, scales), (False, False, [1.0 - scale for scale in scales]))


def _for_each_image(scale: float | Sequence[float]) -> list[float]:
    return [float(scale)] if isinstance(scale, int | float) else [float(one) for one in scale]


def _repeated(scales: list[float], count: int) -> list[float]:
    return scales * count if len(scales) == 1 else scales


def _terms(*passes: tuple[bool, bool, list[float]]) -> list[GuidanceTerm]:
    """Terms of the passes that count; equal coefficients become one number, so that equal images are equal jobs."""
    terms = []
    for text, image, coefficients in passes:
        if any(coefficient != 0.0 for coefficient in coefficients):
            same = len(set(coefficients)) == 1
            terms.append(GuidanceTerm(text, image, coefficients[0] if same else tuple(coefficients)))
    return terms


def combine(terms: Sequence[GuidanceTerm], predictions: Sequence[Tensor]) -> Tensor:
    """Add up the passes of `guidance_terms`, each (B, C, h, w), in their order."""
    total = _factor(terms[0], predictions[0]) * predictions[0]
    for term, prediction in zip(terms[1:], predictions[1:], strict=True):
        total = total + _factor(term, prediction) * prediction  # Eq. (6)
    return total


def _factor(term: GuidanceTerm, prediction: Tensor) -> float | Tensor:
    if isinstance(term.coefficient, tuple):
        return prediction.new_tensor(term.coefficient).view(-1, *[1] * (prediction.dim() - 1))
    return term.coefficient
