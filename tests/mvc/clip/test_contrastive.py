"""The contrastive loss against open_clip's and by hand, and its large-batch gradient against one pass of all rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from torch import Tensor

from mvc.clip.contrastive import clamp_logit_scale, clip_loss, contrastive_backward
from mvc.clip.retrieval import retrieval
from mvc.randomness import generator
from tests.mvc.clip.clip_toys import pictures, resnet_config, texts, timm_config, toy_clip, vit_config
from tests.mvc.clip.contrastive_reference import distance, gradients, in_parts, whole_batch, with_dropout

ROWS = 12


def batch(clip: Any, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> tuple[Any, Tensor, Tensor]:
    return clip.network.to(dtype).train(), pictures(rows, clip.image_size).to(dtype), clip.tokenize(texts(rows))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "features"))


def test_loss_equals_open_clips() -> None:
    images, words, factor = normal(7, 5), normal(7, 5, seed=1), torch.tensor(9.0)
    expected = ClipLoss()(F.normalize(images, dim=-1), F.normalize(words, dim=-1), factor)
    torch.testing.assert_close(clip_loss(images, words, factor), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(clip_loss(3 * images, 0.1 * words, factor), expected, rtol=1e-6, atol=0)
    assert clip_loss(images.double(), words, 9.0).dtype == torch.float64


def test_loss_by_hand() -> None:
    # Cosines [[1, 0], [0.6, 0.8]] times 2.
    images, words = torch.tensor([[2.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    rows = [math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(1.2 - 1.6))]
    columns = [math.log(1 + math.exp(1.2 - 2.0)), math.log(1 + math.exp(-1.6))]
    assert float(clip_loss(images, words, 2.0)) == pytest.approx((sum(rows) + sum(columns)) / 4, rel=1e-6)
    # Image 0 is a mixture: 0.7 of its own text and 0.3 of the other.
    targets = torch.tensor([[0.7, 0.3], [0.0, 1.0]]), torch.eye(2)
    rows[0] = 0.7 * math.log(1 + math.exp(-2.0)) + 0.3 * math.log(1 + math.exp(2.0))
    assert float(clip_loss(images, words, 2.0, targets)) == pytest.approx((sum(rows) + sum(columns)) / 4, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(0, 99))
def test_targets_of_the_identity_change_nothing_and_swapping_swaps(rows: int, seed: int) -> None:
    images, words = normal(rows, 4, seed=seed).double(), normal(rows, 4, seed=seed + 100).double()
    plain = clip_loss(images, words, 5.0)
    torch.testing.assert_close(clip_loss(images, words, 5.0, (torch.eye(rows), torch.eye(rows))), plain)
    first, second = (normal(rows, rows, seed=seed + number).double().softmax(1) for number in (200, 300))
    mixed = clip_loss(images, words, 5.0, (first, second))
    torch.testing.assert_close(clip_loss(words, images, 5.0, (second, first)), mixed)
    assert mixed >= -(first * first.log()).sum(1).mean() / 2 - (second * second.log()).sum(1).mean() / 2


def test_loss_is_computed_in_float32_below_autocast() -> None:
    images, words = normal(6, 8), normal(6, 8, seed=1)
    expected = clip_loss(images, words, 30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_loss(images, words, 30.0), expected)
    assert clip_loss(images.bfloat16(), words.bfloat16(), 30.0).dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    images, words = normal(3, 4), normal(2, 4)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(2, 4\): both have to be \(B, d\)"):
        clip_loss(images, words, 1.0)
    with pytest.raises(ValueError, match=r"targets of each text are \(2, 2\): \(3, 3\) is needed"):
        clip_loss(images, images, 1.0, (torch.eye(3), torch.eye(2)))
    with pytest.raises(ValueError, match=r"targets of image 1 \(counted from 0\) add up to 0.5 and not 1"):
        clip_loss(images, images, 1.0, (torch.diag(torch.tensor([1.0, 0.5, 1.0])), torch.eye(3)))
    with pytest.raises(ValueError, match=r"targets of text 0 \(counted from 0\) add up to nan"):
        clip_loss(images, images, 1.0, (torch.eye(3), torch.full((3, 3), torch.nan)))


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 5, ROWS, 50])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_gradients_are_those_of_the_whole_batch(
    micro_batch_size: int, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    network, images, ids = batch(toy_clip(tmp_path), dtype)
    loss, expected = whole_batch(network, images, ids)
    found, ours = in_parts(network, images, ids, micro_batch_size)
    assert float(found) == pytest.approx(float(loss), rel=bound) and not found.requires_grad
    assert distance(ours, expected) < bound
    assert set(ours) == {name for name, _ in network.named_parameters()}


def test_gradients_of_before_are_replaced(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path))
    _, first = in_parts(network, images, ids, 5)
    _, again = in_parts(network, images, ids, 5)
    assert distance(again, first) == 0


def test_the_caller_may_have_gradients_or_autocast_switched(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path))
    _, expected = in_parts(network, images, ids, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = in_parts(network, images, ids, 4)
    assert distance(found, expected) == 0


@pytest.mark.parametrize("micro_batch_size", [4, ROWS])
def test_bf16_comes_close_and_leaves_float32_gradients(micro_batch_size: int, tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path))
    loss, expected = in_parts(network, images, ids, micro_batch_size)
    found, ours = in_parts(network, images, ids, micro_batch_size, autocast_dtype=torch.bfloat16)
    assert found.dtype == torch.float32 and {value.dtype for value in ours.values()} == {torch.float32}
    assert 0 < abs(float(found) - float(loss)) < 2e-2 * float(loss)
    first, second = (torch.cat([value.flatten() for value in some.values()]) for some in (ours, expected))
    assert float(F.cosine_similarity(first, second, dim=0)) > 0.995


@pytest.mark.parametrize("kind", ["patches", "head"])
def test_dropout_is_the_same_in_both_passes(kind: str, tmp_path: Path) -> None:
    config = vit_config(patch_dropout=0.5) if kind == "patches" else timm_config(timm_drop=0.5, timm_proj="linear")
    network, images, ids = batch(toy_clip(tmp_path, config), torch.float64)
    before = torch.random.get_rng_state()
    expected = with_dropout(network, images, ids, 5, seed=3, step=7)
    _, ours = in_parts(network, images, ids, 5, seed=3, step=7)
    assert distance(ours, expected) < 1e-11
    for other in ({"seed": 3, "step": 8}, {"seed": 4, "step": 7}):
        assert distance(in_parts(network, images, ids, 5, **other)[1], expected) > 1e-2
    assert torch.equal(torch.random.get_rng_state(), before)
    whole = with_dropout(network, images, ids, ROWS, seed=3, step=7)
    assert distance(in_parts(network, images, ids, ROWS, seed=3, step=7)[1], whole) < 1e-11


def test_batch_norm_is_refused_unless_it_sees_the_whole_batch(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path, resnet_config()), torch.float64)
    with pytest.raises(ValueError, match=r"BatchNorm \(visual.bn1 and \d+ more\) .* sees 4 rows .* not all 12"):
        in_parts(network, images, ids, 4)
    running = network.visual.bn1.num_batches_tracked.clone()
    _, found = in_parts(network, images, ids, ROWS)
    assert network.visual.bn1.num_batches_tracked == running + 1  # one pass alone
    loss, expected = whole_batch(network, images, ids)
    assert distance(found, expected) < 1e-12
    network.eval()
    _, expected = whole_batch(network, images, ids)
    assert distance(in_parts(network, images, ids, 4)[1], expected) < 1e-11
    network.visual.bn1.running_mean = network.visual.bn1.running_var = None  # then it takes those of the rows
    with pytest.raises(ValueError, match=r"BatchNorm \(visual.bn1 and 0 more\)"):
        in_parts(network, images, ids, 4)


def test_an_objective_sees_the_features_of_the_whole_batch(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path), torch.float64)
    partner = torch.arange(ROWS).roll(1)

    def mixed(image_features: Tensor, text_features: Tensor, factor: Tensor) -> Tensor:
        return clip_loss(0.5 * (image_features + image_features[partner]), text_features[partner], factor)

    network.zero_grad()
    loss = mixed(network.encode_image(images), network.encode_text(ids), network.logit_scale.exp())
    loss.backward()
    expected = gradients(network)
    found, ours = in_parts(network, images, ids, 5, objective=mixed)
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-12) and distance(ours, expected) < 1e-11


def test_parts_that_are_not_trained_have_no_gradient(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path), torch.float64)
    _, expected = whole_batch(network, images, ids)
    network.visual.requires_grad_(False)
    network.logit_scale.requires_grad_(False)
    _, found = in_parts(network, images, ids, 5)
    assert distance(found, {name: expected[name] for name in found}) < 1e-11
    assert found and not any(name.startswith(("visual", "logit_scale")) for name in found)
    network.requires_grad_(False)
    network.logit_scale.requires_grad_(True)
    _, found = in_parts(network, images, ids, 5, objective=lambda images, words, factor: 2 * factor)
    assert set(found) == {"logit_scale"}
    assert float(found["logit_scale"]) == pytest.approx(2 / 0.07)  # d 2 exp(s) / ds


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    network, images, ids = batch(toy_clip(tmp_path))
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"micro_batch_size is {size}"):
            in_parts(network, images, ids, size)
    with pytest.raises(ValueError, match="12 images and 11 texts: as many of both are needed"):
        in_parts(network, images, ids[1:], 4)
    with pytest.raises(ValueError, match="0 images and 0 texts"):
        in_parts(network, images[:0], ids[:0], 4)
    with pytest.raises(ValueError, match=r"autocast_dtype is torch.float16: bfloat16 or None"):
        in_parts(network, images, ids, 4, autocast_dtype=torch.float16)


def test_the_temperature_is_kept_in_its_bounds(tmp_path: Path) -> None:
    network: Any = toy_clip(tmp_path).network
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2))):
        network.logit_scale.data.fill_(value)
        clamp_logit_scale(network)
        assert float(network.logit_scale.detach().exp()) == pytest.approx(expected, rel=1e-6)


def test_training_by_parts_learns_which_text_belongs_to_which_image(tmp_path: Path) -> None:
    clip = toy_clip(tmp_path)
    network, images, ids = batch(clip)
    optimizer, losses = torch.optim.AdamW(network.parameters(), lr=2e-3), []
    for step in range(30):
        losses.append(float(contrastive_backward(network, images, ids, 5, seed=0, step=step)))
        optimizer.step()
        clamp_logit_scale(network)
    with torch.no_grad():
        found = retrieval(network.encode_image(images), network.encode_text(ids), range(ROWS), ks=(1,))
    assert losses[0] == pytest.approx(math.log(ROWS), rel=0.5) and losses[-1] < 0.1
    assert found.rsum == 200
