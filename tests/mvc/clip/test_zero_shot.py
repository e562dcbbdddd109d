"""Zero-shot classification against open_clip's own classifier, and prompts that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

from mvc.clip.features import text_features
from mvc.clip.zero_shot import TEMPLATES, class_weights, zero_shot_logits, zero_shot_probabilities
from mvc.errors import ConfigError
from mvc.randomness import generator
from tests.mvc.clip.clip_toys import WIDTH, WORDS, toy_clip


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_weights_equal_open_clips(batch_size: int, tmp_path: Path) -> None:
    clip = toy_clip(tmp_path)
    found = class_weights(clip, WORDS, batch_size=batch_size)
    theirs = open_clip.build_zero_shot_classifier(clip.network, clip.tokenize, list(WORDS), list(TEMPLATES), None)
    torch.testing.assert_close(found, theirs.T, rtol=0, atol=1e-6)
    assert found.shape == (len(WORDS), WIDTH)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(WORDS)))


def test_one_template_is_the_text_itself(tmp_path: Path) -> None:
    clip = toy_clip(tmp_path)
    found = class_weights(clip, ["dog", "{x}"], ["{ a {} }"])
    torch.testing.assert_close(found, text_features(clip, ["{ a dog }", "{ a {x} }"]))


def test_logits_are_scaled_cosines(tmp_path: Path) -> None:
    clip: Any = toy_clip(tmp_path)
    weights = class_weights(clip, ["dog", "cat", "car"])
    features = torch.randn(4, WIDTH, generator=generator(0, "features"))
    factor = clip.network.logit_scale.detach().exp()
    logits = zero_shot_logits(features, weights, factor)
    for image in range(4):
        expected = [float(factor * F.cosine_similarity(features[image], weight, dim=0)) for weight in weights]
        assert logits[image].tolist() == pytest.approx(expected, abs=1e-5)
    shares = zero_shot_probabilities(features, weights, factor)
    torch.testing.assert_close(shares, logits.exp() / logits.exp().sum(1, keepdim=True))
    # A feature that is a class's own vector is taken for that class.
    assert zero_shot_logits(5 * weights, weights, 100.0).argmax(1).tolist() == [0, 1, 2]


def test_our_templates_name_the_class_once() -> None:
    assert all(template.count("{}") == 1 for template in TEMPLATES) and len(set(TEMPLATES)) == len(TEMPLATES)


@pytest.mark.parametrize(
    "names, templates, said",
    [
        ([], TEMPLATES, "there is no class"),
        (["dog", " "], TEMPLATES, r"the name of class 1 \(counted from 0\) is empty"),
        (["dog"], [], "there is no template"),
        (["dog"], ["a {}", "a photo"], r"the template 'a photo' must have \{\} exactly once"),
        (["dog"], ["{} and {}"], r"the template '\{\} and \{\}' must have \{\} exactly once"),
        (["dog"], ["a {0}"], r"the template 'a \{0\}' must have \{\} exactly once"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(names: list[str], templates: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        class_weights(toy_clip(tmp_path), names, templates)
