"""How often the filters refuse real images that nobody trained on, and how many planted bad images they find.

    python -m benchmarks.filters [--extractor SPEC] [--data FOLDER]

The digits are always measured; `brain_tumor_mri` and `caltech101_20` where the data folder has them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mvc.extractors import Extractor, find_extractor
from mvc.features import CHANGES, Seen, changed, see
from mvc.generate.agreement import clip_agreement
from mvc.generate.copies import trial_rows
from mvc.generate.judge import Candidate, Judge, false_rejects, fit_judge, judge
from mvc.generate.verdicts import (
    BLANK,
    COPY_OF_HELD_OUT,
    COPY_OF_TRAINING,
    GREY,
    OTHER_CLASS_CLASSIFIER,
    OTHER_CLASS_CLIP,
    REPEAT,
)
from mvc.images import decode, to_uint8
from mvc.randomness import numpy_generator
from mvc.tiny import DIGIT_WORDS, WEIGHTS
from mvc.tiny.digits import digit_images, stratified_split

from .results import Gate, Section, Table, finish, parser

Pixels = NDArray[np.uint8]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_SETS = ("brain_tumor_mri", "caltech101_20")
SIDE, DIGIT_SIDE = 64, 32
SHOTS = (3, 10, None)
"""Training images a class; None is all."""
PLANTED = 100
"""Copies of a kind, at most."""
CHECKS = (BLANK, GREY, COPY_OF_TRAINING, OTHER_CLASS_CLIP, OTHER_CLASS_CLASSIFIER, REPEAT, "any")
SURE = ("same file", "JPEG 85", "2 levels of noise", "3/4 of the size and back", "twice the size and back")
"""Copies that have to be found; the others are told for information."""
LEAST_FOUND, MOST_FALSE_COPIES = 0.97, 0.03


@dataclass(frozen=True)
class Images:
    """Real images of one set: pixels (S, S, 3), class folders, and what an extractor sees."""

    pixels: list[Pixels]
    classes: list[str]
    seen: Seen

    def take(self, rows: Sequence[int]) -> Images:
        return Images(
            [self.pixels[row] for row in rows], [self.classes[row] for row in rows], self.seen.take(list(rows))
        )


def saved(pixels: Pixels, quality: int) -> Pixels:
    """Saved as JPEG and opened again."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def resized(pixels: Pixels, factor: float) -> Pixels:
    """Resized and brought back."""
    side = len(pixels)
    small = Image.fromarray(pixels).resize((round(side * factor),) * 2, Image.Resampling.BICUBIC)
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def noisy(pixels: Pixels, levels: int) -> Pixels:
    """With whole levels of noise, at most so many."""
    noise = numpy_generator(0, "planted noise", int(pixels.sum())).integers(-levels, levels + 1, pixels.shape)
    return np.clip(pixels.astype(np.int64) + noise, 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "same file": lambda pixels: pixels,
    "JPEG 85": lambda pixels: saved(pixels, 85),
    "2 levels of noise": lambda pixels: noisy(pixels, 2),
    "3/4 of the size and back": lambda pixels: resized(pixels, 0.75),
    "twice the size and back": lambda pixels: resized(pixels, 2.0),
    "half the size and back": lambda pixels: resized(pixels, 0.5),
    "6 % brighter": lambda pixels: np.clip(pixels * 1.06, 0, 255).astype(np.uint8),
    "JPEG 40": lambda pixels: saved(pixels, 40),
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
}


def through_vae() -> Callable[[Pixels], Pixels]:
    """Encode with the embedded VAE and decode: what a generator that learnt an image by heart draws at best."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", use_safetensors=True)

    def work(pixels: Pixels) -> Pixels:
        scaled = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 127.5 - 1
        with torch.no_grad():
            decoded = vae.decode(vae.encode(scaled).latent_dist.mode()).sample[0]
        rounded: Pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return rounded

    return work


def digits(extractor: Extractor) -> tuple[Images, Images]:
    """Training and held-out digits at 32 px."""
    images, numbers = digit_images()
    pixels = [to_uint8(Image.fromarray(image).convert("RGB"), DIGIT_SIDE) for image in images]
    all_of_them = Images(pixels, [DIGIT_WORDS[number] for number in numbers], see(extractor, pixels))
    in_train = stratified_split(numbers)
    return all_of_them.take(np.flatnonzero(in_train).tolist()), all_of_them.take(np.flatnonzero(~in_train).tolist())


def folder_images(folder: Path, extractor: Extractor) -> Images:
    """A folder of class folders at 64 px."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    pixels = [to_uint8(decode(path), SIDE) for path in paths]
    return Images(pixels, [path.parent.name for path in paths], see(extractor, pixels))


def few(images: Images, shots: int | None, name: str) -> Images:
    """So many images of each class; randomness: (0, "filters " + set, class)."""
    classes = sorted(set(images.classes))
    rows: list[int] = []
    for number, folder in enumerate(classes):
        own = [row for row, found in enumerate(images.classes) if found == folder]
        order = numpy_generator(0, f"filters {name}", number).permutation(own).tolist()
        rows += sorted(order[:shots])
    return images.take(rows)


def fitted(extractor: Extractor, train: Images, held_out: Images, clip: bool) -> Judge:
    """The filters with the defaults, all of them on; agreement by CLIP if asked."""
    words = {name: name.replace("_", " ") for name in sorted(set(train.classes))}
    rows = trial_rows(len(train.pixels))
    light, strong = (see(extractor, [changed(train.pixels[row], change) for row in rows]) for change in CHANGES)
    return fit_judge(
        train=train.seen,
        train_ids=[f"train {row}" for row in range(len(train.pixels))],
        train_classes=train.classes,
        held_out=held_out.seen,
        trial_copies=(light, strong),
        class_words=words,
        copy_bits=4,
        copy_similarity=None,
        copies=True,
        repeats=True,
        colour=True,
        classifier=True,
        classifier_threshold=None,
        false_reject_rate=0.05,
        seed=0,
        clip=clip_agreement(extractor, train.seen, words, [], None) if clip else None,
    )


def refused(filters: Judge, extractor: Extractor, pixels: Sequence[Pixels], classes: Sequence[str]) -> list[list[str]]:
    """The reasons against each image, each by itself: in a slot of its own."""
    seen = see(extractor, pixels)
    candidates = [Candidate(("import", name, row), 1, name, frozenset(), row) for row, name in enumerate(classes)]
    return [verdict.reasons for verdict in judge(filters, candidates, seen)]


def share(reasons: Sequence[Sequence[str]], reason: str) -> float:
    """Share of the images against which `reason` speaks."""
    return sum(reason in said for said in reasons) / len(reasons)


def find_planted(
    filters: Judge, extractor: Extractor, train: Images, held_out: Images, unseen: Images, clip: bool
) -> dict[str, float]:
    """Share of the planted images that are found, by kind."""
    kinds = {**COPIES, "through the VAE": through_vae()} if clip else COPIES
    found: dict[str, float] = {}
    for what, originals, reason in (
        ("training", train, COPY_OF_TRAINING),
        ("held-out", held_out, COPY_OF_HELD_OUT),
    ):
        chosen = originals.take(np.linspace(0, len(originals.pixels) - 1, PLANTED).astype(int).tolist())
        for kind, change in kinds.items():
            reasons = refused(filters, extractor, [change(image) for image in chosen.pixels], chosen.classes)
            found[f"copy of a {what} image: {kind}"] = share(reasons, reason)
    names = sorted(set(train.classes))
    shifts = numpy_generator(0, "planted classes").integers(1, len(names), len(unseen.classes))
    wrong = [
        names[(names.index(name) + shift) % len(names)] for name, shift in zip(unseen.classes, shifts, strict=True)
    ]
    reasons = refused(filters, extractor, unseen.pixels, wrong)
    found["another class (classifier)"] = share(reasons, OTHER_CLASS_CLASSIFIER)
    if clip:
        found["another class (clip)"] = share(reasons, OTHER_CLASS_CLIP)
    black = np.zeros_like(train.pixels[0])
    found["black image"] = share(refused(filters, extractor, [black], names[:1]), BLANK)
    found["15 of 16 equal images"] = equal_found(filters, extractor, unseen)
    return found


