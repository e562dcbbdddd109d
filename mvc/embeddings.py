"""Token embeddings of captions and of the empty text; mvc/embedding_store.py keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mvc.errors import NumericError
from mvc.progress import meter
from mvc.stopping import flag


@dataclass(frozen=True)
class TextModels:
    """The tokenizers and text encoders of a base model, in the order in which their outputs lie side by side.

    Attributes:
        tokenizers: CLIPTokenizer, one for SD 1.x and 2.x, two for SDXL.
        encoders: CLIPTextModel and, for SDXL, CLIPTextModelWithProjection, on the device to compute on.
        zero_null: the empty text is all zeros in place of its encoding, as SDXL's index may say.
    """

    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]
    zero_null: bool = False


@dataclass(frozen=True)
class EncodedTexts:
    """n encoded texts on the CPU.

    Attributes:
        embeddings: (n, m, d) float32, one row a token.
        ends: (n,) int64, 0-based index of the first end-of-text token.
        pooled: (n, p) float32, one vector a text; None unless there are two encoders.
    """

    embeddings: torch.Tensor
    ends: torch.Tensor
    pooled: torch.Tensor | None = None


@dataclass(frozen=True)
class CaptionEmbeddings:
    """What conditions the UNet on text: the text encoders' output for every token, and for SDXL a pooled vector too.

    Attributes:
        embeddings: (n, m, d) float32 on the CPU, one a caption.
        null: (m, d) float32, of the empty text, for guidance and conditioning dropout.
        ends: (n,) int64, 0-based index of each caption's end-of-text token.
        ids: the n image ids, in the order of the rows.
        pooled: (n, p) float32, one a caption; None for SD 1.x and 2.x.
        null_pooled: (p,) float32, of the empty text; None for SD 1.x and 2.x.
    """

    embeddings: torch.Tensor
    null: torch.Tensor
    ends: torch.Tensor
    ids: list[str]
    pooled: torch.Tensor | None = None
    null_pooled: torch.Tensor | None = None

    def of(self, ids: Sequence[str]) -> EncodedTexts:
        """The k texts of some images, in the order of `ids`; a view of the store where they lie together in it.

        Those of a class do. An SDXL's embedding of one caption has 630 KB, so copies of them all would be felt.
        """
        place = {name: number for number, name in enumerate(self.ids)}
        rows = [place[name] for name in ids]
        chosen: Any = torch.tensor(rows, dtype=torch.int64)
        if rows and rows == list(range(rows[0], rows[0] + len(rows))):
            chosen = slice(rows[0], rows[0] + len(rows))
        pooled = None if self.pooled is None else self.pooled[chosen]
        return EncodedTexts(self.embeddings[chosen], self.ends[chosen], pooled)


def time_ids(image_size: int) -> torch.Tensor:
    """What SDXL is told of a square image: (6,) float32, original size, crop at the top left (none), target size.

    Source:
        Section 2.2 of SDXL (Podell et al., 2023); diffusers' `_get_add_time_ids`.
    """
    return torch.tensor([image_size, image_size, 0, 0, image_size, image_size], dtype=torch.float32)


def encode_captions(captions: Sequence[str], text: TextModels) -> EncodedTexts:
    """Encode texts as `encode_prompt` of diffusers' pipelines does for SD 1.x, SD 2.x and SDXL.

    Every text is padded to the tokenizer's full length, and a longer one is cut at its end. Each is encoded by
    itself, because matrix products round differently at other batch sizes: a row depends on its text alone, to the
    bit, and not on which others had to be encoded. Equal texts are encoded once.

    Args:
        captions: n texts, at least one.
        text: one encoder gives its last hidden states; of two, the penultimate ones are put side by side, and the
            second gives the pooled vector.

    Returns:
        the texts in their order; fewer of them, the first ones, if a signal asked for a stop.

    Raises:
        NumericError: an embedding is not finite.
        Stopped: a signal asked for a stop before the first one.
    """
    texts = list(dict.fromkeys(captions))
    ids = [_tokens(tokenizer, texts) for tokenizer in text.tokenizers]
    encoded: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    with meter("embedding captions", len(texts), "texts") as shown:
        for number in range(len(texts)):
            if flag and number:
                break
            flag.check("no caption is embedded yet")
            encoded.append(_encoded(text, ids, number))
            shown.advance()
    return _in_order(captions, texts, text, ids, encoded)


def encode_few(captions: Sequence[str], text: TextModels) -> EncodedTexts:
    """As `encode_captions`, to the bit, in silence: for a few texts that are needed while images are drawn.

    Raises:
        NumericError: an embedding is not finite.
    """
    texts = list(dict.fromkeys(captions))
    ids = [_tokens(tokenizer, texts) for tokenizer in text.tokenizers]
    return _in_order(captions, texts, text, ids, [_encoded(text, ids, number) for number in range(len(texts))])


def _encoded(
    text: TextModels, ids: Sequence[Mapping[str, torch.Tensor]], number: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(1, m, d) hidden states and, of two encoders, the (1, p) pooled vector of one text, on the CPU."""
    parts = [{name: value[number : number + 1] for name, value in one.items()} for one in ids]
    with torch.no_grad():
        hidden, vector = _forward(text.encoders, parts)
    return hidden.float().cpu(), None if vector is None else vector.float().cpu()


def _in_order(
    captions: Sequence[str],
    texts: list[str],
    text: TextModels,
    ids: Sequence[Mapping[str, torch.Tensor]],
    encoded: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
) -> EncodedTexts:
    """The encoded texts in the order of the captions, of which equal ones were encoded once."""
    place = {name: number for number, name in enumerate(texts[: len(encoded)])}
    rows = [place[caption] for caption in captions if caption in place]
    ends = (ids[0]["input_ids"] == text.tokenizers[0].eos_token_id).int().argmax(1)
    pooled = [vector for _, vector in encoded if vector is not None]
    return EncodedTexts(
        _finite(torch.cat([hidden for hidden, _ in encoded]), texts)[rows],
        ends[rows],
        _finite(torch.cat(pooled), texts)[rows] if pooled else None,
    )


def _tokens(tokenizer: Any, texts: list[str]) -> Mapping[str, torch.Tensor]:
    length = tokenizer.model_max_length
    ids: Mapping[str, torch.Tensor] = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return ids


def _finite(encoded: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    if not torch.isfinite(encoded).all():
        bad = texts[int((~torch.isfinite(encoded)).flatten(1).any(1).nonzero()[0])]
        raise NumericError(f"the embedding of '{bad}' is not finite", why="the text encoder's weights are damaged")
    return encoded


def _forward(
    encoders: Sequence[Any], parts: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, m, d) hidden states and, of two encoders, the (B, p) pooled vectors."""
    if len(encoders) == 1:
        encoder, part = encoders[0], parts[0]
        # SD 1.x and 2.x attend to the padding too; only encoders that say so get the mask.
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = part["attention_mask"].to(encoder.device) if masked else None
        hidden: torch.Tensor = encoder(part["input_ids"].to(encoder.device), attention_mask=mask)[0]
        return hidden, None
    outputs = [
        encoder(part["input_ids"].to(encoder.device), output_hidden_states=True)
        for encoder, part in zip(encoders, parts, strict=True)
    ]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds
