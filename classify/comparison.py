"""What the arms of one comparison share: images, classes, channel statistics, device, and where results lie.

The test split is here as a `SealedTest` only: a list of files, of which no pixel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvc.arms import NEEDS_SYNTHETIC, Arm, parse_arm
from mvc.config import Experiment
from mvc.config_classify import ClassifySection
from mvc.dataset import Dataset, ImageRecord, load_index
from mvc.devices import pick_device
from mvc.errors import ConfigError, DataError
from mvc.storage import sha256_file, sha256_json
from mvc.synthetic import METADATA, SyntheticImage, read_synthetic, synthetic_folder
from mvc.templates import fill_templates

from .backbones import CLIP, check_backbone
from .images import Images, cached_images, channel_statistics
from .networks import SMALL_SIDE
from .ratio import rows_of_ratio
from .sealed import SealedTest

CACHE = "cache"
RESULTS = "results"
SHARED_SETTINGS = (
    "pretrained",
    "train_layers",
    "random_flip",
    "max_train_steps",
    "train_batch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "balance",
    "mixed_precision",
    "ema_decay",
    "evaluation_steps",
)
"""Settings that the result of every arm depends on."""
OWN_SETTINGS = {
    "rsp": ("rsp_probability", "rsp_scope", "rsp_mode"),
    "two_phase": ("phase_two_share", "phase_two_learning_rate"),
    "weighted": ("real_weight",),
}
"""Settings that matter to one strategy alone, so that changing one repeats no more than it must."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the arms of one comparison share.

    Attributes:
        run: the run folder.
        settings: section classify.
        backbone: the network's name; never auto.
        folder: where its results go: results/, or results/<backbone>/ for all but the first backbone.
        classes: class folders, in the order of the labels.
        train, validation: real images; validation may be empty.
        synthetic: the synthetic set; None where there is none.
        sources: source of each synthetic image.
        synthetic_digests: sha256 of each synthetic image.
        data_digest: of all real images, their splits, the classes, size and background.
        captions: of each class, one for each template; None but for the backbone clip.
        weights_digest: of classify.weights, or of the CLIP and its captions; None without.
        channels: mean and standard deviation of the real training images.
        test: the sealed test split.
        device: where to train.
    """

    run: Path
    settings: ClassifySection
    backbone: str
    folder: Path
    classes: list[str]
    train: Images
    validation: Images
    synthetic: Images | None
    sources: list[str]
    synthetic_digests: list[str]
    data_digest: str
    captions: list[list[str]] | None
    weights_digest: str | None
    channels: tuple[Tensor, Tensor]
    test: SealedTest
    device: torch.device

    @property
    def arms(self) -> list[Arm]:
        """The arms, in the order of the experiment."""
        return [parse_arm(text) for text in self.settings.arms]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.train.pixels.shape[1])

    def augmentation(self, arm: Arm) -> str:
        """The augmentation of an arm."""
        return arm.augmentation or self.settings.augmentation

    def members(self, arm: Arm, ratio: float | None) -> list[int]:
        """Rows of the synthetic set that an arm uses; of `duplicate` their number alone matters.

        Args:
            arm: the arm; its source counts, its ratio does not.
            ratio: synthetic images for each real one; None for all there are.
        """
        if arm.strategy not in NEEDS_SYNTHETIC or self.synthetic is None:
            return []
        rows = [row for row, source in enumerate(self.sources) if arm.source in (None, source)]
        if ratio is None:
            return rows
        labels = self.synthetic.labels[torch.tensor(rows, dtype=torch.int64)].numpy()
        chosen = rows_of_ratio(labels, [self.sources[row] for row in rows], self.train.labels.numpy(), ratio)
        return [rows[place] for place in chosen]

    def key(self, arm: Arm, ratio: float | None, seed: int) -> str:
        """Digest of all that a trained classifier depends on."""
        values = self.settings.model_dump(mode="json")
        names = (*SHARED_SETTINGS, *OWN_SETTINGS.get(arm.strategy, ()))
        if arm.uses_synthetic:
            names = (*names, "synthetic_label_smoothing")
        members = self.members(arm, ratio)
        seen: object = [self.synthetic_digests[row] for row in members] if arm.uses_synthetic else len(members)
        facts = [arm.strategy, self.augmentation(arm), seed, self.backbone, self.data_digest, self.weights_digest, seen]
        return sha256_json([facts, {name: values[name] for name in names}])


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


def prepare(run: Path, experiment: Experiment, device: torch.device | None = None) -> list[Comparison]:
    """Read the images once and lay out a comparison for each backbone.

    Args:
        run: the run folder, with data/ and, for arms that need them, synthetic images.
        experiment: the resolved experiment.
        device: where to train; run.device when absent.

    Raises:
        ConfigError: an arm needs synthetic images that are not there, a backbone is unknown or needs larger images, or
            classify.weights is missing.
        DataError: the training or test split is empty, there are fewer than two classes, or an image cannot be decoded.
    """
    settings, dataset = experiment.classify, load_index(run)
    made = read_synthetic(run) if (synthetic_folder(run) / METADATA).exists() else []
    check_arms(settings.arms, [image.source for image in made])
    _check_data(dataset)
    size = classifier_size(settings, experiment.data.image_size, made, dataset.split("train"))
    backbones = [real_name(name, size) for name in settings.backbones]
    for name in backbones:
        check_backbone(name, size, settings.pretrained)
    captions = _captions(settings, dataset)
    weights = None if settings.weights is None else _digest_of_weights(Path(settings.weights))
    background = experiment.data.background
    train, validation = (_real(run, dataset, name, size, background) for name in ("train", "validation"))
    synthetic, test = _synthetic(run, dataset, made, size, background), SealedTest.of(run, dataset, size, background)
    channels, own_device = channel_statistics(train.pixels), device or pick_device(experiment.run.device)
    rows = [[record.id, record.label, record.split, record.sha256] for record in dataset.records]
    return [
        Comparison(
            run=run,
            settings=settings,
            backbone=name,
            folder=run / RESULTS if place == 0 else run / RESULTS / name,
            classes=dataset.classes,
            train=train,
            validation=validation,
            synthetic=synthetic,
            sources=[image.source for image in made],
            synthetic_digests=[image.sha256 for image in made],
            data_digest=sha256_json([size, background, dataset.classes, rows]),
            captions=captions if name == CLIP else None,
            weights_digest=_digest_of_clip(settings, captions) if name == CLIP else weights,
            channels=channels,
            test=test,
            device=own_device,
        )
        for place, name in enumerate(dict.fromkeys(backbones))
    ]


def real_name(backbone: str, image_size: int) -> str:
    """The backbone that `auto` stands for, and any other name itself."""
    return backbone if backbone != "auto" else "small" if image_size <= SMALL_SIDE else "resnet18"


def check_arms(arms: Sequence[str], sources: Sequence[str]) -> None:
    """Check that the synthetic images that arms need are there.

    Raises:
        ConfigError: some are not; names the arm and what there is.
    """
    for text in arms:
        arm = parse_arm(text)
        if arm.strategy in NEEDS_SYNTHETIC and not (sources if arm.source is None else arm.source in sources):
            there = ", ".join(sorted(set(sources))) or "no image at all"
            raise ConfigError(
                f"arm '{text}' needs synthetic images{f' of the source {arm.source}' if arm.source else ''}",
                why=f"the synthetic set holds {there}",
                do="leave the arm out of classify.arms, or add the source to generate.sources",
            )


def _check_data(dataset: Dataset) -> None:
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.root} has one class, '{dataset.classes[0]}', so there is nothing to tell apart",
            do="add a second class folder, or stop at the synthetic set with `mvc generate`",
        )
    for name in ("train", "test"):
        if not dataset.split(name):
            raise DataError(f"the {name} split of {dataset.root} is empty", do="give it images, or change the shares")
    there = {record.label for record in dataset.split("train")}
    for label, folder in enumerate(dataset.classes):
        if label not in there:
            raise DataError(f"class '{folder}' has no training image", do="give it some, or remove its folder")


def _real(run: Path, dataset: Dataset, split: str, size: int, background: str) -> Images:
    records = dataset.split(split)
    pixels = cached_images(
        run / CACHE / f"classify-{split}",
        [dataset.image_path(record) for record in records],
        [record.sha256 for record in records],
        size,
        background,
        f"{split} images",
    )
    return Images(pixels, torch.tensor([record.label for record in records], dtype=torch.int64))


def _synthetic(run: Path, dataset: Dataset, made: list[SyntheticImage], size: int, background: str) -> Images | None:
    if not made:
        return None
    labels = {name: label for label, name in enumerate(dataset.classes)}
    unknown = sorted({image.class_name for image in made} - set(labels))
    if unknown:
        raise DataError(
            f"the synthetic set has images of '{unknown[0]}', which is no class of the data",
            why="it was made for other data, or its metadata.jsonl was changed",
            do="make it again with `mvc generate --redo`",
        )
    pixels = cached_images(
        run / CACHE / "classify-synthetic",
        [image.path for image in made],
        [image.sha256 for image in made],
        size,
        background,
        "synthetic images",
    )
    return Images(pixels, torch.from_numpy(np.array([labels[image.class_name] for image in made], dtype=np.int64)))


def _captions(settings: ClassifySection, dataset: Dataset) -> list[list[str]] | None:
    if settings.clip is None:
        return None
    return [fill_templates(settings.templates, name) for name in dataset.words]


def _digest_of_clip(settings: ClassifySection, captions: list[list[str]] | None) -> str:
    from .clip_classifier import clip_digest

    return sha256_json([clip_digest(str(settings.clip)), captions])


def _digest_of_weights(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"classify.weights: {path} is missing", do="give a safetensors file, or leave it out")
    return sha256_file(path)
