"""Retrieval against a full sort, by hand, in any order and any blocks; and features of many images and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mvc.clip.features import evaluating, image_features, text_features
from mvc.clip.inputs import network_input
from mvc.clip.models import Clip
from mvc.clip.retrieval import Retrieval, ranks, retrieval
from mvc.errors import NumericError, Stopped
from mvc.randomness import generator, numpy_generator
from mvc.stopping import flag
from tests.mvc.clip.clip_toys import WIDTH, photo, texts, timm_config, toy_clip, vit_config

KS = (1, 2, 5)


def drawn(images: int, texts_each: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """Features of images, and of texts near them, in an order that mixes the images."""
    features = torch.randn(images, width, generator=generator(seed, "images"))
    owner = numpy_generator(seed, "owners").permutation(np.repeat(np.arange(images), texts_each)).tolist()
    noise = torch.randn(len(owner), width, generator=generator(seed, "texts"))
    return features, features[owner] + noise, owner


def by_sorting(images: Tensor, words: Tensor, owner: list[int], k: int) -> tuple[float, float]:
    """R@K of texts and of images from the whole matrix, sorted; in float64, where nothing drawn is a tie."""
    cosines = F.normalize(images.double(), dim=1) @ F.normalize(words.double(), dim=1).T
    best_texts = cosines.argsort(dim=1, descending=True)[:, :k].tolist()
    best_images = cosines.T.argsort(dim=1, descending=True)[:, :k].tolist()
    found_texts = [any(owner[text] == image for text in row) for image, row in enumerate(best_texts)]
    found_images = [owner[text] in row for text, row in enumerate(best_images)]
    return 100 * sum(found_texts) / len(images), 100 * sum(found_images) / len(words)


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 30), st.integers(1, 4), st.integers(0, 99), st.integers(1, 40))
def test_recall_equals_a_full_sort(images: int, texts_each: int, seed: int, chunk: int) -> None:
    some, words, owner = drawn(images, texts_each, seed=seed)
    found = retrieval(some, words, owner, KS, chunk)
    for k in KS:
        assert (found.text_retrieval[k], found.image_retrieval[k]) == by_sorting(some, words, owner, k)
    assert found.rsum == pytest.approx(sum(sum(by_sorting(some, words, owner, k)) for k in KS))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.integers(1, 50))
def test_neither_order_nor_blocks_change_a_rank(seed: int, chunk: int) -> None:
    some, words, owner = drawn(17, 3, width=64, seed=seed)
    # Copies, and features that differ by less than float32 sums do: where ties would break by chance.
    some[5], words[7], words[9] = some[3], words[2], words[2] * 3
    of_images, of_texts = ranks(some, words, owner)
    image_order = torch.randperm(17, generator=generator(seed, "image order"))
    text_order = torch.randperm(51, generator=generator(seed, "text order"))
    place = image_order.argsort()
    moved = [int(place[owner[text]]) for text in text_order.tolist()]
    other_images, other_texts = ranks(some[image_order], words[text_order], moved, chunk)
    assert torch.equal(other_images, of_images[image_order]) and torch.equal(other_texts, of_texts[text_order])


def test_ranks_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    words = torch.tensor([[0.8, 0.6], [0.0, 2.0], [1.0, 0.0], [0.6, 0.8]])
    owner = [0, 1, 1, 2]
    # Cosines of images and texts: 0.8 0 1 0.6; 0.6 1 0 0.8; 0.96 0.8 0.6 1.
    of_images, of_texts = ranks(images, words, owner)
    assert of_images.tolist() == [1, 0, 0]
    # Text 0 is nearest to image 2, its own comes second; text 2, of image 1, finds 1 last.
    assert of_texts.tolist() == [1, 0, 2, 0]
    found = retrieval(images, words, owner, (1, 2, 3))
    assert found == Retrieval({1: 200 / 3, 2: 100.0, 3: 100.0}, {1: 50.0, 2: 75.0, 3: 100.0})
    assert found.rsum == pytest.approx(200 / 3 + 200 + 225)


def test_features_that_tell_nothing_apart_find_nothing() -> None:
    ones = torch.ones(20, 8)
    found = retrieval(ones, ones.repeat(3, 1), list(range(20)) * 3, (1, 5, 19, 20))
    # A text has its image among all 20; an image's own three texts are no rivals of each other.
    assert found.text_retrieval == {1: 0.0, 5: 0.0, 19: 0.0, 20: 0.0}
    assert found.image_retrieval == {1: 0.0, 5: 0.0, 19: 0.0, 20: 100.0}
    assert retrieval(ones[:3] * 0, ones[:3] * 0, [0, 1, 2], (1,)).rsum == 0


def test_a_copy_of_an_image_is_a_rival() -> None:
    words = torch.eye(4)
    assert retrieval(words, words, range(4), (1,)).rsum == 200
    images = words.clone()
    images[1] = images[0]
    found = retrieval(images, words, range(4), (1, 2))
    # Image 1 finds its text behind text 0, level with two others; texts 0 and 1 have two images level or none.
    assert ranks(images, words, range(4))[1].tolist() == [1, 3, 0, 0]
    assert found.image_retrieval == {1: 50.0, 2: 75.0} and found.text_retrieval == {1: 75.0, 2: 75.0}


def test_equal_texts_of_one_image_are_no_rivals() -> None:
    words = torch.eye(4).repeat(2, 1)
    of_images, of_texts = ranks(torch.eye(4), words, [*range(4)] * 2)
    assert of_images.tolist() == [0] * 4 and of_texts.tolist() == [0] * 8
    # The same text of another image is one.
    assert ranks(torch.eye(4), words, [0, 1, 2, 3, 1, 1, 2, 3])[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ks": (1, 9)}, r"ks is \(1, 9\): each K has to be 1 to 5"),
        ({"ks": ()}, r"ks is \(\)"),
        ({"ks": (0,)}, r"ks is \(0,\)"),
        ({"chunk": 0}, "chunk is 0"),
        ({"image_of_text": [0, 1, 2, 3]}, r"shapes \(5, 6\) and \(5, 6\) with the images of 4 texts do not fit"),
        ({"image_of_text": [0, 1, 2, 3, 5]}, "a text belongs to image 5, of 5 images"),
        ({"image_of_text": [0, 1, 2, 3, -1]}, "a text belongs to image -1"),
        ({"image_of_text": [0, 1, 2, 2, 4]}, r"image 3 \(counted from 0\) has no text"),
        ({"text_features": torch.ones(5, 7)}, r"\(5, 7\)"),
        ({"image_features": torch.ones(5, 6).fill_(torch.nan)}, "features of image 0 .* not finite"),
        ({"text_features": torch.full((5, 6), torch.inf)}, "features of text 0 .* not finite"),
    ],
)
def test_what_has_no_recall_is_refused(changes: dict[str, Any], said: str) -> None:
    some, words, owner = drawn(5, 1)
    with pytest.raises(ValueError, match=said):
        retrieval(**{"image_features": some, "text_features": words, "image_of_text": owner, "ks": (1,), **changes})


def test_features_are_those_of_the_network_in_any_batches(tmp_path: Path) -> None:
    clip = toy_clip(tmp_path, vit_config(patch_dropout=0.5))
    network: Any = clip.network.train()
    images = [photo(40 + 3 * number, 50, number) for number in range(7)]
    found = image_features(clip, (Image.fromarray(image) for image in images), batch_size=3)
    words = text_features(clip, texts(7), batch_size=2)
    assert network.training
    network.eval()
    with torch.no_grad():
        expected = F.normalize(network.encode_image(network_input(images, clip)), dim=-1)
        theirs = F.normalize(network.encode_text(clip.tokenize(texts(7))), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(words, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    assert found.dtype == torch.float32 and not found.requires_grad
    for some in (found, text_features(clip, texts(2))):
        (some.requires_grad_() * 2).sum().backward()  # ordinary tensors, and none of inference mode
    assert image_features(clip, []).shape == (0, WIDTH) == text_features(clip, []).shape
    with pytest.raises(ValueError, match="batch_size is 0"):
        text_features(clip, ["a"], batch_size=0)


def test_modules_keep_their_own_modes(tmp_path: Path) -> None:
    network: Any = toy_clip(tmp_path, timm_config()).network.train()
    network.visual.eval()
    before = [module.training for module in network.modules()]
    with pytest.raises(KeyError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise KeyError
    assert [module.training for module in network.modules()] == before and len(set(before)) == 2


def test_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    clip: Clip = toy_clip(tmp_path)
    network: Any = clip.network
    with torch.no_grad():
        network.token_embedding.weight[clip.tokenize(["seven"])[0, 1]] = torch.nan
    with pytest.raises(NumericError, match=r"features of text 3 \(counted from 0\) are not finite"):
        text_features(clip, ["a", "b", "c", "seven", "seven"], batch_size=2)


def test_a_signal_stops_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = toy_clip(tmp_path)
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="features of 0 texts were computed, which are not kept"):
        text_features(clip, texts(2))
    assert not clip.network.training
