"""The training of a CLIP: what a step does, what it learns, which weights it keeps, and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvc.clip.contrastive import clip_loss
from mvc.clip.features import image_features, text_features
from mvc.clip.inputs import normalized
from mvc.clip.models import Clip
from mvc.clip.pairs import Pairs
from mvc.clip.retrieval import retrieval
from mvc.errors import NumericError
from mvc.storage import read_json
from mvc.train.checkpoints import checkpoints
from mvc.train.clip_batches import batches, rows_of_steps
from mvc.train.recipe import learning_rate_at
from tests.train.clip_runs import SIDE, equal, recipe, rsum_of, techniques, toy_clip, toy_pairs, train, weights


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return toy_pairs(tmp_path_factory.mktemp("pairs"))


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_steps_are_those_of_a_plain_loop(pairs: Pairs, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_train_steps": 5, "learning_rate": 1e-3, "max_grad_norm": 0.5}
    trained, fitted = train(tmp_path, pairs, **changes)
    how, clip, losses = recipe(**changes), toy_clip(tmp_path), []
    network: Any = clip.network.train()
    matrices = [value for value in network.parameters() if value.ndim > 1]
    others = [value for value in network.parameters() if value.ndim < 2]
    solver = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], eps=1e-6, fused=True
    )
    rows = rows_of_steps(12, 6, 0, range(5))
    asked = [[(row, 6 * step + place) for place, row in enumerate(own)] for step, own in enumerate(rows)]
    norms = []
    for step, (images, captions) in enumerate(batches(techniques().look(SIDE, 0.9), pairs, asked, 0)):
        for group in solver.param_groups:
            group["lr"] = learning_rate_at(step, how)
        solver.zero_grad()
        features = network.encode_image(normalized(images, clip)), network.encode_text(clip.tokenize(captions))
        loss = clip_loss(*features, network.logit_scale.exp())
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 0.5)))
        solver.step()
        losses.append(float(loss.detach()))
    assert min(norms) > 0.5  # clipping took part
    assert farthest(weights(trained), weights(clip)) < 1e-6
    assert fitted.training_loss == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert (fitted.best_step, fitted.curve) == (5, []) and not trained.network.training


def test_weight_decay_moves_matrices_alone(pairs: Pairs, tmp_path: Path) -> None:
    start = weights(toy_clip(tmp_path))
    changes: dict[str, Any] = {"max_train_steps": 1, "lr_warmup_steps": 0, "learning_rate": 1e-3}
    without, _ = train(tmp_path / "without", pairs, **changes, adam_weight_decay=0.0)
    decayed, _ = train(tmp_path / "with", pairs, **changes, adam_weight_decay=20.0)
    kinds = set()
    for name, plain in weights(without).items():
        found = weights(decayed)[name]
        kinds.add(plain.ndim)
        if plain.ndim > 1:  # decoupled: w - lr * decay * w before the step
            torch.testing.assert_close(found, plain - 0.02 * start[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(found, plain), name
    assert kinds == {0, 1, 2, 4}


def test_training_lowers_the_loss_and_finds_pairs_again(pairs: Pairs, tmp_path: Path) -> None:
    start = rsum_of(pairs)(toy_clip(tmp_path))
    rare = {"validation_steps": 1000, "checkpointing_steps": 1000}
    clip, _ = train(tmp_path, pairs, max_train_steps=100, train_batch_size=12, learning_rate=5e-3, **rare)
    losses = read_json(tmp_path / "checkpoints" / "step-000100" / "state.json")["losses"]
    assert start < 350 and losses[0] > 0.9 * math.log(12) and sum(losses[-10:]) / 10 < 0.5
    images = image_features(clip, [pairs.image(row) for row in range(12)])
    texts = text_features(clip, [captions[0] for captions in pairs.captions])
    found = retrieval(images, texts, range(12), (1, 5))
    assert found.text_retrieval[1] > 80 and found.image_retrieval[1] > 80  # chance is 8
    assert found.text_retrieval[5] == found.image_retrieval[5] == 100
    # The logarithm of the factor is trained along, from ln(1 / 0.07), and stays below ln 100.
    scale = float(clip.network.state_dict()["logit_scale"])
    assert scale != pytest.approx(math.log(1 / 0.07)) and scale <= math.log(100)


def test_the_factor_never_passes_a_hundred(pairs: Pairs, tmp_path: Path) -> None:
    clip, _ = train(tmp_path, pairs, max_train_steps=4, learning_rate=5.0, lr_warmup_steps=0)
    assert 0 <= float(clip.network.state_dict()["logit_scale"]) <= math.log(100) + 1e-6


@pytest.mark.parametrize("arm", ["none", "mixgen_e+synchronised", "hard_negatives"])
def test_a_seed_gives_the_same_bits_and_nothing_global_is_drawn(arm: str, pairs: Pairs, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first, fitted = train(tmp_path / "first", pairs, arm)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second, again = train(tmp_path / "second", pairs, arm, options={"num_workers": 2})
    assert equal(weights(first), weights(second)) and fitted == again
    other, _ = train(tmp_path / "other", pairs, arm, seed=1)
    assert farthest(weights(first), weights(other)) > 0.01


def test_arms_train_other_models(pairs: Pairs, tmp_path: Path) -> None:
    arms = ("none", "mixgen", "mixgen_c", "mixgen_embedding", "mixup", "interpolation", "synchronised", "policy")
    found = [weights(train(tmp_path / arm, pairs, arm, max_train_steps=2)[0]) for arm in (*arms, "consistency")]
    assert all(farthest(one, other) > 1e-4 for place, one in enumerate(found) for other in found[:place])


@pytest.mark.parametrize("arm", ["none", "mixgen", "consistency"])
def test_micro_batches_give_the_same_model(arm: str, pairs: Pairs, tmp_path: Path) -> None:
    found = []
    for size in (None, 4, 1):
        changes: dict[str, Any] = {"learning_rate": 1e-3, "adam_epsilon": 1e-6, "max_train_steps": 6}
        clip, fitted = train(tmp_path / str(size), pairs, arm, options={"micro_batch_size": size}, **changes)
        found.append((weights(clip), fitted.training_loss))
    for values, loss in found[1:]:
        assert farthest(values, found[0][0]) < 1e-5 and loss == pytest.approx(found[0][1], rel=1e-5)


def test_bf16_is_near_float32_and_keeps_float32_weights(pairs: Pairs, tmp_path: Path) -> None:
    exact, wanted = train(tmp_path / "exact", pairs, "mixgen")
    rough, found = train(tmp_path / "rough", pairs, "mixgen", options={"bf16": True}, evaluate=rsum_of(pairs))
    assert found.training_loss == pytest.approx(wanted.training_loss, rel=0.02)
    assert found.training_loss != wanted.training_loss
    assert {value.dtype for value in rough.network.parameters()} == {torch.float32}
    assert 0 < farthest(weights(rough), weights(exact)) < 0.1


def scripted(*values: float) -> tuple[Callable[[Clip], float], list[dict[str, Tensor]]]:
    """An evaluation that says these numbers one after the other, and the weights that it was shown."""
    seen: list[dict[str, Tensor]] = []

    def evaluate(clip: Clip) -> float:
        seen.append(weights(clip))
        return values[len(seen) - 1]

    return evaluate, seen


def test_the_best_weights_are_kept_or_the_last_ones(pairs: Pairs, tmp_path: Path) -> None:
    evaluate, seen = scripted(50.0, 90.0, 90.0)
    best, fitted = train(tmp_path / "best", pairs, evaluate=evaluate, keep_best=True)
    assert fitted.curve == [(3, 50.0), (6, 90.0), (8, 90.0)]  # of equal ones the earlier
    assert fitted.best_step == 6 and equal(weights(best), seen[1]) and not equal(seen[1], seen[2])
    evaluate, seen = scripted(50.0, 90.0, 80.0)
    last, fitted = train(tmp_path / "last", pairs, evaluate=evaluate)
    assert fitted.best_step == 8 and equal(weights(last), seen[2])
    # Without validation pairs the last ones stay.
    plain, fitted = train(tmp_path / "plain", pairs, keep_best=True)
    assert equal(weights(plain), weights(last)) and (fitted.best_step, fitted.curve) == (8, [])


def test_an_evaluation_changes_nothing(pairs: Pairs, tmp_path: Path) -> None:
    watched, _ = train(tmp_path / "watched", pairs, evaluate=rsum_of(pairs), validation_steps=1)
    plain, _ = train(tmp_path / "plain", pairs)
    assert equal(weights(watched), weights(plain))


def test_a_diverging_loss_ends_the_training_and_no_such_state_is_saved(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"the loss of the CLIP is not finite at step [234](.|\n)*learning_rate"):
        train(tmp_path, pairs, learning_rate=1e30, lr_warmup_steps=0, checkpointing_steps=1000)
    assert checkpoints(tmp_path / "checkpoints") == []
    with pytest.raises(NumericError, match="weights are not finite after step 1|is not finite at step 2"):
        train(tmp_path / "often", pairs, learning_rate=1e38, lr_warmup_steps=0, checkpointing_steps=1)


def test_the_loss_that_is_told_is_that_of_the_last_hundred_steps(pairs: Pairs, tmp_path: Path) -> None:
    _, fitted = train(tmp_path, pairs, max_train_steps=110, checkpointing_steps=110, train_batch_size=2)
    losses = read_json(tmp_path / "checkpoints" / "step-000110" / "state.json")["losses"]
    assert len(losses) == 110 and fitted.training_loss == pytest.approx(sum(losses[10:]) / 100)
