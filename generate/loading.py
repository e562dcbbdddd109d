"""Load the models of one source, and what its jobs refer to: the latents of real images, the embeddings of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvc import embedding_store, embeddings, latents, models
from mvc.compiling import compiled
from mvc.denoise import make_scheduler
from mvc.families import read_index
from mvc.storage import read_json
from mvc.text_to_image import load_text_to_image

from .inputs import Inputs
from .pipeline_source import PipelineSource
from .recipes import GUIDANCE, back_captioning_folder, has_own_pipeline, instruction, model_folder
from .source import ClassText, Source

FROM_TEXT = ("pretrained", "back_captioning")
"""Sources that see no real image when they draw."""
OWN_PARTS = ("instruct_pix2pix", "back_captioning")
"""Sources that may have a model of their own, with a text encoder and a VAE of its own."""
PRECISION = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_source(inputs: Inputs, name: str) -> Source | PipelineSource:
    """Load the models of a source, and nothing else.

    Raises:
        EnvironmentFault: a model is missing or damaged, or there is no compiler.
        DataError: there is no fine-tuned model.
        ConfigError: instruct_pix2pix, and the model takes no image, or none of this size.
    """
    settings, device = inputs.experiment.generate, inputs.device
    if name == "back_captioning" and has_own_pipeline(inputs):
        return _pipeline_source(inputs)
    folder, parts = model_folder(inputs, name), _parts(inputs, name)
    vae: Any = models.load_vae(parts).to(device)
    side = models.working_size(parts, inputs.image_size) // models.vae_factor(parts)
    texts, null, null_pooled = _texts(inputs, name, parts)
    return Source(
        kind=name,
        seed=inputs.experiment.run.seed,
        unet=_unet(inputs, folder),
        vae=vae,
        device=device,
        # Fine-tuning may have changed the noise schedule, so each model has its own.
        new_scheduler=partial(make_scheduler, settings.scheduler, models.read_config(folder, "scheduler")),
        num_inference_steps=settings.num_inference_steps,
        guidance=GUIDANCE.get(name, settings.guidance),  # type: ignore[arg-type]
        guidance_interval=settings.guidance_interval,
        eta=settings.eta,
        strength=settings.sdedit_strength if name == "sdedit" else 1.0,
        autocast=PRECISION[settings.mixed_precision],
        texts=texts,
        null=null,
        image_latents=_image_latents(inputs, name, parts, vae),
        shape=(vae.config.latent_channels, side, side),
        null_pooled=null_pooled,
        time_ids=None if null_pooled is None else embeddings.time_ids(inputs.image_size),
        encode=_encoder(inputs, parts) if name == "back_captioning" else None,
    )


def _parts(inputs: Inputs, name: str) -> Path:
    """Where a source has its parts but the UNet from: a fine-tuned model has those of its base unchanged."""
    return model_folder(inputs, name) if name in OWN_PARTS else inputs.base


def _encoder(inputs: Inputs, parts: Path) -> Callable[[Sequence[str]], embeddings.EncodedTexts]:
    text = models.load_text(parts, inputs.device)
    return lambda texts: embeddings.encode_few(texts, text)


def _pipeline_source(inputs: Inputs) -> PipelineSource:
    """Back-captioning by a model of another kind than Stable Diffusion."""
    settings, folder = inputs.experiment.generate, back_captioning_folder(inputs)
    dtype = PRECISION[settings.mixed_precision] or torch.float32
    pipeline = load_text_to_image(folder, inputs.device, dtype, "back_captioning.model")
    seed, size = inputs.experiment.run.seed, inputs.image_size
    return PipelineSource("back_captioning", seed, pipeline, inputs.device, settings.num_inference_steps, size)


def fill_caches(inputs: Inputs, name: str) -> None:
    """Make what `load_source` reads from the run's caches, so that several processes don't make it side by side.

    Raises:
        EnvironmentFault, DataError, ConfigError: as `load_source`.
    """
    if name == "back_captioning" and has_own_pipeline(inputs):
        return
    parts = _parts(inputs, name)
    _texts(inputs, name, parts)
    if name not in FROM_TEXT:
        _cached_latents(inputs, name, parts, lambda: models.load_vae(parts).to(inputs.device))


def _unet(inputs: Inputs, folder: Path) -> Any:
    settings = inputs.experiment.generate
    unet = models.load_unet(folder).to(inputs.device)
    if settings.channels_last:
        unet.to(memory_format=torch.channels_last)
    return compiled(unet, "generate.compile", dynamic=False) if settings.compile else unet


def _texts(inputs: Inputs, name: str, parts: Path) -> tuple[dict[str, ClassText], Tensor, Tensor | None]:
    """Texts by class, and the empty one: the captions' embeddings, or those of the instructions."""
    if name not in OWN_PARTS:
        return inputs.texts, inputs.null, inputs.null_pooled
    if name == "back_captioning":
        # Its texts are embedded while they are drawn: there may be many times as many as captions.
        null = embedding_store.load_or_encode(
            inputs.run / "cache" / "back_captioning.safetensors",
            {},
            models.text_identity(parts),
            lambda: models.load_text(parts, inputs.device),
        )
        return {}, null.null, null.null_pooled
    said = {class_name: instruction(inputs, class_name) for class_name in inputs.texts}
    stored = embedding_store.load_or_encode(
        inputs.run / "cache" / "instructions.safetensors",
        said,
        models.text_identity(parts),
        lambda: models.load_text(parts, inputs.device),
    )
    texts = {}
    for class_name, text in inputs.texts.items():
        own = stored.of([class_name])
        texts[class_name] = ClassText(text.ids, own.embeddings, text.tokens, own.pooled)
    return texts, stored.null, stored.null_pooled


