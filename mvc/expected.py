"""How many images a run trains on and makes, before it has begun: by the rules of the data stage, but unread."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mvc.config import Experiment
from mvc.config_generation import PREVIEWED
from mvc.dataset import INDEX, load_index
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
    splits = make_splits(
        layout.images,
        {image.path: image.path for image in layout.images},
        layout.given,
        data.seed,
        data.validation_share,
        data.test_share,
        data.shots,
        fewest=1 if experiment.train.pairing == "self" else 2,
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


def with_steps(experiment: Experiment, images: int) -> Experiment:
    """The experiment with its number of fine-tuning steps, from the number of training images where it is absent.

    Args:
        experiment: section train is used.
        images: training images of the run.
    """
    train = experiment.train
    if train.max_train_steps is not None:
        return experiment
    samples = train.train_batch_size * train.gradient_accumulation_steps
    steps = max(1, math.floor(train.passes * images / samples + 0.5))
    return experiment.model_copy(update={"train": train.model_copy(update={"max_train_steps": steps})})


def synthetic_per_class(
    real: Mapping[str, int], per_real: float, per_class: int | None, balance: bool
) -> dict[str, int]:
    """Synthetic images that are wanted of each class, over all sources.

    Args:
        real: training images of each class.
        per_real: synthetic images per real one; products are rounded, halves up.
        per_class: images of each class, in place of `per_real`.
        balance: fill each class up to what `per_real` gives the largest one, real images included.
    """
    if per_class is not None:
        return dict.fromkeys(real, per_class)
    if balance:
        most = math.floor((1.0 + per_real) * max(real.values(), default=0) + 0.5)
        return {name: most - count for name, count in real.items()}
    return {name: math.floor(per_real * count + 0.5) for name, count in real.items()}


def synthetic_count(training: Mapping[str, int], experiment: Experiment) -> int:
    """Images of the synthetic set and of the previews, if none is refused.

    Args:
        training: training images of each class.
        experiment: section generate is used.
    """
    generate = experiment.generate
    made = synthetic_per_class(training, generate.per_real, generate.per_class, generate.balance)
    return sum(made.values()) + len(previewed(experiment)) * generate.preview * len(training)


def previewed(experiment: Experiment) -> list[str]:
    """Sources outside the set of which the report shows a few images: of a set by our own models the other one."""
    shares = {source: share for source, share in experiment.generate.sources.items() if share > 0}
    if not experiment.generate.preview or not any(source in shares for source in PREVIEWED):
        return []
    return [source for source in PREVIEWED if source not in shares]


def needs_model(experiment: Experiment) -> bool:
    """Whether the synthetic set, or a preview, needs the fine-tuned model."""
    return experiment.generate.sources.get("finetuned", 0.0) > 0 or "finetuned" in previewed(experiment)
