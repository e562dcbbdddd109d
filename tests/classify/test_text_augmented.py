"""Augmentations of labelled texts: made once, kept with their provenance, and given to the texts they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvc.classify.text_augmented import FOLDER, Extra, augmented
from mvc.classify.text_data import Texts
from mvc.modality.chain import Chain
from mvc.modality.eda import eda_step
from mvc.modality.nodes import Level
from mvc.storage import read_json, read_json_lines

from .text_toys import moods


def chain(per_sample: int = 3, count: int = 8) -> Chain:
    return Chain([Level(eda_step(["swap", "deletion"]), count)], per_sample)


def make(run: Path, texts: Texts, seed: int = 0, own: Chain | None = None) -> Extra:
    columns = ["text", "more"][: len(texts.texts[0])]
    return augmented(run, "eda", "train", own or chain(), texts, columns, "eda", seed, 1000)


def test_every_text_gets_its_augmentations_with_its_label(tmp_path: Path) -> None:
    texts = moods(12, 0).rows([3, 8, 5])
    extra = make(tmp_path, texts)
    assert sorted(extra.texts) == [3, 5, 8] and all(len(own) == 3 for own in extra.texts.values())
    new = extra.of(texts)
    assert new.ids == [3] * 3 + [8] * 3 + [5] * 3 and new.labels == [1] * 3 + [0] * 3 + [1] * 3
    known = {own: set(text[0].split()) for own, text in zip(texts.ids, texts.texts, strict=True)}
    assert all(set(text.split()) <= known[own] for (text,), own in zip(new.texts, new.ids, strict=True))
    few = extra.of(texts.rows([1]), most=2)
    assert few.ids == [8, 8] and few.texts == extra.texts[8][:2]
    rows = read_json_lines(tmp_path / FOLDER / "eda-train.jsonl")
    assert [row["row"] for row in rows] == new.ids and rows[0]["provenance"]["row"] == 4
    assert read_json(tmp_path / FOLDER / "eda-train.json")["augmentations"] == 9 == extra.facts["augmentations"]


def test_a_text_has_the_same_augmentations_whatever_others_there_are(tmp_path: Path) -> None:
    texts = moods(8, 0, pairs=True)
    whole, part = make(tmp_path / "a", texts), make(tmp_path / "b", texts.rows([5, 2]))
    assert {own: whole.texts[own] for own in (2, 5)} == part.texts
    assert all(len(pair) == 2 for own in part.texts.values() for pair in own)


def test_they_are_made_again_only_if_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = moods(6, 0)
    first = make(tmp_path, texts)
    path = tmp_path / FOLDER / "eda-train.jsonl"
    lines = path.read_text()
    path.write_text(lines.replace('"row": 0,', '"row": 1,'))  # as if edited by hand
    assert len(make(tmp_path, texts).texts[1]) == 6
    for changed in (
        make(tmp_path, texts, seed=1),
        make(tmp_path, texts, own=chain(2)),
        make(tmp_path, texts, own=Chain([Level(eda_step(["swap"]), 8)], 3)),
        make(tmp_path, texts.rows([0, 1])),
        make(tmp_path, Texts([("other words here now",), *texts.texts[1:]], texts.labels, texts.ids)),
    ):
        assert changed.key != first.key and changed.texts != first.texts
    assert make(tmp_path, texts).texts == first.texts and path.read_text() == lines
