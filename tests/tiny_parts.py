"""A real Stable Diffusion at toy size with random weights, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel

from mvc.randomness import seeded_global
from tests.mvc.text_models import clip_tokenizer, second_text_encoder, text_encoder

WIDTH = 16
"""Columns of a text embedding."""
WIDTH_2, TIME_WIDTH = 24, 8
"""Of an SDXL: columns of the second text encoder and of its pooled vector, and of an embedded size."""
IMAGE_SIZE = 32
"""Side in pixels; latents have the side LATENT_SIZE."""
LATENT_SIZE = 8


def tiny_unet(seed: int = 0, in_channels: int = 4, **changes: Any) -> UNet2DConditionModel:
    """A UNet of about 50,000 parameters, cross attention included."""
    settings: dict[str, Any] = {
        "sample_size": LATENT_SIZE,
        "in_channels": in_channels,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    with seeded_global(seed, "test unet"):
        return UNet2DConditionModel(**{**settings, **changes})


def tiny_xl_unet(seed: int = 0, in_channels: int = 4) -> UNet2DConditionModel:
    """The same with what SDXL's UNet has besides: linear projections, a pooled vector and sizes as conditions."""
    return tiny_unet(
        seed,
        in_channels,
        cross_attention_dim=WIDTH + WIDTH_2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + WIDTH_2,
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


def write_pipeline(
    folder: Path, seed: int = 0, prediction_type: str = "epsilon", in_channels: int = 4, **unet: Any
) -> Path:
    """Write a folder in the layout of StableDiffusionPipeline, without safety checker.

    Args:
        folder: where to write.
        seed: of the random weights.
        prediction_type: of the scheduler.
        in_channels: of the UNet; 8 makes an InstructPix2Pix.
        unet: further settings of the UNet.
    """
    tiny_unet(seed, in_channels, **unet).save_pretrained(folder / "unet")
    tiny_vae(seed).save_pretrained(folder / "vae")
    text_encoder(seed, unet.get("cross_attention_dim", WIDTH)).save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    sd_scheduler(prediction_type).save_pretrained(folder / "scheduler")
    name = "StableDiffusionPipeline" if in_channels == 4 else "StableDiffusionInstructPix2PixPipeline"
    _write_index(folder, name, "DDIMScheduler", {"safety_checker": [None, None], "feature_extractor": [None, None]})
    return folder


def write_sd2_pipeline(folder: Path) -> Path:
    """One in the shape of SD 2.1: wider text, linear projections, v-prediction."""
    return write_pipeline(folder, 0, "v_prediction", cross_attention_dim=32, use_linear_projection=True)


def write_xl_pipeline(folder: Path, seed: int = 0, force_zeros: bool = True) -> Path:
    """Write a folder in the layout of StableDiffusionXLPipeline.

    Args:
        folder: where to write.
        seed: of the random weights.
        force_zeros: the empty text is all zeros, as with SDXL's base.
    """
    tiny_xl_unet(seed).save_pretrained(folder / "unet")
    tiny_vae(seed).save_pretrained(folder / "vae")
    text_encoder(seed, WIDTH).save_pretrained(folder / "text_encoder")
    second_text_encoder(seed, WIDTH_2).save_pretrained(folder / "text_encoder_2")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    second = clip_tokenizer()
    second.pad_token = "!"  # as SDXL's second tokenizer pads
    second.save_pretrained(folder / "tokenizer_2")
    scheduler = EulerDiscreteScheduler.from_config({**sd_scheduler().config, "timestep_spacing": "leading"})
    scheduler.save_pretrained(folder / "scheduler")
    more = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": force_zeros,
    }
    _write_index(folder, "StableDiffusionXLPipeline", "EulerDiscreteScheduler", more)
    return folder


def _write_index(folder: Path, pipeline: str, scheduler: str, more: dict[str, Any]) -> None:
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler],
        **more,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