def _image_latents(inputs: Inputs, name: str, parts: Path, vae: Any) -> dict[str, Tensor] | None:
    """Latents of the training images by class, from training's cache if it is the same VAE, scaled as they are used."""
    if name in FROM_TEXT:
        return None
    records = inputs.dataset.split("train")
    cached, scale = _cached_latents(inputs, name, parts, lambda: vae), _latents_scale(inputs, name, vae)
    numbers = {
        own: [number for number, record in enumerate(records) if record.class_name == own] for own in inputs.texts
    }
    return {own: latents.mode(cached.moments(chosen)) * scale for own, chosen in numbers.items()}


def _cached_latents(inputs: Inputs, name: str, parts: Path, load_vae: Callable[[], Any]) -> latents.Latents:
    """Moments of the training images, in their order."""
    dataset, records = inputs.dataset, inputs.dataset.split("train")
    return latents.load_or_encode(
        inputs.run / (latents.FOLDER if name != "instruct_pix2pix" else f"{latents.FOLDER}-edit"),
        [latents.SourceImage(record.id, dataset.image_path(record), record.sha256) for record in records],
        [[latents.Transform()]] * len(records),
        inputs.image_size,
        inputs.experiment.data.background,
        models.model_identity(parts, ("vae",)),
        load_vae,
    )


def _latents_scale(inputs: Inputs, name: str, vae: Any) -> float:
    """What the mode of an image's posterior is multiplied with before the UNet sees it."""
    factor = float(vae.config.scaling_factor)
    if name == "sdedit":
        return factor  # it is denoised like any other latents
    # What training did counts, not what the experiment says by now.
    return factor if _was_scaled(model_folder(inputs, name)) else 1.0


def _was_scaled(folder: Path) -> bool:
    """Whether a model that takes an image was trained with scaled latents of it; InstructPix2Pix itself was not."""
    if (folder / models.FACTS).exists():
        return bool(read_json(folder / models.FACTS)["image_latents_scaled"])
    return bool(read_index(folder).get("is_cosxl_edit", False))
