"""Cycle consistency: closed forms on steps that can be read off, and the embedded models on printed characters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvc.errors import ConfigError
from mvc.extractors import Extractor, find_extractor
from mvc.modality.captioning import captioning_step
from mvc.modality.imagination import imagination_step
from mvc.modality.nodes import Sample
from mvc.modality.steps import Item, Output, Refused, Result, Step, one_each
from mvc.modality.store import ROWS, Store
from mvc.multimodal.cycle import (
    Closeness,
    ImageText,
    Scored,
    at_least,
    best_share,
    image_cosine,
    score_items,
    score_pairs,
    share_of_words,
    text_cosine,
    words_kept,
)
from mvc.randomness import numpy_generator
from mvc.storage import read_json_lines
from mvc.tiny import WEIGHTS
from mvc.tiny.evaluate import full_caption
from mvc.tiny.world import draw_character, render

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/cycle.md"
CPU = torch.device("cpu")


def write(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
    """A text as an image whose pixels are its letters."""
    grey = [np.frombuffer(text.encode(), np.uint8).reshape(1, -1, 1).repeat(3, 2) for text in items]
    return [Output(Image.fromarray(pixels), {"letters": pixels.shape[1]}) for pixels in grey]


def read(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
    """The letters of an image, but for one word that the seed decides."""
    results: list[Result] = []
    for image, seed in zip(items, seeds, strict=True):
        words = np.asarray(image)[0, :, 0].tobytes().decode().split()
        del words[int(numpy_generator(seed, "word").integers(len(words)))]
        results.append(Output(" ".join(words)) if words else Refused("nothing is left"))
    return results


WRITER = Step("writer", "text", "image", lambda: one_each(write), "writer", random=False)
READER = Step("reader", "image", "text", lambda: one_each(read), "reader", batch_size=2)
TEXTS = [Sample(3, "one two three four"), Sample(8, "a b"), Sample(9, "alone"), Sample(11, "x x y z w")]


@pytest.mark.parametrize(
    ("original", "back", "share"),
    [
        ("a large red three", "A large, red three.", 1.0),
        ("a large red three", "a small red eight", 0.5),
        ("red red blue", "red green", 1 / 3),
        ("red", "red red red", 1.0),
        ("a red", "", 0.0),
        ("...", "anything", 0.0),
    ],
)
def test_share_of_words(original: str, back: str, share: float) -> None:
    assert share_of_words(original, back) == pytest.approx(share)


def test_texts_out_and_back_lose_what_the_steps_lose() -> None:
    scored = score_items(TEXTS, WRITER, READER, words_kept, 0, Store(None))
    assert [one.score for one in scored] == [pytest.approx(3 / 4), pytest.approx(1 / 2), None, pytest.approx(4 / 5)]
    assert [one.index for one in scored] == [3, 8, 9, 11]
    assert scored[2].provenance["refused"] == {"nothing is left": 1} and scored[2].provenance["came_back"] == []
    first = scored[0].provenance
    assert first["steps"] == ["writer", "reader"] and first["closeness"] == "share of words kept"
    assert first["seed"] == 0 and first["score"] == scored[0].score
    (way,) = first["came_back"]
    assert way["branch"] == [0, 0] and way["text"] in (
        "two three four",
        "one three four",
        "one two four",
        "one two three",
    )
    json.dumps([one.provenance for one in scored], allow_nan=False)


def test_pairs_are_compared_with_what_is_made_of_their_other_half() -> None:
    ((own,),) = WRITER.run(["one two three four"], [[0]])
    assert isinstance(own, Output)
    texts = ["one two three four", "one two five six", "seven"]
    pairs = [ImageText(index, own.value, text) for index, text in enumerate(texts)]
    scored = score_pairs(pairs, READER, words_kept, 0, Store(None), returns=40)
    # Of 4 words one is lost each time: of the right text 3/4 come back, and of the half right one 1/4 or 2/4.
    assert scored[0].score == pytest.approx(3 / 4) and scored[2].score == 0
    assert scored[1].score is not None and 1 / 4 < scored[1].score < 2 / 4
    assert {tuple(way["branch"]) for way in scored[1].provenance["came_back"]} == {(place,) for place in range(40)}
    size = Closeness("width", "image", lambda one, back: -abs(one.width - back.width))
    widths = [one.score for one in score_pairs(pairs, WRITER, size, 0, Store(None))]
    assert widths == [0, -2, -13]


def test_scores_do_not_depend_on_company_and_are_found_again(tmp_path: Path) -> None:
    whole = score_items(TEXTS, WRITER, READER, words_kept, 5, Store(tmp_path))
    assert (
        score_items(TEXTS[3:], WRITER, READER, words_kept, 5, Store(None))[0].provenance["came_back"][0]["text"]
        == (whole[3].provenance["came_back"][0]["text"])
    )

    def load() -> Any:
        raise AssertionError("everything is in the store")

    again = score_items(TEXTS, replace(WRITER, load=load), replace(READER, load=load), words_kept, 5, Store(tmp_path))
    assert again == whole and len(read_json_lines(tmp_path / ROWS)) == 8
    other = [score_items(TEXTS[3:], WRITER, READER, words_kept, seed, Store(None))[0] for seed in range(6)]
    assert len({one.provenance["came_back"][0]["text"] for one in other}) > 1


def scored_as(*scores: float | None) -> list[Scored]:
    return [Scored(index, "", score, {}) for index, score in enumerate(scores)]


def test_what_is_kept() -> None:
    own = scored_as(0.2, 0.9, None, 0.9, 0.5)
    assert [one.index for one in at_least(own, 0.5)] == [1, 3, 4] and at_least(own, 0.95) == []
    assert [one.index for one in best_share(own, 0.2)] == [1]
    assert [one.index for one in best_share(own, 0.6)] == [1, 3, 4]
    assert [one.index for one in best_share(own, 1.0)] == [0, 1, 3, 4]
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"share {share:g} is outside \(0, 1\]"):
            best_share(own, share)
    with pytest.raises(ValueError, match="threshold nan is no finite number"):
        at_least(own, float("nan"))


def test_what_does_not_fit_is_refused_before_anything_loads() -> None:
    def load() -> Any:
        raise AssertionError("it is not to be loaded")

    writer, reader = replace(WRITER, load=load), replace(READER, load=load)
    with pytest.raises(ConfigError, match="writer takes text, and writer before it gives image"):
        score_items(TEXTS, writer, writer, words_kept, 0, Store(None))
    with pytest.raises(ConfigError, match="share of words kept compares text, and writer gives image"):
        score_items(TEXTS, reader, writer, words_kept, 0, Store(None))
    with pytest.raises(ConfigError, match="writer makes the same of an item every time, and 2 outputs"):
        score_items(TEXTS, writer, reader, words_kept, 0, Store(None), returns=2)
    speaker = Step("speaker", "text", "audio", load, "speaker")
    with pytest.raises(ConfigError, match="speaker makes audio of text(.|\n)*a pair is an image and a text"):
        score_pairs([], speaker, words_kept, 0, Store(None))
    pair = ImageText(4, Image.new("RGB", (2, 2)), "a")
    with pytest.raises(ValueError, match="the index 4 is there twice"):
        score_pairs([pair, pair], reader, words_kept, 0, Store(None))
    with pytest.raises(ValueError, match="returns 0: it is 1 or more"):
        score_pairs([pair], reader, words_kept, 0, Store(None), returns=0)
    nothing = Closeness("nothing", "text", lambda one, back: float("nan"))
    with pytest.raises(ValueError, match="nothing of item 3 is nan"):
        score_items(TEXTS, WRITER, READER, nothing, 0, Store(None))
    assert score_items([], writer, reader, words_kept, 0, Store(None)) == []


CHARACTERS = [draw_character(1000, index) for index in range(4)]
IMAGES = [Image.fromarray(render(character)) for character in CHARACTERS]
CAPTIONS = [full_caption(character) for character in CHARACTERS]


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return find_extractor("tiny").load(CPU)


@pytest.fixture(scope="module")
def artist() -> Step:
    return imagination_step("tiny", 5, 3.0, None, CPU, 16, 200)


@pytest.fixture(scope="module")
def captioner() -> Step:
    return captioning_step(WEIGHTS / "captioner", None, "", CPU, "captioner", 16, max_new_tokens=24)


def right_and_others(step: Step, closeness: Closeness) -> tuple[float, float, int]:
    """Mean score of the right captions, of those of other characters, and how many right ones beat all others."""
    count = len(IMAGES)
    pairs = [ImageText(0, image, text, f"{i} {k}") for i, image in enumerate(IMAGES) for k, text in enumerate(CAPTIONS)]
    scores = [one.score for one in score_pairs(pairs, step, closeness, 0, Store(None))]
    table = np.array(scores, dtype=float).reshape(count, count)
    right = np.eye(count, dtype=bool)
    return float(table[right].mean()), float(table[~right].mean()), int((table.argmax(1) == np.arange(count)).sum())


def test_right_captions_come_back_closer_than_those_of_other_characters(
    extractor: Extractor, artist: Step, captioner: Step
) -> None:
    """All 16 pairs of 4 characters and captions, each checked from both sides by the embedded models."""
    for step, closeness, gap in (
        (artist, image_cosine(extractor), 0.5),
        (captioner, text_cosine(extractor), 0.3),
        (captioner, words_kept, 0.15),
    ):
        right, others, best = right_and_others(step, closeness)
        assert right > others + gap and best >= 3, closeness.name


def test_whole_cycles_of_the_embedded_models(extractor: Extractor, artist: Step, captioner: Step) -> None:
    """An image comes back more like itself than like other images, and so does a caption."""
    images = [Sample(index, image) for index, image in enumerate(IMAGES)]
    texts = [Sample(index, text) for index, text in enumerate(CAPTIONS)]
    for samples, there, back, closeness in (
        (images, captioner, artist, image_cosine(extractor)),
        (texts, artist, captioner, text_cosine(extractor)),
    ):
        scored = score_items(samples, there, back, closeness, 0, Store(None))
        own = [one.score for one in scored if one.score is not None]
        between = [closeness.measure(a.item, b.item) for a in samples for b in samples if a.index != b.index]
        assert len(own) == 4 and np.mean(own) > np.mean(between) + 0.3
        assert scored[0].provenance["steps"] == [there.name, back.name]
        assert len(best_share(scored, 0.5)) == 2
    assert text_cosine(extractor).measure(CAPTIONS[0], CAPTIONS[0]) == pytest.approx(1)
    assert image_cosine(extractor).measure(IMAGES[0], IMAGES[0]) == pytest.approx(1)
