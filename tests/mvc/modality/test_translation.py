"""Translation and back-translation by small real Marian models: against transformers by hand and what they learnt."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from mvc.config_augment import TranslationSection
from mvc.errors import EnvironmentFault
from mvc.loading import quiet
from mvc.modality.chain import Chain
from mvc.modality.nodes import Sample
from mvc.modality.steps import Output, Result, Step
from mvc.modality.store import Store
from mvc.modality.translation import back_translation_levels, translation_step
from mvc.randomness import generator, numpy_generator, seeded_global
from mvc.sampling import gumbel_noise

CPU = torch.device("cpu")
DICTIONARY = {
    "red": "rot",
    "blue": "blau",
    "cat": "Katze",
    "dog": "Hund",
    "sees": "sieht",
    "the": "die",
    "small": "klein",
    "little": "klein",
}
ENGLISH, GERMAN = list(DICTIONARY), list(dict.fromkeys(DICTIONARY.values()))
TEXTS = ["the red cat", "the small dog sees the little blue cat", "dog"]
LONGEST = 12


def save_tokenizer(folder: Path, source: list[str], target: list[str], codes: Sequence[str] = ()) -> MarianTokenizer:
    """A Marian tokenizer, its two sentencepiece models trained on words of two languages."""
    pieces: list[str] = ["</s>", "<unk>", *codes]
    for side, words in (("source", source), ("target", target)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(words)] * 9),
            model_writer=model,
            model_type="word",
            vocab_size=len(words) + 3,
            minloglevel=2,
        )
        (folder / f"{side}.spm").write_bytes(model.getvalue())
        pieces += [f"\u2581{word}" for word in words]
    vocabulary = {piece: place for place, piece in enumerate([*dict.fromkeys(pieces), "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    tokenizer = MarianTokenizer(*files, source_lang="en", target_lang="de")
    tokenizer.save_pretrained(folder)
    return tokenizer


def marian(tokenizer: MarianTokenizer, init_std: float) -> MarianMTModel:
    """A model of one layer with the settings for searches that opus-mt brings along."""
    filler, layer = tokenizer.pad_token_id, {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in layer.items()},
        init_std=init_std,
        max_position_embeddings=LONGEST,
        pad_token_id=filler,
        eos_token_id=0,
        decoder_start_token_id=filler,
        forced_eos_token_id=0,
    )
    with seeded_global(0, "test translation model"):
        model = MarianMTModel(config).eval()
    for name, value in {"num_beams": 4, "max_length": 512, "bad_words_ids": [[filler]]}.items():
        setattr(model.generation_config, name, value)
    return model


def save_random(folder: Path, codes: Sequence[str] = ()) -> Path:
    """A model with random weights that are large enough for texts to depend on them."""
    tokenizer = save_tokenizer(folder, ENGLISH, GERMAN, codes)
    with quiet():
        marian(tokenizer, 0.5).save_pretrained(folder)
    return folder


def save_trained(folder: Path, source: list[str], target: list[str], pairs: list[tuple[str, str]]) -> Path:
    """A model that has learnt to translate word by word."""
    folder.mkdir()
    tokenizer = save_tokenizer(folder, source, target)
    model = marian(tokenizer, 0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = tokenizer([one for one, _ in pairs], text_target=[two for _, two in pairs], padding=True)
    ids, mask, labels = (torch.tensor(texts[name]) for name in ("input_ids", "attention_mask", "labels"))
    labels = labels.masked_fill(labels == tokenizer.pad_token_id, -100)
    for number in range(160):
        rows = (torch.arange(64) + 64 * number) % len(pairs)
        model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with quiet():
        model.save_pretrained(folder)
    return folder


def sentence_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of two to six words, and the same word by word in German."""
    random = numpy_generator(seed, "test sentences")
    chosen = [random.choice(ENGLISH, size=int(random.integers(2, 7))).tolist() for _ in range(count)]
    return [(" ".join(own), " ".join(DICTIONARY[word] for word in own)) for own in chosen]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("marian"))


