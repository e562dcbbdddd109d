"""Text classifiers as they are loaded: what comes from the checkpoint, what is new, and the tokens that go in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AutoModelForSequenceClassification, BertForMaskedLM, RobertaConfig

from mvc.classify.text_networks import encode, layers_of, load_classifier
from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import seeded_global
from tests.classify.text_toys import (
    CPU,
    FAMILIES,
    HIDDEN,
    MOODS,
    POSITIONS,
    VOCABULARY,
    config,
    network_of,
    save_bert,
    tokenizer,
)

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def load(place: Path, seed: int = 0, classes: tuple[str, ...] = MOODS) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_classifier(place, None, classes, seed, CPU)[1].state_dict()
    return weights


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def test_all_but_the_head_is_the_checkpoint_and_the_seed_decides_the_head(folder: Path) -> None:
    saved, found = load_file(folder / "model.safetensors"), load(folder)
    assert {name.removeprefix("bert.") for name in found.keys() - HEAD} == saved.keys()
    assert all(torch.equal(found[f"bert.{name}"], value) for name, value in saved.items())
    assert differing(found, load(folder)) == set()
    assert differing(found, load(folder, seed=1)) == {"classifier.weight"}  # new biases are zero
    assert not found["classifier.bias"].any()


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    first = load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded_global(5, "elsewhere"):
        assert differing(first, load(folder)) == set()


def test_network_has_the_classes_and_is_ready_to_judge(folder: Path) -> None:
    names = ("no", "perhaps", "yes")
    made, network = load_classifier(folder, None, names, 0, CPU)
    assert network.config.id2label == dict(enumerate(names)) and network.config.num_labels == 3
    assert not network.training and next(network.parameters()).dtype == torch.float32
    batch = encode(made, [("the film is great",), ("a",)], 16).batch([0, 1], CPU)
    assert network(**batch.inputs).logits.shape == (2, 3)


@pytest.mark.parametrize("trained", [MOODS, ("a", "b", "c", "d")])
def test_a_head_that_the_checkpoint_holds_is_passed_over(
    folder: Path, tmp_path: Path, trained: tuple[str, ...]
) -> None:
    made, network = load_classifier(folder, None, trained, 9, CPU)
    network.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    assert differing(load(folder), load(tmp_path)) == set()


def test_new_weights_have_the_spread_of_the_configuration(folder: Path) -> None:
    many = load(folder, classes=tuple(map(str, range(300))))["classifier.weight"]
    assert many.shape == (300, HIDDEN)
    assert many.std().item() == pytest.approx(0.02, rel=0.05) and abs(many.mean().item()) < 1e-3


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_both_layers_of_the_other_families_are_new(family: str, tmp_path: Path) -> None:
    network_of(family).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    first = load(tmp_path)
    changed = differing(first, load(tmp_path, seed=1))
    prefix = network_of(family).base_model_prefix
    assert len(changed) == 2 and all(name.endswith("weight") and not name.startswith(prefix) for name in changed)
    assert differing(first, network_of(family).state_dict()) == {
        *changed,
        *(
            name.replace("weight", "bias")
            for name in changed
            if network_of(family).state_dict()[name[:-6] + "bias"].any()
        ),
    }


def test_a_checkpoint_without_a_pooler_gets_a_new_one(tmp_path: Path) -> None:
    with seeded_global(0, "test masked"):
        BertForMaskedLM(config()).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    saved, first, second = load_file(tmp_path / "model.safetensors"), load(tmp_path), load(tmp_path, seed=1)
    assert not any("pooler" in name for name in saved)
    assert differing(first, second) == {"classifier.weight", "bert.pooler.dense.weight"}
    assert torch.equal(first["bert.embeddings.word_embeddings.weight"], saved["bert.embeddings.word_embeddings.weight"])
    assert differing(first, load(tmp_path)) == set()


def damaged(source: Path, target: Path, name: str, value: torch.Tensor | None) -> Path:
    """A copy of a model with one weight changed or left out."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights[name]
    save_file(weights if value is None else {**weights, name: value}, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "weights are missing: bert.encoder.layer.1.output.dense.weight"),
        (torch.zeros(HIDDEN, 48), "weights are missing: bert.encoder.layer.1.output.dense.weight"),
        (torch.full((HIDDEN, 64), torch.nan), "weights are not finite"),
    ],
)
def test_weights_below_the_head_have_to_be_whole(
    folder: Path, tmp_path: Path, value: torch.Tensor | None, why: str
) -> None:
    place = damaged(folder, tmp_path, "encoder.layer.1.output.dense.weight", value)
    with pytest.raises(EnvironmentFault, match=rf"cannot load the text classifier [\s\S]*{why}[\s\S]*classify.model"):
        load(place)


