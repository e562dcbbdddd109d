"""Missing splits and few-shot subsets, by a rule that depends on the seed and on each image's content alone.

Images are ordered by a hash of (seed, purpose, sha256): a new file takes its own place in the order and moves
no other one, renaming changes nothing, and equal files stay together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mvc.errors import DataError
from mvc.layout import FoundImage
from mvc.randomness import derived_seed
from mvc.walk import listing, printable


@dataclass(frozen=True)
class Splits:
    """Where every image goes.

    Attributes:
        split: "train", "validation" or "test", by path.
        made: splits that the folder did not have.
        left_out: paths that few-shot subsets leave out.
        warnings: classes that a made split could not serve.
    """

    split: dict[str, str]
    made: frozenset[str]
    left_out: frozenset[str]
    warnings: list[str]


def seeded_groups(sha256: dict[str, str], seed: int, purpose: str) -> list[list[str]]:
    """Group paths whose files are equal, in seeded order.

    Args:
        sha256: digest by path.
        seed: data.seed.
        purpose: "split" or "shots".

    Returns:
        Groups of paths; randomness: (seed, "<purpose> <sha256>"), one draw a group.
    """
    groups = defaultdict(list)
    for path in sorted(sha256):
        groups[sha256[path]].append(path)
    return [groups[digest] for digest in sorted(groups, key=lambda digest: derived_seed(seed, f"{purpose} {digest}"))]


def hold_out(sha256: dict[str, str], seed: int, share: float, fewest: int) -> set[str]:
    """Choose about `share` of one class's images, at least one, copies together.

    Args:
        sha256: digest by path of the class's images.
        seed: data.seed.
        share: of the images, in (0, 1).
        fewest: how many different images have to stay behind.

    Returns:
        The chosen paths; none if the class is too small.
    """
    groups = seeded_groups(sha256, seed, "split")
    wanted = max(1, round(share * len(sha256)))
    chosen: set[str] = set()
    remaining = len(groups)
    for group in groups:
        if remaining > fewest and len(chosen) + len(group) <= wanted:
            chosen.update(group)
            remaining -= 1
    return chosen


def shots_of(sha256: dict[str, str], seed: int, shots: int) -> list[str]:
    """The first `shots` paths of a seeded order: fewer shots are always a part of more shots.

    Different images come first; second copies of a file only follow when those are used up.
    """
    groups = seeded_groups(sha256, seed, "shots")
    order = [group[0] for group in groups] + [path for group in groups for path in group[1:]]
    return order[:shots]


def make_splits(
    images: Sequence[FoundImage],
    sha256: dict[str, str],
    given: frozenset[str],
    seed: int,
    validation_share: float,
    test_share: float,
    shots: int | None,
    fewest: int = 2,
) -> Splits:
    """Give every image a split: test first, then validation from the rest, then the shots from that rest.

    Each class is split by itself, so that files of one class never move those of another. A validation split
    that is made here is limited to `shots` images a class too: who has few images has no large validation
    set. Folders that the user made are kept whole, apart from shots of train.

    Args:
        images: all usable images.
        sha256: digest by path.
        given: splits that the folder has; empty if it has none.
        seed: data.seed.
        validation_share: of the training images.
        test_share: of all images.
        shots: training images a class, or None for all.
        fewest: different training images that every class needs.

    Raises:
        DataError: classes with fewer training images than `shots` or `fewest`; lists all of them.
    """
    split = {image.path: image.split or "train" for image in images}
    made = frozenset({"test", "validation"} - given)
    classes = defaultdict(list)
    for image in images:
        classes[image.class_name].append(image.path)
    left_out: set[str] = set()
    unserved: dict[str, list[str]] = {"test": [], "validation": []}
    short: list[str] = []
    for class_name, paths in sorted(classes.items()):
        for name, share in (("test", test_share), ("validation", validation_share)):
            if name in made:
                chosen = hold_out(_digests(paths, split, sha256, "train"), seed, share, fewest)
                split.update(dict.fromkeys(chosen, name))
            if not any(split[path] == name for path in paths):
                unserved[name].append(class_name)
        if shots is not None:
            train = _digests(paths, split, sha256, "train")
            if len(train) < shots:
                short.append(f"{class_name}: {len(train)} of its {len(paths)} images are for training")
            left_out |= set(train) - set(shots_of(train, seed, shots))
            if "validation" in made:
                validation = _digests(paths, split, sha256, "validation")
                left_out |= set(validation) - set(shots_of(validation, seed, shots))
    if short:
        raise DataError(
            f"data.shots={shots} is more than a class has: {listing(short)}", do="lower data.shots or add images"
        )
    _require_different(classes, split, sha256, left_out, fewest)
    return Splits(split, made, frozenset(left_out), _warnings(unserved, made))


def _digests(paths: list[str], split: dict[str, str], sha256: dict[str, str], name: str) -> dict[str, str]:
    return {path: sha256[path] for path in paths if split[path] == name}


def _require_different(
    classes: dict[str, list[str]], split: dict[str, str], sha256: dict[str, str], left_out: set[str], fewest: int
) -> None:
    few = []
    for class_name, paths in sorted(classes.items()):
        train = _digests([path for path in paths if path not in left_out], split, sha256, "train")
        if len(set(train.values())) < fewest:
            few.append(f"{class_name} ({len(set(train.values()))})")
    if few:
        raise DataError(
            f"classes with fewer than {fewest} different training images: {listing(few)}",
            why="fine-tuning learns from pairs of different images of one class",
            do="add images, raise data.shots, or set train.pairing=self",
        )


def _warnings(unserved: dict[str, list[str]], made: frozenset[str]) -> list[str]:
    warnings = []
    for name, class_names in unserved.items():
        if class_names:
            why = "too few images to give any" if name in made else f"not in the {name} folder"
            shown = ", ".join(printable(class_name) for class_name in class_names)
            warnings.append(f"classes without {name} images ({why}): {shown}")
    return warnings