def step(folder: Path | str, **changes: Any) -> Step:
    settings = {
        "model": str(folder),
        "revision": None,
        "key": "translation.forth",
        "temperature": 0.8,
        "top_p": 0.9,
        "max_new_tokens": 8,
        "device": CPU,
        "batch_size": 8,
    }
    return translation_step(**{**settings, **changes})


def said(results: Sequence[Result]) -> list[str]:
    return [one.value if isinstance(one, Output) else f"refused: {one.why}" for one in results]


def by_hand(folder: Path, text: str, seed: int, temperature: float, top_p: float, count: int) -> str:
    """Token after token without a batch, a cache or `generate`."""
    tokenizer = MarianTokenizer.from_pretrained(folder)
    with quiet():
        model = MarianMTModel.from_pretrained(folder)
    filler, source, made = tokenizer.pad_token_id, generator(seed, "next token"), list[int]()
    ids = torch.tensor([tokenizer(text).input_ids])
    for place in range(count):
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[filler, *made]])).logits[0, -1]
        logits[filler] = -torch.inf
        if place == count - 1:  # Marian ends what is long enough
            logits = torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor([0]), 0.0)
        logits = logits / temperature
        order = logits.argsort(descending=True)
        inside = order[: int((logits[order].softmax(0).cumsum(0) < top_p).sum()) + 1]
        noisy = (logits + gumbel_noise(len(logits), source))[inside]
        made.append(int(inside[noisy.argmax()]))
        if made[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_translations_are_those_of_the_model_called_by_hand(untrained: Path) -> None:
    seeds = [[3, 4], [5], [6, 7]]
    found = step(untrained).run(TEXTS, seeds)
    for text, some, results in zip(TEXTS, seeds, found, strict=True):
        wanted = [by_hand(untrained, text, seed, 0.8, 0.9, 8) for seed in some]
        assert said(results) == [own or "refused: the model gave no translation" for own in wanted]
    assert len({text for results in found for text in said(results)}) >= 4


def test_a_translation_does_not_depend_on_its_batch(untrained: Path) -> None:
    own, seeds = step(untrained), [[11, 12], [13], [14, 15]]
    together = own.run(TEXTS, seeds)
    alone = [[own.run([text], [[seed]])[0][0] for seed in some] for text, some in zip(TEXTS, seeds, strict=True)]
    assert together == alone == own.run(TEXTS[::-1], seeds[::-1])[::-1]


def test_texts_longer_than_the_model_and_empty_ones_are_refused_alone(untrained: Path) -> None:
    whole = " ".join(["cat"] * (LONGEST - 1))  # and the end of the text is a token
    found = step(untrained, max_new_tokens=200).run([whole, f"{whole} cat", "", "dog"], [[2], [2], [3, 4], [2]])
    assert [isinstance(one, Output) for own in found for one in own] == [True, False, False, False, True]
    assert said(found[1]) == ["refused: the text is too long for the model: 13 tokens of at most 12"]
    assert said(found[2]) == ["refused: the text is empty"] * 2


def test_a_translation_without_words_is_refused(untrained: Path) -> None:
    assert said(step(untrained, max_new_tokens=1).run(["dog"], [[1]])[0]) == ["refused: the model gave no translation"]


def test_back_translation_brings_the_words_back_or_others_of_the_same_meaning(tmp_path: Path) -> None:
    pairs = sentence_pairs(1024, 0)
    settings = {
        "forth": str(save_trained(tmp_path / "forth", ENGLISH, GERMAN, pairs)),
        "back": str(save_trained(tmp_path / "back", GERMAN, ENGLISH, [(two, one) for one, two in pairs])),
        "translations": 2,
        "returns": 3,
        "temperature": 1.0,
        "top_p": 0.9,
        "max_new_tokens": 10,
    }
    levels = back_translation_levels(**settings, device=CPU, batch_size=64)
    assert [level.count for level in levels] == [2, 3]
    new = [pair for pair in sentence_pairs(60, 1) if pair not in pairs]
    samples = [Sample(place, english) for place, (english, _) in enumerate(new)]
    leaves = [
        (leaf, *pair)
        for one, pair in zip(Chain(levels, 6).augment(samples, 0, Store(None)), new, strict=True)
        for leaf in one.leaves
    ]
    assert len(leaves) == 6 * len(new) > 200
    forth = [leaf.trail[0].value == german for leaf, _, german in leaves]
    meant = [leaf.value.replace("little", "small") == english.replace("little", "small") for leaf, english, _ in leaves]
    assert sum(forth) >= 0.95 * len(leaves) and sum(meant) >= 0.95 * len(leaves)
    doubtful = [(leaf.value, english) for leaf, english, _ in leaves if english.split()[-1] in ("small", "little")]
    other = sum(back.split()[-1:] != english.split()[-1:] for back, english in doubtful)
    assert len(doubtful) > 40 and 0.25 < other / len(doubtful) < 0.75


def test_the_levels_take_the_section_of_the_configuration(untrained: Path) -> None:
    section = TranslationSection(forth=str(untrained), back=str(untrained), translations=4, returns=5)
    levels = back_translation_levels(**section.model_dump(), device=CPU, batch_size=3)
    assert [(level.count, level.step.batch_size) for level in levels] == [(4, 3), (5, 3)]
    with pytest.raises(
        EnvironmentFault, match="cannot load the translation model .*gone.*\nwhy: .*\ndo: give translation.ba"
    ):
        back_translation_levels(**{**section.model_dump(), "back": f"{untrained}/gone/away"}, device=CPU, batch_size=3)


def test_the_identity_holds_weights_vocabularies_and_settings(untrained: Path, tmp_path: Path) -> None:
    own = step(untrained)
    changes: list[dict[str, Any]] = [{"temperature": 1.0}, {"top_p": 1.0}, {"max_new_tokens": 5}]
    others = {step(untrained, **change).identity for change in changes}
    copy = save_random(tmp_path)
    assert step(copy, key="translation.back", batch_size=1).identity == own.identity
    (copy / "target.spm").write_bytes((copy / "source.spm").read_bytes())
    assert len({own.identity, *others, step(copy).identity}) == 5
    assert own.random and not own.together and (own.takes, own.gives) == ("text", "text")


def test_a_model_of_many_languages_is_refused(tmp_path: Path) -> None:
    folder = save_random(tmp_path, codes=[">>deu<<", ">>fra<<"])
    with pytest.raises(
        EnvironmentFault, match="is for many languages\nwhy: .*\ndo: give translation.forth a model for"
    ):
        _ = step(folder).run


def test_a_missing_sacremoses_changes_nothing(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = step(untrained).run(TEXTS, [[1], [2], [3]])
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.warns(UserWarning, match="Recommended: pip install sacremoses"):
        MarianTokenizer.from_pretrained(untrained)
    assert step(untrained).run(TEXTS, [[1], [2], [3]]) == before


def test_a_missing_sentencepiece_is_named(untrained: Path) -> None:
    """In a process of its own, because transformers looks for packages once, when it is imported."""
    program = f"""
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, *arguments):
                return None if name == "sentencepiece" else self.finder.find_spec(name, *arguments)

        sys.meta_path[:] = map(Without, sys.meta_path)
        import torch
        from mvc.errors import EnvironmentFault
        from mvc.modality.translation import translation_step

        try:
            translation_step({str(untrained)!r}, None, "translation.forth", 1.0, 0.9, 8, torch.device("cpu"), 1).run
        except EnvironmentFault as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"the tokenizer of the translation model {untrained} needs a package that is missing"
    assert "MarianTokenizer requires the SentencePiece library" in lines[1]
    assert lines[2:] == ["do: pip install 'mvc[translation]'"]
