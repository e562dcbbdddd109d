"""One classifier of a comparison of texts: what it is trained on, what it depends on, and the row that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvc.config_texts import MIXINGS, TextClassifySection
from mvc.progress import Meter
from mvc.storage import read_json, sha256_json, write_json

from .metrics import measure
from .text_augmented import Extra
from .text_data import Texts, few_shot
from .text_files import TextSplits
from .text_training import TextFit

RESULTS = "results"
TFIDF = "tfidf"
SHARED_SETTINGS = (
    "max_length",
    "max_train_steps",
    "train_batch_size",
    "learning_rate",
    "weight_decay",
    "evaluation_steps",
)
"""Settings that every classifier of a network depends on."""
OWN_SETTINGS = {"tmix": ("mix_alpha", "mix_layers"), "ssmix": ("span_share",)}
Predict = Callable[[Sequence[tuple[str, ...]]], Tensor]
"""Texts to (n, classes) probabilities."""


@dataclass(frozen=True, eq=False)
class TextComparison:
    """What the arms of a comparison of texts share.

    Attributes:
        run: the run folder.
        settings: section classify.
        shots: training texts of each class; None for all.
        splits: the data set.
        extras: augmentations of training texts by name, of all that any subset holds.
        shifted: augmentations of some validation texts by name, for their affinity.
        model_digest: of the pretrained model; None of tfidf.
        device: where to train.
    """

    run: Path
    settings: TextClassifySection
    shots: int | None
    splits: TextSplits
    extras: dict[str, Extra]
    shifted: dict[str, Extra]
    model_digest: str | None
    device: torch.device

    def subset(self, data_seed: int) -> Texts:
        """The real training texts of a data seed."""
        train = self.splits.train
        return train if self.shots is None else few_shot(train, self.shots, data_seed, self.splits.classes)

    def training(self, arm: str, data_seed: int) -> tuple[Texts, int]:
        """The texts that an arm trains on, the real ones first, and how many those are."""
        real = self.subset(data_seed)
        if arm not in self.extras:
            return real, len(real)
        new = self.extras[arm].of(real)
        return Texts(real.texts + new.texts, real.labels + new.labels, real.ids + new.ids), len(real)


@dataclass(frozen=True, eq=False)
class TextTask:
    """One classifier.

    Attributes:
        comparison: what all share.
        arm: its name.
        data_seed: of the few-shot subset.
        seed: model seed.
    """

    comparison: TextComparison
    arm: str
    data_seed: int
    seed: int

    @property
    def path(self) -> Path:
        """The row that it leaves."""
        return self.comparison.run / RESULTS / f"{self.arm}-data{self.data_seed}-seed{self.seed}.json"

    @cached_property
    def key(self) -> str:
        """Digest of all that its row depends on."""
        comparison, values = self.comparison, self.comparison.settings.model_dump(mode="json")
        names = () if comparison.model_digest is None else (*SHARED_SETTINGS, *OWN_SETTINGS.get(self.arm, ()))
        train, _ = comparison.training(self.arm, self.data_seed)
        facts: list[Any] = [
            self.arm if self.arm in MIXINGS else "",
            [train.texts, train.labels],
            comparison.splits.digest,
            comparison.model_digest,
            self.seed,
            {name: values[name] for name in names},
        ]
        if self.arm == "real":
            facts.append({name: extra.key for name, extra in comparison.shifted.items()})
        return sha256_json(facts)

    def row(self) -> dict[str, Any] | None:
        """What is known of it, if it was made from the same texts and settings."""
        row = dict(read_json(self.path)) if self.path.exists() else {}
        return row if row.get("key") == self.key else None

    def make(self, shown: Meter) -> None:
        """Train, judge and write the row; the weights are not kept.

        Test texts are judged here and looked at by nothing that chooses: validation texts alone choose weights and arm.
        """
        comparison, start = self.comparison, time.monotonic()
        train, real = comparison.training(self.arm, self.data_seed)
        fit, predict = self._fit(train, shown)
        test = comparison.splits.test
        labels, said = torch.tensor(test.labels), predict(test.texts)
        row: dict[str, Any] = {
            "key": self.key,
            "arm": self.arm,
            "data_seed": self.data_seed,
            "seed": self.seed,
            "real_texts": real,
            "new_texts": len(train) - real,
            "best_step": fit.best_step,
            "validation_accuracy": fit.validation_accuracy,
            "curve": fit.curve,
            "diversity": fit.diversity,
            "texts_cut": fit.cut,
            "test": measure(said, labels, comparison.splits.classes),
            "test_correct": (said.argmax(dim=1) == labels).int().tolist(),
            "test_labels": test.labels,
        }
        if self.arm == "real":
            row["affinity"] = {name: self._affinity(extra, predict) for name, extra in comparison.shifted.items()}
        write_json(self.path, {**row, "seconds": round(time.monotonic() - start, 2)})

    def _affinity(self, extra: Extra, predict: Predict) -> float | None:
        """Accuracy on augmented validation texts less that on the same ones as they are (Back-Modality, Sec. 3.5)."""
        new = extra.of(self.comparison.splits.validation, most=1)
        if not len(new):
            return None
        place = {own: row for row, own in enumerate(self.comparison.splits.validation.ids)}
        clean = self.comparison.splits.validation.rows([place[own] for own in new.ids])
        return _accuracy(predict(new.texts), new.labels) - _accuracy(predict(clean.texts), clean.labels)

    def _fit(self, train: Texts, shown: Meter) -> tuple[TextFit, Predict]:
        comparison, settings = self.comparison, self.comparison.settings
        validation, classes = comparison.splits.validation, comparison.splits.classes
        if comparison.model_digest is None:
            from .text_tfidf import predict_tfidf, train_tfidf

            model, linear_fit = train_tfidf(train, validation, len(classes), self.arm)
            shown.advance(settings.max_train_steps)
            return linear_fit, partial(predict_tfidf, model)
        from .text_mixing import loss_of
        from .text_networks import load_classifier
        from .text_training import predict, train_text_classifier

        tokenizer, network = load_classifier(settings.model, settings.revision, classes, self.seed, comparison.device)
        loss = loss_of(
            self.arm,
            network,
            seed=self.seed,
            mix_alpha=settings.mix_alpha,
            mix_layers=settings.mix_layers,
            span_share=settings.span_share,
        )
        fit = train_text_classifier(
            network,
            tokenizer,
            train,
            validation,
            steps=settings.max_train_steps,
            batch_size=settings.train_batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            evaluation_steps=settings.evaluation_steps,
            evaluation_batch_size=settings.evaluation_batch_size,
            max_length=settings.max_length,
            seed=self.seed,
            loss=loss,
            on_step=lambda done: shown.advance(note=self.arm),
        )
        judge = partial(
            predict,
            network,
            tokenizer,
            batch_size=settings.evaluation_batch_size,
            max_length=settings.max_length,
            device=comparison.device,
        )
        return fit, judge


def _accuracy(probabilities: Tensor, labels: Sequence[int]) -> float:
    return (probabilities.argmax(dim=1) == torch.tensor(labels)).double().mean().item()


def tasks_of(comparison: TextComparison, data_seeds: Sequence[int]) -> list[TextTask]:
    """All classifiers, data seed by data seed and model seed by model seed, so that a stopped run has whole rows."""
    return [
        TextTask(comparison, arm, data_seed, seed)
        for data_seed in data_seeds
        for seed in comparison.settings.seed_list
        for arm in comparison.settings.arms
    ]
