"""Rewriting by a language model here: small real models, against transformers by hand and what they have learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mvc.config_augment import KEEP_NOUNS
from mvc.errors import ConfigError, EnvironmentFault
from mvc.loading import quiet
from mvc.modality.language_model import language_model_step, request_for, sentences
from mvc.modality.steps import Output, Result, Step
from mvc.randomness import generator, seeded_global
from mvc.sampling import gumbel_noise

CPU = torch.device("cpu")
WORDS = "red blue small big cat dog bird fish".split()
TEMPLATE = (
    "{% for one in messages %}<user>{{ one.content }}</user>\n{% endfor %}"
    "{% if add_generation_prompt %}{% if enable_thinking %}<think>{% endif %}<bot>{% endif %}"
)
TEXTS = ["a red cat", "the small dog sees a big blue bird", "fish"]


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as those of GPT and Llama are, trained on what the tests say."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    corpus = [request_for(KEEP_NOUNS, " ".join(WORDS), 1), "\nRewritten sentence: " + " ".join(WORDS)] * 20 + TEXTS * 5
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    own.train_from_iterator([*corpus, "<user></user>\n<bot>Rewrite."] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", model_max_length=512)
    tokenizer.chat_template = template
    return tokenizer


def save_llama(folder: Path, template: str | None = None, **generation: Any) -> Path:
    """A Llama with random weights that are large enough for texts to depend on them."""
    tokenizer = byte_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
    )
    with seeded_global(0, "test language model"):
        model = LlamaForCausalLM(config).eval()
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # What chat models bring along: it would make a greedy choice, or one among three tokens.
    return save_llama(tmp_path_factory.mktemp("llama"), do_sample=True, temperature=0.1, top_k=3)


def step(folder: Path | str, **changes: Any) -> Step:
    settings = {
        "model": str(folder),
        "revision": None,
        "prompt": KEEP_NOUNS,
        "temperature": 0.8,
        "top_p": 0.9,
        "max_new_tokens": 24,
        "device": CPU,
        "batch_size": 8,
    }
    return language_model_step(**{**settings, **changes})


def said(results: Sequence[Result]) -> list[str]:
    return [one.value if isinstance(one, Output) else f"refused: {one.why}" for one in results]


def by_hand(folder: Path, prompt: str, seed: int, temperature: float, top_p: float, count: int) -> str:
    """Token after token without a batch, a cache or `generate`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder)
    ids, source, made = tokenizer(prompt).input_ids, generator(seed, "next token"), list[int]()
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *made]])).logits[0, -1] / temperature
        order = logits.argsort(descending=True)
        inside = order[: int((logits[order].softmax(0).cumsum(0) < top_p).sum()) + 1]
        noisy = (logits + gumbel_noise(len(logits), source))[inside]
        made.append(int(inside[noisy.argmax()]))
        if made[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(made, skip_special_tokens=True))


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_answers_are_those_of_the_model_called_by_hand(tmp_path: Path, template: str | None) -> None:
    folder = save_llama(tmp_path, template)
    found = step(folder).run(TEXTS, [[3, 4], [5], [6]])
    for text, seeds, results in zip(TEXTS, [[3, 4], [5], [6]], found, strict=True):
        prompt = f"{KEEP_NOUNS}\n\nSentence: {text}\nRewritten sentence:"
        if template:
            prompt = f"<user>{request_for(KEEP_NOUNS, text, 1)}</user>\n<bot>"
        answers = [sentences(by_hand(folder, prompt, seed, 0.8, 0.9, 24), text) for seed in seeds]
        assert said(results) == [own[0] if own else "refused: the model gave no sentence" for own in answers]
    assert len({text for results in found for text in said(results)}) == 4


def test_an_answer_does_not_depend_on_its_batch(llama: Path) -> None:
    own = step(llama)
    seeds = [[11, 12], [13], [14, 15]]
    together = own.run(TEXTS, seeds)
    alone = [[own.run([text], [[seed]])[0][0] for seed in some] for text, some in zip(TEXTS, seeds, strict=True)]
    assert together == alone == own.run(TEXTS[::-1], seeds[::-1])[::-1]
    assert len({text for results in together for text in said(results)}) == 5


def test_settings_for_sampling_that_a_model_brings_along_change_nothing(llama: Path, tmp_path: Path) -> None:
    plain = save_llama(tmp_path)
    assert step(llama).run(TEXTS, [[1], [2], [3]]) == step(plain).run(TEXTS, [[1], [2], [3]])


def test_a_text_too_long_for_the_model_and_an_empty_one_are_refused_alone(llama: Path) -> None:
    tokenizer, text = byte_tokenizer(), "cat"
    while True:  # as long as there is room; a word is a token
        tokens = len(tokenizer(f"{KEEP_NOUNS}\n\nSentence: {text} cat\nRewritten sentence:").input_ids)
        if tokens > 256 - 24:
            break
        text += " cat"
    results = step(llama).run([text, f"{text} cat", " ", "a dog"], [[1], [2], [3, 4], [5]])
    assert [isinstance(one, Output) for own in results for one in own] == [True, False, False, False, True]
    assert said(results[1]) == [f"refused: the text is too long for the model: {tokens} tokens of at most 232"]
    assert said(results[2]) == ["refused: the text is empty"] * 2


