"""Train one classifier of a comparison, and keep its weights with what validation says of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from mvc import processes
from mvc.arms import Arm
from mvc.progress import Meter
from mvc.stopping import flag
from mvc.storage import publish_folder, read_json, verified_manifest, write_json

from . import parallel
from .augment import augmentation
from .batches import batch_maker
from .comparison import CACHE, Comparison
from .loop import fit, learning_rates, probabilities
from .metrics import measure
from .mixing import mixer
from .networks import build_network
from .strategies import Mix, phase_steps, seen
from .targets import class_weights

FOLDER = f"{CACHE}/classifiers"
WEIGHTS, ROW = "model.safetensors", "classifier.json"
WARMUP = 20
"""One step in so many is warm-up."""


@dataclass(frozen=True, eq=False)
class Task:
    """One classifier to train.

    Attributes:
        comparison: what all share.
        arm: which arm.
        ratio: synthetic images for each real one; None for all there are.
        seed: model seed.
    """

    comparison: Comparison
    arm: Arm
    ratio: float | None
    seed: int

    @cached_property
    def key(self) -> str:
        """Digest of all that the trained classifier depends on."""
        return self.comparison.key(self.arm, self.ratio, self.seed)

    @property
    def folder(self) -> Path:
        """Where its weights and row lie."""
        return self.comparison.run / FOLDER / self.key[:24]

    def is_trained(self) -> bool:
        """Whether it was trained from the same images and settings, and is whole."""
        manifest = verified_manifest(self.folder)
        return manifest is not None and manifest.get("key") == self.key

    def row(self) -> dict[str, Any]:
        """What is known of the trained classifier; validation only."""
        return dict(read_json(self.folder / ROW))

    def network(self) -> nn.Module:
        """The trained network, on the device of the comparison."""
        network = _network(self)
        network.load_state_dict(load_file(self.folder / WEIGHTS))
        return network


def _network(task: Task) -> nn.Module:
    comparison, settings = task.comparison, task.comparison.settings
    if comparison.captions is not None:
        from .clip_classifier import clip_classifier

        return clip_classifier(str(settings.clip), comparison.captions, comparison.device)
    return build_network(
        comparison.backbone,
        len(comparison.classes),
        comparison.image_size,
        task.seed,
        *comparison.channels,
        None if settings.weights is None else Path(settings.weights),
        settings.pretrained,
        settings.train_layers,
    ).to(comparison.device)


def _mix(task: Task, members: list[int]) -> Mix:
    comparison, settings = task.comparison, task.comparison.settings
    if task.arm.uses_synthetic and comparison.synthetic is not None:
        labels = comparison.synthetic.labels.numpy()[members]
    else:
        labels = np.zeros(len(members), dtype=np.int64)  # `duplicate` asks for their number alone
    return Mix(
        strategy=task.arm.strategy,
        steps=settings.max_train_steps,
        batch_size=settings.train_batch_size,
        real_labels=comparison.train.labels.numpy(),
        synthetic_labels=labels,
        rsp_probability=settings.rsp_probability,
        rsp_scope=settings.rsp_scope,
        rsp_mode=settings.rsp_mode,
        phase_two_share=settings.phase_two_share,
        real_weight=settings.real_weight,
        balanced=settings.balance == "sampling",
    )


def train(task: Task, shown: Meter) -> None:
    """Train a classifier, measure it on the validation split, and publish both as a folder of the cache.

    Where a process group is up, all of it trains this classifier together, and process 0 publishes it.

    Args:
        task: which one.
        shown: advanced by a step at a time.

    Raises:
        NumericError: a loss is not finite.
        Stopped: a signal asked for a stop; nothing is left of this classifier, and finished ones are kept.
        EnvironmentFault: the folder cannot be written.
    """
    comparison, settings, arm = task.comparison, task.comparison.settings, task.arm
    shared = parallel.size() > 1
    members = comparison.members(arm, task.ratio)
    mix, network = _mix(task, members), _network(task)
    synthetic = comparison.synthetic if arm.uses_synthetic else None
    name, steps = comparison.augmentation(arm), settings.max_train_steps
    batch = batch_maker(
        mix,
        task.seed,
        comparison.train,
        synthetic,
        members,
        len(comparison.classes),
        augmentation(name, task.seed, settings.random_flip),
        comparison.device,
        settings.label_smoothing,
        settings.synthetic_label_smoothing,
        class_weights(mix.real_labels, len(comparison.classes)) if settings.balance == "weights" else None,
    )

    def on_step(done: int) -> None:
        shown.advance(1, note=f"{arm.name}, seed {task.seed}")
        if not shared or processes.rank() == 0:  # the others end with process 0, at whatever step it stops
            flag.check("classifiers that were finished are kept")

    phases = phase_steps(arm.strategy, steps, settings.phase_two_share)
    peaks = [settings.learning_rate * factor for factor in (1.0, settings.phase_two_learning_rate)]
    start, validation = time.monotonic(), comparison.validation
    fitted = fit(
        network,
        batch,
        learning_rates(list(zip(phases, peaks, strict=False)), warmup=max(1, steps // WARMUP)),
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        evaluation_steps=settings.evaluation_steps,
        validation=validation if len(validation) else None,
        mixer=mixer(name, task.seed),
        mixed_precision=settings.mixed_precision,
        ema_decay=settings.ema_decay,
        on_step=on_step,
    )
    if shared and processes.rank():
        return
    measured = None
    if len(validation):
        measured = measure(probabilities(network, validation), validation.labels, comparison.classes)
    real_slots, synthetic_slots = seen(mix, task.seed)
    row = {
        "arm": arm.name,
        "strategy": arm.strategy,
        "source": arm.source,
        "ratio": len(members) / len(comparison.train),
        "augmentation": name,
        "seed": task.seed,
        "steps": steps,
        "backbone": comparison.backbone,
        "image_size": comparison.image_size,
        "images_real": len(comparison.train),
        "images_synthetic": len(members) if arm.uses_synthetic else 0,
        "images_validation": len(validation),
        "slots_real": real_slots,
        "slots_synthetic": synthetic_slots,
        "weights_kept": "best on validation" if len(validation) else "last, there being no validation split",
        "best_step": fitted.best_step,
        "training_loss": fitted.training_loss,
        "validation_accuracy": None if measured is None else measured["accuracy"],
        "validation": measured,
        "validation_curve": [list(point) for point in fitted.curve],
        "seconds": time.monotonic() - start,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "key": task.key,
    }
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with publish_folder(task.folder, {"key": task.key}) as temporary:
        save_file(state, temporary / WEIGHTS)
        write_json(temporary / ROW, row)
