"""Missing splits, folds and few-shot subsets, by a rule that depends on the seed and on each image's content alone.

Images are ordered by a hash of (seed, purpose, sha256): a new file takes its own place in the order and moves
no other one, renaming changes nothing, and equal files stay together. Where images have groups, these are ordered
and given away as a whole (`mvc.group_splits`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mvc.errors import ConfigError, DataError
from mvc.group_splits import Unit, hold_out_units, seeded_units, unit_folds
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


def seeded_groups(sha256: Mapping[str, str], seed: int, purpose: str) -> list[list[str]]:
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


def hold_out(sha256: Mapping[str, str], seed: int, share: float, fewest: int) -> set[str]:
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


def shots_of(sha256: Mapping[str, str], seed: int, shots: int) -> list[str]:
    """The first `shots` paths of a seeded order: fewer shots are always a part of more shots.

    Different images come first; second copies of a file only follow when those are used up.
    """
    groups = seeded_groups(sha256, seed, "shots")
    order = [group[0] for group in groups] + [path for group in groups for path in group[1:]]
    return order[:shots]


def class_folds(sha256: Mapping[str, str], seed: int, folds: int, class_name: str) -> dict[str, int]:
    """Cut the seeded order of one class's images into folds whose sizes differ by at most one, copies together.

    A new image takes its own place in the order and moves at most one other from each fold to the next.

    Args:
        sha256: digest by path of the class's images.
        seed: data.seed; randomness besides the order: (seed, "fold <class>"), for which folds get one image more.
        folds: how many, at least 2.
        class_name: of the images.

    Returns:
        fold by path; copies of a file count as they lie in the order, so they can make the sizes differ by more.
    """
    offset = derived_seed(seed, f"fold {class_name}") % folds
    fold_of: dict[str, int] = {}
    for group in seeded_groups(sha256, seed, "split"):
        # Fold f begins at place (f * n + offset) // folds of the n images.
        middle = len(fold_of) + len(group) // 2
        fold_of.update(dict.fromkeys(group, ((middle + 1) * folds - offset - 1) // len(sha256)))
    return fold_of


def require_folds(given: frozenset[str], folds: int | None, fold: int) -> None:
    """Look whether folds can be made of a data folder.

    Args:
        given: splits that the folder has.
        folds: data.folds.
        fold: data.fold.

    Raises:
        ConfigError: the folder has a test split, or there is no such fold.
    """
    if folds is None:
        if fold:
            raise ConfigError(f"data.fold={fold} without data.folds", do="say how many folds, such as data.folds=5")
    elif "test" in given:
        raise ConfigError(
            "data.folds: the folder has a test split",
            why="folds are made where there is none",
            do="leave data.folds out, or give a folder without test images",
        )
    elif fold >= folds:
        raise ConfigError(f"data.fold={fold} is none of data.folds={folds}", do=f"give one from 0 to {folds - 1}")


def make_splits(
    images: Sequence[FoundImage],
    sha256: dict[str, str],
    given: frozenset[str],
    seed: int,
    validation_share: float,
    test_share: float,
    shots: int | None,
    fewest: int = 2,
    groups: Mapping[str, str] | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> Splits:
    """Give every image a split: test first, then validation from the rest, then the shots from that rest.

    Each class is split by itself, so that files of one class never move those of another, unless they share a
    group. A validation split that is made here is limited to `shots` images a class too: who has few images has
    no large validation set. Folders that the user made are kept whole, apart from shots of train, which may cut
    groups.

    Args:
        images: all usable images.
        sha256: digest by path.
        given: splits that the folder has; empty if it has none.
        seed: data.seed.
        validation_share: of the training images.
        test_share: of all images.
        shots: training images a class, or None for all.
        fewest: different training images that every class needs.
        groups: group by path, or None; no group lies in two splits that are made here.
        folds: make the test split one of so many folds in place of a share.
        fold: which one; each image is in the test split of exactly one.

    Raises:
        ConfigError: there can be no such folds.
        DataError: classes with fewer training images than `shots` or `fewest`; lists all of them.
    """
    require_folds(given, folds, fold)
    made = frozenset({"test", "validation"} - given)
    drawing = _Drawing(images, sha256, seed, fewest, groups)
    if folds is not None:
        drawing.give_fold(folds, fold)
    elif "test" in made:
        drawing.give_share("test", test_share)
    if "validation" in made:
        drawing.give_share("validation", validation_share)
    left_out = drawing.left_out(shots, "validation" in made) if shots is not None else frozenset[str]()
    _require_different(drawing, left_out)
    return Splits(drawing.split, made, left_out, _warnings(drawing, made))


class _Drawing:
    """The splits while they are made; images are in train until they are given to another one."""

    def __init__(
        self,
        images: Sequence[FoundImage],
        sha256: dict[str, str],
        seed: int,
        fewest: int,
        groups: Mapping[str, str] | None,
    ) -> None:
        self.sha256, self.seed, self.fewest, self.groups = sha256, seed, fewest, groups
        self.split = {image.path: image.split or "train" for image in images}
        self.class_of = {image.path: image.class_name for image in images}
        of_class = defaultdict(list)
        for image in images:
            of_class[image.class_name].append(image.path)
        self.classes = dict(sorted(of_class.items()))
        units = Counter(name for unit in self.units() for name in unit.images) if groups is not None else {}
        self.one_group = {name for name, count in units.items() if count == 1}

    def units(self) -> list[Unit]:
        """The groups of what is in train now, in seeded order."""
        train = [path for path, name in self.split.items() if name == "train"]
        return seeded_units(train, self.groups or {}, self.sha256, self.class_of, self.seed)

    def give_share(self, name: str, share: float) -> None:
        """Give a share of each class's training images to a split."""
        if self.groups is not None:
            chosen = hold_out_units(self.units(), share, self.fewest)
        else:
            train = [_digests(paths, self.split, self.sha256, "train") for paths in self.classes.values()]
            chosen = {path for digests in train for path in hold_out(digests, self.seed, share, self.fewest)}
        self.split.update(dict.fromkeys(chosen, name))

    def give_fold(self, folds: int, fold: int) -> None:
        """Give one fold of the training images to test.

        Raises:
            DataError: one of the folds, not only this one, would leave a class too few different training images.
        """
        fold_of: dict[str, int] = {}
        if self.groups is not None:
            fold_of = unit_folds(self.units(), folds)
        else:
            for class_name, paths in self.classes.items():
                train = _digests(paths, self.split, self.sha256, "train")
                fold_of.update(class_folds(train, self.seed, folds, class_name))
        self._require_enough(fold_of, folds)
        self.split.update({path: "test" for path, number in fold_of.items() if number == fold})

    def _require_enough(self, fold_of: Mapping[str, int], folds: int) -> None:
        few = []
        for class_name, paths in self.classes.items():
            here = [path for path in paths if path in fold_of]
            rest = [{self.sha256[path] for path in here if fold_of[path] != fold} for fold in range(folds)]
            least = min(map(len, rest))
            if least < self.fewest:
                few.append(f"{class_name} ({least}{', as all are of one group' * (class_name in self.one_group)})")
        if few:
            raise DataError(
                f"data.folds={folds} would leave fewer than {self.fewest} different training images beside one of "
                f"the folds to: {listing(few)}",
                why="each image is tested once, and what is tested cannot be trained on",
                do="add images or groups of these classes, or leave data.folds out",
            )

    def left_out(self, shots: int, validation: bool) -> frozenset[str]:
        """What few-shot subsets leave out of train, and of a validation split that was made here.

        Raises:
            DataError: classes with fewer training images; lists all of them.
        """
        left_out: set[str] = set()
        short = []
        for class_name, paths in self.classes.items():
            train = _digests(paths, self.split, self.sha256, "train")
            if len(train) < shots:
                short.append(f"{class_name}: {len(train)} of its {len(paths)} images are for training")
            left_out |= set(train) - set(shots_of(train, self.seed, shots))
            if validation:
                held = _digests(paths, self.split, self.sha256, "validation")
                left_out |= set(held) - set(shots_of(held, self.seed, shots))
        if short:
            raise DataError(
                f"data.shots={shots} is more than a class has: {listing(short)}", do="lower data.shots or add images"
            )
        return frozenset(left_out)


