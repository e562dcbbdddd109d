"""The experiment of `mvc texts`: classifiers of texts, with and without augmented texts."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from mvc.config import RunSection
from mvc.config_augment import AugmentSection
from mvc.config_types import Count, Positive, Rate, Section, Seeds, seed_list

MIXINGS = ("tmix", "ssmix")
"""Augmentations that mix two texts within a network, while it is trained."""


class TextDataSection(Section):
    """Labelled texts, or pairs of texts: a folder with a file for each split."""

    path: str = ""
    """Folder with train, validation (or dev) and test as .csv, .tsv or .jsonl; `--data` sets it."""
    text_columns: Annotated[list[str], Field(min_length=1, max_length=2)] = ["text"]
    """Columns of the text, or of the two texts that are classified together."""
    label_column: str = "label"
    """Column of the class."""
    shots: Positive | None = None
    """Training texts of each class (few-shot); all when absent."""
    seed: Count = 0
    """Seed of the first few-shot subset."""
    seeds: Positive = 1
    """How many subsets: data.seed and the next ones."""


class TextClassifySection(Section):
    """The comparison: every arm the same number of optimisation steps."""

    arms: list[str] = ["real"]
    """real: the real texts alone; tmix, ssmix: mixed while training; else a name of section augmentations."""
    seeds: Seeds = 3
    """How many model seeds (counted from 0), or which."""
    model: str = "tfidf"
    """`tfidf` (a linear model of word counts, anywhere in seconds), or a BERT and its like by folder or id."""
    revision: str | None = None
    """Revision of a hub id."""
    max_length: Positive = 128
    """Longest text, or pair, in tokens; longer ones lose their end."""
    max_train_steps: Positive = 300
    """Optimisation steps of every arm."""
    train_batch_size: Positive = 2
    """Texts a step."""
    learning_rate: Rate = 5e-5
    """Of AdamW, constant."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Of AdamW."""
    evaluation_steps: Positive = 60
    """Validation every so many steps; the best weights are kept."""
    evaluation_batch_size: Positive = 32
    """Texts judged at once."""
    mix_alpha: Rate = 0.2
    """tmix: both parameters of the beta law that the share of the other text is drawn from."""
    mix_layers: list[Positive] = []
    """tmix: layers, counted from 1, after which texts are mixed, one drawn a step; the upper half when empty."""
    span_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """ssmix: share of a text that the other text's span replaces."""
    affinity_texts: Count = 100
    """Validation texts that are augmented to measure an augmentation's affinity; 0 measures none."""
    jobs: Positive = 1
    """Classifiers trained at once, each by a process of its own."""

    @field_validator("arms")
    @classmethod
    def _has_real(cls, value: list[str]) -> list[str]:
        if "real" not in value or len(set(value)) != len(value):
            raise ValueError("arms must hold 'real' (every comparison is against it) and each arm once")
        return value

    @property
    def seed_list(self) -> list[int]:
        """The model seeds as a list."""
        return seed_list(self.seeds)


class TextExperiment(Section):
    """One experiment with texts: everything that it depends on."""

    run: RunSection = RunSection()
    data: TextDataSection = TextDataSection()
    augmentations: dict[str, AugmentSection] = {}
    """Augmentations by name; each is an arm of the comparison if classify.arms names it."""
    classify: TextClassifySection = TextClassifySection()

    @model_validator(mode="after")
    def _arms_are_known(self) -> Self:
        for name in self.augmentations:
            if name in ("real", *MIXINGS) or not name.isidentifier():
                raise ValueError(f"an augmentation cannot be called '{name}'; use letters, digits and _")
        known = ("real", *MIXINGS, *self.augmentations)
        unknown = [arm for arm in self.classify.arms if arm not in known]
        if unknown:
            raise ValueError(f"classify.arms names {', '.join(unknown)}; known are {', '.join(known)}")
        return self
