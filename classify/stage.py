"""The classify stage: every arm with every seed, then the table and the verdict."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mvc.config import ClassifySection, Experiment
from mvc.dataset import Dataset, ImageRecord, load_index
from mvc.errors import ConfigError, DataError, MvcError
from mvc.models import pick_device
from mvc.progress import Meter, meter, say
from mvc.stopping import flag
from mvc.storage import read_json, sha256_file, sha256_json, write_json
from mvc.synthetic import METADATA, SyntheticImage, read_synthetic, synthetic_folder

from .augment import augmentation
from .images import Images, cached_images, channel_statistics, take
from .loop import final_evaluation, fit, learning_rates
from .networks import SMALL_SIDE, build_network
from .statistics import summarise
from .strategies import NEEDS_SYNTHETIC, batch, phase_steps
from .table import write_table
from .verdict import judge

_WARMUP = 20
"""One step in so many is warm-up."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the arms of one comparison share."""

    settings: ClassifySection
    backbone: str
    classes: list[str]
    splits: dict[str, Images]
    synthetic: Images | None
    sources: list[str]
    """Source of each synthetic image."""
    synthetic_digests: list[str]
    data_digest: str
    channels: tuple[Tensor, Tensor]
    """Mean and standard deviation of the real training images."""
    device: torch.device


def classifier_size(
    settings: ClassifySection, image_size: int | None, made: list[SyntheticImage], train: list[ImageRecord]
) -> int:
    """Side in pixels that the classifiers work at.

    classify.image_size, else data.image_size, else the side of the synthetic images, else the median short side
    of the real training images, at least 32 and at most 224.
    """
    if settings.image_size or image_size:
        return settings.image_size or image_size or 0
    if made:
        with Image.open(made[0].path) as first:
            return min(first.size)
    return int(min(max(median(min(record.width, record.height) for record in train), 32), 224))


def _real_splits(run: Path, dataset: Dataset, size: int, background: str) -> dict[str, Images]:
    """The three splits at the classifier's size; test is decoded here, and read by `final_evaluation` alone."""
    records = [record for name in ("train", "validation", "test") for record in dataset.split(name)]
    pixels = cached_images(
        run / "cache" / "classify-real",
        [dataset.image_path(record) for record in records],
        [record.sha256 for record in records],
        size,
        background,
        "real images",
    )
    every = Images(pixels, torch.tensor([record.label for record in records], dtype=torch.int64))
    return {
        name: every.rows([row for row, record in enumerate(records) if record.split == name])
        for name in ("train", "validation", "test")
    }


def _prepare(run: Path, experiment: Experiment) -> Comparison:
    settings, dataset = experiment.classify, load_index(run)
    made = read_synthetic(run) if (synthetic_folder(run) / METADATA).exists() else []
    _check_arms(settings.arms, [image.source for image in made])
    for name in ("train", "test"):
        if not dataset.split(name):
            raise DataError(f"the {name} split of {dataset.root} is empty", do="give it images, or change the shares")
    size = classifier_size(settings, experiment.data.image_size, made, dataset.split("train"))
    background = experiment.data.background
    labels = {name: label for label, name in enumerate(dataset.classes)}
    synthetic = None
    if made:
        pixels = cached_images(
            run / "cache" / "classify-synthetic",
            [image.path for image in made],
            [image.sha256 for image in made],
            size,
            background,
            "synthetic images",
        )
        synthetic = Images(pixels, torch.tensor([labels[image.class_name] for image in made]))
    backbone = settings.backbone
    if backbone == "auto":
        backbone = "small" if size <= SMALL_SIDE else "resnet18"
    splits = _real_splits(run, dataset, size, background)
    rows = [[record.id, record.label, record.split, record.sha256] for record in dataset.records]
    return Comparison(
        settings=settings,
        backbone=backbone,
        classes=dataset.classes,
        splits=splits,
        synthetic=synthetic,
        sources=[image.source for image in made],
        synthetic_digests=[image.sha256 for image in made],
        data_digest=sha256_json([size, background, dataset.classes, rows]),
        channels=channel_statistics(splits["train"].pixels),
        device=pick_device(experiment.run.device),
    )


