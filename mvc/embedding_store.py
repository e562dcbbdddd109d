"""The file that keeps caption embeddings, so that neither training nor generation needs a text encoder in memory.

Each row is kept under the digest of its text and checked by a digest of its numbers: an edited caption or a damaged
row costs one row, another text encoder all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mvc.embeddings import CaptionEmbeddings, TextModels, encode_captions
from mvc.errors import DataError
from mvc.progress import say
from mvc.stopping import flag
from mvc.storage import sha256_bytes, write_bytes

_FORMAT = 2
_METADATA = "mvc"


@dataclass(frozen=True)
class _Entry:
    """One encoded text: (m, d) embedding, () end, and (p,) pooled vector or None."""

    embedding: Tensor
    end: Tensor
    pooled: Tensor | None


def text_digest(text: str) -> str:
    """sha256 of a caption, under which its row is kept."""
    return sha256_bytes(text.encode())


def save_embeddings(path: Path, stored: CaptionEmbeddings, texts: Sequence[str], model_identity: str) -> None:
    """Write a store atomically.

    Args:
        path: the file.
        stored: what to keep.
        texts: `text_digest` of the caption of each row.
        model_identity: `mvc.models.text_identity` of the base.
    """
    kept = {name: getattr(stored, name) for name in ("embeddings", "null", "ends", "pooled", "null_pooled")}
    tensors = {name: tensor.contiguous() for name, tensor in kept.items() if tensor is not None}
    facts = {
        "format": _FORMAT,
        "model": model_identity,
        "ids": stored.ids,
        "texts": list(texts),
        "rows": [_digest(_row(stored, row)) for row in range(len(stored.ids))],
        "null": _digest(_null(stored)),
    }
    # One metadata entry, because the order of several is not fixed in the file.
    write_bytes(path, save(tensors, {_METADATA: json.dumps(facts)}))


def _row(stored: CaptionEmbeddings, row: int) -> _Entry:
    pooled = None if stored.pooled is None else stored.pooled[row]
    return _Entry(stored.embeddings[row], stored.ends[row], pooled)


def _null(stored: CaptionEmbeddings) -> _Entry:
    return _Entry(stored.null, torch.zeros((), dtype=torch.int64), stored.null_pooled)


def _digest(entry: _Entry) -> str:
    digest = sha256(str(int(entry.end)).encode())
    for tensor in (entry.embedding, entry.pooled):
        if tensor is not None:
            digest.update(tensor.contiguous().flatten().numpy().data)
    return digest.hexdigest()


def load_embeddings(path: Path) -> CaptionEmbeddings:
    """Read a store.

    Raises:
        DataError: the file is missing or damaged.
    """
    stored, facts = _read(path)
    found = [_digest(_row(stored, row)) for row in range(len(stored.ids))]
    if found != facts["rows"] or _digest(_null(stored)) != facts["null"]:
        raise DataError(
            f"{path} is damaged", why="the numbers do not match their digests", do="delete it; it is made again"
        )
    return stored


def _read(path: Path) -> tuple[CaptionEmbeddings, dict[str, Any]]:
    """A store and its facts, digests unchecked."""
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_METADATA])
        stored = CaptionEmbeddings(
            tensors["embeddings"],
            tensors["null"],
            tensors["ends"],
            [str(name) for name in facts["ids"]],
            tensors.get("pooled"),
            tensors.get("null_pooled"),
        )
        lengths = {len(facts["texts"]), len(facts["rows"]), len(stored.ids), len(stored.embeddings), len(stored.ends)}
        if facts["format"] != _FORMAT or len(lengths) != 1:
            raise ValueError("it is of another format")
        return stored, {name: facts[name] for name in ("model", "texts", "rows", "null")}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", do="run the train stage, which writes it") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} is damaged", why=str(error), do="delete it; it is made again") from error


def _usable(path: Path, model_identity: str) -> tuple[CaptionEmbeddings | None, list[str], dict[str, _Entry]]:
    """A store if all of it is whole and of this model, its texts' digests, and its whole rows by these."""
    if not path.exists():
        return None, [], {}
    try:
        stored, facts = _read(path)
    except DataError as error:
        say(f"embeddings: {error.what} ({error.why}); computing them again")
        return None, [], {}
    if facts["model"] != model_identity:
        say("embeddings: the text encoder has changed; computing them again")
        return None, [], {}
    entries = [(text, _row(stored, row), facts["rows"][row]) for row, text in enumerate(facts["texts"])]
    entries.append((text_digest(""), _null(stored), facts["null"]))
    whole = {text: entry for text, entry, digest in entries if _digest(entry) == digest}
    damaged = sum(text not in whole for text, _, _ in entries)
    if damaged:
        say(f"embeddings: {damaged} rows of {path} are damaged; computing them again")
    return (None if damaged else stored), facts["texts"], whole