def test_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"cannot load the text classifier .*nowhere[\s\S]*give classify.model a"
    ):
        load(tmp_path / "nowhere")


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    place = damaged(folder, tmp_path, "pooler.dense.bias", torch.zeros(HIDDEN))
    many = tokenizer()
    many.add_tokens(["extra"])
    many.save_pretrained(place)
    with pytest.raises(EnvironmentFault, match="tokenizer knows more tokens than the network"):
        load(place)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    with pytest.raises(EnvironmentFault, match="tokenizer has no padding token"):
        load(place)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_that_a_forward_pass_goes_through_in_order(family: str) -> None:
    network, seen = network_of(family, layers=3), []
    layers = layers_of(network)
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    network(torch.tensor([[2, 7, 8, 3]]))
    assert seen == [0, 1, 2]


def test_a_network_with_other_layers_cannot_be_mixed() -> None:
    network = AutoModelForSequenceClassification.from_config(config("albert"))
    assert isinstance(network.config, AlbertConfig)
    with pytest.raises(
        ConfigError, match=r"tmix cannot mix within a AlbertForSequenceClassification[\s\S]*classify.arms"
    ):
        layers_of(network)


def words(made: Any, text: str) -> list[int]:
    return list(made.convert_tokens_to_ids(text.split()))


def test_tokens_and_the_texts_that_they_are_from(folder: Path) -> None:
    made, _ = load_classifier(folder, None, MOODS, 0, CPU)
    single = encode(made, [("the films",), ("a great story",)], 16)
    assert [row["input_ids"] for row in single.inputs] == [
        words(made, "[CLS] the film ##s [SEP]"),
        words(made, "[CLS] a great story [SEP]"),
    ]
    assert single.sentences == [[-1, 0, 0, 0, -1]] * 2
    assert (len(single), single.cut, single.lengths) == (2, 0, [5, 5])
    pair = encode(made, [("the film", "a great story")], 16)
    assert pair.inputs[0]["input_ids"] == words(made, "[CLS] the film [SEP] a great story [SEP]")
    assert pair.inputs[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pair.sentences == [[-1, 0, 0, -1, 1, 1, 1, -1]]
    assert len(encode(made, [], 16)) == 0


def test_long_texts_lose_their_end_and_are_counted(folder: Path) -> None:
    made, _ = load_classifier(folder, None, MOODS, 0, CPU)
    texts = [("the film is great fun",), ("a film",), ("the story is lovely this year",)]
    found = encode(made, texts, 6)
    assert (found.cut, found.lengths) == (2, [6, 4, 6])
    assert found.inputs[2]["input_ids"] == words(made, "[CLS] the story is lovely [SEP]")
    pair = encode(made, [("the film is great", "a story"), ("a", "the")], 7)
    assert pair.inputs[0]["input_ids"] == words(made, "[CLS] the film [SEP] a story [SEP]") and pair.cut == 1
    with pytest.raises(
        ConfigError, match=r"classify.max_length is 2, and 2 of its tokens are special[\s\S]*to 3 at least"
    ):
        encode(made, [("a film",)], 2)
    with pytest.raises(ConfigError, match="set it to 5 at least"):
        encode(made, [("a film", "a story")], 4)


@pytest.mark.parametrize(
    ("family", "room"), [("bert", POSITIONS), ("roberta", POSITIONS - 1), ("mpnet", POSITIONS - 2)]
)
def test_a_text_is_no_longer_than_the_network_has_positions(family: str, room: int, tmp_path: Path) -> None:
    network_of(family).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    made, network = load_classifier(tmp_path, None, MOODS, 0, CPU)
    found = encode(made, [("film " * 100,), ("a film",)], 64)
    assert (found.lengths, found.cut) == ([room, 4], 1)
    inputs = found.batch([0], CPU).inputs
    assert network(inputs["input_ids"], inputs["attention_mask"]).logits.isfinite().all()
    longer = torch.cat([inputs["input_ids"][:, :1], inputs["input_ids"]], dim=1)
    with pytest.raises((IndexError, RuntimeError)):  # so one token more would have been too many
        network(longer, torch.ones_like(longer))


def test_batches_are_padded_as_the_tokenizer_does_it(folder: Path) -> None:
    made, _ = load_classifier(folder, None, MOODS, 0, CPU)
    texts = [("the film is great fun", "a story"), ("a", "the"), ("this year", "a lovely scene with the actor")]
    batch = encode(made, texts, 32).batch([2, 1], CPU)
    expected = made([texts[2], texts[1]], padding=True, return_tensors="pt")
    assert batch.inputs.keys() == expected.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(torch.equal(batch.inputs[name], expected[name]) for name in expected)
    assert batch.sentences.tolist() == [[-1, 0, 0, -1, *[1] * 6, -1], [-1, 0, -1, 1, -1, *[-1] * 6]]
    assert len(batch) == 2


def test_toy_families_are_real_ones() -> None:
    assert isinstance(config("roberta"), RobertaConfig) and len(VOCABULARY) == network_of("bert").config.vocab_size
