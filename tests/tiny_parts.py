"""A real Stable Diffusion at toy size with random weights, for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from mvc.randomness import seeded_global
from tests.mvc.text_models import clip_tokenizer, text_encoder

WIDTH = 16
"""Columns of a text embedding."""
IMAGE_SIZE = 32
"""Side in pixels; latents have the side LATENT_SIZE."""
LATENT_SIZE = 8


def tiny_unet(seed: int = 0, in_channels: int = 4) -> UNet2DConditionModel:
    """A UNet of about 50,000 parameters, cross attention included."""
    with seeded_global(seed, "test unet"):
        return UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=in_channels,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        )


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    """A VAE that turns 4 x 4 pixels into one latent pixel."""
    with seeded_global(seed, "test vae"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=IMAGE_SIZE,
            scaling_factor=0.5,
        ).eval()


def sd_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """The scheduler of Stable Diffusion 1.5, as its folder has it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def write_pipeline(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a folder in the layout of StableDiffusionPipeline, without safety checker.

    Args:
        folder: where to write.
        seed: of the random weights.
        prediction_type: of the scheduler.
    """
    tiny_unet(seed).save_pretrained(folder / "unet")
    tiny_vae(seed).save_pretrained(folder / "vae")
    text_encoder(seed, WIDTH).save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    sd_scheduler(prediction_type).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder
