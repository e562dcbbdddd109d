"""Modality translation and paired-data synthesis: images of texts, captions of images, as a folder of pairs.

The glossaries of cross-modal and of multimodal data augmentation, "Modality Translation" and "Paired Data Synthesis".
The models are the F and G of Back-Modality (Li et al. 2023, Sec. 2): a text-to-image model makes an image of each text,
a captioner a caption of each image, and cycle consistency can throw out what the models got wrong.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image

from mvc.errors import ConfigError, DataError
from mvc.modality.nodes import Level, Nodes, Sample
from mvc.modality.steps import Output, Step
from mvc.modality.store import Store, digest_of
from mvc.progress import meter
from mvc.storage import publish_folder, write_bytes, write_json_lines

from .cycle import Closeness, ImageText, score_pairs

METADATA = "metadata.jsonl"
SPLIT = "train"
"""Folder of the images and of METADATA, below the one that is published."""
REPEAT, NOT_CLOSE = "same as another caption of the image", "did not come back close enough"
_TOGETHER = 64
"""Samples that are looked at together; bounds the memory."""


@dataclass(frozen=True)
class CycleCheck:
    """What a made half has to pass: taken back, it must be close to what it was made of.

    Attributes:
        step: the way back, from the modality that is made to that of the samples.
        closeness: of the modality of the samples.
        least: smallest closeness that passes.
        returns: how often the way back is taken; its mean closeness counts.

    Raises:
        ValueError: least is no finite number, which nothing or all would pass.
    """

    step: Step
    closeness: Closeness
    least: float
    returns: int = 1

    def __post_init__(self) -> None:
        if not isfinite(self.least):
            raise ValueError(f"least {self.least} is no finite number")


@dataclass(frozen=True)
class NewPair:
    """An image with what is said of it, one of the two made of the other.

    Attributes:
        name: of its file without the ending: "text-000007-0" is the first image of text 7, "image-000007" image 7.
        image: RGB.
        captions: one or more.
        provenance: JSON values: what made it of what, from which seed, and how it came back. All pairs of a synthesis
            have the same keys.
    """

    name: str
    image: Image.Image
    captions: list[str]
    provenance: dict[str, Any]


@dataclass
class Totals:
    """Counts over a synthesis.

    Attributes:
        samples: samples in.
        made: images or captions that were asked for.
        dropped: of those, by what spoke against them.
        pairs: rows out.
    """

    samples: int = 0
    made: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    pairs: int = 0


@dataclass(frozen=True)
class _Made:
    """A new half: the number of its draw, its value, and what a check found."""

    number: int
    value: Any
    score: float | None = None
    came_back: tuple[str, ...] = ()


def translate(samples: Sequence[Sample], step: Step, count: int, seed: int, store: Store) -> list[list[Output | str]]:
    """Take samples to another modality, `count` times each.

    Args:
        samples: items of the modality that the step takes; no two of one index and part.
        step: such as a captioner or a text-to-image model.
        count: outputs of each, 1 or more; 1 for a step that draws nothing.
        seed: randomness from (seed, "back-modality" and the part, index, 0, number, 1).
        store: where outputs are looked up and kept.

    Returns:
        for each sample `count` outputs, or in words why there is none.

    Raises:
        ConfigError: several outputs of a step that draws nothing.
        EnvironmentFault: the step lacks what it needs.
        Stopped: a signal asked for a stop; finished batches are in the store.
    """
    if count < 1 or (count > 1 and not step.random):
        raise ConfigError(
            f"{count} outputs of each are wanted of {step.name}",
            why="it makes the same of an item every time" if count > 1 else "that is nothing",
            do="ask for 1",
        )
    nodes = Nodes([Level(step, count)], seed, store)
    numbers = range(count)
    nodes.fill([(sample, (number,)) for sample in samples for number in numbers])
    found = [[nodes.of(sample, (number,)) for number in numbers] for sample in samples]
    return [[one if isinstance(one, Output) else one.why for one in row] for row in found]


def synthesise(
    samples: Sequence[Sample],
    step: Step,
    count: int,
    seed: int,
    store: Store,
    check: CycleCheck | None = None,
    totals: Totals | None = None,
) -> Iterator[NewPair]:
    """Make pairs of samples that lack their other half, one sample after the other.

    Of a text come up to `count` pairs, each with an image of its own; of an image comes one pair with up to `count`
    captions, of which no two are the same. A pair depends on the seed and its own sample alone.

    Args:
        samples: texts or RGB images, by what the step takes. No two of one index; parts are not used.
        step: text -> image or image -> text.
        count: images of each text, or captions of each image.
        seed: randomness as in `translate` and, for the check, as in `mvc.multimodal.cycle.score_pairs`.
        store: where outputs are kept; with the same one, a killed synthesis goes on where it was.
        check: what a new half has to pass; None takes all.
        totals: counted up.

    Raises:
        ConfigError: the steps are no such steps, or do not lead back.
        DataError: a sample is no text or RGB image, or an index is there twice; names it.
        EnvironmentFault, Stopped: as `translate`.
    """
    _require_steps(step, check)
    _require_samples(samples, step)
    counted = Totals() if totals is None else totals
    for start in range(0, len(samples), _TOGETHER):
        some = [Sample(sample.index, sample.item) for sample in samples[start : start + _TOGETHER]]
        made = _made(some, translate(some, step, count, seed, store), counted)
        if check is not None:
            made = _checked(some, made, step, check, seed, store, counted)
        for sample, own in zip(some, made, strict=True):
            pairs = _pairs(sample, own, step, check, seed)
            counted.samples += 1
            counted.pairs += len(pairs)
            yield from pairs


def write_synthesis(
    target: Path,
    samples: Sequence[Sample],
    step: Step,
    count: int,
    seed: int,
    store: Store,
    check: CycleCheck | None = None,
) -> Totals:
    """Make pairs and publish them as an imagefolder of Hugging Face, whole or not at all.

    target/train holds the images as PNG and metadata.jsonl, a row each: file_name, captions (a list), provenance.
    target/manifest.json holds the counts and the sha256 of each file. `datasets.load_dataset("imagefolder",
    data_dir=target)` opens it. Equal arguments give equal bytes.

    Args:
        target: a folder that is new or empty.
        samples, step, count, seed, store, check: as in `synthesise`.

    Returns:
        the counts.

    Raises:
        ConfigError: the target is not empty, or as `synthesise`.
        DataError: no pair came out, with what spoke against them; or as `synthesise`.
        EnvironmentFault: the place cannot be written, or a step lacks what it needs; nothing of the folder stays.
        Stopped: a signal asked for a stop; nothing of the folder stays, and finished batches are in the store.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not empty", why="nothing there is overwritten", do="give a new folder")
    totals, rows, facts = Totals(), list[dict[str, Any]](), dict[str, Any]()
    with publish_folder(target, facts) as folder, meter("synthesis", len(samples), "samples") as shown:
        for pair in synthesise(samples, step, count, seed, store, check, totals):
            buffer = io.BytesIO()
            pair.image.save(buffer, "PNG")
            write_bytes(folder / SPLIT / f"{pair.name}.png", buffer.getvalue())
            rows.append({"file_name": f"{pair.name}.png", "captions": pair.captions, "provenance": pair.provenance})
            shown.advance(totals.samples - shown.done)
        if not rows:
            reasons = ", ".join(f"{number} x {why}" for why, number in totals.dropped.items())
            raise DataError(f"no pair came of {len(samples)} samples", why=reasons, do="look at the samples")
        write_json_lines(folder / SPLIT / METADATA, rows)
        # Known only now; the manifest is written when this block is left.
        facts |= {"kind": "synthesised pairs", "samples": totals.samples, "made": totals.made, "pairs": totals.pairs}
        facts |= {"dropped": dict(sorted(totals.dropped.items())), "step": step.name, "seed": seed}
    return totals


