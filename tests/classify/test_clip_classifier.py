"""The backbone clip: logits and MixGen by hand, weights that are kept and read, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mvc.classify.clip_classifier import (
    ClipClassifier,
    clip_classifier,
    clip_digest,
    mixgen,
    restore_clip,
)
from mvc.classify.loop import Objective, fit
from mvc.classify.mixing import mixer
from mvc.classify.networks import build_network
from mvc.clip.models import load_clip, save_clip
from mvc.clip.zero_shot import class_weights, zero_shot_logits
from mvc.config import ClassifySection
from mvc.errors import ConfigError, EnvironmentFault
from mvc.mixgen_plan import plan_mixgen
from mvc.randomness import generator, numpy_generator
from mvc.templates import fill_templates
from tests.mvc.clip.clip_toys import SIDE, json_file, timm_config, toy_clip, vit_config

WORDS = ["red dog", "green cat", "blue house"]
TEMPLATES = ["a {}.", "one {} here"]
CAPTIONS = [fill_templates(TEMPLATES, name) for name in WORDS]


def classifier(folder: Path, templates: list[str] = TEMPLATES, seed: int = 0) -> ClipClassifier:
    clip = toy_clip(folder, seed=seed)
    torch.nn.init.constant_(clip.network.logit_scale, np.log(20.0))
    return ClipClassifier(clip, [fill_templates(templates, name) for name in WORDS])


def pictures(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(seed, "pictures in [0, 1]"))


def one_hot(labels: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(labels), len(WORDS)).float()


def features_by_hand(network: ClipClassifier, images: Tensor) -> np.ndarray:
    """(B, d) float64, of length 1: scaled by the CLIP's mean and deviation, and through its image tower."""
    clip = network.clip
    scaled = (images - torch.tensor(clip.mean).view(1, 3, 1, 1)) / torch.tensor(clip.std).view(1, 3, 1, 1)
    with torch.no_grad():
        features = network.network.encode_image(scaled).double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def texts_by_hand(network: ClipClassifier, texts: list[str]) -> np.ndarray:
    """(n, d) float64, of length 1, each text encoded by itself."""
    with torch.no_grad():
        rows = [network.network.encode_text(network.clip.tokenize([text])).double().numpy()[0] for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def classes_by_hand(network: ClipClassifier) -> np.ndarray:
    means = np.stack([texts_by_hand(network, own).mean(axis=0) for own in network.captions])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[ClipClassifier]:
    yield classifier(tmp_path)


@pytest.mark.parametrize("templates", [["{}"], TEMPLATES])
def test_logits_are_scaled_cosines_with_the_mean_caption_of_each_class(tmp_path: Path, templates: list[str]) -> None:
    network, images = classifier(tmp_path, templates).eval(), pictures(5)
    wanted = 20.0 * features_by_hand(network, images) @ classes_by_hand(network).T
    with torch.no_grad():
        once, again = network(images), network(images)
    assert once.shape == (5, 3) and torch.equal(once, again)
    assert np.allclose(once.numpy(), wanted, atol=1e-4)
    with torch.no_grad():
        assert np.allclose(network.train()(images).numpy(), wanted, atol=1e-4)  # encoded anew, and nothing is dropped


def test_it_begins_as_the_zero_shot_classifier(whole: ClipClassifier) -> None:
    images = pictures(4)
    with torch.no_grad():
        found = whole.eval()(images)
    wanted = zero_shot_logits(
        torch.from_numpy(features_by_hand(whole, images)).float(), class_weights(whole.clip, WORDS, TEMPLATES), 20.0
    )
    assert torch.allclose(found, wanted, atol=1e-4)


def test_images_of_another_side_are_resized_and_stay_in_their_range(whole: ClipClassifier) -> None:
    images = (pictures(3, side=12) > 0.5).float()  # bicubic resizing overshoots beside edges
    resized = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
    assert resized.max() > 1.05 and resized.min() < -0.05
    with torch.no_grad():
        found = whole.eval().images(images)
    assert np.allclose(found.numpy(), features_by_hand(whole, resized.clamp(0, 1)), atol=1e-5)


def test_captions_are_encoded_once_as_long_as_the_weights_stay(whole: ClipClassifier, tmp_path: Path) -> None:
    images, calls = pictures(2), []
    whole.network.transformer.register_forward_hook(lambda *_: calls.append(1))
    whole.eval()
    with torch.inference_mode():
        first = whole(images)
        assert torch.equal(whole(images), first) and len(calls) == 1
    other = classifier(tmp_path, seed=1).eval()
    whole.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(images), other(images)) and len(calls) == 2
    whole(images).sum().backward()
    assert len(calls) == 3 and whole.network.token_embedding.weight.grad is not None
    # Kept captions follow the network to another type (or device).
    with torch.no_grad():
        assert whole.double()(images.double()).shape == (2, 3) and whole.classes().dtype == torch.float64


