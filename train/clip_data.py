"""The pairs of a CLIP comparison: the splits that the data have, and those that are cut off from the training pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mvc.clip.pair_splits import cut_validation, find_leaks
from mvc.clip.pairs import Pairs, read_pairs
from mvc.clip.sources import MissingSplit
from mvc.config_clip import ClipExperiment
from mvc.errors import DataError
from mvc.storage import sha256_json
from mvc.walk import counted


@dataclass(frozen=True)
class ClipData:
    """The pairs of a comparison.

    Attributes:
        train, validation, test: the splits; test images that another split has too are left out.
        warnings: what should make one doubt the figures.
    """

    train: Pairs
    validation: Pairs
    test: Pairs
    warnings: list[str]

    @cached_property
    def trained_on(self) -> str:
        """sha256 over what a trained model depends on."""
        return sha256_json([self.train.digest, self.validation.digest])

    def describe(self) -> str:
        """In words."""
        parts = [(self.train, "train with"), (self.validation, "validate with"), (self.test, "test with")]
        texts = [f"{counted(len(pairs), 'image')} to {what}" for pairs, what in parts]
        return f"{', '.join(texts)}; {counted(sum(map(len, self.train.captions)), 'training caption')}"


def read_data(experiment: ClipExperiment, run: Path) -> ClipData:
    """Read the splits; where the data have no test or validation split, it is cut off from train, test first.

    Args:
        experiment: sections run and data are used; randomness as in `cut_validation`.
        run: notes about tar archives go to its cache.

    Raises:
        DataError: the data cannot be used, or a split has fewer than two images.
        ConfigError: a setting does not go with the data.
    """
    settings, seed = experiment.data, experiment.run.seed
    train = _split(experiment, run, "train")
    test, validation = _split(experiment, run, "test"), _split(experiment, run, "validation")
    if train is None:
        raise DataError(f"{settings.path} has no training pairs", do="call the folder or file of a split train")
    if test is None:
        train, test = cut_validation(train, settings.test_share, seed)
    if validation is None:
        train, validation = cut_validation(train, settings.validation_share, seed)
    warnings = []
    leaks = find_leaks({"train": train, "validation": validation, "test": test})
    shared = {name for leak in leaks if leak.kind == "image" for split, name in leak.places if split == "test"}
    if shared:
        test = test.rows([row for row in range(len(test)) if test.ids[row] not in shared])
        also = f"{counted(len(shared), 'test image')} {'is' if len(shared) == 1 else 'are'} also"
        warnings.append(f"{also} in training or validation, and left out")
    for name, pairs in (("train", train), ("validation", validation), ("test", test)):
        if len(pairs) < 2:
            raise DataError(f"{settings.path}: {counted(len(pairs), 'image')} to {name}", do="give more")
    return ClipData(train, validation, test, warnings)


def _split(experiment: ClipExperiment, run: Path, split: str) -> Pairs | None:
    settings = experiment.data
    try:
        return read_pairs(
            settings.path,
            split,
            run / "cache",
            form=None if settings.form == "auto" else settings.form,
            image_root=None if settings.image_root is None else Path(settings.image_root),
        )
    except MissingSplit:
        return None