def _split_arm(arm: str) -> tuple[str, str | None]:
    strategy, _, source = arm.partition("@")
    return strategy, source or None


def _check_arms(arms: list[str], sources: list[str]) -> None:
    for arm in arms:
        strategy, source = _split_arm(arm)
        if strategy in NEEDS_SYNTHETIC and not (sources if source is None else source in sources):
            there = ", ".join(sorted(set(sources))) or "no image at all"
            raise ConfigError(
                f"arm '{arm}' needs synthetic images{f' of the source {source}' if source else ''}",
                why=f"the synthetic set holds {there}",
                do="leave the arm out of classify.arms, or add the source to generate.sources",
            )


def _members(comparison: Comparison, source: str | None) -> list[int]:
    return [row for row, name in enumerate(comparison.sources) if source in (None, name)]


def run_key(comparison: Comparison, arm: str) -> str:
    """Digest of all that the result of an arm depends on, its seed apart.

    Settings that play no part in the arm are left out, so that changing one repeats no more than it must.
    """
    settings, (strategy, source) = comparison.settings, _split_arm(arm)
    dropped = {"arms", "seeds", "image_size", "backbone", "weights"}
    if strategy != "rsp":
        dropped.add("rsp_probability")
    if strategy != "two_phase":
        dropped |= {"phase_two_share", "phase_two_learning_rate"}
    members = _members(comparison, source)
    seen: object = [comparison.synthetic_digests[row] for row in members]
    if strategy == "real":
        seen = None
    elif strategy == "duplicate":
        seen = len(members)
    weights = None if settings.weights is None else _digest_of_weights(Path(settings.weights))
    kept = {name: value for name, value in settings.model_dump(mode="json").items() if name not in dropped}
    return sha256_json([arm, kept, comparison.backbone, comparison.data_digest, seen, weights])


def _digest_of_weights(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"classify.weights: {path} is missing", do="give a safetensors file, or leave it out")
    return sha256_file(path)