def test_gradients_reach_both_towers_and_the_factor(whole: ClipClassifier) -> None:
    whole.train()
    F.cross_entropy(whole(pictures(4)), torch.tensor([0, 1, 2, 0])).backward()
    names = {name for name, weight in whole.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert names == set()


def test_nothing_is_dropped_in_training(tmp_path: Path) -> None:
    config = timm_config(timm_drop=0.5, timm_drop_path=0.5)
    network = ClipClassifier(toy_clip(tmp_path, config), CAPTIONS).train()
    dropping = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert dropping and network.network.training
    images, state = pictures(2, side=160), torch.get_rng_state()
    assert torch.equal(network(images), network(images)) and torch.equal(torch.get_rng_state(), state)


def mixed_by_hand(network: ClipClassifier, images: Tensor, labels: list[int], partner: list[int]) -> np.ndarray:
    """Logits of Algorithm 1 with lambda 1/2: images averaged, captions "own partner's", each text encoded alone."""
    mixed = images.clone()
    for row, other in enumerate(partner):
        mixed[row] = (images[row] + images[other]) / 2
    names = [f"a {WORDS[labels[row]]}. a {WORDS[labels[other]]}." for row, other in enumerate(partner)]
    texts = np.concatenate([classes_by_hand(network), texts_by_hand(network, list(dict.fromkeys(names)))])
    return np.asarray(20.0 * features_by_hand(network, mixed) @ texts.T)


def test_mixgen_mixes_images_and_joins_captions(whole: ClipClassifier) -> None:
    # A quarter of eight are two new pairs: rows 0 and 1, whose partners are the rows 2 and 3.
    images, labels = pictures(8), [0, 1, 2, 0, 1, 2, 0, 1]
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 1.0, 1.0, 0.25, 1.0])
    given = one_hot(labels) * weights[:, None]
    plan = plan_mixgen(8, numpy_generator(4, "mixgen", 3))
    assert plan.partner.tolist() == [2, 3] and plan.mix.tolist() == [0.5, 0.5]
    with torch.no_grad():
        logits, targets = mixgen(whole.train(), images, given, step=3, seed=4)
    assert logits.shape == targets.shape == (8, 5)
    assert np.allclose(logits.numpy(), mixed_by_hand(whole, images, labels, [2, 3]), atol=1e-4)
    wanted = torch.zeros(8, 5)
    wanted[0, 3], wanted[1, 4] = 0.5, 1.0  # all of a row's weight is on its own joined caption
    for row in range(2, 8):
        wanted[row, labels[row]] = weights[row]
    assert torch.equal(targets, wanted) and torch.equal(given, one_hot(labels) * weights[:, None])


def test_mixtures_of_the_same_classes_share_a_caption(whole: ClipClassifier) -> None:
    # Twelve images, three of them mixed: 0 with 1, 1 with 0, and 0 with 1 again.
    images, labels = pictures(12), [0, 1, 0, 1, 0, 1, 2, 2, 2, 2, 2, 2]
    with torch.no_grad():
        logits, targets = mixgen(whole.train(), images, one_hot(labels), step=0, seed=0)
    assert logits.shape == (12, 5) and targets.argmax(dim=1).tolist() == [3, 4, 3, *labels[3:]]
    assert np.allclose(logits.numpy(), mixed_by_hand(whole, images, labels, [3, 4, 5]), atol=1e-4)


