"""One CLIP of a comparison: what it depends on, where it lies, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from mvc.clip.configurations import find_clip, scaling_beside
from mvc.config_clip import MIXGENS, ClipExperiment, techniques_of
from mvc.errors import EnvironmentFault
from mvc.storage import read_json, sha256_file, sha256_json, verified_manifest

from .clip_data import ClipData
from .clip_evaluation import ClassFolders

RESULTS, MODELS, CHECKPOINTS = "results", "models", "checkpoints"
_FREE = ("arms", "seeds", "micro_batch_size", "num_workers", "checkpointing_steps", "checkpoints_total_limit")
"""Keys of section train that change no more than the last bits of a trained model."""
_SETTINGS = {
    **dict.fromkeys(MIXGENS, ("mixgen_share", "mixgen_mix")),
    "mixup": ("mixup_alpha",),
    "interpolation": ("interpolation_share",),
    "synchronised": ("flip", "degrees"),
    "policy": ("operations", "magnitude"),
    "consistency": ("consistency_weight",),
    "hard_negatives": ("negatives", "mining_steps"),
}
"""Settings that each technique depends on, so that changing one repeats no more than it must."""


def model_of(experiment: ClipExperiment) -> str:
    """What model.name stands for: itself, or the configuration that comes with the package."""
    name = experiment.model.name
    return str(Path(str(files("mvc.clip"))) / "tiny.json") if name == "tiny" else name


def start_of(experiment: ClipExperiment) -> str:
    """Identity of the model to begin with; without weights, of its configuration.

    Raises:
        ConfigError, EnvironmentFault, DataError: as `find_clip`.
    """
    found = find_clip(model_of(experiment), experiment.model.revision)
    if experiment.model.weights is None:
        return sha256_json([found.config, None if found.weights is None else sha256_file(found.weights)])
    weights = Path(experiment.model.weights).expanduser()
    if not weights.is_file():
        raise EnvironmentFault(f"model.weights: there is no file {weights}", do="give a safetensors file")
    return sha256_json([found.config, scaling_beside(weights), sha256_file(weights)])


def has_weights(experiment: ClipExperiment) -> bool:
    """Whether the model to begin with is trained; without weights they are random, by the model seed."""
    model = experiment.model
    return model.weights is not None or find_clip(model_of(experiment), model.revision).weights is not None


@dataclass(frozen=True)
class ClipTask:
    """One CLIP to train.

    Attributes:
        run: the run folder.
        experiment: what it is trained by.
        data: the pairs.
        start: `start_of` the experiment.
        folders: images to classify without training; None measures no classification.
        arm: its arm.
        seed: model seed.
    """

    run: Path
    experiment: ClipExperiment
    data: ClipData
    start: str
    folders: ClassFolders | None
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm.replace('+', '-and-')}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """The row that it leaves."""
        return self.run / RESULTS / f"{self.name}.json"

    @property
    def beginning(self) -> tuple[str, str | None, str | None]:
        """Model, weights and revision to begin with."""
        return model_of(self.experiment), self.experiment.model.weights, self.experiment.model.revision

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Flat JSON values that the trained model depends on."""
        own = self.experiment.techniques.model_dump(mode="json")
        train = self.experiment.train.model_dump(mode="json", exclude=set(_FREE))
        return {
            "arm": self.arm,
            "seed": self.seed,
            "model": self.start,
            "pairs": self.data.trained_on,
            **{f"train.{key}": value for key, value in train.items()},
            **{f"techniques.{key}": own[key] for name in techniques_of(self.arm) for key in _SETTINGS[name]},
        }

    @cached_property
    def key(self) -> str:
        """Digest of all that its row depends on."""
        folders = self.folders
        zero_shot = None if folders is None else [folders.digest, self.experiment.evaluate.templates]
        return sha256_json([self.settings, self.data.test.digest, zero_shot])

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints while it is trained."""
        return self.run / CHECKPOINTS / self.name

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.run / MODELS / self.name

    def row(self) -> dict[str, Any] | None:
        """What was measured of it, if it was made from the same pairs and settings."""
        row = self._known()
        return row if row.get("key") == self.key else None

    def trained(self) -> dict[str, Any] | None:
        """Its row if its model is there, made from the same pairs and settings, whatever was measured of it."""
        row, manifest = self._known(), verified_manifest(self.model)
        same = row.get("trained_from") == sha256_json(self.settings)
        return row if same and manifest is not None and manifest.get("identity") == row.get("identity") else None

    def _known(self) -> dict[str, Any]:
        return dict(read_json(self.path)) if self.path.exists() else {}
