"""How many images a run trains on and makes, before it has begun: by the rules of the data stage, but unread."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mvc.amounts import previewed, synthetic_per_class
from mvc.config import Experiment
from mvc.dataset import INDEX, load_index
from mvc.groups import find_groups
from mvc.layout import Layout, find_layout
from mvc.splits import make_splits


def training_counts(run: Path, experiment: Experiment) -> dict[str, int]:
    """Training images of each class: those of the run's index if there is one, else what the data stage would choose.

    No image is opened, so files that cannot be read are counted, and equal files are taken for different ones.

    Args:
        run: the run folder; need not exist.
        experiment: sections data and train are used.

    Raises:
        DataError: there is no such folder, it has no classes, or a class has too few images.
    """
    if (run / INDEX).exists():
        return dict(Counter(record.class_name for record in load_index(run).split("train")))
    data = experiment.data
    layout = _layout(data.path)
    groups = find_groups(layout.root, layout.images, data.group_pattern, data.group_column)
    splits = make_splits(
        layout.images,
        {image.path: image.path for image in layout.images},
        layout.given,
        data.seed,
        data.validation_share,
        data.test_share,
        data.shots,
        fewest=1 if experiment.train.pairing == "self" else 2,
        groups=groups,
        folds=data.folds,
        fold=data.fold,
    )
    used = [image for image in layout.images if image.path not in splits.left_out]
    return dict(Counter(image.class_name for image in used if splits.split[image.path] == "train"))


def _layout(path: str) -> Layout:
    if path != "digits":
        return find_layout(Path(os.path.abspath(Path(path).expanduser())))
    from mvc.tiny.digits import write_digits

    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        return find_layout(Path(folder) / "digits")


def synthetic_count(training: Mapping[str, int], experiment: Experiment) -> int:
    """Images of the synthetic set and of the previews, if none is refused.

    Args:
        training: training images of each class.
        experiment: section generate is used.
    """
    generate = experiment.generate
    made = synthetic_per_class(training, generate.per_real, generate.per_class, generate.balance)
    return sum(made.values()) + len(previewed(experiment)) * generate.preview * len(training)
