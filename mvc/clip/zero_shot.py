"""Zero-shot classification: images are compared with what a CLIP makes of the classes' names in prompts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, Sec. 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mvc.errors import ConfigError
from mvc.templates import fault_of_templates, fill_templates

from .features import text_features
from .models import Clip

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of one {}.",
    "a close view of a {}.",
    "an image that shows a {}.",
)
"""Prompts of our own for photographs; {} is the class. For other pictures write ones that say what they are."""


def class_weights(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch_size: int = 256
) -> Tensor:
    """One vector a class: the mean over the templates of text features of length 1, brought to length 1 again.

    Args:
        clip: used in evaluation mode.
        class_names: C names in words.
        templates: texts in which `{}` stands for the name, exactly once; other braces are left as they are.
        batch_size: prompts at a time.

    Returns:
        (C, d) float32 on the CPU, each row of length 1. Classes of one name have equal rows.

    Raises:
        ConfigError: no class, an empty name, no template, or one that has not `{}` exactly once; names it.
        NumericError: as `text_features`.
        Stopped: as `text_features`.
    """
    _check(class_names, templates)
    prompts = [prompt for name in class_names for prompt in fill_templates(templates, name)]
    features = text_features(clip, prompts, batch_size)
    return F.normalize(features.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)


def zero_shot_logits(image_features: Tensor, weights: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Cosines of images and classes, multiplied by the CLIP's factor.

    Args:
        image_features: (N, d), of any length.
        weights: (C, d) from `class_weights`.
        logit_scale: the factor itself, network.logit_scale.exp(), and not its logarithm.

    Returns:
        (N, C); the class of the largest is what the image is taken for.
    """
    return logit_scale * F.normalize(image_features, dim=-1) @ weights.T


def zero_shot_probabilities(image_features: Tensor, weights: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Softmax of `zero_shot_logits`: (N, C), rows add up to 1."""
    return zero_shot_logits(image_features, weights, logit_scale).softmax(dim=-1)


def _check(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names:
        raise ConfigError("there is no class to tell apart", do="give the names of the classes")
    empty = [number for number, name in enumerate(class_names) if not name.strip()]
    if empty:
        raise ConfigError(f"the name of class {empty[0]} (counted from 0) is empty", do="give it words")
    fault = fault_of_templates(templates)
    if fault is not None:
        raise ConfigError(fault, why="the name of the class stands there", do='give one such as "a photo of a {}."')
