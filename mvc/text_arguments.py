"""What `mvc texts` was given, an experiment file or run folder, a data folder and overrides, as one experiment."""

from __future__ import annotations

from collections.abc import Sequence

from mvc.arguments import absolute
from mvc.config_augment import AugmentSection
from mvc.config_texts import TextExperiment
from mvc.kinds import Kind, resolve_kind

RECORD = "texts.json"
"""File that a run folder of texts has."""
TEXTS = Kind(
    command="texts",
    schema=TextExperiment,
    record=RECORD,
    folders="a folder of tables",
    lacking="write `mvc texts --data FOLDER`, a folder with train.csv, test.csv and so on",
)
BUILT_IN = ("flite", "pocketsphinx", "tiny", "tfidf")
"""Names that are no places, even where a file is called so."""
PLACES = {
    "eda": ("synonyms",),
    "speech": ("speaker", "voice", "vocoder", "listener"),
    "imagination": ("model", "captioner"),
    "translation": ("forth", "back"),
    "language_model": ("model",),
}
"""Keys that may name a folder or file, by section."""


def resolve_texts(arguments: Sequence[str], data: str | None = None) -> TextExperiment:
    """Make the experiment that a command line describes; as `kinds.resolve_kind`."""
    experiment = resolve_kind(TEXTS, arguments, data)
    augmentations = {name: _augmentation(own) for name, own in experiment.augmentations.items()}
    path, model = absolute(experiment.data.path), absolute(experiment.classify.model, BUILT_IN)
    return experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"path": path}),
            "augmentations": augmentations,
            "classify": experiment.classify.model_copy(update={"model": model}),
        }
    )


def _augmentation(own: AugmentSection) -> AugmentSection:
    sections = {}
    for name, keys in PLACES.items():
        section = getattr(own, name)
        changed = {key: absolute(getattr(section, key), BUILT_IN) for key in keys}
        sections[name] = section.model_copy(update=changed)
    return own.model_copy(update=sections)
