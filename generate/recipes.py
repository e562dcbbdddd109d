"""Between jobs and rows: a row says in the words of the run what a job says in numbers, and leads back to the job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvc import models
from mvc.errors import ConfigError, DataError
from mvc.families import is_stable_diffusion
from mvc.storage import sha256_file
from mvc.synthetic import Recipe
from mvc.text_to_image import find_text_to_image, text_to_image_identity

from .inputs import Inputs
from .jobs import Job

GUIDANCE = {"pretrained": "text", "sdedit": "text", "instruct_pix2pix": "dual", "back_captioning": "text"}
"""Kind of guidance by source; that of finetuned is a setting."""


def model_folder(inputs: Inputs, source: str) -> Path:
    """Folder of the model that a source draws with.

    Raises:
        DataError: finetuned, and there is no fine-tuned model, or one of another base.
        ConfigError: instruct_pix2pix, and no model is known that takes an image.
    """
    generate = inputs.experiment.generate
    if source == "finetuned":
        if not (inputs.run / "model" / models.FACTS).exists():
            raise DataError(f"{inputs.run / 'model'} holds no fine-tuned model", do="run `mvc train`")
        _require_same_kind(inputs.run / "model", inputs.base)
        return inputs.run / "model"
    if source == "back_captioning":
        return back_captioning_folder(inputs)
    if source != "instruct_pix2pix":
        return inputs.base
    folder = inputs.base
    if generate.edit_model is not None:
        folder = models.resolve_base(generate.edit_model, key="generate.edit_model")
    config = models.read_config(folder, "unet")
    if config["in_channels"] != 2 * config["out_channels"]:
        raise ConfigError(
            f"the source instruct_pix2pix cannot use {folder.name}: its UNet takes {config['in_channels']} channels",
            why="an image to edit needs 8, as InstructPix2Pix models have",
            do="set generate.edit_model to such a model's folder or hub id",
        )
    return folder


def back_captioning_folder(inputs: Inputs) -> Path:
    """Folder of the text-to-image model of back-captioning: any of diffusers, or the base model."""
    model = inputs.experiment.back_captioning.model
    return inputs.base if model is None else find_text_to_image(model, None, "back_captioning.model")


def has_own_pipeline(inputs: Inputs) -> bool:
    """Whether back-captioning draws by a pipeline of diffusers, its model being of no family that we know."""
    return not is_stable_diffusion(back_captioning_folder(inputs))


def identity_of(inputs: Inputs, source: str) -> str:
    """Identity of the model that a source draws with."""
    folder = model_folder(inputs, source)
    if source == "back_captioning" and not is_stable_diffusion(folder):
        return text_to_image_identity(folder)
    return models.model_identity(folder)


def _require_same_kind(folder: Path, base: Path) -> None:
    """Compare what a fine-tuned UNet takes with what its base gives it."""
    own, theirs = (models.read_config(place, "unet") for place in (folder, base))
    for key in ("out_channels", "cross_attention_dim", "addition_embed_type", "projection_class_embeddings_input_dim"):
        if own.get(key) != theirs.get(key):
            raise DataError(
                f"{folder} was fine-tuned from another kind of model than model.base",
                why=f"{key} of its UNet is {own.get(key)}, and {theirs.get(key)} in {base.name}",
                do="set model.base to the model that it was made from, or run `mvc train` with --redo",
            )
    if own["in_channels"] != 2 * own["out_channels"]:
        raise DataError(
            f"{folder} is not a model that takes an image: its UNet has {own['in_channels']} channels",
            why=f"fine-tuned ones have {2 * own['out_channels']}",
            do="run `mvc train` with --redo",
        )


def recipes_of(inputs: Inputs, jobs: Sequence[Job]) -> dict[str, Recipe]:
    """The recipe of each job, by file name."""
    identities = {
        source: identity_of(inputs, source)
        for source in dict.fromkeys(job.source for job in jobs)
        if source != "import"
    }
    recipes = [_recipe(inputs, job, identities.get(job.source)) for job in jobs]
    return {recipe["file_name"]: recipe for recipe in recipes}


def _recipe(inputs: Inputs, job: Job, identity: str | None) -> Recipe:
    settings, drawn = inputs.experiment.generate, job.source != "import"
    guidance = GUIDANCE.get(job.source, settings.guidance) if drawn else None
    # A model that is no Stable Diffusion draws by its own pipeline, which has a sampler of its own.
    sampled = drawn and not (job.source == "back_captioning" and has_own_pipeline(inputs))
    ids = inputs.texts[job.class_name].ids
    return Recipe(
        file_name=f"{job.class_name}/{job.id}.png",
        label=job.class_name,
        id=job.id,
        source=job.source,
        class_name=job.class_name,
        source_image=None if job.condition is None else ids[job.condition],
        caption_base=None if job.caption is None else ids[job.caption],
        caption_partners=[] if job.plan is None else [ids[number] for number in _partners(job)],
        plan=job.plan,
        instruction=instruction(inputs, job.class_name) if job.source == "instruct_pix2pix" else None,
        text=job.text,
        branch=None if job.branch is None else list(job.branch),
        imported_file=job.file,
        seed=inputs.experiment.run.seed,
        index=job.index,
        attempt=job.attempt,
        guidance=guidance,
        guidance_scale=job.guidance_scale,
        image_guidance_scale=job.image_guidance_scale,
        guidance_interval=list(settings.guidance_interval) if sampled else None,
        num_inference_steps=settings.num_inference_steps if drawn else None,
        scheduler=settings.scheduler if sampled else None,
        eta=settings.eta if sampled else None,
        strength=settings.sdedit_strength if job.source == "sdedit" else None,
        mixed_precision=settings.mixed_precision if drawn else None,
        image_size=inputs.image_size,
        model=identity if identity is not None else _imported_identity(inputs, job),
    )


def _partners(job: Job) -> list[int]:
    """Numbers of the captions that the plan takes something from, in its order, each once."""
    plan = job.plan or {"coarse": [], "fine": [], "base": 0}
    rows = [*plan["coarse"], *plan["fine"]]
    return [number for number in dict.fromkeys(int(row[0]) for row in rows) if number != plan["base"]]


def instruction(inputs: Inputs, class_name: str) -> str:
    """What instruct_pix2pix is told for a class."""
    words = dict(zip(inputs.dataset.classes, inputs.dataset.words, strict=True))
    return inputs.experiment.generate.edit_instruction.replace("{class_name}", words[class_name])


def _imported_identity(inputs: Inputs, job: Job) -> str:
    if inputs.imported is None or job.file is None:
        raise DataError("an imported image without its folder", do="set generate.import_path")
    return sha256_file(inputs.imported.folder / job.file)


def job_of(inputs: Inputs, row: Recipe) -> Job:
    """The job that a row describes, from the row alone; the inverse of `recipes_of`.

    Raises:
        DataError: the row names a class or image that the run no longer has.
    """
    name = row["class_name"]
    ids = inputs.texts[name].ids if name in inputs.texts else []
    for wanted in (row["source_image"], row["caption_base"]):
        if wanted is not None and wanted not in ids:
            raise DataError(f"image {row['id']} of class {name} was made from {wanted}, which the run no longer has")
    return Job(
        source=row["source"],
        class_name=name,
        index=row["index"],
        attempt=row["attempt"],
        caption=None if row["caption_base"] is None else ids.index(row["caption_base"]),
        condition=None if row["source_image"] is None else ids.index(row["source_image"]),
        plan=row["plan"],
        guidance_scale=row["guidance_scale"],
        image_guidance_scale=row["image_guidance_scale"],
        file=row["imported_file"],
        text=row["text"],
        branch=None if row["branch"] is None else tuple(row["branch"]),
    )
