"""A CLIP as a classifier: images are compared with the captions of their classes, and both towers are fine-tuned.

The logits are cosines of image and class captions times the CLIP's factor, so that it begins as the zero-shot
classifier (Radford et al. 2021, Sec. 3.1) and is trained as it was pretrained, by captions (Goyal et al. 2023,
"Finetune like you pretrain"). MixGen mixes images and captions of two classes (Hao et al. 2023, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.clip.configurations import find_clip
from mvc.clip.inputs import normalized
from mvc.clip.models import Clip, load_clip, new_clip
from mvc.errors import ConfigError, EnvironmentFault
from mvc.mixgen import mix_images, mix_texts
from mvc.mixgen_plan import plan_mixgen
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, sha256_json


class ClipClassifier(nn.Module):
    """Logits of classes from images in [0, 1] of any side, by captions of the classes.

    In training nothing is dropped, whatever the CLIP's configuration says of dropout and stochastic depth: both would
    draw from torch's global state.

    Args:
        clip: its network is trained in place.
        captions: of each class, one for each template.
    """

    def __init__(self, clip: Clip, captions: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.network: Any = clip.network
        self.clip, self.captions = clip, [list(own) for own in captions]
        self._classes: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode; in evaluation mode without gradients the class captions are encoded once."""
        self._classes = None
        super().train(mode)
        for module in self.network.modules():
            if "Drop" in type(module).__name__:  # torch's, timm's and open_clip's own, which share no class
                module.eval()
        return self

    def load_state_dict(self, *given: Any, **named: Any) -> Any:
        """As torch's; captions that other weights have encoded are forgotten."""
        self._classes = None
        return super().load_state_dict(*given, **named)

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to features (B, d) of length 1."""
        side = self.clip.image_size
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.network.encode_image(normalized(images, self.clip)), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """n texts to features (n, d) of length 1."""
        tokens = self.clip.tokenize(texts).to(self.network.logit_scale.device)
        return F.normalize(self.network.encode_text(tokens), dim=1)

    def classes(self) -> Tensor:
        """(C, d): of each class the mean over its captions, of length 1."""
        once = not self.training and not torch.is_grad_enabled()
        if once and self._classes is not None:
            return self._classes.to(self.network.logit_scale)  # the network may have moved since
        features = self.texts([text for own in self.captions for text in own])
        found = F.normalize(features.unflatten(0, (len(self.captions), -1)).mean(dim=1), dim=1)
        if once:
            self._classes = found
        return found

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, C) logits."""
        return self.logits(self.images(images), self.classes())

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines times the CLIP's factor, in float32 also below autocast: (B, d) and (n, d) to (B, n)."""
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.network.logit_scale.exp() * images.float() @ texts.float().T
        return logits


def clip_digest(model: str) -> str:
    """What a classifier from it depends on: configuration and weights.

    Raises:
        ConfigError, EnvironmentFault, DataError: as `find_clip`; or it has no weights.
    """
    found = find_clip(model)
    if found.weights is None:
        raise ConfigError(
            f"classify.clip={model} is an architecture without weights",
            why="class captions mean nothing to a CLIP that was not trained",
            do="give a folder with open_clip_config.json and open_clip_model.safetensors, such as runs/NAME/models/...",
        )
    return sha256_json([found.config, sha256_file(found.weights)])


def clip_classifier(model: str, captions: Sequence[Sequence[str]], device: torch.device) -> ClipClassifier:
    """Load a CLIP to be fine-tuned.

    Raises:
        ConfigError, EnvironmentFault, DataError: as `load_clip`.
    """
    return ClipClassifier(load_clip(model, device=device), captions)


def restore_clip(config: dict[str, Any], captions: Sequence[Sequence[str]], state: Mapping[str, Tensor]) -> nn.Module:
    """Make a trained classifier again; no other file and no hub is needed.

    Args:
        config: of its CLIP, in the form of open_clip_config.json.
        captions: as of `ClipClassifier`.
        state: its state_dict.

    Raises:
        EnvironmentFault: the state is not one of that CLIP.
    """
    classifier = ClipClassifier(new_clip(config), captions)
    try:
        classifier.load_state_dict(dict(state))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise EnvironmentFault("the weights are not those of this CLIP", why=why) from error
    return classifier


def mixgen(network: nn.Module, images: Tensor, targets: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """MixGen while a CLIP classifier is trained: a quarter of the batch becomes mixed images with joined captions.

    Every image is compared with the classes, as `ClipClassifier` does it, and with the joined captions of the batch,
    which are of the first template. A mixed image has to find its own among them, the other images their class.
    Mixtures of the same two classes in the same order share one joined caption: no text is a negative of itself.

    Args:
        network: a ClipClassifier.
        images: (B, 3, S, S) float32 in [0, 1].
        targets: (B, C) float32; a row adds up to the weight of its sample, and its class is the largest.
        step: global step.
        seed: model seed; the plan is drawn from (seed, "mixgen", step).

    Returns:
        (B, C + J) logits and targets, of C classes and J different joined captions in the order of the batch. All of a
        mixed image's weight is on its joined caption. A batch of one image is not mixed, so that J is 0.

    Raises:
        ConfigError: the network is no CLIP.
    """
    if not isinstance(network, ClipClassifier):
        raise ConfigError(
            "the augmentation mixgen mixes captions, and this backbone reads none",
            do="set classify.backbone=clip and classify.clip to a CLIP, or take mixup",
        )
    if len(images) < 2:
        return network(images), targets
    plan = plan_mixgen(len(images), numpy_generator(seed, "mixgen", step))
    captions = [network.captions[label][0] for label in targets.argmax(dim=1).tolist()]
    own = mix_texts(plan, captions)[: len(plan)]
    joined = list(dict.fromkeys(own))
    texts = torch.cat([network.classes(), network.texts(joined)])
    wanted = F.pad(targets, (0, len(joined)))
    for row, caption in enumerate(own):
        wanted[row] = 0.0
        wanted[row, targets.shape[1] + joined.index(caption)] = targets[row].sum()
    return network.logits(network.images(mix_images(plan, images)), texts), wanted
