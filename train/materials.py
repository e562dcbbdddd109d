"""What the training samples are made from: captions' embeddings and images' moments, both from their caches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mvc import models
from mvc.captions import read_captions
from mvc.config import Experiment
from mvc.dataset import Dataset
from mvc.devices import pick_device
from mvc.embedding_store import load_or_encode as load_or_encode_texts
from mvc.embeddings import time_ids
from mvc.errors import DataError
from mvc.latents import FOLDER as LATENTS
from mvc.latents import Latents, SourceImage, draw_transforms, load_or_encode
from mvc.mixing import content_rows
from mvc.pairs import require_partners

from .batches import ClassText, Materials

EMBEDDINGS, CAPTIONS = "cache/embeddings.safetensors", "captions.jsonl"


def training_captions(run: Path, dataset: Dataset) -> dict[str, str]:
    """The caption of each training image by its id.

    Raises:
        DataError: there are no training images, or a caption is missing.
    """
    records = dataset.split("train")
    if not records:
        raise DataError(f"{run} has no training images", do="run the data stage again with --redo")
    return read_captions(run / CAPTIONS, {record.id: record.class_name for record in records})


def gather_materials(
    run: Path, experiment: Experiment, dataset: Dataset, captions: Mapping[str, str], base: Path, size: int
) -> Materials:
    """The captions' embeddings and the images' moments; text encoder and VAE are gone when it returns.

    Raises:
        DataError: a class has too few images, or one cannot be decoded.
    """
    records = dataset.split("train")
    labels = tuple(record.label for record in records)
    if experiment.train.pairing == "same_class":
        require_partners(labels, dataset.classes)
    device = pick_device(experiment.run.device)
    stored = load_or_encode_texts(
        run / EMBEDDINGS,
        captions,
        models.text_identity(base),
        lambda: models.load_text(base, device),
    )
    texts = []
    for label, name in enumerate(dataset.classes):
        members = [record.id for record in records if record.label == label]
        own = stored.of(members)
        limited = experiment.mixing.rows == "content" and len(members) > 0
        rows = content_rows(own.ends) if limited else own.embeddings.shape[1]
        texts.append(ClassText(name, own.embeddings, rows, own.pooled))
    return Materials(
        labels=labels,
        images=_encoded_images(run, experiment, dataset, base, size, device),
        texts=texts,
        null=stored.null,
        scaling_factor=float(models.read_config(base, "vae").get("scaling_factor", 0.18215)),
        null_pooled=stored.null_pooled,
        time_ids=None if stored.null_pooled is None else time_ids(size),
    )


def _encoded_images(
    run: Path, experiment: Experiment, dataset: Dataset, base: Path, size: int, device: torch.device
) -> Latents:
    train = experiment.train
    images = [SourceImage(record.id, dataset.image_path(record), record.sha256) for record in dataset.split("train")]
    transforms = [
        draw_transforms(experiment.run.seed, number, train.transforms, train.random_flip, train.random_crop)
        for number in range(len(images))
    ]
    return load_or_encode(
        run / LATENTS,
        images,
        transforms,
        size,
        experiment.data.background,
        models.model_identity(base, ["vae"]),
        lambda: models.load_vae(base).to(device),
    )