def test_an_answer_without_words_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, eos_token_id=list(range(len(byte_tokenizer()))))  # whatever it says ends it
    assert said(step(folder).run(["a cat"], [[1, 2]])[0]) == ["refused: the model gave no sentence"] * 2


def trained(folder: Path) -> Path:
    """A GPT-2 that has learnt to say two words the other way round, and to go on with another sentence."""
    tokenizer, rows, targets = byte_tokenizer(), list[list[int]](), list[list[int]]()
    for one, two in product(WORDS, WORDS):  # a word is a token, so all rows are equally long
        asked = tokenizer(f"Rewrite.\n\nSentence: {one} {two}\nRewritten sentence:").input_ids
        answer = tokenizer(f" {two} {one}\n\nSentence: red").input_ids
        rows.append(asked + answer)
        targets.append([-100] * len(asked) + answer)
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=1, n_head=2, **ends)
    with seeded_global(1, "test language model"):
        model = GPT2LMHeadModel(config).eval()  # no dropout, which would draw from the global generator
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(110):
        model(input_ids=torch.tensor(rows), labels=torch.tensor(targets)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_has_learnt_to_rewrite_rewrites(tmp_path: Path) -> None:
    pairs = list(product(WORDS, WORDS))
    own = step(trained(tmp_path), prompt="Rewrite.", temperature=0.3)
    found = own.run([" ".join(pair) for pair in pairs], [[place] for place in range(len(pairs))])
    right = [said(results) == [f"{two} {one}"] for results, (one, two) in zip(found, pairs, strict=True) if one != two]
    assert sum(right) >= 0.9 * len(right) == 0.9 * 56
    # The same word twice comes back as it was, and what the model goes on with is no rewrite.
    same = [said(results)[0] for results, (one, two) in zip(found, pairs, strict=True) if one == two]
    assert same.count("refused: the model gave no sentence") >= 7


def test_no_model_a_missing_one_and_one_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="language_model.model is not given\nwhy: .*\ndo: set language_model.model"):
        step("", model=None)
    with pytest.raises(EnvironmentFault, match=f"cannot load the language model {tmp_path}.*\nwhy: .*\ndo: give langu"):
        _ = step(tmp_path).run


def test_the_identity_holds_weights_template_and_settings(llama: Path, tmp_path: Path) -> None:
    own = step(llama)
    changes: list[dict[str, Any]] = [{"prompt": "x"}, {"temperature": 1.0}, {"top_p": 1.0}, {"max_new_tokens": 5}]
    others = {step(llama, **change).identity for change in changes}
    copy = save_llama(tmp_path, do_sample=True, temperature=0.1, top_k=3)
    assert step(copy).identity == own.identity == step(llama, batch_size=1).identity
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    assert len({own.identity, *others, step(copy).identity}) == 6
    assert own.random and not own.together and (own.takes, own.gives) == ("text", "text")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A cat sits.", ["A cat sits."]),
        (
            "1. One cat.\n2) Two cats.\n(3) Three cats.\n\n 10. Ten cats.",
            ["One cat.", "Two cats.", "Three cats.", "Ten cats."],
        ),
        ("- One.\n* Two.\n\u2022 Three.\n\u2013 Four.\na) Five.", ["One.", "Two.", "Three.", "Four.", "Five."]),
        (
            '"One."\n\u201cTwo.\u201d\n\u00abThree.\u00bb\n`Four.`\n"Five.",',
            ["One.", "Two.", "Three.", "Four.", "Five."],
        ),
        ('"Go," he said, "now"', ['"Go," he said, "now"']),
        ("Here are 2 diverse sentences:\n\n1. One.\n2. Two.", ["One.", "Two."]),
        ("Sure! Here are the sentences you want:\nOne.", ["One."]),
        ("**Sentences:**\n**1.** One.\n**2. Two.**", ["One.", "Two."]),
        ("Certainly!\nHere is one:\nOne.", ["One."]),
        ("Here are 3 versions\nOne.", ["One."]),
        ("Sentence 1: One.\nVersion 2: Two.\nRewritten sentence: Three.", ["One.", "Two.", "Three."]),
        ("<think>\nLet me see.\n</think>\n\nOne.", ["One."]),
        ("Let me see.\n</think>One.", ["One."]),
        ("<think>\nLet me see, and on and", []),
        ("```text\nOne.\n```\n---\nTwo.", ["One.", "Two."]),
        ("One.\nOne.\n1. One.", ["One."]),
        ("a  DOG barks\nOne.", ["One."]),
        ("3.5 stars.\n2001: A Space Odyssey.\n-5 degrees.", ["3.5 stars.", "2001: A Space Odyssey.", "-5 degrees."]),
        ("Here is a film that works.", ["Here is a film that works."]),
        ("Sure, it is slow.\nWhat the f**k and s**t.", ["Sure, it is slow.", "What the f**k and s**t."]),
        ("One\tword\u00a0more.\r\nTwo.", ["One word more.", "Two."]),
        ("He said:", ["He said:"]),
        ("\n \n...\n", []),
        ("", []),
    ],
)
def test_sentences_are_taken_out_of_answers(answer: str, found: list[str]) -> None:
    assert sentences(answer, "A dog  barks") == found