def _digests(paths: list[str], split: dict[str, str], sha256: dict[str, str], name: str) -> dict[str, str]:
    return {path: sha256[path] for path in paths if split[path] == name}


def _require_different(drawing: _Drawing, left_out: frozenset[str]) -> None:
    few = []
    for class_name, paths in drawing.classes.items():
        kept = [path for path in paths if path not in left_out]
        different = len(set(_digests(kept, drawing.split, drawing.sha256, "train").values()))
        if different < drawing.fewest:
            few.append(f"{class_name} ({different})")
    if few:
        raise DataError(
            f"classes with fewer than {drawing.fewest} different training images: {listing(few)}",
            why="fine-tuning learns from pairs of different images of one class",
            do="add images, raise data.shots, or set train.pairing=self",
        )


def _warnings(drawing: _Drawing, made: frozenset[str]) -> list[str]:
    why: dict[tuple[str, str], list[str]] = defaultdict(list)
    few = "too few images to give any" if drawing.groups is None else "too few groups of images to give any"
    for name in ("test", "validation"):
        for class_name, paths in drawing.classes.items():
            if any(drawing.split[path] == name for path in paths):
                continue
            reason = few if class_name not in drawing.one_group else "all its images are of one group"
            why[name, reason if name in made else f"not in the {name} folder"].append(class_name)
    return [
        f"classes without {name} images ({reason}): {', '.join(map(printable, class_names))}"
        for (name, reason), class_names in why.items()
    ]
