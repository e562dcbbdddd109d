"""Diversity and affinity of augmentations and synthetic sets (Back-Modality, Sec. 3.5; Gontijo-Lopes et al. 2020).

Diversity is the final training loss of a classifier trained with the augmentation: high where the images stay hard to
learn by heart. Affinity is how a classifier of clean images judges the augmented ones: its accuracy on augmented
validation images less that on clean ones. 0 is in the domain, and far below 0 is out of it (the sign of Table 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mvc.arms import Arm

from .augment import MIXING, augmentation
from .comparison import Comparison
from .images import Images
from .loop import probabilities
from .training import Task

AFFINITY = "affinity.json"
"""Among the results."""
_BATCH = 256


def accuracy(network: nn.Module, images: Images) -> float:
    """Share of images of which the network names the class."""
    return (probabilities(network, images).argmax(dim=1) == images.labels).double().mean().item()


@torch.inference_mode()
def augmented_accuracy(network: nn.Module, images: Images, augment: Callable[[Tensor, int], Tensor]) -> float:
    """The same after an augmentation; draws as of training steps 0, 1, ...."""
    network.eval()
    device, right = next(network.parameters()).device, 0
    for step, pixels in enumerate(images.batches(_BATCH)):
        labels = images.labels[step * _BATCH : step * _BATCH + len(pixels)]
        right += int((network(augment(pixels.to(device), step)).argmax(dim=1).cpu() == labels).sum())
    return right / len(images)


def affinities(comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]]) -> dict[str, float]:
    """Affinity of each augmentation, and of the synthetic images of each arm, by name of the arm.

    The mean over the seeds of the clean classifiers is given. Arms without synthetic images have the affinity of their
    augmentation; the others that of their synthetic images, not augmented, to the validation images, not augmented.

    Args:
        comparison: what they share; without validation images there is no affinity.
        tasks: the trained classifiers of each arm.

    Returns:
        Difference of two shares in [-1, 1] by name of the arm; empty where the clean classifiers' weights are gone.
    """
    clean = clean_tasks(comparison, tasks)
    if not len(comparison.validation) or not clean or not all(task.is_trained() for task in clean):
        return {}
    sums = dict.fromkeys((arm.name for arm in tasks if _has_one(comparison, arm)), 0.0)
    for task in clean:
        network = task.network()
        base = accuracy(network, comparison.validation)
        done: dict[object, float] = {}
        for arm, own in tasks.items():
            if arm.name in sums:
                name = comparison.augmentation(arm)
                what = tuple(comparison.members(arm, own[0].ratio)) if arm.uses_synthetic else name
                if what not in done:
                    done[what] = _judged(comparison, network, what, task.seed)
                sums[arm.name] += (done[what] - base) / len(clean)
    return sums


def _judged(comparison: Comparison, network: nn.Module, what: tuple[int, ...] | str, seed: int) -> float:
    if isinstance(what, str):
        augment = augmentation(what, seed, comparison.settings.random_flip)
        return augmented_accuracy(network, comparison.validation, augment)
    assert comparison.synthetic is not None
    return accuracy(network, comparison.synthetic.rows(what))


def _has_one(comparison: Comparison, arm: Arm) -> bool:
    # Mixed images have no one label, so that a classifier of clean images cannot judge them.
    return arm.uses_synthetic or comparison.augmentation(arm) not in MIXING


def clean_tasks(comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]]) -> list[Task]:
    """The classifiers of clean images: those of `real+none`, or of the first `real` arm where there is none such."""
    real = [arm for arm in tasks if arm.strategy == "real"]
    real.sort(key=lambda arm: comparison.augmentation(arm) != "none")
    return list(tasks[real[0]]) if real else []
