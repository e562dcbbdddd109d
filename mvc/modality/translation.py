"""Text -> text by a translation model that samples; forth and back it is back-translation (Sennrich et al. 2016)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from mvc.errors import EnvironmentFault
from mvc.pretrained import find_model, identity_of, load_network, load_whole
from mvc.storage import sha256_json

from .language_model import padded, room_of, sample, why_not
from .nodes import Level
from .steps import Item, Output, Refused, Result, Run, Step, one_each, within

FORTH, BACK = "translation.forth", "translation.back"
_WHAT = "translation model"


def translation_step(
    model: str,
    revision: str | None,
    key: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    device: torch.device,
    batch_size: int,
) -> Step:
    """The step text -> text of another language; randomness from (seed of the output, "next token").

    Args:
        model: sequence-to-sequence model of transformers for one pair of languages, such as Marian's opus-mt, by
            folder or hub id.
        revision: branch, tag or commit on the hub.
        key: key that names the model, for the errors.
        temperature: of the sampling, above 0.
        top_p: words are sampled from the likeliest of so much probability, in (0, 1].
        max_new_tokens: longest translation.
        device: where to compute, in float32.
        batch_size: outputs at once.

    Raises:
        EnvironmentFault: there is no such model.
    """
    folder = find_model(model, revision, _WHAT, key)

    def load() -> Run:
        tokenizer = _load_tokenizer(folder, key)
        network = load_network(AutoModelForSeq2SeqLM, folder, device, _WHAT, key)
        _require_one_direction(tokenizer, network, folder, key)
        room = room_of(network, tokenizer)

        def translate(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            asked = [(text, list(tokenizer(text).input_ids), seed) for text, seed in zip(items, seeds, strict=True)]
            return within(asked, lambda one: why_not(one[0], len(one[1]), room), translated)

        def translated(asked: Sequence[tuple[str, list[int], int]]) -> list[Any]:
            if not asked:
                return []
            inputs = padded([tokens for _, tokens, _ in asked], tokenizer, left=False)
            seeds = [seed for _, _, seed in asked]
            said = sample(network, inputs, seeds, temperature, top_p, min(max_new_tokens, room))
            texts = [" ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()) for tokens in said]
            return [Output(text) if text else Refused("the model gave no translation") for text in texts]

        return one_each(translate)

    identity = sha256_json(["translation", 1, identity_of(folder), temperature, top_p, max_new_tokens])
    return Step(f"translation model {Path(model).name}", "text", "text", load, identity, batch_size=batch_size)


def back_translation_levels(
    *,
    forth: str,
    back: str,
    translations: int,
    returns: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    device: torch.device,
    batch_size: int,
) -> list[Level]:
    """The levels of back-translation: into another language, and from there back.

    Args:
        forth, back: translation models by folder or hub id.
        translations: of each text.
        returns: translations back of each of those.
        temperature, top_p, max_new_tokens, device, batch_size: as `translation_step`.

    Raises:
        EnvironmentFault: there is no such model.
    """
    settings = (temperature, top_p, max_new_tokens, device, batch_size)
    return [
        Level(translation_step(forth, None, FORTH, *settings), translations),
        Level(translation_step(back, None, BACK, *settings), returns),
    ]


def _load_tokenizer(folder: Path, key: str) -> Any:
    """The tokenizer of a translation model.

    Raises:
        EnvironmentFault: it needs a package that is missing, or cannot be read.
    """

    def load(place: Path) -> Any:
        try:
            with warnings.catch_warnings():
                # Marian's own tokenizer makes an object of sacremoses and never uses it.
                warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
                return AutoTokenizer.from_pretrained(place)
        except ImportError as error:
            raise EnvironmentFault(
                f"the tokenizer of the {_WHAT} {folder} needs a package that is missing",
                why=" ".join(str(error).split())[:300],
                do="pip install 'mvc[translation]'",
            ) from error

    return load_whole(load, folder, _WHAT, key)


def _require_one_direction(tokenizer: Any, network: Any, folder: Path, key: str) -> None:
    """Refuse a model of many languages that would have to be told which one to write: it would write any."""
    open_target = getattr(tokenizer, "tgt_lang", "") is None and network.generation_config.forced_bos_token_id is None
    if open_target or len(getattr(tokenizer, "supported_language_codes", [])) > 1:
        raise EnvironmentFault(
            f"the {_WHAT} {folder} is for many languages",
            why="nothing would tell it which one to translate into",
            do=f"give {key} a model for one pair of languages, such as Helsinki-NLP/opus-mt-en-de",
        )
