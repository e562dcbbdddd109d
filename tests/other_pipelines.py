"""Text-to-image pipelines of diffusers that are no Stable Diffusion 1, 2 or XL, at toy size with random weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from mvc.randomness import seeded_global
from tests.mvc.text_models import clip_tokenizer, second_text_encoder

SIDE = 16
"""Pixels of an image; latents have half of it."""


def write_sd3(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion 3: a transformer and flow matching, two text towers of CLIP, no T5."""
    with seeded_global(seed, "test sd3"):
        transformer = SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
            shift_factor=0.06,
            scaling_factor=1.5,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=second_text_encoder(seed, 16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=second_text_encoder(seed + 1, 16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
