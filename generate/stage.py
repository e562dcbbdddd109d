"""The generate stage: the job table, one source after the other, and the synthetic set that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvc import embedding_store, embeddings, latents, models
from mvc.captions import read_captions
from mvc.config import SOURCES, Experiment
from mvc.dataset import Dataset, load_index
from mvc.denoise import make_scheduler
from mvc.diffusion import guidance_terms, text_guidance_terms
from mvc.errors import ConfigError, DataError
from mvc.images import to_pixels
from mvc.mixing import content_rows
from mvc.progress import meter, say
from mvc.stopping import flag
from mvc.storage import read_json, remove_leftovers
from mvc.synthetic import (
    Recipe,
    SyntheticRow,
    add_rows,
    begin_set,
    finished_rows,
    is_finished,
    publish_set,
    synthetic_folder,
    write_image,
)

from .jobs import Job, finetuned_jobs, images_per_source, in_batches, pretrained_jobs
from .source import ClassText, Source, draw_usable

WRITERS = 2
"""Threads that encode and write PNG files while the next batch is drawn."""


@dataclass(frozen=True)
class Inputs:
    """What the stage read from the run; no model but the text store is loaded yet."""

    run: Path
    experiment: Experiment
    dataset: Dataset
    texts: dict[str, ClassText]
    null: Tensor
    null_pooled: Tensor | None
    base: Path
    device: torch.device
    image_size: int


def run_generate(run: Path, experiment: Experiment) -> None:
    """Make the synthetic set, run/synthetic, and previews of the sources that are not in it, run/preview.

    Images that earlier work left and that still belong are kept. Each image depends on
    (run.seed, class, source, index) alone.

    Args:
        run: the run folder, with index, captions and, for the fine-tuned source, the model.
        experiment: sections run, data, mixing, model and generate are used.

    Raises:
        DataError: something that an earlier stage writes is missing or damaged.
        ConfigError: data.image_size does not fit the model, or per_real asks for no image at all.
        EnvironmentFault: a model cannot be loaded, memory or disk is too small.
        NumericError: an image stayed not finite or flat.
        Stopped: a signal asked for a stop.
    """
    inputs = _read_inputs(run, experiment)
    asked = dict[str, float](experiment.generate.sources.items())
    shares = {source: asked[source] for source in SOURCES if asked.get(source, 0.0) > 0}
    jobs = _jobs_of_set(inputs, shares)
    make_set(inputs, synthetic_folder(run), jobs, lambda job: f"{job.class_name}/{job.id}.png")
    for source in SOURCES:
        if source not in shares and experiment.generate.preview:
            jobs = _jobs(inputs, source, dict.fromkeys(inputs.texts, experiment.generate.preview))
            make_set(inputs, run / "preview" / source, jobs, lambda job: f"{job.class_name}/{job.index}.png")


def _read_inputs(run: Path, experiment: Experiment) -> Inputs:
    dataset = load_index(run)
    records = dataset.split("train")
    captions = read_captions(run / "captions.jsonl", {record.id: record.class_name for record in records})
    model = experiment.model
    base = models.resolve_base(model.base, model.revision, model.config)
    device = models.pick_device(experiment.run.device)
    stored = embedding_store.load_or_encode(
        run / "cache" / "embeddings.safetensors",
        captions,
        models.text_identity(base),
        lambda: models.load_text(base, device),
    )
    texts = {}
    for name in sorted({record.class_name for record in records}):
        ids = [record.id for record in records if record.class_name == name]
        own = stored.of(ids)
        tokens = content_rows(own.ends) if experiment.mixing.rows == "content" else own.embeddings.shape[1]
        texts[name] = ClassText(ids, own.embeddings, tokens, own.pooled)
    size = models.working_size(base, experiment.data.image_size)
    return Inputs(run, experiment, dataset, texts, stored.null, stored.null_pooled, base, device, size)


def _jobs_of_set(inputs: Inputs, shares: Mapping[str, float]) -> list[Job]:
    per_real = inputs.experiment.generate.per_real
    split = {name: images_per_source(len(text.ids), per_real, shares) for name, text in inputs.texts.items()}
    jobs: list[Job] = []
    for source in shares:
        jobs += _jobs(inputs, source, {name: counts[source] for name, counts in split.items()})
    if not jobs:
        raise ConfigError(f"generate.per_real={per_real:g} rounds to no image in every class", do="set a larger one")
    empty = [name for name, counts in split.items() if not sum(counts.values())]
    if empty:
        say(f"generate: per_real={per_real:g} rounds to no image for {', '.join(empty)}")
    return jobs


def _jobs(inputs: Inputs, source: str, counts: Mapping[str, int]) -> list[Job]:
    seed, mixing = inputs.experiment.run.seed, inputs.experiment.mixing
    jobs: list[Job] = []
    for name, count in counts.items():
        text = inputs.texts[name]
        if source == "pretrained":
            jobs += pretrained_jobs(seed, name, count, len(text.ids))
        else:
            width = inputs.null.shape[1]
            jobs += finetuned_jobs(seed, name, count, len(text.ids), text.tokens, width, mixing.coarse, mixing.fine)
    return jobs


def make_set(inputs: Inputs, folder: Path, jobs: Sequence[Job], name_of: Callable[[Job], str]) -> None:
    """Make what is missing of a set of images and publish it.

    Args:
        inputs: what the jobs refer to.
        folder: of the set.
        jobs: the whole set.
        name_of: file name of a job's image, relative to `folder`.
    """
    recipes = {name_of(job): recipe for job, recipe in zip(jobs, _recipes(inputs, jobs, name_of), strict=True)}
    wanted = list(recipes.values())
    rows = finished_rows(folder, wanted)
    if is_finished(folder, rows, wanted):
        say(f"generate: all {len(rows)} images of {folder.relative_to(inputs.run)} are there")
        return
    begin_set(folder, rows)
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        remove_leftovers(place)
    for source in SOURCES:
        own = [job for job in jobs if job.source == source]
        batches = [
            {name_of(job): job for job in batch} for batch in in_batches(own, inputs.experiment.generate.batch_size)
        ]
        _make_source(inputs, folder, source, batches, recipes, rows)
    publish_set(folder, wanted, rows)
    redrawn = sum(row["attempt"] > 1 for row in rows.values())
    note = f", {redrawn} of them drawn more than once" if redrawn else ""
    say(f"generate: {len(rows)} images in {folder.relative_to(inputs.run)}{note}")


def _recipes(inputs: Inputs, jobs: Sequence[Job], name_of: Callable[[Job], str]) -> list[Recipe]:
    sources = {job.source for job in jobs}
    identities = {}
    if "finetuned" in sources:
        _require_model(inputs.run)
        identities["finetuned"] = models.model_identity(inputs.run / "model")
    if "pretrained" in sources:
        identities["pretrained"] = models.model_identity(inputs.base)
    return [_recipe(inputs, job, name_of(job), identities[job.source]) for job in jobs]


def _recipe(inputs: Inputs, job: Job, file_name: str, model: str) -> Recipe:
    settings = inputs.experiment.generate
    ids, tuned = inputs.texts[job.class_name].ids, job.source == "finetuned"
    return Recipe(
        file_name=file_name,
        label=job.class_name,
        id=job.id,
        source=job.source,
        class_name=job.class_name,
        source_image=None if job.condition is None else ids[job.condition],
        caption_base=ids[job.caption],
        plan=job.plan,
        seed=inputs.experiment.run.seed,
        index=job.index,
        guidance=settings.guidance if tuned else "text",
        guidance_scale=settings.guidance_scale if tuned else settings.pretrained_guidance_scale,
        image_guidance_scale=settings.image_guidance_scale if tuned and settings.guidance == "dual" else None,
        num_inference_steps=settings.num_inference_steps,
        scheduler=settings.scheduler,
        image_size=inputs.image_size,
        model=model,
    )


def _require_model(run: Path) -> None:
    if not (run / "model" / models.FACTS).exists():
        raise DataError(f"{run / 'model'} holds no fine-tuned model", do="run `mvc train`, or use pretrained alone")


def _make_source(
    inputs: Inputs,
    folder: Path,
    name: str,
    batches: Sequence[Mapping[str, Job]],
    recipes: Mapping[str, Recipe],
    rows: dict[str, SyntheticRow],
) -> None:
    """Draw the batches that lack an image, and write what is missing; extends `rows`."""
    todo = [batch for batch in batches if any(file_name not in rows for file_name in batch)]
    if not todo:
        return
    source = load_source(inputs, name)
    images = sum(len(batch) for batch in batches)
    missing = sum(file_name not in rows for batch in todo for file_name in batch)
    pending: dict[str, tuple[Future[str], int]] = {}

    def collect() -> None:
        made = []
        for file_name, (written, attempt) in pending.items():
            made.append(SyntheticRow(**recipes[file_name], attempt=attempt, sha256=written.result()))
        add_rows(folder, made)
        rows.update({row["file_name"]: row for row in made})
        shown.advance(len(made))
        pending.clear()

    with (
        meter(f"generating ({name})", images, "images", done=images - missing) as shown,
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        for batch in todo:
            pixels, attempts = draw_usable(source, list(batch.values()))
            # The files of the batch before were written meanwhile.
            collect()
            for file_name, image, attempt in zip(batch, pixels, attempts, strict=True):
                if file_name not in rows:
                    future = pool.submit(write_image, folder, file_name, to_pixels(image))
                    pending[file_name] = (future, attempt)
            if flag:
                collect()
            flag.check(f"{shown.done} of {images} images are kept")
        collect()
        rate = shown.rate
    say(f"generate: {missing} {name} images at {rate:.2f} images/s")


def load_source(inputs: Inputs, name: str) -> Source:
    """Load the models of a source, and nothing else.

    Raises:
        EnvironmentFault: a model is missing or damaged.
    """
    settings, base, device, tuned = inputs.experiment.generate, inputs.base, inputs.device, name == "finetuned"
    vae: Any = models.load_vae(base).to(device)
    unet: Any = models.load_unet(inputs.run / "model" if tuned else base).to(device)
    # Fine-tuning may have changed the noise schedule, so each model has its own.
    config = models.read_config(inputs.run / "model" if tuned else base, "scheduler")
    if tuned:
        terms = guidance_terms(settings.guidance, settings.guidance_scale, settings.image_guidance_scale)
    else:
        terms = text_guidance_terms(settings.pretrained_guidance_scale)
    side = inputs.image_size // models.vae_factor(base)
    return Source(
        seed=inputs.experiment.run.seed,
        unet=unet,
        vae=vae,
        device=device,
        new_scheduler=partial(make_scheduler, settings.scheduler, config),
        num_inference_steps=settings.num_inference_steps,
        terms=terms,
        texts=inputs.texts,
        null=inputs.null,
        image_latents=_condition_latents(inputs, vae) if tuned else None,
        shape=(vae.config.latent_channels, side, side),
        null_pooled=inputs.null_pooled,
        time_ids=None if inputs.null_pooled is None else embeddings.time_ids(inputs.image_size),
    )


def _condition_latents(inputs: Inputs, vae: Any) -> dict[str, Tensor]:
    """Latents of every possible x' by class, from training's cache and scaled as training scaled them."""
    dataset = inputs.dataset
    records = dataset.split("train")
    cached = latents.load_or_encode(
        inputs.run / latents.FOLDER,
        [latents.SourceImage(record.id, dataset.image_path(record), record.sha256) for record in records],
        [[latents.Transform()]] * len(records),
        inputs.image_size,
        inputs.experiment.data.background,
        models.model_identity(inputs.base, ("vae",)),
        lambda: vae,
    )
    # What training did counts, not what the experiment says by now.
    facts = read_json(inputs.run / "model" / models.FACTS)
    scale = vae.config.scaling_factor if facts["image_latents_scaled"] else 1.0
    numbers = {
        name: [number for number, record in enumerate(records) if record.class_name == name] for name in inputs.texts
    }
    return {name: latents.mode(cached.moments(chosen)) * scale for name, chosen in numbers.items()}
