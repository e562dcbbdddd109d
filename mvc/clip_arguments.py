"""What `mvc clip` was given, a file or run folder, the place of the pairs and overrides, as one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvc.arguments import absolute
from mvc.config_clip import ClipExperiment
from mvc.kinds import Kind, resolve_kind

RECORD = "clip.json"
"""File that a run folder of this kind has."""
CLIPS = Kind(
    command="clip",
    schema=ClipExperiment,
    record=RECORD,
    folders="a folder of captioned images",
    lacking="write `mvc clip --data FOLDER`, a folder of images with metadata.jsonl, or another form of pairs",
)


def resolve_clip(arguments: Sequence[str], data: str | None = None) -> ClipExperiment:
    """Make the experiment that a command line describes; as `kinds.resolve_kind`."""
    experiment = resolve_kind(CLIPS, arguments, data)
    pairs, model, evaluate = experiment.data, experiment.model, experiment.evaluate
    # Patterns too, which no file is called by.
    places = {"path": str(Path(pairs.path).resolve()), "image_root": absolute(pairs.image_root)}
    return experiment.model_copy(
        update={
            "data": pairs.model_copy(update=places),
            "model": model.model_copy(
                update={"name": absolute(model.name, ("tiny",)), "weights": absolute(model.weights)}
            ),
            "evaluate": evaluate.model_copy(update={"classes": absolute(evaluate.classes)}),
        }
    )
