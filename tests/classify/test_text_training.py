"""One fit of a text classifier: it learns, keeps the best weights, repeats itself, and sees no test text."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.classify.text_data import Texts
from mvc.classify.text_networks import TextBatch, load_classifier
from mvc.classify.text_training import TextFit, plain_loss, predict, train_text_classifier
from mvc.errors import NumericError, Stopped
from mvc.randomness import seeded_global
from mvc.stopping import flag, watching
from tests.classify.text_toys import CPU, MOODS, PLAIN, moods, network_of, save_bert, tokenizer

TRAIN, VALIDATION, NONE = moods(200, 1), moods(60, 2), Texts([], [], [])
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def fitted(
    folder: Path, train: Texts = TRAIN, validation: Texts = VALIDATION, steps: int = 100, seed: int = 0, **options: Any
) -> tuple[Any, Any, TextFit]:
    made, network = load_classifier(folder, None, MOODS, seed, CPU)
    settings: dict[str, Any] = {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "evaluation_steps": 25,
        "evaluation_batch_size": 32,
        "max_length": 32,
        **options,
    }
    return made, network, train_text_classifier(network, made, train, validation, steps=steps, seed=seed, **settings)


def accuracy_of(made: Any, network: Any, texts: Texts) -> float:
    found = predict(network, made, texts.texts, 64, 32, CPU).argmax(dim=1)
    return (found == torch.tensor(texts.labels)).double().mean().item()


def copied(network: Any) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def require_equal(one: State, other: State) -> None:
    for (name, value), wanted in zip(one.items(), other.values(), strict=True):
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("pairs", [False, True])
def test_moods_of_sentences_that_were_not_seen_are_learnt(folder: Path, pairs: bool) -> None:
    train, test = moods(200, 1, pairs), moods(300, 3, pairs)
    made, network, found = fitted(folder, train, moods(60, 2, pairs), steps=150)
    assert not set(test.texts) & set(train.texts)
    assert accuracy_of(made, network, test) > 0.93  # chance is 0.5
    assert found.validation_accuracy is not None and found.validation_accuracy > 0.9
    assert found.diversity < 0.3 < found.curve[0][2] < 1.0


def test_equal_seeds_are_equal_to_the_bit_and_no_global_randomness_is_read_or_moved(folder: Path) -> None:
    before = torch.get_rng_state()
    _, first, found = fitted(folder, steps=30)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded_global(17, "elsewhere"):
        _, second, again = fitted(folder, steps=30)
    assert found == again
    require_equal(first.state_dict(), second.state_dict())
    _, other, _ = fitted(folder, steps=30, seed=1)
    body = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(first.state_dict()[body], other.state_dict()[body])


def test_steps_are_those_of_a_plain_loop_to_the_bit(folder: Path) -> None:
    _, network, _ = fitted(folder, validation=NONE, steps=12, weight_decay=0.2)
    seen: list[TextBatch] = []

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        seen.append(batch)
        return plain_loss(network, batch, labels, step)

    fitted(folder, validation=NONE, steps=12, loss=noting)
    made, expected = load_classifier(folder, None, MOODS, 0, CPU)
    classes = {tuple(ids): label for ids, label in zip(tokens(made, TRAIN), TRAIN.labels, strict=True)}
    solver = torch.optim.AdamW(expected.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.2, fused=True)
    expected.train()
    for step, batch in enumerate(seen):
        labels = torch.tensor([classes[tuple(row)] for row in unpadded(batch)])
        with seeded_global(0, "text dropout", step):
            logits = expected(**batch.inputs).logits
        solver.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, labels))
        solver.step()
    require_equal(network.state_dict(), expected.state_dict())


def tokens(made: Any, texts: Texts) -> list[list[int]]:
    return [made(row[0])["input_ids"] for row in texts.texts]


def unpadded(batch: TextBatch) -> list[list[int]]:
    masks = batch.inputs["attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(batch.inputs["input_ids"], masks, strict=True)]


def test_every_text_is_used_once_before_one_is_used_again(folder: Path) -> None:
    few, seen = moods(10, 5), []

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        seen.extend(unpadded(batch))
        assert len(batch) == len(labels) == 4
        return plain_loss(network, batch, labels, step)

    made, _, _ = fitted(folder, few, NONE, steps=10, batch_size=4, loss=noting)
    everything = sorted(tokens(made, few))
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 4
    seen.clear()
    fitted(folder, few, NONE, steps=10, batch_size=4, loss=noting, seed=1)
    assert seen != [row for epoch in epochs for row in epoch] and sorted(seen[:10]) == everything


def test_dropout_is_on_and_follows_seed_and_step(folder: Path) -> None:
    values: list[float] = []
    start = copied(load_classifier(folder, None, MOODS, 0, CPU)[1])

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        network.load_state_dict(start)  # so that nothing but what is dropped can change the loss
        value = plain_loss(network, batch, labels, step)
        values.append(value.item())
        return value

    for seed in (0, 1, 0):
        fitted(folder, Texts([("a film",)], [0], [0]), NONE, steps=4, seed=seed, batch_size=1, loss=noting)
    assert len(set(values)) == 8 and values[:4] == values[8:]


def test_best_weights_are_the_ones_left_in_the_network(folder: Path) -> None:
    noisy = Texts(
        VALIDATION.texts,
        [label if row % 5 else 1 - label for row, label in enumerate(VALIDATION.labels)],
        VALIDATION.ids,
    )
    states: dict[int, State] = {}

    def keep(done: int) -> None:
        states[done] = copied(network)

    made, network = load_classifier(folder, None, MOODS, 0, CPU)
    found = train_text_classifier(
        network,
        made,
        TRAIN,
        noisy,
        steps=70,
        batch_size=8,
        learning_rate=2e-3,
        weight_decay=0.01,
        evaluation_steps=10,
        evaluation_batch_size=7,
        max_length=32,
        seed=0,
        on_step=keep,
    )
    assert sorted(states) == list(range(1, 71)) and [step for step, *_ in found.curve] == list(range(10, 71, 10))
    scores = {step: (accuracy, -loss) for step, accuracy, loss in found.curve}
    assert found.best_step == max(scores, key=lambda step: scores[step]) < 70  # so the last are not simply kept
    require_equal(network.state_dict(), states[found.best_step])
    assert accuracy_of(made, network, noisy) == found.validation_accuracy == scores[found.best_step][0]
    shares = predict(network, made, noisy.texts, 64, 32, CPU)
    assert F.nll_loss(shares.log(), torch.tensor(noisy.labels)).item() == pytest.approx(-scores[found.best_step][1])
    assert not network.training


def test_ties_in_accuracy_go_to_the_lower_validation_loss_and_then_to_the_earlier_step(folder: Path) -> None:
    script = [-1.0, 1.0, 3.0, 3.0, 2.0]

    def scripted(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            network.classifier.weight.zero_()
            network.classifier.bias.copy_(torch.tensor([script[step], 0.0]))
        return plain_loss(network, batch, labels, step)

    # All texts are of class 0: a logit above 0 is right, a larger one has the lower loss. The steps themselves are
    # too small to change what validation says, but not the head's weights.
    validation = Texts(VALIDATION.texts, [0] * 60, VALIDATION.ids)
    options: dict[str, Any] = {"evaluation_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "loss": scripted}
    _, kept, found = fitted(folder, validation=validation, steps=5, **options)
    assert found.best_step == 3 and found.validation_accuracy == 1.0
    assert [accuracy for _, accuracy, _ in found.curve] == [0.0, 1.0, 1.0, 1.0, 1.0]
    states = {steps: fitted(folder, validation=NONE, steps=steps, **options)[1].state_dict() for steps in (3, 4)}
    require_equal(kept.state_dict(), states[3])
    assert not torch.equal(states[3]["classifier.weight"], states[4]["classifier.weight"])


def test_validation_comes_after_the_last_step_and_changes_no_training(folder: Path) -> None:
    with_some: dict[int, State] = {}

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        assert network.training
        with_some[step] = copied(network)
        return plain_loss(network, batch, labels, step)

    found = fitted(folder, steps=7, evaluation_steps=3, loss=noting)[2]
    assert [step for step, *_ in found.curve] == [3, 6, 7]
    require_equal(fitted(folder, validation=NONE, steps=6)[1].state_dict(), with_some[6])


def test_without_validation_the_last_weights_stay(folder: Path) -> None:
    states: list[State] = []

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        states.append(copied(network))
        return plain_loss(network, batch, labels, step)

    _, network, found = fitted(folder, validation=NONE, steps=7)
    assert (found.best_step, found.validation_accuracy, found.curve) == (7, None, [])
    fitted(folder, validation=NONE, steps=8, loss=noting)
    require_equal(network.state_dict(), states[7])


@pytest.mark.parametrize(("steps", "tail"), [(3, 1), (25, 2)])
def test_diversity_is_the_mean_loss_of_the_last_tenth_of_the_steps(folder: Path, steps: int, tail: int) -> None:
    losses: list[float] = []

    def noting(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        value = plain_loss(network, batch, labels, step)
        losses.append(value.item())
        return value

    found = fitted(folder, steps=steps, evaluation_steps=4, loss=noting)[2]
    assert len(losses) == steps and found.diversity == pytest.approx(sum(losses[-tail:]) / tail, rel=1e-6)


def test_texts_that_lost_their_end_are_counted(folder: Path) -> None:
    lengths = [len(text.split()) for (text,) in TRAIN.texts]
    assert 0 < fitted(folder, steps=1, max_length=8)[2].cut == sum(length > 6 for length in lengths) < 200
    assert fitted(folder, steps=1)[2].cut == 0


def test_a_loss_that_is_not_finite_stops_the_fit(folder: Path) -> None:
    def broken(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
        return plain_loss(network, batch, labels, step) * (torch.nan if step == 1 else 1.0)

    with pytest.raises(NumericError, match=r"loss is not finite by step 3[\s\S]*lower classify.learning_rate"):
        fitted(folder, steps=9, evaluation_steps=3, loss=broken)


def test_a_signal_stops_the_fit_after_the_step(folder: Path) -> None:
    seen: list[int] = []

    def interrupted(done: int) -> None:
        seen.append(done)
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with watching(), pytest.raises(Stopped, match="classifiers that were finished are kept"):
        fitted(folder, steps=9, on_step=interrupted)
    assert seen == [1, 2, 3] and not flag


def test_a_signal_stops_a_long_prediction() -> None:
    with watching(), pytest.raises(Stopped, match="classifiers that were finished are kept"):
        os.kill(os.getpid(), signal.SIGTERM)
        predict(network_of("bert"), tokenizer(), TRAIN.texts, 8, 32, CPU)


def test_predictions_are_in_order_and_do_not_depend_on_the_batch() -> None:
    made, network = tokenizer(), network_of("bert")
    texts = [(f"{text} {' '.join(PLAIN[: row * 7 % 20])}",) for row, (text,) in enumerate(moods(50, 4).texts)]
    assert {len(made(row[0])["input_ids"]) > 24 for row in texts} == {False, True}
    network.train()
    whole = predict(network, made, texts, 64, 24, CPU)
    assert whole.shape == (50, 2) and whole.dtype == torch.float32 and not network.training
    alone = torch.cat(
        [network(**made(row[0], truncation=True, max_length=24, return_tensors="pt")).logits for row in texts]
    )
    torch.testing.assert_close(whole, alone.exp() / alone.exp().sum(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert len(set(whole[:, 0].tolist())) == 50 and whole[:, 0].std() > 0.1  # so order matters
    for batch_size in (1, 7):
        torch.testing.assert_close(predict(network, made, texts, batch_size, 24, CPU), whole, rtol=0, atol=1e-6)
    assert torch.equal(predict(network, made, texts, 64, 24, CPU), whole)
    assert predict(network, made, [], 64, 24, CPU).shape == (0, 2)


def test_fit_cannot_see_the_test_split() -> None:
    """Of texts, those to train on and the validation split alone go in."""
    names = [name for name, one in inspect.signature(train_text_classifier).parameters.items() if "Texts" in str(one)]
    assert names == ["train", "validation"]
