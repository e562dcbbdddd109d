"""Judge a run's pool: fit the filters on its real images once, then say of every candidate what speaks against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mvc.candidates import Pool, find_image
from mvc.config import Experiment
from mvc.config_generation import SOURCES, FilterSection
from mvc.dataset import Dataset, ImageRecord
from mvc.devices import pick_device
from mvc.errors import DataError
from mvc.extractors import Extractor, FoundExtractor, find_extractor
from mvc.features import CHANGES, FOLDER, Change, Seen, look
from mvc.progress import say
from mvc.synthetic import Candidate
from mvc.walk import printable

from .agreement import ClipAgreement, clip_agreement
from .copies import trial_rows
from .jobs import Slot
from .judge import Candidate as JudgedCandidate
from .judge import Judge, Judged, false_rejects, fit_judge, judge


@dataclass(frozen=True)
class Looker:
    """Looks at images through an extractor, by way of the run's cache.

    Attributes:
        run: the run folder.
        device: where features are computed.
        dataset: the real images.
        image_size: side in pixels that real images are brought to.
        background: colour behind transparent pixels.
        loaded: networks by identity, until `release`.
    """

    run: Path
    device: torch.device
    dataset: Dataset
    image_size: int
    background: str
    loaded: dict[str, Extractor] = field(default_factory=dict)

    def load(self, extractor: FoundExtractor) -> Extractor:
        """The network, loaded once until `release`."""
        if extractor.identity not in self.loaded:
            self.loaded[extractor.identity] = extractor.load(self.device)
        return self.loaded[extractor.identity]

    def release(self) -> None:
        """Let go of the networks: where images are drawn they would take the room of a larger batch."""
        self.loaded.clear()

    def at_real(self, extractor: FoundExtractor, records: Sequence[ImageRecord], change: Change = "") -> Seen:
        """What is seen of real images."""
        images = [(record.sha256, self.dataset.image_path(record)) for record in records]
        return self._look(extractor, images, self.image_size, change)

    def at_drawn(self, extractor: FoundExtractor, images: Sequence[tuple[str, Path]]) -> Seen:
        """What is seen of drawn images, given by sha256 and file."""
        return self._look(extractor, images, None, "")

    def _look(
        self, extractor: FoundExtractor, images: Sequence[tuple[str, Path]], size: int | None, change: Change
    ) -> Seen:
        load = partial(self.load, extractor)
        return look(self.run / FOLDER, images, size, self.background, extractor.identity, load, change)


@dataclass(frozen=True)
class Judging:
    """Filters that are fitted to a run's real images.

    Attributes:
        looker: looks at images.
        fitted: thresholds and references.
        extractor: what likeness is judged by.
        clip: what class agreement is judged by; None without that filter.
        dataset: the real images.
    """

    looker: Looker
    fitted: Judge
    extractor: FoundExtractor
    clip: FoundExtractor | None
    dataset: Dataset

    def false_rejects(self) -> dict[str, float]:
        """Share of the validation images, which are real, that each filter would refuse."""
        records = self.dataset.split("validation")
        seen = self.looker.at_real(self.extractor, records)
        clip = None if self.clip is None else self.looker.at_real(self.clip, records)
        ids = [record.id for record in records]
        return false_rejects(self.fitted, seen, ids, [record.class_name for record in records], clip)


def prepare_judging(run: Path, experiment: Experiment, dataset: Dataset, image_size: int) -> Judging:
    """Look at the real images and fit the filters to them; no network stays loaded.

    Args:
        run: the run folder.
        experiment: sections run, data and filter are used.
        dataset: of the run.
        image_size: side in pixels of the synthetic images.

    Raises:
        ConfigError: an extractor is not known, or a filter cannot be fitted to so few images.
        EnvironmentFault: an extractor's weights are missing or damaged.
        DataError: a real image cannot be decoded.
        Stopped: a signal asked for a stop; what was seen is kept.
    """
    settings, device = experiment.filter, pick_device(experiment.run.device)
    extractor = find_extractor(settings.extractor, "filter.extractor")
    clip = None if settings.clip is None else find_extractor(settings.clip, "filter.clip")
    looker = Looker(run, device, dataset, image_size, experiment.data.background)
    train = dataset.split("train")
    held_out = [*dataset.split("validation"), *dataset.split("test")]
    present = {record.class_name for record in train}
    words = {name: word for name, word in zip(dataset.classes, dataset.words, strict=True) if name in present}
    on_trial = [train[row] for row in trial_rows(len(train))]
    light, strong = (looker.at_real(extractor, on_trial, change) for change in CHANGES)
    fitted = fit_judge(
        train=looker.at_real(extractor, train),
        train_ids=[record.id for record in train],
        train_classes=[record.class_name for record in train],
        held_out=looker.at_real(extractor, held_out),
        trial_copies=(light, strong),
        class_words=words,
        copy_bits=settings.copy_bits,
        copy_similarity=settings.copy_similarity,
        copies=settings.copies,
        repeats=settings.repeats,
        colour=settings.colour,
        classifier=settings.classifier and _can_be_learnt(train),
        classifier_threshold=settings.classifier_threshold,
        false_reject_rate=settings.false_reject_rate,
        seed=experiment.run.seed,
        clip=None if clip is None else _agreement(looker, clip, settings, train, words),
    )
    looker.release()
    return Judging(looker, fitted, extractor, clip, dataset)


def _can_be_learnt(train: Sequence[ImageRecord]) -> bool:
    """Whether a classifier can be fitted; without two classes, or two images of each, the others have to do."""
    counts = Counter(record.class_name for record in train)
    few = sorted(name for name, count in counts.items() if count < 2)
    if not few and len(counts) > 1:
        return True
    why = f"class {printable(few[0])} has one training image" if few else "there is one class"
    say(f"filter: {why}, so no classifier judges whether images show their class (filter.clip could)")
    return False


def _agreement(
    looker: Looker,
    clip: FoundExtractor,
    settings: FilterSection,
    train: Sequence[ImageRecord],
    words: Mapping[str, str],
) -> ClipAgreement:
    seen = looker.at_real(clip, train)
    return clip_agreement(looker.load(clip), seen, words, settings.negative_prompts, settings.clip_threshold)


def judging_order(row: Candidate) -> tuple[int, int, int, str]:
    """Sorting key of candidates: first attempts first, so that a later draw changes nothing said of an earlier one."""
    return row["attempt"], SOURCES.index(row["source"]), row["index"], row["class_name"]


def slot_of(row: Candidate) -> Slot:
    """What a candidate was drawn for."""
    return row["source"], row["class_name"], row["index"]


def judge_pool(judging: Judging, pool: Pool, rows: Iterable[Candidate]) -> dict[str, Judged]:
    """What the filters say of each candidate, by file name.

    Args:
        judging: the fitted filters.
        pool: where the images are.
        rows: all candidates.

    Raises:
        DataError: an image is gone or cannot be decoded.
    """
    ordered = sorted(rows, key=judging_order)
    images: list[tuple[str, Path]] = []
    candidates = []
    for row in ordered:
        number = None
        if row["sha256"] is not None:
            path = find_image(pool, row["file_name"])
            if path is None:
                raise DataError(f"{pool.accepted / row['file_name']} is missing", do="run `mvc generate` again")
            number = len(images)
            images.append((row["sha256"], path))
        parents = [row["source_image"], row["caption_base"], *row["caption_partners"]]
        known = frozenset(name for name in parents if name is not None)
        candidates.append(JudgedCandidate(slot_of(row), row["attempt"], row["class_name"], known, number))
    seen = judging.looker.at_drawn(judging.extractor, images)
    clip = None if judging.clip is None else judging.looker.at_drawn(judging.clip, images)
    judging.looker.release()
    said = judge(judging.fitted, candidates, seen, clip)
    return {row["file_name"]: verdict for row, verdict in zip(ordered, said, strict=True)}


def accepted_slots(rows: Iterable[Candidate], said: Mapping[str, Judged]) -> dict[Slot, str]:
    """File name of the accepted candidate of each slot that has one."""
    return {slot_of(row): row["file_name"] for row in rows if not said[row["file_name"]].reasons}


def verdict_facts(verdict: Judged) -> dict[str, Any]:
    """The part of a row that the filters write."""
    return {"scores": verdict.scores, "accepted": not verdict.reasons, "reasons": verdict.reasons}
