"""The tiny models' own vocabularies: whole tokens for the printed world's words, pieces for all others."""

from __future__ import annotations

from itertools import pairwise

from transformers import BertTokenizer, CLIPTokenizer

from mvc.tiny import DIGIT_WORDS
from mvc.tiny.world import BACKGROUNDS, COLOURS, SIZES, STYLES, TILTS

MAX_LENGTH = 77
"""Tokens of a CLIP text, start and end included."""
_CONNECTING = "this is an image of a on background digit number character picture photo the with and in to"
_COMMON_PIECES = "th he in er an re on at en nd ti es or te ed it al ar st nt ng se ou le ro ic ra ing ion ent tion"
START, END = "<|startoftext|>", "<|endoftext|>"


def world_words() -> list[str]:
    """Every word that a caption of the printed world can hold, each once, in a fixed order."""
    phrases = [_CONNECTING, *DIGIT_WORDS, *STYLES, *COLOURS, *SIZES, *TILTS, *BACKGROUNDS]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def _byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-pair vocabularies use (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply byte-pair merges, the earliest rule first, until none fits."""
    rank = {pair: place for place, pair in enumerate(merges)}
    while True:
        fitting = [(rank[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in rank]
        if not fitting:
            return pieces
        place = min(fitting)[1]
        pieces = [*pieces[:place], pieces[place] + pieces[place + 1], *pieces[place + 2 :]]


def byte_pair_rules() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the CLIP tokenizer.

    Each word's missing merges are appended from left to right. A later rule never comes before an earlier
    one, so a word that is a single token once stays one.
    """
    merges: list[tuple[str, str]] = []
    for word in [*(word + "</w>" for word in world_words()), *_COMMON_PIECES.split()]:
        letters = list(word.removesuffix("</w>"))
        if word.endswith("</w>"):
            letters[-1] += "</w>"
        pieces = _merged(letters, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer for the text encoder and CLIP; no text has an unknown piece."""
    vocabulary, merges = byte_pair_rules()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # pairs work; the annotation names text only
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=MAX_LENGTH,
    )


def captioner_tokenizer() -> BertTokenizer:
    """A BertTokenizer for BLIP, with [DEC] as the start of a caption; other words fall into letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    marks = [".", ",", "-", "'", "!", "?", ":", ";", "(", ")", "/"]
    tokens = [*special, *marks, *letters, *(f"##{letter}" for letter in letters), *world_words()]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)
    # As a special token it is left out when a caption is decoded.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
