"""The experiment of `mvc clip`: a CLIP trained on image-caption pairs, with and without paired augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mvc.config import RunSection
from mvc.config_types import Count, Positive, Rate, Section, Seeds, Share, Templates, seed_list

PLAIN = "none"
MIXGENS = ("mixgen", "mixgen_a", "mixgen_b", "mixgen_c", "mixgen_d", "mixgen_e", "mixgen_embedding")
"""MixGen, its variants of Table 6, and Eq. (2)."""
MIXINGS = (*MIXGENS, "mixup", "interpolation")
"""Techniques that mix pairs; an arm has one of them at the most."""
TRANSFORMS = ("synchronised", "policy")
"""Techniques that transform an image and its caption together; an arm has one of them at the most."""
TECHNIQUES = (*MIXINGS, *TRANSFORMS, "consistency", "hard_negatives")


def techniques_of(arm: str) -> list[str]:
    """The techniques of an arm such as "mixgen+synchronised"; none of `none`."""
    return [] if arm == PLAIN else arm.split("+")


class PairsSection(Section):
    """Images with one or several captions each."""

    path: str = ""
    """Folder, file or pattern (docs/multimodal/data.md has the forms); `--data` sets it."""
    image_root: str | None = None
    """JSON lists: folder that image paths are relative to; that of the list when absent."""
    form: Literal["auto", "imagefolder", "json", "parquet", "webdataset"] = "auto"
    """For folders that hold several forms."""
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training images that is set aside for validation where there is no such split."""
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The same for testing; it is taken first."""


class ClipModelSection(Section):
    """The CLIP to begin with."""

    name: str = "tiny"
    """`tiny` (embedded, untrained), an open_clip architecture, a JSON file of one, or a model by folder or hub id."""
    weights: str | None = None
    """Safetensors file for an architecture; random weights when absent."""
    revision: str | None = None
    """Revision of a hub id."""


class ClipTrainSection(Section):
    """The comparison: every arm the same number of steps on the same pairs."""

    arms: list[str] = [PLAIN, "mixgen"]
    """`none`, or techniques joined by +, such as mixgen or mixgen+synchronised."""
    seeds: Seeds = 1
    """How many model seeds (counted from 0), or which."""
    max_train_steps: Positive = 300
    """Optimisation steps of every arm."""
    train_batch_size: Annotated[int, Field(ge=2)] = 64
    """Pairs a step, over all processes: each is a negative of all others."""
    micro_batch_size: Positive | None = None
    """Pairs at once on a device; the gradient stays that of the whole batch. The whole share when absent."""
    learning_rate: Rate = 5e-4
    """Peak of AdamW's; about 1e-5 for a model that is trained already."""
    lr_warmup_steps: Count = 20
    """Steps over which it rises; it falls to zero along a cosine."""
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.98
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.2
    """Of matrices; vectors such as biases have none."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the forward and backward pass; weights and loss are float32."""
    crop_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Training images are random crops of at least this share of the area."""
    checkpointing_steps: Positive = 100
    """A checkpoint every so many steps."""
    checkpoints_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints that are kept until an arm is done."""
    evaluation_steps: Positive = 50
    """Retrieval among the validation pairs every so many steps."""
    publish: Literal["best", "last"] = "best"
    """Weights of the best validation RSUM, or the last ones."""
    num_workers: Count = 0
    """Processes that decode images."""

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, value: list[str]) -> list[str]:
        if not value or len({frozenset(techniques_of(arm)) for arm in value}) != len(value):
            raise ValueError("arms must hold each arm once, and one at least")
        for arm in value:
            own = techniques_of(arm)
            unknown = [name for name in own if name not in TECHNIQUES]
            if len(set(own)) != len(own):
                raise ValueError(f"arm '{arm}' names a technique twice")
            if unknown:
                known = ", ".join(TECHNIQUES)
                raise ValueError(f"arm '{arm}' names '{unknown[0]}'; known are {PLAIN} by itself, {known}")
            for group, what in ((MIXINGS, "mix"), (TRANSFORMS, "transform")):
                if len([name for name in own if name in group]) > 1:
                    raise ValueError(f"arm '{arm}' would {what} pairs twice; take one of {', '.join(group)}")
        return value

    @property
    def seed_list(self) -> list[int]:
        """The model seeds as a list."""
        return seed_list(self.seeds)


class TechniquesSection(Section):
    """Settings of the techniques that arms name."""

    mixgen_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """mixgen: M / B, share of the batch that is replaced."""
    mixgen_mix: Share = 0.5
    """mixgen, mixgen_b: lambda, share of the first image; the other variants draw or need none."""
    mixup_alpha: Rate = 0.2
    """mixup: both parameters of the beta law of lambda."""
    interpolation_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """interpolation: new pairs for each pair of the batch, spherically between two pairs' features."""
    flip: Share = 0.5
    """synchronised: probability of a mirror image, in which left and right of the caption change places."""
    degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 10.0
    """synchronised: largest rotation; a larger one would make left and right of a caption untrue."""
    operations: Count = 2
    """policy: N, operations on each image."""
    magnitude: Annotated[int, Field(ge=0, le=10)] = 3
    """policy: M, their strength."""
    search_trials: Annotated[int, Field(ge=0, le=15)] = 0
    """policy: how many N and M, the given ones among them, are tried before the arms are trained; none when 0."""
    search_steps: Positive = 100
    """policy: optimisation steps of a trial, once with each model seed; validation RSUM chooses."""
    consistency_weight: Rate = 0.25
    """consistency: weight of the loss that wants alike similarities within images, within texts and between them."""
    negatives: Positive = 3
    """hard_negatives: most similar pairs that join each pair in a batch."""
    mining_steps: Positive = 100
    """hard_negatives: steps between two searches for them."""


class ClipEvaluateSection(Section):
    """Retrieval among the test pairs, and zero-shot classification where class folders are given."""

    batch_size: Positive = 64
    """Images or captions at once."""
    classes: str | None = None
    """Folder of class folders with images, to classify without training; none when absent."""
    templates: Templates = ["a photo of a {}."]
    """Prompts of a class; {} stands for its name."""


class ClipExperiment(Section):
    """One experiment with a CLIP: everything that it depends on."""

    run: RunSection = RunSection()
    data: PairsSection = PairsSection()
    model: ClipModelSection = ClipModelSection()
    train: ClipTrainSection = ClipTrainSection()
    techniques: TechniquesSection = TechniquesSection()
    evaluate: ClipEvaluateSection = ClipEvaluateSection()

    @model_validator(mode="after")
    def _micro_batch_is_no_larger(self) -> Self:
        train = self.train
        if train.micro_batch_size is not None and train.micro_batch_size > train.train_batch_size:
            raise ValueError(
                f"train.micro_batch_size={train.micro_batch_size} is larger than "
                f"train.train_batch_size={train.train_batch_size}"
            )
        return self
