"""SSMix: saliency against finite differences, spans against brute force, and what is replaced by what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from mvc.classify.ssmix import mix_spans, saliency, spans, ssmix_loss
from mvc.classify.text_mixing import partners
from mvc.classify.text_networks import TextBatch, encode
from mvc.randomness import generator, numpy_generator, seeded_global
from tests.classify.text_toys import CPU, FAMILIES, SPECIAL, WORDS, moods, network_of, tokenizer

IDS = range(len(SPECIAL))
"""Of the special tokens."""


def batch_of(*texts: tuple[str, ...]) -> TextBatch:
    return encode(tokenizer(), list(texts), 40).batch(range(len(texts)), CPU)


def random_batch(count: int, seed: int, pairs: bool = False) -> TextBatch:
    return batch_of(*moods(count, seed, pairs).texts)


def test_saliency_is_the_gradient_by_finite_differences() -> None:
    network, batch, labels = network_of("bert").double(), random_batch(3, 0), torch.tensor([0, 1, 1])
    logits, found = saliency(network, batch, labels)
    assert torch.equal(logits.double(), network(**batch.inputs).logits.float().double())
    width, step = found.shape[1], 1e-3
    shift = torch.zeros(3, width, 32, dtype=torch.float64)
    network.get_input_embeddings().register_forward_hook(lambda layer, inputs, output: output + shift)

    def losses() -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(network(**batch.inputs).logits, labels, reduction="none")

    for place in range(0, width, 4):
        slopes = torch.zeros(3, 32, dtype=torch.float64)
        for coordinate in range(32):
            shift[:, place, coordinate] = step
            above = losses()
            shift[:, place, coordinate] = -step
            slopes[:, coordinate] = (above - losses()) / (2 * step)
            shift[:, place, coordinate] = 0.0
        torch.testing.assert_close(found[:, place].double(), slopes.norm(dim=1), rtol=1e-3, atol=1e-6)
    assert found[batch.sentences >= 0].min() > 1e-4


class Weighted(nn.Module):
    """Logits of a text are the sum over its places of place + 1 times a linear map of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_global(0, "weighted"):
            self.words, self.linear = nn.Embedding(len(SPECIAL) + len(WORDS) + 2, 8), nn.Linear(8, 2, bias=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SequenceClassifierOutput:
        weights = torch.arange(1, input_ids.shape[1] + 1) * attention_mask
        return SequenceClassifierOutput(logits=self.linear((self.words(input_ids) * weights[..., None]).sum(dim=1)))


def test_saliency_of_a_linear_network_has_a_closed_form() -> None:
    network, batch, labels = Weighted(), random_batch(4, 1), torch.tensor([0, 1, 1, 0])
    logits, found = saliency(network, batch, labels)
    # d loss / d embedding of place i is (i + 1) W^T (p - y).
    error = logits.softmax(dim=1) - F.one_hot(labels, 2)
    slope = (error @ network.linear.weight).norm(dim=1)
    places = torch.arange(1, found.shape[1] + 1) * batch.inputs["attention_mask"]
    torch.testing.assert_close(found, slope[:, None] * places)


@pytest.mark.parametrize("family", FAMILIES)
def test_saliency_of_a_text_depends_on_no_other_text(family: str) -> None:
    network, labels = network_of(family), torch.tensor([0, 1, 1])
    names = ("input_ids", "attention_mask")
    batch, alone = random_batch(3, 2), [batch_of(row) for row in moods(3, 2).texts]
    found = saliency(network, without_types(batch, names), labels)[1]
    assert not found.requires_grad
    for row, one in enumerate(alone):
        single = saliency(network, without_types(one, names), labels[row : row + 1])[1][0]
        torch.testing.assert_close(found[row, : len(single)], single, rtol=1e-4, atol=1e-6)
        assert (found[row, len(single) :] < 1e-6).all()  # padding


def without_types(batch: TextBatch, names: tuple[str, ...]) -> TextBatch:
    return TextBatch({name: batch.inputs[name] for name in names}, batch.sentences)


@pytest.mark.parametrize("span_share", [0.05, 0.3, 0.9])
def test_spans_are_the_least_and_most_salient_by_brute_force(span_share: float) -> None:
    source = generator(0, "saliencies")
    for _ in range(50):
        count, other = torch.randint(1, 25, (2,), generator=source).tolist()
        # Whole numbers: so sums are exact, and there are ties.
        one, two = (torch.randint(0, 6, (size,), generator=source).float() for size in (count, other))
        length = max(min(int(span_share * count), other), 1)
        least = min(range(count - length + 1), key=lambda start: sum(one[start : start + length].tolist()))
        most = max(range(other - length + 1), key=lambda start: sum(two[start : start + length].tolist()))
        assert spans(one, two, span_share) == (least, most, length)


def test_span_length_is_bounded_by_the_other_text_and_is_one_at_least() -> None:
    assert spans(torch.ones(30), torch.ones(30), 0.1)[2] == 3
    assert spans(torch.ones(30), torch.ones(2), 0.1)[2] == 2
    assert spans(torch.ones(5), torch.ones(30), 0.1)[2] == 1


def test_the_least_salient_words_give_way_to_the_most_salient_ones() -> None:
    made = tokenizer()
    texts = [("the film is a great story of music",), ("this dull scene",)]
    batch = batch_of(*texts)
    salience = torch.tensor([[9.0, 3, 4, 1, 1, 5, 6, 7, 8, 9], [9.0, 1, 5, 6, 9, 9, 9, 9, 9, 9]])
    ids, share = mix_spans(batch, salience, torch.tensor([1, 0]), 0.25)
    assert made.decode(ids[0]) == "[CLS] the film dull scene great story of music [SEP]"
    assert made.decode(ids[1]) == "[CLS] music dull scene [SEP] [PAD] [PAD] [PAD] [PAD] [PAD]"
    assert share.tolist() == pytest.approx([2 / 8, 1 / 3])
    assert torch.equal(batch.inputs["input_ids"], batch_of(*texts).inputs["input_ids"])  # the batch itself stays


def test_sentences_of_a_pair_are_mixed_each_on_its_own() -> None:
    made = tokenizer()
    batch = batch_of(("the film is a", "great story"), ("dull scene", "this year was grim with music"))
    salience = torch.zeros(batch.inputs["input_ids"].shape)
    salience[0, :9] = torch.tensor([9.0, 5, 6, 1, 2, 0, 3, 1, 0])  # [CLS] the film is a [SEP] great story [SEP]
    salience[1, :11] = torch.tensor([9.0, 4, 2, 9, 1, 5, 6, 7, 2, 3, 9])  # [CLS] dull scene [SEP] this ... music [SEP]
    ids, share = mix_spans(batch, salience, torch.tensor([1, 0]), 0.5)
    assert made.decode(ids[0]).replace(" [PAD]", "") == "[CLS] the film dull scene [SEP] great grim [SEP]"
    assert made.decode(ids[1]) == "[CLS] dull film [SEP] this year was grim great story [SEP]"
    assert share.tolist() == pytest.approx([(2 + 1) / 6, (1 + 2) / 8])


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_and_padding_are_never_touched(pairs: bool) -> None:
    for seed in range(20):
        batch = random_batch(5, seed, pairs)
        # The special tokens are the least salient ones, and the most salient ones.
        for value in (-100.0, 100.0):
            salience = torch.rand(batch.sentences.shape, generator=generator(seed, "saliency"))
            salience[batch.sentences < 0] = value
            partner = partners(5, numpy_generator(seed, "partners"))
            ids, share = mix_spans(batch, salience, partner, 0.3)
            before, own = batch.inputs["input_ids"], batch.sentences >= 0
            assert torch.equal(ids[~own], before[~own])
            assert not any(number in IDS for number in ids[own].tolist())
            for row, other in enumerate(partner.tolist()):
                lengths = [[int((batch.sentences[place] == part).sum()) for part in (0, 1)] for place in (row, other)]
                taken = sum(max(min(int(0.3 * a), b), 1) for a, b in zip(*lengths, strict=True) if a)
                assert share[row].item() == pytest.approx(taken / sum(lengths[0]))
                changed = (ids[row] != before[row]).nonzero().flatten()
                assert len(changed) <= taken and set(ids[row, changed].tolist()) <= set(before[other].tolist())


def test_where_a_text_is_empty_nothing_is_replaced() -> None:
    batch = batch_of(("",), ("a film",), ("great music",))
    ids, share = mix_spans(batch, torch.ones(batch.sentences.shape), torch.tensor([1, 0, 1]), 0.5)
    assert torch.equal(ids[:2], batch.inputs["input_ids"][:2]) and share.tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("training", [False, True])
def test_loss_is_the_mean_of_plain_and_mixed_loss(training: bool) -> None:
    network, batch, labels = network_of("bert").train(training), random_batch(4, 3), torch.tensor([0, 1, 1, 0])
    for step in range(3):
        with seeded_global(0, "dropout", step):
            found = ssmix_loss(network, batch, labels, step, span_share=0.4, seed=7)
        partner = partners(4, numpy_generator(7, "ssmix", step))
        with seeded_global(0, "dropout", step):
            logits, salience = saliency(network, batch, labels)
            ids, share = mix_spans(batch, salience, partner, 0.4)
            mixed = network(**{**batch.inputs, "input_ids": ids}).logits
        rows = [
            F.cross_entropy(logits[row], labels[row])
            + (1 - share[row]) * F.cross_entropy(mixed[row], labels[row])
            + share[row] * F.cross_entropy(mixed[row], labels[partner[row]])
            for row in range(4)
        ]
        torch.testing.assert_close(found, torch.stack(rows).sum() / 8)
        assert not torch.equal(ids, batch.inputs["input_ids"])


def test_gradient_of_the_weights_is_that_of_both_halves() -> None:
    network, batch, labels = network_of("bert"), random_batch(2, 4), torch.tensor([0, 1])
    torch.autograd.backward(ssmix_loss(network, batch, labels, 0, span_share=0.4, seed=0))
    found = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
    network.zero_grad()
    _, salience = saliency(network, batch, labels)
    assert all(weight.grad is None for weight in network.parameters())
    ids, share = mix_spans(batch, salience, torch.tensor([1, 0]), 0.4)
    plain = F.cross_entropy(network(**batch.inputs).logits, labels)
    mixed: Any = network(**{**batch.inputs, "input_ids": ids}).logits.log_softmax(dim=1)
    target = (1 - share[:, None]) * F.one_hot(labels, 2) + share[:, None] * F.one_hot(labels.flip(0), 2)
    torch.autograd.backward((plain - (target * mixed).sum(dim=1).mean()) / 2)
    expected = [weight.grad for weight in network.parameters() if weight.grad is not None]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_text_that_is_alone_is_mixed_with_itself() -> None:
    network, batch, labels = network_of("bert"), random_batch(1, 5), torch.tensor([1])
    value = ssmix_loss(network, batch, labels, 0, span_share=0.3, seed=0)
    ids, share = mix_spans(batch, saliency(network, batch, labels)[1], torch.tensor([0]), 0.3)
    expected = (
        F.cross_entropy(network(**batch.inputs).logits, labels),
        F.cross_entropy(network(**{**batch.inputs, "input_ids": ids}).logits, labels),
    )
    assert share.item() > 0
    torch.testing.assert_close(value, (expected[0] + expected[1]) / 2)


def test_nothing_is_left_in_the_network() -> None:
    network, batch, labels = network_of("bert"), random_batch(2, 6), torch.tensor([0, 1])
    saliency(network, batch, labels)
    with pytest.raises(IndexError):
        saliency(network, TextBatch({"input_ids": torch.tensor([[999]])}, torch.tensor([[0]])), labels[:1])
    assert not network.get_input_embeddings()._forward_hooks
