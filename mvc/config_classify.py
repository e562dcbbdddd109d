"""The section of the experiment that is about classifiers: which arms, how they are trained, how they are compared."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mvc.arms import Augmentation, parse_arm
from mvc.config_types import Positive, Rate, Section, Seeds, Share, Templates, seed_list

Ratio = Annotated[float, Field(gt=0.0)]


class ClassifySection(Section):
    """The classifier comparison: every arm the same number of optimisation steps."""

    arms: list[str] = ["real", "duplicate", "combined", "rsp", "two_phase"]
    """STRATEGY[@SOURCE][:RATIO][+AUGMENTATION]: images of one source only, so many for each real one, augmented so."""
    seeds: Seeds = 3
    """How many model seeds (counted from 0), or which."""
    jobs: Positive = 1
    """Classifiers trained at once, each by a process of its own; spread over the accelerators where there are more."""
    split_batches: bool = False
    """With --num-processes: all processes train each classifier together, in place of one classifier each."""
    backbone: str | list[str] = "auto"
    """small, wrn_28_2, wrn_28_10, clip, a timm name; auto: `small` up to 64 px, else resnet18; a list: each of them."""
    clip: str | None = None
    """backbone clip: a trained CLIP by folder or hub id, which is fine-tuned by captions of the classes."""
    templates: Templates = ["a photo of a {}."]
    """backbone clip: captions of a class; {} stands for its words."""
    weights: str | None = None
    """Safetensors file with the backbone's pre-trained weights (timm names); from scratch when absent."""
    pretrained: bool = False
    """Take timm's published weights of the backbone from the hub."""
    train_layers: Literal["all", "head"] = "all"
    """all: full fine-tuning; head: linear probe, everything but the last layer stays as it is."""
    image_size: Positive | None = None
    """Side in pixels for the classifier; data.image_size when absent."""
    augmentation: Augmentation = "default"
    """Of real and synthetic training images alike, in arms that name none."""
    random_flip: bool = False
    """Mirror images as part of the augmentation; wrong for digits, text and laterality."""
    max_train_steps: Positive = 400
    """Optimisation steps of every arm."""
    train_batch_size: Positive = 64
    """Images a step, over all processes."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9 (Nesterov), as the wide ResNets are usually trained."""
    learning_rate: Rate = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    """Of the optimizer."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of every label that is spread over all classes."""
    synthetic_label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The same of the labels of synthetic images, in place of label_smoothing where it is larger."""
    balance: Literal["none", "weights", "sampling"] = "none"
    """For unequal classes: weights of the loss, or equal shares of each batch, by the counts of real images."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the forward and backward pass."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest decay of a moving average of the weights, which then is what is validated and kept; 0 for none."""
    evaluation_steps: Positive = 40
    """Validation every so many steps; the best one is kept."""
    ratio: Ratio | None = None
    """Synthetic images for each real one, in arms that name none; all there are when absent."""
    ratios: list[Ratio] = []
    """Ratios that are tried on the validation images, for each arm with synthetic images that names none."""
    rsp_probability: Share = 0.8
    """rsp: probability of a synthetic image."""
    rsp_scope: Literal["slot", "class", "global"] = "slot"
    """rsp: one draw a slot, for any synthetic image or for one of the slot's class; or one draw for the batch."""
    rsp_mode: Literal["replace", "append"] = "replace"
    """rsp: a synthetic image takes the place of a real one, or comes besides it."""
    phase_two_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """two_phase: share of the steps that goes to phase 2 (real images only)."""
    phase_two_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """two_phase: phase 2's learning rate as a factor of learning_rate."""
    real_weight: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """weighted: lambda, the share of the loss that real images have; half of each batch is real."""

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, value: list[str]) -> list[str]:
        arms = [parse_arm(text) for text in value]
        names = [arm.name for arm in arms]
        if len(set(names)) != len(names) or not any(arm.strategy == "real" for arm in arms):
            raise ValueError("arms must hold 'real' (every comparison is against it) and each arm once")
        return names

    @field_validator("backbone")
    @classmethod
    def _named(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        names = ["clip" if name.strip().lower() == "clip" else name for name in names]  # the library's have their own
        if not names or not all(names) or len(set(names)) != len(names):
            raise ValueError("backbone must be a name, or a list of different names")
        return names[0] if isinstance(value, str) else names

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained exclude each other: give one")
        if self.train_layers == "head" and self.weights is None and not self.pretrained:
            raise ValueError("train_layers=head needs pre-trained weights: set weights or pretrained")
        if ("clip" in self.backbones) != (self.clip is not None):
            raise ValueError("backbone clip and the key clip go together: give both, or neither")
        if self.clip is not None and (self.weights is not None or self.pretrained or self.train_layers == "head"):
            raise ValueError(
                "backbone clip brings its own weights and trains all: no weights, pretrained, train_layers=head"
            )
        for arm in self.arms:
            augmentation = parse_arm(arm).augmentation or self.augmentation
            if augmentation == "mixgen" and self.backbones != ["clip"]:
                raise ValueError(f"arm '{arm}' mixes captions, which backbone clip alone reads")
            if augmentation == "alignmixup" and "clip" in self.backbones:
                raise ValueError(f"arm '{arm}' blends maps of features, which backbone clip has not")
        return self

    @property
    def seed_list(self) -> list[int]:
        """The model seeds as a list."""
        return seed_list(self.seeds)

    @property
    def backbones(self) -> list[str]:
        """The backbones as a list."""
        return [self.backbone] if isinstance(self.backbone, str) else list(self.backbone)