def result_path(run: Path, arm: str, seed: int) -> Path:
    """results/<arm>-seed<k>.json, with "-at-" for "@"."""
    return run / "results" / f"{arm.replace('@', '-at-')}-seed{seed}.json"


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier run if it is whole and was made from the same things."""
    try:
        row = read_json(path)
    except MvcError:
        return None
    return row if isinstance(row, dict) and row.get("key") == key else None


def _train_one(comparison: Comparison, arm: str, seed: int, shown: Meter) -> dict[str, Any]:
    settings, (strategy, source) = comparison.settings, _split_arm(arm)
    real = comparison.splits["train"]
    members = [] if strategy == "real" else _members(comparison, source)
    synthetic = comparison.synthetic
    if synthetic is not None and len(members) < len(synthetic):
        synthetic = synthetic.rows(members)
    augment = augmentation(settings.augmentation, seed, settings.random_flip)
    network = _network(comparison, seed)
    steps = settings.max_train_steps
    phases = phase_steps(strategy, steps, settings.phase_two_share)
    factors = (1.0, settings.phase_two_learning_rate)
    peaks = [(count, settings.learning_rate * factor) for count, factor in zip(phases, factors, strict=False)]

    def batch_of(step: int) -> tuple[Tensor, Tensor]:
        drawn = batch(
            strategy,
            seed,
            step,
            steps,
            settings.train_batch_size,
            len(real),
            len(members),
            settings.rsp_probability,
            settings.phase_two_share,
        )
        pixels, labels = take(real, synthetic, drawn.indices)
        return augment(pixels.to(comparison.device), step), labels

    def on_step(done: int) -> None:
        shown.advance(1, note=f"{arm}, seed {seed}")
        flag.check("classifiers that were finished are kept")

    start = time.monotonic()
    validation = comparison.splits["validation"]
    fitted = fit(
        network,
        batch_of,
        learning_rates(peaks, warmup=max(1, steps // _WARMUP)),
        settings.weight_decay,
        settings.evaluation_steps,
        validation if len(validation) else None,
        on_step,
    )
    test_accuracy, per_class = final_evaluation(network, comparison.splits["test"], comparison.classes)
    return {
        "arm": arm,
        "strategy": strategy,
        "source": source,
        "seed": seed,
        "steps": steps,
        "backbone": comparison.backbone,
        "image_size": real.pixels.shape[1],
        "images_real": len(real),
        "images_synthetic": 0 if strategy == "duplicate" else len(members),
        "images_validation": len(validation),
        "images_test": len(comparison.splits["test"]),
        "weights_kept": "best on validation" if len(validation) else "last, there being no validation split",
        "best_step": fitted.best_step,
        "validation_accuracy": fitted.validation_accuracy,
        "validation_curve": [list(point) for point in fitted.curve],
        "test_accuracy": test_accuracy,
        "per_class": per_class,
        "seconds": time.monotonic() - start,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _network(comparison: Comparison, seed: int) -> nn.Module:
    settings, train = comparison.settings, comparison.splits["train"]
    return build_network(
        comparison.backbone,
        len(comparison.classes),
        train.pixels.shape[1],
        seed,
        *comparison.channels,
        None if settings.weights is None else Path(settings.weights),
    ).to(comparison.device)


def _conclude(run: Path, comparison: Comparison, rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    settings, seeds = comparison.settings, comparison.settings.seed_list
    test = {arm: [rows[arm, seed]["test_accuracy"] for seed in seeds] for arm in settings.arms}
    validation_images = len(comparison.splits["validation"])
    validation = None
    if validation_images:
        validation = {arm: [rows[arm, seed]["validation_accuracy"] for seed in seeds] for arm in settings.arms}
    summaries = summarise(test, validation)
    verdict = judge(summaries, validation_images, len(comparison.splits["test"]))
    write_table(run / "results" / "table.csv", summaries)
    # Last, because its presence says that the comparison is complete.
    write_json(run / "results" / "verdict.json", asdict(verdict))


def run_classify(run: Path, experiment: Experiment) -> None:
    """Train each arm with each seed, compare them, and write results/ of the run.

    Finished classifiers made from the same settings and images are not repeated; one that was interrupted is
    repeated from its start, being short.

    Args:
        run: the run folder, with data/ and, for arms that need them, synthetic images.
        experiment: the resolved experiment.

    Raises:
        ConfigError: an arm needs synthetic images that are not there, or classify.weights is missing.
        DataError: the training or test split is empty, or an image cannot be decoded.
        NumericError: a loss is not finite.
        Stopped: a signal asked for a stop; finished classifiers are kept.
    """
    comparison = _prepare(run, experiment)
    settings = comparison.settings
    keys = {arm: run_key(comparison, arm) for arm in settings.arms}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for arm in settings.arms:
        for seed in settings.seed_list:
            earlier = _finished(result_path(run, arm, seed), keys[arm])
            if earlier is not None:
                rows[arm, seed] = earlier
    total, steps = len(settings.arms) * len(settings.seed_list), settings.max_train_steps
    if rows:
        say(f"{len(rows)} of {total} classifiers were trained before and are kept")
    (run / "results" / "verdict.json").unlink(missing_ok=True)
    with meter(f"classifiers ({comparison.backbone})", total * steps, "steps", done=len(rows) * steps) as shown:
        for seed in settings.seed_list:
            for arm in settings.arms:
                if (arm, seed) in rows:
                    continue
                row = {**_train_one(comparison, arm, seed, shown), "key": keys[arm]}
                write_json(result_path(run, arm, seed), row)
                rows[arm, seed] = row
    _conclude(run, comparison, rows)