def _made(samples: Sequence[Sample], found: Sequence[Sequence[Output | str]], totals: Totals) -> list[list[_Made]]:
    """The outputs without those that are none and without repeated captions, which are counted."""
    made = []
    for row in found:
        own: list[_Made] = []
        for number, one in enumerate(row):
            totals.made += 1
            if isinstance(one, str):
                totals.dropped[one] += 1
            elif isinstance(one.value, str) and any(one.value == other.value for other in own):
                totals.dropped[REPEAT] += 1
            else:
                own.append(_Made(number, one.value))
        made.append(own)
    return made


def _checked(
    samples: Sequence[Sample],
    made: Sequence[Sequence[_Made]],
    step: Step,
    check: CycleCheck,
    seed: int,
    store: Store,
    totals: Totals,
) -> list[list[_Made]]:
    """Those that come back close, with their scores; all of them go back in shared batches."""
    pairs = []
    for sample, own in zip(samples, made, strict=True):
        for one in own:
            image, text = (one.value, sample.item) if step.gives == "image" else (sample.item, one.value)
            pairs.append(ImageText(sample.index, image, text, f"{one.number}"))
    scores = iter(score_pairs(pairs, check.step, check.closeness, seed, store, check.returns))
    passed = []
    for own in made:
        kept = []
        for one in own:
            scored = next(scores)
            if scored.score is None or scored.score < check.least:
                totals.dropped[NOT_CLOSE] += 1
                continue
            back = tuple(str(way.get("text", way.get("file", ""))) for way in scored.provenance["came_back"])
            kept.append(_Made(one.number, one.value, scored.score, back))
        passed.append(kept)
    return passed


