"""Writes a Stable Diffusion 1.5 of full size with random weights, to see that everything goes through at true shapes.

    python benchmarks/full_size.py FOLDER        (4 GB)

The UNet has 859.5 M parameters, as the real one; only the vocabulary is that of the embedded models.
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mvc.randomness import seeded_global
from mvc.tiny import WEIGHTS


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
    with seeded_global(0, "full size"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(text_config)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(Path(sys.argv[1]))
    print(f"{sum(weight.numel() for weight in unet.parameters()):,} parameters in the UNet; written to {sys.argv[1]}")


if __name__ == "__main__":
    main()
