"""Pretrained text encoders with a new head for the classes, and the tokens that go into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvc.errors import ConfigError
from mvc.pretrained import cannot_load, find_model, load_network, load_whole
from mvc.randomness import seeded_global

_KEY = "classify.model"
_WHAT = "text classifier"
_LAYERS = ("encoder.layer", "transformer.layer")
"""Where BERT, RoBERTa, MPNet and ELECTRA, and where DistilBERT keep their layers."""
_INITIAL = 0.02
"""Standard deviation of new weights where a configuration names none: BERT's."""


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some texts, padded at their end to the length L of the longest.

    Args:
        inputs: what the network takes by name: input_ids, attention_mask and so on, each (B, L) int64 on its device.
        sentences: (B, L) int64 on the CPU: 0 for a token of the first text, 1 for one of the second, -1 for special
            tokens and padding.
    """

    inputs: dict[str, Tensor]
    sentences: Tensor

    def __len__(self) -> int:
        return len(self.sentences)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of n texts.

    Args:
        inputs: of each text the lists that the tokenizer made, by name.
        sentences: of each token the text that it is from, as in `TextBatch`.
        padding: what a list of that name is filled up with.
        cut: how many texts lost their end.
    """

    inputs: list[dict[str, list[int]]]
    sentences: list[list[int]]
    padding: dict[str, int]
    cut: int

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, special ones too."""
        return [len(row) for row in self.sentences]

    def batch(self, rows: Sequence[int], device: torch.device) -> TextBatch:
        """The texts of some rows, one at least."""
        width = max(len(self.sentences[row]) for row in rows)

        def filled(lists: list[list[int]], value: int) -> Tensor:
            return torch.tensor([numbers + [value] * (width - len(numbers)) for numbers in lists])

        inputs = {
            name: filled([self.inputs[row][name] for row in rows], value).to(device)
            for name, value in self.padding.items()
        }
        return TextBatch(inputs, filled([self.sentences[row] for row in rows], -1))


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int) -> Encoded:
    """Tokenize texts or pairs of texts.

    Args:
        tokenizer: from `load_classifier`.
        texts: one or two texts a row, the same number in all rows.
        max_length: longest row in tokens, special ones too. What is longer loses its end, in a pair the longer text
            first; a network that takes fewer tokens sets the limit itself.

    Raises:
        ConfigError: no token of a text would be left.
    """
    if not texts:
        return Encoded([], [], {}, 0)
    pair = len(texts[0]) == 2
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length < special + len(texts[0]):
        raise ConfigError(
            f"classify.max_length is {max_length}, and {special} of its tokens are special ones",
            do=f"set it to {special + len(texts[0])} at least",
        )
    rows = list(texts) if pair else [row[0] for row in texts]
    made = tokenizer(rows, truncation=True, max_length=min(max_length, tokenizer.model_max_length))
    fills = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return Encoded(
        [{name: list(lists[row]) for name, lists in made.items()} for row in range(len(rows))],
        [[-1 if place is None else place for place in made.sequence_ids(row)] for row in range(len(rows))],
        {name: fills.get(name, 0) for name in made},
        sum(bool(one.overflowing) for one in made.encodings),
    )


class _AnyHead:
    """Loads a classifier, whatever its checkpoint holds for the head."""

    @staticmethod
    def from_pretrained(place: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
        from transformers import AutoModelForSequenceClassification

        # A head for other classes has another shape. Shapes that differ below the head are no less than missing.
        network, report = AutoModelForSequenceClassification.from_pretrained(
            place, ignore_mismatched_sizes=True, **options
        )
        if network.base_model is network:
            raise ValueError(f"a {type(network).__name__} has no part below its head")
        missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
        return network, {"missing_keys": {name for name in missing if name.startswith(f"{network.base_model_prefix}.")}}


def _renew_head(network: Any) -> None:
    deviation = getattr(network.config, "initializer_range", _INITIAL)
    heads = (part for part in network.children() if part is not network.base_model)
    for part in (part for head in heads for part in head.modules()):
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=deviation)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def load_classifier(
    model: str | Path, revision: str | None, classes: Sequence[str], seed: int, device: torch.device
) -> tuple[Any, Any]:
    """Load a pretrained text encoder and put a new head for the classes on it.

    The paper classifies by two fully connected layers on BERT's output (Back-Modality, appendix 9). Those are what
    transformers calls the pooler, from the first token's state to as many numbers through tanh, and the classifier,
    from these to the classes. The classifier is always new, even where the checkpoint holds one; the pooler comes from
    the checkpoint, and is new where that has none, as of models that were trained without BERT's next-sentence task.
    RoBERTa, DistilBERT, MPNet and ELECTRA have both layers in their head, so both are new. Everything else has to be
    in the checkpoint.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        classes: names of the classes.
        seed: model seed; (seed, "text classifier weights") decides the new head, (seed, "text pooler weights") a
            pooler that the checkpoint lacks.
        device: where it shall compute.

    Returns:
        The tokenizer, and the network in evaluation mode and float32: it takes what the tokenizer makes, and its
        output has `logits` (B, classes).

    Raises:
        EnvironmentFault: it cannot be had, read, or used to classify texts.
    """
    from transformers import AutoTokenizer

    folder = find_model(model, revision, _WHAT, _KEY)
    tokenizer = load_whole(AutoTokenizer.from_pretrained, folder, _WHAT, _KEY, revision, model)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        lacks = "has no padding token" if tokenizer.is_fast else "cannot say which text a token is from"
        raise cannot_load(model, revision, _WHAT, _KEY, f"its tokenizer {lacks}")
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: place for place, name in enumerate(classes)}}
    with seeded_global(seed, "text pooler weights"):
        network = load_network(_AnyHead, folder, torch.device("cpu"), _WHAT, _KEY, [r"^\w+\.pooler\."], **labels)
    # Drawn on the CPU and by themselves, so that neither the device nor what was missing changes them.
    with seeded_global(seed, "text classifier weights"):
        _renew_head(network)
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        raise cannot_load(model, revision, _WHAT, _KEY, "its tokenizer knows more tokens than the network")
    tokenizer.truncation_side = "right"
    tokenizer.model_max_length = min([tokenizer.model_max_length, *_positions(network)])
    return tokenizer, network.to(device)


def _positions(network: nn.Module) -> list[int]:
    """How many tokens a network has learnt positions for; nothing where it has none such."""
    tables = (part for name, part in network.named_modules() if name.endswith("position_embeddings"))
    # RoBERTa and MPNet count positions from the one after the padding's.
    return [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
        if isinstance(table, nn.Embedding)
    ]


def layers_of(network: Any) -> list[nn.Module]:
    """The transformer layers of a classifier, first to last.

    Args:
        network: from `load_classifier`.

    Raises:
        ConfigError: it keeps them elsewhere than BERT, RoBERTa, DistilBERT, MPNet, ELECTRA and those built like them.
    """
    for path in _LAYERS:
        try:
            found = network.base_model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return list(found)
    raise ConfigError(
        f"arm tmix cannot mix within a {type(network).__name__}",
        why="its layers are not arranged as those of BERT, RoBERTa, DistilBERT, MPNet and ELECTRA",
        do="name one of these in classify.model, or take tmix out of classify.arms",
    )