def _pairs(sample: Sample, made: Sequence[_Made], step: Step, check: CycleCheck | None, seed: int) -> list[NewPair]:
    """The pairs of one sample."""
    if step.gives == "image":
        return [
            NewPair(
                f"text-{sample.index:06d}-{one.number}",
                one.value,
                [sample.item],
                _provenance(sample, [one], step, check, seed),
            )
            for one in made
        ]
    captions = [str(one.value) for one in made]
    provenance = _provenance(sample, made, step, check, seed)
    return [NewPair(f"image-{sample.index:06d}", sample.item, captions, provenance)] if made else []


def _provenance(
    sample: Sample, made: Sequence[_Made], step: Step, check: CycleCheck | None, seed: int
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": "text to image" if step.gives == "image" else "image to text",
        "step": step.name,
        "identity": step.identity,
        "seed": seed,
        "sample": sample.index,
        "source_sha256": digest_of(sample.item),
        "branches": [one.number for one in made],
    }
    if check is not None:
        found["cycle"] = {
            "step": check.step.name,
            "identity": check.step.identity,
            "closeness": check.closeness.name,
            "least": check.least,
            "scores": [one.score for one in made],
            "came_back": [list(one.came_back) for one in made],
        }
    return found


def _require_steps(step: Step, check: CycleCheck | None) -> None:
    if (step.takes, step.gives) not in (("text", "image"), ("image", "text")):
        raise ConfigError(
            f"{step.name} makes {step.gives} of {step.takes}",
            why="a pair is an image and a text",
            do="give a captioner or a text-to-image model",
        )
    if check is not None and (check.step.takes, check.step.gives) != (step.gives, step.takes):
        raise ConfigError(
            f"{check.step.name} makes {check.step.gives} of {check.step.takes}, which does not lead back",
            why=f"{step.name} makes {step.gives} of {step.takes}",
            do=f"check with a step that makes {step.takes} of {step.gives}",
        )


def _require_samples(samples: Sequence[Sample], step: Step) -> None:
    seen: set[int] = set()
    for sample in samples:
        if sample.index < 0 or sample.index in seen:
            raise DataError(
                f"the index {sample.index} is there twice or below 0", do="number the samples of a set from 0"
            )
        seen.add(sample.index)
        item = sample.item
        if step.takes == "text" and not isinstance(item, str):
            raise DataError(f"sample {sample.index} is a {type(item).__name__}", do="give texts, which are to be drawn")
        if step.takes == "image" and not (isinstance(item, Image.Image) and item.mode == "RGB"):
            what = f"an image of mode {item.mode}" if isinstance(item, Image.Image) else f"a {type(item).__name__}"
            raise DataError(f"sample {sample.index} is {what}", do="give RGB images, which are to be captioned")
