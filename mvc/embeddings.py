"""Token embeddings of captions and of the empty text, and the file that keeps them.

They are computed once and reused for as long as the captions and the model are the same, so that neither
training nor generation has to hold a text encoder in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mvc.errors import DataError, NumericError
from mvc.progress import meter, say
from mvc.stopping import flag
from mvc.storage import sha256_bytes, sha256_json, write_bytes

_FORMAT = 1
_METADATA = "mvc"


@dataclass(frozen=True)
class CaptionEmbeddings:
    """What conditions the UNet on text: the text encoder's output for every token, never the pooled vector.

    Attributes:
        embeddings: (n, m, d) float32 on the CPU, one a caption.
        null: (m, d) float32, of the empty text, for guidance and conditioning dropout.
        ends: (n,) int64, 0-based index of each caption's end-of-text token.
        ids: the n image ids, in the order of the rows.
    """

    embeddings: torch.Tensor
    null: torch.Tensor
    ends: torch.Tensor
    ids: list[str]

    def of(self, ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(k, m, d) embeddings and (k,) ends of some images, in the order of `ids`."""
        place = {name: number for number, name in enumerate(self.ids)}
        rows = torch.tensor([place[name] for name in ids], dtype=torch.int64)
        return self.embeddings[rows], self.ends[rows]


def encode_captions(
    captions: Sequence[str], tokenizer: Any, text_encoder: Any, batch_size: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode texts as diffusers' StableDiffusionPipeline.encode_prompt does for SD 1.x and 2.x.

    Every text is padded to the tokenizer's full length, and a longer one is cut at its end. Equal texts are
    encoded once, so their rows are equal to the bit.

    Args:
        captions: n texts.
        tokenizer: CLIPTokenizer.
        text_encoder: CLIPTextModel, on the device to compute on.
        batch_size: texts a forward pass.

    Returns:
        (n, m, d) float32 last hidden states, and (n,) int64 0-based index of the first end-of-text token, on the CPU.

    Raises:
        NumericError: an embedding is not finite.
        Stopped: a signal asked for a stop.
    """
    texts = list(dict.fromkeys(captions))
    length = tokenizer.model_max_length
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    encoded: list[torch.Tensor] = []
    with torch.no_grad(), meter("embedding captions", len(texts), "texts") as shown:
        for first in range(0, len(texts), batch_size):
            flag.check("embeddings are made again on the next run")
            part = {name: value[first : first + batch_size] for name, value in ids.items()}
            encoded.append(_forward(text_encoder, part).float().cpu())
            shown.advance(len(encoded[-1]))
    embeddings = torch.cat(encoded)
    if not torch.isfinite(embeddings).all():
        bad = texts[int((~torch.isfinite(embeddings)).flatten(1).any(1).nonzero()[0])]
        raise NumericError(f"the embedding of '{bad}' is not finite", why="the text encoder's weights are damaged")
    ends = (ids["input_ids"] == tokenizer.eos_token_id).int().argmax(1)
    place = {text: number for number, text in enumerate(texts)}
    rows = torch.tensor([place[caption] for caption in captions], dtype=torch.int64)
    return embeddings[rows], ends[rows]


def _forward(text_encoder: Any, part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    device = text_encoder.device
    # SD 1.x and 2.x attend to the padding too; only encoders that say so get the mask.
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    mask = part["attention_mask"].to(device) if masked else None
    hidden: torch.Tensor = text_encoder(part["input_ids"].to(device), attention_mask=mask)[0]
    return hidden


def embeddings_key(captions: Mapping[str, str], model_identity: str) -> str:
    """sha256 over everything that the stored embeddings depend on."""
    return sha256_json([_FORMAT, sorted(captions.items()), model_identity])


def save_embeddings(path: Path, stored: CaptionEmbeddings, key: str) -> None:
    """Write the store atomically; its metadata hold the key, the ids and a digest of the numbers."""
    tensors = {"embeddings": stored.embeddings, "null": stored.null, "ends": stored.ends}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    facts = {"key": key, "ids": stored.ids, "digest": _digest(tensors)}
    # One metadata entry, because the order of several is not fixed in the file.
    write_bytes(path, save(tensors, {_METADATA: json.dumps(facts)}))


def load_embeddings(path: Path) -> tuple[CaptionEmbeddings, str]:
    """Read a store and its key.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_METADATA])
        if facts["digest"] != _digest(tensors):
            raise ValueError("the numbers do not match their digest")
        stored = CaptionEmbeddings(tensors["embeddings"], tensors["null"], tensors["ends"], facts["ids"])
        return stored, str(facts["key"])
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", do="run the train stage, which writes it") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} is damaged", why=str(error), do="delete it; it is made again") from error


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    contents = {name: sha256_bytes(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    return sha256_json({name: [contents[name], list(tensors[name].shape)] for name in contents})


def load_or_encode(
    path: Path,
    captions: Mapping[str, str],
    model_identity: str,
    load_text: Callable[[], tuple[Any, Any]],
    batch_size: int = 16,
) -> CaptionEmbeddings:
    """Take the embeddings from their store, or compute and store them if it is stale, damaged or absent.

    Args:
        path: the store, run/cache/embeddings.safetensors.
        captions: full caption by image id.
        model_identity: digest of the tokenizer and text encoder.
        load_text: loads (tokenizer, text_encoder); called only if something has to be computed.
        batch_size: texts a forward pass.

    Returns:
        the embeddings, rows sorted by id.
    """
    key = embeddings_key(captions, model_identity)
    if path.exists():
        try:
            stored, stored_key = load_embeddings(path)
            if stored_key == key:
                return stored
            say("embeddings: captions or text encoder have changed; computing them again")
        except DataError as error:
            say(f"embeddings: {error.what} ({error.why}); computing them again")
    ids = sorted(captions)
    tokenizer, text_encoder = load_text()
    # The empty text goes last: one pass serves both, and its row is the same whatever the batch.
    embeddings, ends = encode_captions([*(captions[name] for name in ids), ""], tokenizer, text_encoder, batch_size)
    stored = CaptionEmbeddings(embeddings[:-1].clone(), embeddings[-1].clone(), ends[:-1].clone(), ids)
    save_embeddings(path, stored, key)
    return stored
