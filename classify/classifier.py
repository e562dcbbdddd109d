"""The classifier to use: weights and a description that outlive the comparison, and the way to load them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from mvc.errors import DataError
from mvc.storage import publish_folder, read_json, verified_manifest, write_json

from .comparison import Comparison
from .networks import restore_network
from .training import WEIGHTS, Task

FOLDER = "classifier"
DESCRIPTION = "classifier.json"


def publish_classifier(comparison: Comparison, task: Task) -> None:
    """Copy a trained classifier to the results, with all that is needed to load it.

    Args:
        comparison: that it is of.
        task: the classifier, trained.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    facts: dict[str, Any] = {
        "backbone": comparison.backbone,
        "classes": comparison.classes,
        "image_size": comparison.image_size,
        "background": comparison.test.background,
        "arm": task.arm.name,
        "seed": task.seed,
        "validation_accuracy": task.row()["validation_accuracy"],
    }
    if comparison.captions is not None:
        from mvc.clip.configurations import find_clip

        facts["clip"] = {"config": find_clip(str(comparison.settings.clip)).config, "captions": comparison.captions}
    with publish_folder(comparison.folder / FOLDER, {"key": task.key}) as temporary:
        shutil.copyfile(task.folder / WEIGHTS, temporary / WEIGHTS)
        write_json(temporary / DESCRIPTION, facts)


def load_classifier(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a published classifier.

    Args:
        folder: results/classifier of a run.

    Returns:
        The network on the CPU in evaluation mode, which takes (B, 3, S, S) float32 in [0, 1] and returns (B, classes)
        logits, and its description: classes, image_size and so on.

    Raises:
        DataError: the folder is missing or damaged.
    """
    if verified_manifest(folder) is None:
        raise DataError(f"{folder} holds no whole classifier", do="run `mvc classify`")
    facts = dict(read_json(folder / DESCRIPTION))
    state = load_file(folder / WEIGHTS)
    if "clip" in facts:
        from .clip_classifier import restore_clip

        return restore_clip(facts["clip"]["config"], facts["clip"]["captions"], state).eval(), facts
    network = restore_network(facts["backbone"], len(facts["classes"]), int(facts["image_size"]), state)
    return network.eval(), facts