def test_smoothed_labels_are_not_joined(whole: ClipClassifier) -> None:
    smoothed = one_hot([0, 1, 2, 0]) * 0.7 + 0.1
    with torch.no_grad():
        _, targets = mixgen(whole.train(), pictures(4), smoothed, step=0, seed=0)
    assert torch.allclose(targets[0], torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert torch.equal(targets[1:], F.pad(smoothed[1:], (0, 1)))


def test_one_image_is_not_mixed(whole: ClipClassifier) -> None:
    images, given = pictures(1), one_hot([2])
    with torch.no_grad():
        logits, targets = mixgen(whole.train(), images, given, step=0, seed=0)
        assert torch.equal(logits, whole(images)) and targets is given


def test_below_autocast_cosines_are_multiplied_in_float32(whole: ClipClassifier) -> None:
    images, given = pictures(4), one_hot([0, 1, 2, 0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, (mixed, _) = whole.train()(images), mixgen(whole, images, given, 0, 0)
    assert plain.dtype == mixed.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(plain, whole(images), atol=0.5)
    loss = Objective(whole, mixer("mixgen", 0), "bf16")(images, given, 0)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_mixgen_wants_captions() -> None:
    small = build_network("small", 3, 16, 0, torch.full((3,), 0.5), torch.full((3,), 0.25))
    with pytest.raises(ConfigError, match=r"mixgen mixes captions, and this backbone reads none\ndo: .*backbone=clip"):
        mixgen(small, pictures(4, side=16), one_hot([0, 1, 2, 0]), 0, 0)


@pytest.mark.parametrize("name", ["default", "mixup", "puzzlemix", "mixgen"])
def test_it_learns_by_each_augmentation(whole: ClipClassifier, name: str) -> None:
    # Of each class another channel is bright.
    labels = [0, 1, 2] * 4
    images = pictures(12) * 0.2 + 0.8 * one_hot(labels)[:, :, None, None]
    before = {key: value.clone() for key, value in whole.state_dict().items()}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return images, one_hot(labels)

    fitted = fit(
        whole, batch, [5e-3] * 16, weight_decay=0.0, evaluation_steps=16, validation=None, mixer=mixer(name, 0)
    )
    assert np.isfinite(fitted.training_loss)
    assert any(not torch.equal(before[key], value) for key, value in whole.state_dict().items())
    with torch.no_grad():
        right = (whole.eval()(images).argmax(dim=1) == torch.tensor(labels)).float().mean()
    assert right > 0.9


def test_weights_come_back_without_the_folder(tmp_path: Path) -> None:
    saved = tmp_path / "model"
    save_clip(toy_clip(tmp_path), saved)
    whole = clip_classifier(str(saved), CAPTIONS, torch.device("cpu")).eval()
    assert torch.equal(whole.network.visual.proj, load_clip(saved).network.visual.proj)
    state = {name: value.clone() + 0.01 for name, value in whole.state_dict().items()}
    again = restore_clip(whole.clip.config, CAPTIONS, state).eval()
    whole.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again(pictures(3)), whole(pictures(3)))
    del state["network.visual.proj"]
    with pytest.raises(EnvironmentFault, match=r"the weights are not those of this CLIP\nwhy: .*network\.visual\.proj"):
        restore_clip(whole.clip.config, CAPTIONS, state)


def test_its_digest_is_of_configuration_and_weights(tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        save_clip(toy_clip(tmp_path, seed=seed), tmp_path / str(number))
        digests.append(clip_digest(str(tmp_path / str(number))))
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ConfigError, match=r"classify\.clip=.*toy\.json is an architecture without weights"):
        clip_digest(str(json_file(tmp_path, vit_config())))
    with pytest.raises(ConfigError, match="no CLIP 'nothing'; nearest: "):
        clip_digest("nothing")


WHOLE = {"backbone": "clip", "clip": "folder", "arms": ["real", "real+mixgen"]}


def test_the_name_is_read_in_any_case() -> None:
    assert ClassifySection.model_validate({**WHOLE, "backbone": " CLIP"}).backbone == "clip"
    both = {"backbone": ["small", "Clip"], "arms": ["real", "real+mixup"]}
    assert ClassifySection.model_validate({**WHOLE, **both}).backbones == ["small", "clip"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "backbone clip and the key clip go together: give both, or neither"),
        ({"backbone": "small"}, "backbone clip and the key clip go together: give both, or neither"),
        ({"backbone": "small", "clip": None}, r"arm 'real\+mixgen' mixes captions, which backbone clip alone reads"),
        ({"backbone": ["clip", "small"]}, r"arm 'real\+mixgen' mixes captions, which backbone clip alone reads"),
        (
            {"backbone": "small", "clip": None, "arms": ["real"], "augmentation": "mixgen"},
            "arm 'real' mixes captions, which backbone clip alone reads",
        ),
        ({"arms": ["real+alignmixup"]}, r"arm 'real\+alignmixup' blends maps of features, which backbone clip has not"),
        ({"pretrained": True}, "backbone clip brings its own weights and trains all"),
        ({"weights": "x.safetensors"}, "backbone clip brings its own weights and trains all"),
        ({"weights": "x.safetensors", "train_layers": "head"}, "backbone clip brings its own weights and trains all"),
        ({"templates": []}, "there is no template"),
        ({"templates": ["a {}", "photo"]}, r"the template 'photo' must have \{\} exactly once"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClassifySection.model_validate({**WHOLE, **changes})
