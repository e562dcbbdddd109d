"""Tiny real text encoders with random weights, and made-up texts of two moods that they can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from mvc.classify.text_data import Texts
from mvc.randomness import numpy_generator, seeded_global

CPU = torch.device("cpu")
MOODS = ("bad", "good")
SAD = "awful boring bleak clumsy cheap dire dull empty feeble grim".split()
GLAD = "bright charming clever fine funny great happy lovely rich warm".split()
PLAIN = "a actor and camera film for has in is it music of on plot scene story that the this was with year".split()
WORDS = [*SAD, *GLAD, *PLAIN]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "##s", "##ly"])}
POSITIONS = 40
HIDDEN = 32
FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra")


def sentence(mood: int, source: Any) -> str:
    """4 to 12 words, of which one or two are of a mood."""
    words = source.choice(PLAIN, int(source.integers(3, 11))).tolist()
    for _ in range(int(source.integers(1, 3))):
        words.insert(int(source.integers(0, len(words) + 1)), str(source.choice((SAD, GLAD)[mood])))
    return " ".join(words)


def moods(count: int, seed: int, pairs: bool = False) -> Texts:
    """Sentences of moods 0 and 1 in turn; of a pair the second text has the mood, and the first one any."""
    source, texts = numpy_generator(seed, "moods"), []
    for row in range(count):
        text = sentence(row % 2, source)
        texts.append((sentence(int(source.integers(2)), source), text) if pairs else (text,))
    return Texts(texts, [row % 2 for row in range(count)], list(range(count)))


def tokenizer() -> BertTokenizer:
    """WordPiece over the words of the texts, and two endings."""
    made = BertTokenizer(vocab=dict(VOCABULARY))
    assert made.tokenize("a films lovelyly") == ["a", "film", "##s", "lovely", "##ly"]
    return made


def config(family: str = "bert", layers: int = 2) -> PreTrainedConfig:
    """A narrow configuration of a family."""
    sizes: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "max_position_embeddings": POSITIONS}
    if family == "distilbert":
        return DistilBertConfig(**sizes, dim=HIDDEN, hidden_dim=64, n_layers=layers, n_heads=2)
    kinds = {
        "albert": AlbertConfig,
        "bert": BertConfig,
        "electra": ElectraConfig,
        "mpnet": MPNetConfig,
        "roberta": RobertaConfig,
    }
    if family in ("electra", "albert"):
        sizes["embedding_size"] = 16
    return kinds[family](
        **sizes, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2
    )


def network_of(family: str, layers: int = 2, seed: int = 0, spread: float = 0.3) -> Any:
    """A classifier of two classes in evaluation mode; its weights are spread so that texts differ in what they give."""
    with seeded_global(seed, "test network"):
        made = AutoModelForSequenceClassification.from_config(config(family, layers)).eval()
        for weight in made.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=spread)
    return made


def save_bert(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """A BERT without a head, and its tokenizer."""
    with seeded_global(seed, "test bert"):
        BertModel(config("bert", layers)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