def equal_found(filters: Judge, extractor: Extractor, unseen: Images) -> float:
    """Of 16 equal images for 16 slots, the share of the last 15 that is refused as repeats."""
    reasons = refused(filters, extractor, unseen.pixels, unseen.classes)
    good = next(row for row, said in enumerate(reasons) if not said)
    return share(refused(filters, extractor, [unseen.pixels[good]] * 16, [unseen.classes[good]] * 16)[1:], REPEAT)


def measure(spec: str, data: Path) -> Section:
    """False rejects and planted cases on every set that is there."""
    extractor = find_extractor(spec, "--extractor").load(torch.device("cpu"))
    sets = {"digits": digits(extractor)}
    for name in REAL_SETS:
        if (data / name).is_dir():
            sets[name] = (
                folder_images(data / name / "train", extractor),
                folder_images(data / name / "test", extractor),
            )
    wrong: dict[str, dict[str, float]] = {}
    found: dict[str, dict[str, float]] = {}
    for name, (train, test) in sets.items():
        held_out, unseen = (test.take(list(range(start, len(test.pixels), 2))) for start in (0, 1))
        for shots in SHOTS:
            case = f"{name}, {shots or 'all'}"
            some, clip = few(train, shots, name), name == "digits" and spec == "tiny"
            filters = fitted(extractor, some, held_out, clip)
            ids = [f"unseen {row}" for row in range(len(unseen.pixels))]
            wrong[case] = false_rejects(filters, unseen.seen, ids, unseen.classes)
            found[case] = find_planted(filters, extractor, some, held_out, unseen, clip)
            print(case, filters.thresholds["copy_similarity"], file=sys.stderr, flush=True)
    return Section(
        title="Filters",
        how=f"Real images that no filter was fitted on, {SIDE} px (digits {DIGIT_SIDE} px), at 3, 10 and all training "
        f"images a class, with {extractor.name}, and false_reject_rate 0.05. First the share that each filter would "
        "refuse wrongly, then the share of planted images that is found.",
        tables=(_table("refused wrongly", CHECKS, wrong), _table("planted", _kinds(found), found)),
        gates=(
            Gate("copies that are sure to be found, lowest share", _lowest_sure(found), low=LEAST_FOUND),
            Gate("black images and repeats found", _lowest(found, ("black image", "15 of 16 equal images")), low=1.0),
            Gate(
                "real images called copies, highest share",
                max(shares[COPY_OF_TRAINING] for shares in wrong.values()),
                high=MOST_FALSE_COPIES,
            ),
        ),
        notes=("Mirrored copies are not looked for: the last row of each kind says how few are found by chance.",),
    )


def _kinds(found: dict[str, dict[str, float]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind for shares in found.values() for kind in shares))


def _lowest(found: dict[str, dict[str, float]], kinds: Sequence[str]) -> float:
    return min(shares[kind] for shares in found.values() for kind in kinds)


def _lowest_sure(found: dict[str, dict[str, float]]) -> float:
    return _lowest(found, [f"copy of a {what} image: {kind}" for what in ("training", "held-out") for kind in SURE])


def _table(title: str, rows: Sequence[str], cases: dict[str, dict[str, float]]) -> Table:
    cells = ((row, *(_cell(shares.get(row)) for shares in cases.values())) for row in rows)
    return Table((title, *cases), tuple(cells))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, 1)
    options.add_argument("--extractor", default="tiny", help="as filter.extractor; tiny by default")
    options.add_argument("--data", type=Path, default=SHARED, help="folder of the real sets")
    given = options.parse_args()
    return finish(measure(given.extractor, given.data), given)


if __name__ == "__main__":
    sys.exit(main())
