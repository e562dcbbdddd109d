"""TMix against a forward pass by hand, its draws, its loss, and training with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from mvc.classify.text_mixing import (
    draw_mixture,
    layer_numbers,
    loss_of,
    mixed_cross_entropy,
    mixing_after,
    partners,
    tmix_loss,
)
from mvc.classify.text_networks import TextBatch, encode, layers_of, load_classifier
from mvc.classify.text_training import plain_loss, predict, train_text_classifier
from mvc.errors import ConfigError
from mvc.randomness import numpy_generator
from tests.classify.text_toys import CPU, FAMILIES, MOODS, config, moods, network_of, save_bert, tokenizer

SHORT, LONG = "a lovely film", "the story of this actor is grim and with music"
SETTINGS: dict[str, Any] = {"seed": 0, "mix_alpha": 0.2, "mix_layers": [], "span_share": 0.1}


def batch_of(*texts: str, length: int = 32) -> TextBatch:
    encoded = encode(tokenizer(), [(text,) for text in texts], length)
    return encoded.batch(range(len(texts)), CPU)


def inputs_of(network: Any, batch: TextBatch) -> dict[str, Tensor]:
    """Without the token types that some families know nothing of."""
    names = {"input_ids", "attention_mask"} | ({"token_type_ids"} if network.config.model_type == "bert" else set())
    return {name: value for name, value in batch.inputs.items() if name in names}


def mixed_logits(network: Any, batch: TextBatch, number: int, partner: Tensor, share: float) -> Tensor:
    with mixing_after(layers_of(network), number, partner, share):
        logits: Tensor = network(**inputs_of(network, batch)).logits
    return logits


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("other", [LONG, "the dull scene"])
def test_forward_pass_is_the_one_by_hand(number: int, other: str) -> None:
    network, batch, share = network_of("bert", layers=3), batch_of(SHORT, other), 0.7
    with torch.no_grad():
        bert, mask = network.bert, batch.inputs["attention_mask"].bool()
        states = bert.embeddings(batch.inputs["input_ids"], batch.inputs["token_type_ids"])
        for place, layer in enumerate(bert.encoder.layer, start=1):
            states = layer(states, mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1))
            if place == number:
                states = torch.stack(
                    [share * states[0] + (1 - share) * states[1], share * states[1] + (1 - share) * states[0]]
                )
                mask = (mask[0] | mask[1]).expand(2, -1)
        expected = network.classifier(torch.tanh(bert.pooler.dense(states[:, 0])))
        found = mixed_logits(network, batch, number, torch.tensor([1, 0]), share)
        plain = network(**batch.inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - plain).abs().min() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_mixes_states_and_masks(family: str, attention: str) -> None:
    network, batch = network_of(family, layers=3), batch_of(SHORT, LONG, "music")
    network.set_attn_implementation(attention)
    partner, share, number = torch.tensor([1, 2, 0]), 0.6, 2
    inputs = inputs_of(network, batch)
    with torch.no_grad():
        own = network(**inputs, output_hidden_states=True).hidden_states[number]
        states = share * own + (1 - share) * own[partner]
        mask = inputs["attention_mask"] | inputs["attention_mask"][partner]

        # A pass with the united masks from the start, in which the states after the layer are put in place.
        def replace(layer: Any, taken: Any, output: Any) -> Any:
            return (states, *output[1:]) if isinstance(output, tuple) else states

        hook = layers_of(network)[number - 1].register_forward_hook(replace)
        expected = network(**{**inputs, "attention_mask": mask}).logits
        hook.remove()
        found = mixed_logits(network, batch, number, partner, share)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - network(**inputs).logits).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_share_of_one_is_the_plain_forward_pass(family: str) -> None:
    network, partner = network_of(family, layers=3), torch.tensor([1, 0])
    with torch.no_grad():
        for texts, numbers in (((SHORT, "the dull scene"), (1, 2, 3)), ((SHORT, LONG), (3,))):  # no mask after the last
            batch = batch_of(*texts)
            plain = network(**inputs_of(network, batch)).logits
            for number in numbers:
                assert torch.equal(mixed_logits(network, batch, number, partner, 1.0), plain)


def test_a_share_of_zero_is_the_partner_where_lengths_are_equal() -> None:
    network, batch = network_of("bert", layers=3), batch_of(SHORT, "the dull scene")
    with torch.no_grad():
        found = mixed_logits(network, batch, 2, torch.tensor([1, 0]), 0.0)
        torch.testing.assert_close(found, network(**batch.inputs).logits.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("share", "reaches"), [(0.7, (True, True)), (1.0, (True, False))])
def test_gradient_flows_to_both_texts(share: float, reaches: tuple[bool, bool]) -> None:
    network, batch, seen = network_of("bert"), batch_of(SHORT, "the dull scene"), []
    network.bert.embeddings.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    logits = mixed_logits(network, batch, 1, torch.tensor([1, 0]), share)
    (gradient,) = torch.autograd.grad(logits[0].sum(), seen)
    assert tuple((gradient.flatten(1).norm(dim=1) > 1e-3).tolist()) == reaches


def test_nothing_is_left_in_the_network() -> None:
    network, batch = network_of("bert"), batch_of(SHORT, LONG)
    with torch.no_grad():
        before = network(**batch.inputs).logits
        mixed_logits(network, batch, 1, torch.tensor([1, 0]), 0.5)
        with pytest.raises(IndexError), mixing_after(layers_of(network), 1, torch.tensor([1, 7]), 0.5):
            network(**batch.inputs)
        assert torch.equal(network(**batch.inputs).logits, before)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers_of(network))


@pytest.mark.parametrize(("count", "least", "most"), [(1, 1, 1), (2, 1, 1), (3, 2, 2), (8, 150, 200)])
def test_partners_are_another_text_and_each_is_one_partner(count: int, least: int, most: int) -> None:
    drawn = {tuple(partners(count, numpy_generator(0, "test", number)).tolist()) for number in range(200)}
    for partner in drawn:
        assert sorted(partner) == list(range(count))
        assert count == 1 or all(other != row for row, other in enumerate(partner))
    assert least <= len(drawn) <= most


def test_layers_are_those_named_or_the_upper_half() -> None:
    assert layer_numbers(12, []) == [7, 8, 9, 10, 11, 12]
    assert layer_numbers(3, []) == [2, 3] and layer_numbers(1, []) == [1]
    assert layer_numbers(12, [7, 9, 12]) == [7, 9, 12]
    with pytest.raises(ConfigError, match=r"classify.mix_layers names layer 0, 13[\s\S]*have the numbers 1 to 12"):
        layer_numbers(12, [13, 7, 0])


def test_draws_follow_seed_and_step_and_have_their_laws() -> None:
    steps = [draw_mixture(2, [7, 9, 12], 1.0, 0, step) for step in range(3000)]
    assert all(
        torch.equal(one[0], other[0]) and one[1:] == other[1:]
        for one, other in zip(steps[:9], map(again, range(9)), strict=True)
    )
    shares = torch.tensor([share for *_, share in steps])
    # max(s, 1 - s) of a uniform s is uniform on [0.5, 1]: mean 3/4, variance 1/48.
    assert shares.min() >= 0.5 and shares.max() <= 1.0
    assert abs(shares.mean().item() - 0.75) < 4 * (1 / 48 / 3000) ** 0.5
    counts = [sum(number == wanted for _, number, _ in steps) for wanted in (7, 9, 12)]
    assert sum(counts) == 3000 and all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in counts)
    # Of Beta(0.2, 0.2), the variance is 1 / (4 (0.4 + 1)): E[(share - 1/2)^2] = 0.1786.
    narrow = torch.tensor([draw_mixture(2, [1], 0.2, 1, step)[2] for step in range(3000)])
    assert (narrow - 0.5).square().mean().item() == pytest.approx(1 / 5.6, rel=0.05)


def again(step: int) -> tuple[Tensor, int, float]:
    return draw_mixture(2, [7, 9, 12], 1.0, 0, step)


def test_mixed_cross_entropy_is_that_of_the_mixed_target() -> None:
    logits, own, other = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        *torch.tensor([[0, 1, 2, 2, 1], [1, 1, 0, 2, 0]]),
    )
    for share in (0.8, torch.linspace(0, 1, 5)):
        weights = torch.as_tensor(share).expand(5)[:, None]
        target = weights * F.one_hot(own, 3) + (1 - weights) * F.one_hot(other, 3)
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(mixed_cross_entropy(logits, own, other, share), expected)


def test_loss_is_of_the_mixture_that_seed_and_step_decide() -> None:
    network, batch, labels = network_of("bert", layers=4), batch_of(SHORT, LONG, "music"), torch.tensor([1, 0, 1])
    options: dict[str, Any] = {"layers": layers_of(network), "numbers": [2, 4], "alpha": 0.5, "seed": 3}
    found = [tmix_loss(network, batch, labels, step, **options).item() for step in range(6)]
    for step, value in enumerate(found):
        partner, number, share = draw_mixture(3, [2, 4], 0.5, 3, step)
        logits = mixed_logits(network, batch, number, partner, share)
        assert value == mixed_cross_entropy(logits, labels, labels[partner], share).item()
    assert len(set(found)) == 6


def test_a_text_that_is_alone_is_mixed_with_itself() -> None:
    network, batch, labels = network_of("bert"), batch_of(SHORT), torch.tensor([1])
    loss = loss_of("tmix", network, **SETTINGS)
    torch.testing.assert_close(
        loss(network, batch, labels, 0), plain_loss(network, batch, labels, 0), rtol=0, atol=1e-6
    )


def test_loss_of_an_arm() -> None:
    network = network_of("bert")
    assert (
        loss_of("real", network, **SETTINGS) is plain_loss and loss_of("back_speech", network, **SETTINGS) is plain_loss
    )
    with pytest.raises(ConfigError, match="classify.mix_layers names layer 3"):
        loss_of("tmix", network, **{**SETTINGS, "mix_layers": [3]})
    other = AutoModelForSequenceClassification.from_config(config("albert"))
    with pytest.raises(ConfigError, match="arm tmix cannot mix within a Albert"):
        loss_of("tmix", other, **SETTINGS)
    assert loss_of("ssmix", other, **SETTINGS) is not plain_loss  # which needs no layers


@pytest.mark.parametrize("arm", ["tmix", "ssmix"])
@pytest.mark.parametrize("pairs", [False, True])
def test_training_with_mixtures_learns_and_repeats_to_the_bit(arm: str, pairs: bool, tmp_path: Path) -> None:
    folder, test = save_bert(tmp_path), moods(300, 3, pairs)
    before, runs = torch.get_rng_state(), []
    for steps in (150, 150) if not pairs else (150,):
        made, network = load_classifier(folder, None, MOODS, 0, CPU)
        loss = loss_of(arm, network, **SETTINGS)
        found = train_text_classifier(
            network,
            made,
            moods(200, 1, pairs),
            moods(60, 2, pairs),
            steps=steps,
            batch_size=8,
            learning_rate=1e-3,
            weight_decay=0.01,
            evaluation_steps=50,
            evaluation_batch_size=32,
            max_length=32,
            seed=0,
            loss=loss,
        )
        shares = predict(network, made, test.texts, 64, 32, CPU)
        runs.append((found, shares))
    assert torch.equal(torch.get_rng_state(), before)
    assert (shares.argmax(dim=1) == torch.tensor(test.labels)).double().mean().item() > 0.93
    assert runs[0][0] == runs[-1][0] and torch.equal(runs[0][1], runs[-1][1])