def load_or_encode(
    path: Path, captions: Mapping[str, str], model_identity: str, load_text: Callable[[], TextModels]
) -> CaptionEmbeddings:
    """Take the embeddings from their store; those that are stale, damaged or absent are computed, and only those.

    Args:
        path: the store, run/cache/embeddings.safetensors.
        captions: full caption by image id.
        model_identity: `mvc.models.text_identity` of the base.
        load_text: loads tokenizers and text encoders; called only if something has to be computed.

    Returns:
        the embeddings, rows sorted by id.

    Raises:
        NumericError: an embedding is not finite.
        Stopped: a signal asked for a stop; what was computed is kept.
    """
    ids, digests = sorted(captions), {name: text_digest(captions[name]) for name in captions}
    stored, texts, known = _usable(path, model_identity)
    if stored is not None and stored.ids == ids and texts == [digests[name] for name in ids]:
        return stored
    # The empty text goes first, so that a store that a stop cut short has it.
    wanted = {text_digest(text): text for text in ("", *(captions[name] for name in ids))}
    missing = [text for digest, text in wanted.items() if digest not in known]
    if missing:
        if known:
            say(f"embeddings: {len(missing)} captions are new or have changed; computing these")
        known |= _encoded(missing, load_text())
    done = [name for name in ids if digests[name] in known]
    stored = _assembled(done, [known[digests[name]] for name in done], known[text_digest("")])
    save_embeddings(path, stored, [digests[name] for name in done], model_identity)
    if len(done) < len(ids):
        flag.check(f"{len(done)} of {len(ids)} captions are embedded and kept")
    return stored


def _encoded(missing: Sequence[str], text: TextModels) -> dict[str, _Entry]:
    """Encode texts, or the first of them if a signal asks for a stop."""
    found = encode_captions(missing, text)
    entries = {}
    for row in range(len(found.embeddings)):
        entry = _Entry(found.embeddings[row], found.ends[row], None if found.pooled is None else found.pooled[row])
        if missing[row] == "" and text.zero_null:
            pooled = None if entry.pooled is None else torch.zeros_like(entry.pooled)
            entry = _Entry(torch.zeros_like(entry.embedding), entry.end, pooled)
        entries[text_digest(missing[row])] = entry
    return entries


def _assembled(ids: list[str], entries: Sequence[_Entry], null: _Entry) -> CaptionEmbeddings:
    pooled = [entry.pooled for entry in entries if entry.pooled is not None]
    rows = [entry.embedding for entry in entries]
    ends = torch.tensor([int(entry.end) for entry in entries], dtype=torch.int64)
    return CaptionEmbeddings(
        torch.stack(rows) if rows else null.embedding[None][:0],
        null.embedding.clone(),
        ends,
        ids,
        None if null.pooled is None else torch.stack(pooled) if pooled else null.pooled[None][:0],
        None if null.pooled is None else null.pooled.clone(),
    )
