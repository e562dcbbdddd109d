"""Train the tiny models and publish them: `python -m mvc.tiny.build --out DIR`.

The package is a StableDiffusionPipeline in diffusers' layout, with clip/ and captioner/ beside its parts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import BlipForConditionalGeneration, CLIPModel

from mvc.storage import publish_folder, read_json, write_json
from mvc.tiny import autoencoder, captioner, clip, denoiser
from mvc.tiny.tokens import captioner_tokenizer, clip_tokenizer

PARTS = ("vae", "clip", "captioner", "denoiser")
_CLASSES: dict[str, Any] = {
    "vae": AutoencoderKL,
    "clip": CLIPModel,
    "captioner": BlipForConditionalGeneration,
    "denoiser": UNet2DConditionModel,
}
_SETTINGS: dict[str, Any] = {"vae": autoencoder, "clip": clip, "captioner": captioner, "denoiser": denoiser}


def load_part(cache: Path, part: str) -> Any:
    """Load a trained part, in float32, from the cache folder."""
    return _CLASSES[part].from_pretrained(cache / part, use_safetensors=True, torch_dtype=torch.float32).eval()


def train_part(part: str, seed: int, cache: Path, steps_scale: float) -> None:
    """Train one part and keep it in the cache folder; the denoiser needs the vae and the clip there."""
    if part == "vae":
        model, seconds = autoencoder.train_autoencoder(seed, cache, steps_scale)
    elif part == "clip":
        model, seconds = clip.train_clip(seed, cache, steps_scale)
    elif part == "captioner":
        model, seconds = captioner.train_captioner(seed, cache, steps_scale)
    else:
        encoder = clip.text_encoder_of(load_part(cache, "clip"))
        vae = load_part(cache, "vae")
        model, seconds = denoiser.train_denoiser(seed, vae, encoder, clip_tokenizer(), cache, steps_scale)
    model.save_pretrained(cache / part, safe_serialization=True)
    settings = _SETTINGS[part]
    facts: dict[str, Any] = {
        "batch": settings.BATCH,
        "learning_rate": settings.LEARNING_RATE,
        "minutes": round(seconds / 60, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seed": seed,
        "steps": round(settings.STEPS * steps_scale),
        "threads": torch.get_num_threads(),
    }
    if part == "clip":
        facts["steps_with_class_names"] = round(clip.NAMES_STEPS * steps_scale)
    write_json(cache / part / "trained.json", facts)


def publish(cache: Path, out: Path) -> None:
    """Write the package from the trained parts, weights in float16, whole or not at all.

    The manifest holds how each part was trained, and every file's size and sha256.
    """
    facts: dict[str, Any] = {part: read_json(cache / part / "trained.json") for part in PARTS}
    facts["versions"] = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    models = {part: load_part(cache, part) for part in PARTS}
    encoder: Any = clip.text_encoder_of(models["clip"])
    half = torch.float16
    pipeline = StableDiffusionPipeline(
        vae=models["vae"].to(dtype=half),
        text_encoder=encoder.to(dtype=half),
        tokenizer=clip_tokenizer(),
        unet=models["denoiser"].to(dtype=half),
        scheduler=denoiser.stable_diffusion_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with publish_folder(out, {"trained": facts}) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        for part in ("vae", "unet"):  # diffusers notes where a model was read from; nobody else has that folder.
            file = folder / part / "config.json"
            write_json(file, {key: value for key, value in read_json(file).items() if key != "_name_or_path"})
        models["clip"].to(dtype=half).save_pretrained(folder / "clip")
        clip_tokenizer().save_pretrained(folder / "clip")
        clip.image_processor().save_pretrained(folder / "clip")
        models["captioner"].to(dtype=half).save_pretrained(folder / "captioner")
        captioner.processor(captioner_tokenizer()).save_pretrained(folder / "captioner")


def main(arguments: list[str] | None = None) -> None:
    """Train all parts, or one, and publish the package if every part has been trained."""
    parser = argparse.ArgumentParser(prog="python -m mvc.tiny.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the package")
    parser.add_argument("--cache", type=Path, help="folder for pictures and trained parts (default: OUT.cache)")
    parser.add_argument("--only", choices=PARTS, help="train this part alone; the others come from the cache")
    parser.add_argument("--publish-only", action="store_true", help="train nothing, publish what the cache holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="train for this share of the steps")
    given = parser.parse_args(arguments)
    cache = given.cache or given.out.with_name(f"{given.out.name}.cache")
    cache.mkdir(parents=True, exist_ok=True)
    for part in () if given.publish_only else (given.only,) if given.only else PARTS:
        train_part(part, given.seed, cache, given.steps_scale)
    if all((cache / part / "trained.json").exists() for part in PARTS):
        publish(cache, given.out)
        print(f"published {given.out}")


if __name__ == "__main__":
    main()
