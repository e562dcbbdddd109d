"""Comparing a synthetic set with held-out real images: in all, by source, by class, and beside real training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.progress import meter
from mvc.quality import Features, figures, nearest, significant
from mvc.randomness import numpy_generator
from mvc.stopping import flag
from mvc.synthetic import SyntheticImage


@dataclass(frozen=True)
class Images:
    """What the figures are computed from: n images of one kind.

    Attributes:
        features: (n, d).
        classes: (n,) class folders.
    """

    features: Features
    classes: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.classes)

    def where(self, chosen: NDArray[Any]) -> Images:
        """Some of them, by a mask or by numbers."""
        return Images(self.features[chosen], self.classes[chosen])


@dataclass(frozen=True)
class Compared:
    """The three kinds of images, and how they are compared.

    Attributes:
        synthetic: accepted synthetic images.
        train: real training images.
        held_out: real validation images.
        neighbours: k of precision, recall, density and coverage.
        seed: run.seed; randomness from (seed, "kernel distance") and (seed, "quality ...").
    """

    synthetic: Images
    train: Images
    held_out: Images
    neighbours: int
    seed: int

    def against_held_out(self, images: Images) -> dict[str, float | None]:
        """The figures of some images."""
        return figures(images.features, self.held_out.features, self.neighbours, self.seed)

    def of_class(self, name: str) -> Compared:
        """The same for one class."""
        ours, train, held_out = (
            images.where(images.classes == name) for images in (self.synthetic, self.train, self.held_out)
        )
        return Compared(ours, train, held_out, self.neighbours, self.seed)

    def of_source(self, rows: NDArray[np.bool_]) -> Compared:
        """The same for some synthetic images."""
        return Compared(self.synthetic.where(rows), self.train, self.held_out, self.neighbours, self.seed)


def compare_groups(compared: Compared, sources: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """The figures of all synthetic images, of each source and of each class, and those of real training images.

    Args:
        compared: all images.
        sources: of each synthetic image.
        classes: all class folders.

    Returns:
        JSON values: `overall`; `by_source` and `by_class` by name; and under `floor` the same of the training images,
        `overall` and `by_class`. Each holds the numbers of images and the figures of `mvc.quality.FIGURES`; under
        `equal` are those of synthetic and of training images, as many of each class, or None where there are too few.

    Raises:
        Stopped: a signal asked for a stop.
    """
    of_source = {name: np.array(sources, dtype=np.str_) == name for name in dict.fromkeys(sources)}
    with meter("quality", 1 + len(of_source) + len(classes), "comparisons") as shown:

        def measured(group: Compared) -> tuple[dict[str, Any], dict[str, Any]]:
            flag.check("what was seen of the images is kept")
            said = _measure(group, group.synthetic), _measure(group, group.train)
            shown.advance()
            return {**said[0], "equal": _equal(group)}, said[1]

        overall, floor = measured(compared)
        by_source = {name: measured(compared.of_source(rows))[0] for name, rows in of_source.items()}
        by_class = {name: measured(compared.of_class(name)) for name in classes}
    return {
        "overall": overall,
        "by_source": by_source,
        "by_class": {name: said for name, (said, _) in by_class.items()},
        "floor": {"overall": floor, "by_class": {name: said for name, (_, said) in by_class.items()}},
    }


def _measure(compared: Compared, images: Images) -> dict[str, Any]:
    return {"images": len(images), "held_out": len(compared.held_out), **compared.against_held_out(images)}


def _equal(compared: Compared) -> dict[str, Any] | None:
    """Both on as many images of each class: the Frechet distance falls, and coverage grows, with the number alone."""
    ours, real = Counter(compared.synthetic.classes.tolist()), Counter(compared.train.classes.tolist())
    counts = {name: min(count, real[name]) for name, count in sorted(ours.items())}
    if sum(counts.values()) < 2 or len(compared.held_out) < 2:
        return None
    return {
        "images": sum(counts.values()),
        "synthetic": compared.against_held_out(_drawn(compared.synthetic, counts, compared.seed, "synthetic")),
        "floor": compared.against_held_out(_drawn(compared.train, counts, compared.seed, "train")),
    }


def _drawn(images: Images, counts: dict[str, int], seed: int, kind: str) -> Images:
    """So many images of each class; randomness from (seed, "quality <kind> <class>")."""
    chosen = []
    for name, count in counts.items():
        rows = np.flatnonzero(images.classes == name)
        order = numpy_generator(seed, f"quality {kind} {name}").permutation(len(rows))
        chosen.append(np.sort(rows[order[:count]]))
    return images.where(np.concatenate(chosen))


def find_nearest(
    compared: Compared, made: Sequence[SyntheticImage], train_ids: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The nearest training image of each synthetic image, by the Euclidean distance of features, and a summary.

    Args:
        compared: all images; at least one training image.
        made: the synthetic images, in the order of `compared.synthetic`.
        train_ids: record ids, in the order of `compared.train`.

    Returns:
        A row an image, nearest ones first; and the distances of synthetic, of held-out and of each source's images in
        short. `nearer` says what is nearer than held-out images are on average.
    """
    train = compared.train
    ours, rows = nearest(compared.synthetic.features, train.features)
    theirs, their_rows = nearest(compared.held_out.features, train.features)
    usual = float(theirs.mean()) if len(theirs) else None
    same = {
        "synthetic": compared.synthetic.classes == train.classes[rows],
        "held_out": compared.held_out.classes == train.classes[their_rows],
    }
    table = [
        {
            "id": image.row["id"],
            "file_name": image.row["file_name"],
            "class_name": image.class_name,
            "source": image.source,
            "nearest_id": train_ids[row],
            "nearest_class_name": str(train.classes[row]),
            "distance": significant(float(distance)),
            "nearer": None if usual is None else bool(distance < usual),
        }
        for image, distance, row in zip(made, ours, rows.tolist(), strict=True)
    ]
    sources = np.array([image.source for image in made], dtype=np.str_)
    summary = {
        "synthetic": _spread(ours, usual, same["synthetic"]),
        "held_out": _spread(theirs, usual, same["held_out"]),
        "by_source": {
            str(name): _spread(ours[sources == name], usual, same["synthetic"][sources == name])
            for name in dict.fromkeys(sources.tolist())
        },
    }
    return sorted(table, key=lambda row: (row["distance"], row["file_name"])), summary


def _spread(distances: NDArray[np.float64], usual: float | None, same: NDArray[np.bool_]) -> dict[str, float | None]:
    """Of some images: distances to the nearest training image, and how often it is of the same class.

    `nearer` is the share that is nearer than held-out images are on average.
    """
    if not len(distances):
        return dict.fromkeys(("mean", "median", "least", "nearer", "same_class"))
    values = {"mean": distances.mean(), "median": np.median(distances), "least": distances.min()}
    values |= {"same_class": same.mean()}
    shares = {name: significant(float(value)) for name, value in values.items()}
    return {**shares, "nearer": None if usual is None else significant(float((distances < usual).mean()))}
