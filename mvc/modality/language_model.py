"""Text -> text by a causal language model on this machine: what it is asked, how it samples, what its answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from mvc.errors import ConfigError
from mvc.loading import quiet
from mvc.pretrained import find_model, identity_of, load_network, load_whole
from mvc.sampling import SeededSampling
from mvc.storage import sha256_json

from .steps import Item, Output, Refused, Result, Run, Step, one_each, within

KEY = "language_model.model"
_WHAT = "language model"
_ENDLESS = 1_000_000
"""Tokenizers without a longest text say some huge number."""
_PAIRS = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "\u201e": "\u201c"}
_MARK = re.compile(
    r"(?:[-*\u2013\u2014>#]+\s+|\u2022\s*|\(?\d{1,3}[.)](?!\d)\s*|\(?[a-z]\)\s+"
    r"|(?:(?:rewritten )?sentence|version|variation|rewrite|option|paraphrase)\s*#?\d{0,3}\s*[:.)]\s+)",
    re.IGNORECASE,
)
_BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)")
_INTRODUCTION = re.compile(
    r"(?:(?:sure|certainly|of course|okay|absolutely)\b\W*)?(?:here (?:are|is)|here's|below (?:are|is))\b.*"
    r"(?::|\b(?:sentences?|versions?|variations?|rewrites?|paraphrases?|alternatives?)\W*)"
    r"|(?:sure|certainly|of course|okay|absolutely)(?: thing)?\W*",
    re.IGNORECASE,
)


def request_for(prompt: str, text: str, count: int) -> str:
    """What a model that chats is told: the prompt, how to answer, and the text.

    Args:
        prompt: what to do with the text.
        text: the sentence.
        count: how many sentences are wanted.
    """
    wanted = "1 sentence, on one line," if count == 1 else f"{count} sentences, one a line,"
    return f"{prompt}\n\nWrite {wanted} without numbering and without any other words.\n\nSentence: {text}"


def sentences(answer: str, text: str) -> list[str]:
    """The different sentences of an answer, without what models put around them; the text itself is none of them.

    Args:
        answer: as it came. Thoughts, blank lines, numbers, bullets, quotes and an introduction are cut off.
        text: what was to be rewritten.
    """
    said = answer.rpartition("</think>")[2]
    said = said.partition("<think>")[0]  # a thought that has no end holds no answer
    lines = [" ".join(_BOLD.sub(r"\1", line).split()) for line in said.splitlines() if not line.startswith("```")]
    lines = [line for line in lines if re.search(r"\w", line)]
    while lines and (_INTRODUCTION.fullmatch(lines[0]) or (lines[1:] and lines[0].endswith(":"))):
        lines.pop(0)
    found = dict.fromkeys(_bare(line) for line in lines)
    same = " ".join(text.split()).casefold()
    return [line for line in found if line and line.casefold() != same]


def _bare(line: str) -> str:
    """A line without number, bullet and quotes around it."""
    while mark := _MARK.match(line):
        line = line[mark.end() :]
    bare = line.rstrip(",") if line[:1] in _PAIRS else line
    inner = bare[1:-1]
    if len(bare) > 2 and bare[-1] == _PAIRS.get(bare[0]) and not {bare[0], bare[-1]} & set(inner):
        return inner.strip()
    return line


def language_model_step(
    model: str | None,
    revision: str | None,
    prompt: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    device: torch.device,
    batch_size: int,
) -> Step:
    """The step text -> text; randomness from (seed of the output, "next token").

    Args:
        model: causal language model of transformers, by folder or hub id; one with a chat template is spoken to as a
            chat, others go on from "Rewritten sentence:".
        revision: branch, tag or commit on the hub.
        prompt: what the model is told before the sentence.
        temperature: of the sampling, above 0.
        top_p: words are sampled from the likeliest of so much probability, in (0, 1].
        max_new_tokens: longest answer; its first sentence is taken.
        device: where to compute, in float32.
        batch_size: outputs at once.

    Raises:
        ConfigError: no model is given.
        EnvironmentFault: there is no such model.
    """
    if model is None:
        raise ConfigError(
            f"{KEY} is not given",
            why="no language model is chosen for you",
            do=f"set {KEY} to a folder or hub id of a causal language model of transformers",
        )
    folder = find_model(model, revision, _WHAT, KEY)

    def load() -> Run:
        tokenizer = load_whole(AutoTokenizer.from_pretrained, folder, _WHAT, KEY)
        network = load_network(AutoModelForCausalLM, folder, device, _WHAT, KEY)
        room = room_of(network, tokenizer) - max_new_tokens

        def rewrite(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            asked = [(text, _tokens(tokenizer, prompt, text), seed) for text, seed in zip(items, seeds, strict=True)]
            return within(asked, lambda one: why_not(one[0], len(one[1]), room), rewritten)

        def rewritten(asked: Sequence[tuple[str, list[int], int]]) -> list[Any]:
            if not asked:
                return []
            inputs = padded([tokens for _, tokens, _ in asked], tokenizer, left=True)
            answers = sample(network, inputs, [seed for _, _, seed in asked], temperature, top_p, max_new_tokens)
            said = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
            said = [answer.partition("\nSentence:")[0] for answer in said]  # it may go on with a page of the same kind
            found = [sentences(answer, text) for answer, (text, _, _) in zip(said, asked, strict=True)]
            return [Output(own[0]) if own else Refused("the model gave no sentence") for own in found]

        return one_each(rewrite)

    settings = [identity_of(folder), prompt, temperature, top_p, max_new_tokens]
    identity = sha256_json(["language model", 1, *settings])
    return Step(f"language model {Path(model).name}", "text", "text", load, identity, batch_size=batch_size)


def why_not(text: str, tokens: int, room: int) -> str | None:
    """Why a model cannot take a text; None if it can.

    Args:
        text: itself.
        tokens: how many the model would get.
        room: how many it can take.
    """
    if not text.strip():
        return "the text is empty"
    if tokens > room:
        return f"the text is too long for the model: {tokens:,} tokens of at most {max(room, 0):,}"
    return None


def _tokens(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """What the model gets for a text: as a chat where it is one, else the beginning of a page that it goes on with."""
    if not tokenizer.chat_template:
        return list(tokenizer(f"{prompt}\n\nSentence: {text}\nRewritten sentence:").input_ids)
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": request_for(prompt, text, 1)}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # templates that know no such thing pass it over
    )
    return list(tokenizer(said, add_special_tokens=False).input_ids)


def room_of(network: Any, tokenizer: Any) -> int:
    """How many tokens a model can hold, those that it makes included; a huge number where nothing limits it."""
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return min(positions or _ENDLESS, tokenizer.model_max_length or _ENDLESS, _ENDLESS)


def padded(rows: Sequence[Sequence[int]], tokenizer: Any, left: bool) -> dict[str, Tensor]:
    """input_ids and attention_mask of some texts, (n, longest) int64.

    Args:
        rows: tokens of each text.
        tokenizer: knows the token to fill up with; any will do, as the mask hides it.
        left: fill up before the texts, so that their ends are side by side.
    """
    filler = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    width = max(map(len, rows), default=0)
    ids, masks = [], []
    for row in rows:
        gap, words = [filler] * (width - len(row)), list(row)
        hidden, seen = [0] * len(gap), [1] * len(row)
        ids.append(gap + words if left else words + gap)
        masks.append(hidden + seen if left else seen + hidden)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


def sample(
    network: Any,
    inputs: Mapping[str, Tensor],
    seeds: Sequence[int],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens that a model says to some texts, each by a seed of its own, up to the one that ends them.

    Args:
        network: causal, or an encoder with a decoder.
        inputs: from `padded`.
        seeds: of each row; randomness from (seed, "next token").
        temperature, top_p, max_new_tokens: as `language_model_step`.
    """
    beginning = 1 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = network.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    with torch.no_grad(), quiet():  # generate() warns of settings of the model that sampling by our own makes idle
        tokens = network.generate(
            **{name: value.to(network.device) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([SeededSampling(seeds, temperature, top_p)]),
        )
    return [list(takewhile(lambda token: token not in ends, row)) for row in tokens[:, beginning:].tolist()]
