"""Short classifier runs for `mvc tune`, judged on validation images; the test split is never decoded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvc.config import Experiment
from mvc.config_classify import ClassifySection
from mvc.dataset import ImageRecord, load_index
from mvc.devices import pick_device
from mvc.errors import ConfigError, DataError
from mvc.progress import Meter
from mvc.stopping import flag
from mvc.storage import read_json, sha256_file, sha256_json, write_json

from .augment import augmentation
from .backbones import CLIP
from .batches import batch_maker
from .comparison import real_name
from .images import Images, cached_images, channel_statistics, decode_all
from .loop import fit, learning_rates
from .mixing import mixer
from .networks import build_network
from .strategies import Mix

ARM = "rsp"
"""Strategy by which a point's images are used: the best or second best one on the digits, and of one phase."""
BASELINES = ("real", "duplicate")
"""Trained once, to be held beside the points."""
FOLDER = "tune/classifiers"
"""Below the run folder: a result a file, named by all that it depends on."""
_CACHE = "cache/classify-tune"
_WARMUP = 20
"""One step in so many is warm-up."""


@dataclass(frozen=True)
class Given:
    """One synthetic image: its file, the sha256 of that, and the label of its class."""

    path: Path
    sha256: str
    label: int


@dataclass(frozen=True)
class ShortRuns:
    """What all short runs share.

    Attributes:
        run: the run folder.
        settings: section classify, for all but the number of steps.
        steps: optimisation steps of each.
        seeds: model seeds.
        backbone: the name of the network; the first one where several are compared.
        background: colour behind transparent pixels.
        classes: how many.
        train, validation: real images at the classifier's size.
        digest: of the real images, the classes and the size.
        device: where to train.
    """

    run: Path
    settings: ClassifySection
    steps: int
    seeds: Sequence[int]
    backbone: str
    background: str
    classes: int
    train: Images
    validation: Images
    digest: str
    device: torch.device

    def accuracies(self, arm: str, synthetic: Sequence[Given], shown: Meter) -> list[float]:
        """Accuracy on the validation images after the last step, one a seed; finished runs are not repeated.

        Not that of the best step: choosing it on so few images would make every arm look better than it is.

        Args:
            arm: a strategy of one phase.
            synthetic: the images of the point; of `duplicate` their number counts, of `real` nothing.
            shown: advanced by a step at a time.

        Raises:
            DataError: an image cannot be decoded or has changed.
            NumericError: a loss is not finite.
            Stopped: a signal asked for a stop; finished runs are kept.
        """
        paths = [self._result(arm, seed, synthetic) for seed in self.seeds]
        images, found = None, []
        for seed, path in zip(self.seeds, paths, strict=True):
            if path.exists():
                shown.done += self.steps
            else:
                if images is None and arm not in BASELINES:
                    images = self._decoded(synthetic)
                accuracy = self._train(arm, seed, len(synthetic), images, shown)
                write_json(path, {"arm": arm, "seed": seed, "steps": self.steps, "validation_accuracy": accuracy})
            found.append(float(read_json(path)["validation_accuracy"]))
        return found

    def _result(self, arm: str, seed: int, synthetic: Sequence[Given]) -> Path:
        dropped = {"arms", "seeds", "jobs", "image_size", "backbone", "max_train_steps", "evaluation_steps", "weights"}
        dropped |= {"ratio", "ratios", "ema_decay", "balance", "label_smoothing", "synthetic_label_smoothing"}
        kept = {name: value for name, value in self.settings.model_dump(mode="json").items() if name not in dropped}
        seen: object = [[image.sha256, image.label] for image in synthetic]
        if arm in BASELINES:
            seen = None if arm == "real" else len(synthetic)
        weights = None if self.settings.weights is None else sha256_file(Path(self.settings.weights))
        key = sha256_json([arm, seed, self.steps, kept, self.backbone, self.digest, seen, weights])
        return self.run / FOLDER / f"{key[:24]}.json"

    def _decoded(self, synthetic: Sequence[Given]) -> Images:
        size = self.train.pixels.shape[1]
        paths, digests = [image.path for image in synthetic], [image.sha256 for image in synthetic]
        pixels = decode_all(paths, digests, size, self.background, "synthetic images")
        return Images(pixels, torch.tensor([image.label for image in synthetic], dtype=torch.int64))

    def _train(self, arm: str, seed: int, count: int, synthetic: Images | None, shown: Meter) -> float:
        settings = self.settings
        labels = np.zeros(count, dtype=np.int64) if synthetic is None else synthetic.labels.numpy()
        mix = Mix(
            strategy=arm,
            steps=self.steps,
            batch_size=settings.train_batch_size,
            real_labels=self.train.labels.numpy(),
            synthetic_labels=labels,
            rsp_probability=settings.rsp_probability,
        )
        network = build_network(
            self.backbone,
            self.classes,
            self.train.pixels.shape[1],
            seed,
            *channel_statistics(self.train.pixels),
            None if settings.weights is None else Path(settings.weights),
            settings.pretrained,
            settings.train_layers,
        ).to(self.device)
        augment = augmentation(settings.augmentation, seed, settings.random_flip)
        batch = batch_maker(mix, seed, self.train, synthetic, range(count), self.classes, augment, self.device)

        def on_step(done: int) -> None:
            shown.advance(1, note=f"{arm}, seed {seed}")
            flag.check("images and classifiers that were finished are kept")

        fitted = fit(
            network,
            batch,
            learning_rates([(self.steps, settings.learning_rate)], warmup=max(1, self.steps // _WARMUP)),
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            evaluation_steps=self.steps,
            validation=self.validation,
            mixer=mixer(settings.augmentation, seed),
            mixed_precision=settings.mixed_precision,
            on_step=on_step,
        )
        return fitted.curve[-1][1]


def prepare_short_runs(run: Path, experiment: Experiment, image_size: int) -> ShortRuns:
    """Read the real training and validation images.

    Args:
        run: the run folder.
        experiment: sections run, data, classify and tune are used.
        image_size: side of the synthetic images, where neither classify.image_size nor data.image_size is set.

    Raises:
        ConfigError: classify.weights is missing, or the backbone is clip.
        DataError: there is no validation image, or an image cannot be decoded.
    """
    dataset, settings = load_index(run), experiment.classify
    if settings.backbones[0] == CLIP:
        raise ConfigError(
            "short runs of the backbone clip would judge its pretraining, not the synthetic images",
            do="name another backbone first in classify.backbone, or set tune.classifier_steps=0",
        )
    if settings.weights is not None and not Path(settings.weights).is_file():
        raise ConfigError(f"classify.weights: {settings.weights} is missing", do="give a safetensors file, or none")
    size = settings.image_size or experiment.data.image_size or image_size
    splits = {name: dataset.split(name) for name in ("train", "validation")}
    if not splits["validation"]:
        raise DataError(
            "there is no validation image, so classifiers cannot be judged",
            do="set tune.classifier_steps=0, or start another run with a larger data.validation_share",
        )
    records = [record for own in splits.values() for record in own]
    background = experiment.data.background
    digests = [record.sha256 for record in records]
    paths = [dataset.image_path(record) for record in records]
    pixels = cached_images(run / _CACHE, paths, digests, size, background, "real images")
    every = Images(pixels, torch.tensor([record.label for record in records], dtype=torch.int64))
    first = len(splits["train"])
    return ShortRuns(
        run=run,
        settings=settings,
        steps=experiment.tune.classifier_steps,
        seeds=range(experiment.tune.classifier_seeds),
        backbone=real_name(settings.backbones[0], size),
        background=background,
        classes=len(dataset.classes),
        train=every.rows(range(first)),
        validation=every.rows(range(first, len(records))),
        digest=_digest(splits, size, background, dataset.classes),
        device=pick_device(experiment.run.device),
    )


def _digest(splits: dict[str, list[ImageRecord]], size: int, background: str, classes: list[str]) -> str:
    rows: list[Any] = [[name, one.id, one.label, one.sha256] for name, own in splits.items() for one in own]
    return sha256_json([size, background, classes, rows])
