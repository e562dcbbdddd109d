"""Synthesis of pairs: what comes out, what is dropped, the folder that `datasets` opens, and going on after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvc.errors import ConfigError, DataError, Stopped
from mvc.extractors import find_extractor
from mvc.modality.captioning import captioning_step
from mvc.modality.imagination import imagination_step
from mvc.modality.nodes import Sample
from mvc.modality.steps import Item, Output, Refused, Result, Run, Step, one_each
from mvc.modality.store import ROWS, Store, digest_of
from mvc.multimodal.cycle import text_cosine, words_kept
from mvc.multimodal.synthesis import NOT_CLOSE, REPEAT, CycleCheck, Totals, synthesise, translate, write_synthesis
from mvc.randomness import derived_seed, numpy_generator
from mvc.storage import files_below, read_json_lines, verified_manifest
from mvc.tiny import WEIGHTS
from mvc.tiny.evaluate import full_caption, read_attributes
from mvc.tiny.world import draw_character, render

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/synthesis.md"
CPU = torch.device("cpu")


def write(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
    """A text as an image: its letters are the first row, and the seed's noise the second."""
    results: list[Result] = []
    for text, seed in zip(items, seeds, strict=True):
        if not text:
            results.append(Refused("the text is empty"))
            continue
        letters = np.frombuffer(text.encode(), np.uint8)
        noise = numpy_generator(seed, "noise").integers(0, 256, len(letters), dtype=np.uint8)
        results.append(Output(Image.fromarray(np.stack([letters, noise])[..., None].repeat(3, 2))))
    return results


def read(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
    """The letters of an image, but for one word that the seed decides."""
    results: list[Result] = []
    for image, seed in zip(items, seeds, strict=True):
        words = np.asarray(image)[0, :, 0].tobytes().decode().split()
        del words[int(numpy_generator(seed, "word").integers(len(words)))]
        results.append(Output(" ".join(words)))
    return results


WRITER = Step("writer", "text", "image", lambda: one_each(write), "writer", batch_size=4)
READER = Step("reader", "image", "text", lambda: one_each(read), "reader", batch_size=4)
TEXTS = [Sample(2, "one two three four"), Sample(5, ""), Sample(9, "a b")]


def written(text: str) -> Image.Image:
    ((made,),) = WRITER.run([text], [[0]])
    assert isinstance(made, Output) and isinstance(made.value, Image.Image)
    return made.value


def test_a_translation_is_the_step_with_its_own_seeds() -> None:
    found = translate(TEXTS, WRITER, 2, 7, Store(None))
    assert found[1] == ["the text is empty"] * 2
    for sample, row in ((TEXTS[0], found[0]), (TEXTS[2], found[2])):
        for number, made in enumerate(row):
            own = derived_seed(7, "back-modality", sample.index, 0, number, 1)
            ((wanted,),) = WRITER.run([sample.item], [[own]])
            assert isinstance(made, Output) and isinstance(wanted, Output)
            assert np.array_equal(np.asarray(made.value), np.asarray(wanted.value))


def test_pairs_of_texts_and_what_became_of_the_others() -> None:
    totals = Totals()
    pairs = list(synthesise(TEXTS, WRITER, 2, 0, Store(None), totals=totals))
    assert [pair.name for pair in pairs] == ["text-000002-0", "text-000002-1", "text-000009-0", "text-000009-1"]
    assert [pair.captions for pair in pairs] == [["one two three four"]] * 2 + [["a b"]] * 2
    assert len({digest_of(pair.image) for pair in pairs}) == 4
    assert totals == Totals(3, 6, totals.dropped, 4) and totals.dropped == {"the text is empty": 2}
    own = pairs[3].provenance
    assert own["method"] == "text to image" and own["step"] == own["identity"] == "writer" and own["seed"] == 0
    assert own["sample"] == 9 and own["branches"] == [1] and own["source_sha256"] == digest_of("a b")
    assert "cycle" not in own


def test_pairs_of_images_have_captions_that_differ() -> None:
    totals, images = Totals(), [Sample(4, written("one two three")), Sample(6, written("a a b"))]
    pairs = list(synthesise(images, READER, 12, 0, Store(None), totals=totals))
    assert [pair.name for pair in pairs] == ["image-000004", "image-000006"]
    assert sorted(pairs[0].captions) == ["one three", "one two", "two three"]
    assert sorted(pairs[1].captions) == ["a a", "a b"] and pairs[1].image is images[1].item
    assert totals.dropped == {REPEAT: 24 - 5} and totals.pairs == 2 and totals.made == 24
    assert len(pairs[0].provenance["branches"]) == 3 and pairs[0].provenance["method"] == "image to text"


def test_a_cycle_check_drops_what_does_not_come_back() -> None:
    """The way back loses one word: of four words 3/4 come back, of two 1/2."""
    check, totals = CycleCheck(READER, words_kept, 0.6, returns=2), Totals()
    pairs = list(synthesise(TEXTS, WRITER, 3, 0, Store(None), check, totals))
    assert [pair.captions for pair in pairs] == [["one two three four"]] * 3
    assert totals.dropped == {"the text is empty": 3, NOT_CLOSE: 3}
    cycle = pairs[1].provenance["cycle"]
    assert cycle["scores"] == [0.75] and cycle["least"] == 0.6 and cycle["closeness"] == words_kept.name
    ((first, second),) = cycle["came_back"]
    assert len(first.split()) == len(second.split()) == 3
    images = [Sample(0, written("one two three"))]
    exact = replace(words_kept, modality="image", measure=lambda one, back: float(back.width))
    for least, kept in ((7.0, {"one two", "one three", "two three"}), (8.0, {"one three", "two three"})):
        (pair,) = synthesise(images, READER, 12, 0, Store(None), CycleCheck(WRITER, exact, least))
        assert set(pair.captions) == kept and pair.provenance["cycle"]["scores"] == [len(one) for one in pair.captions]


def test_a_pair_does_not_depend_on_its_company() -> None:
    check = CycleCheck(READER, words_kept, 0.1)
    whole = list(synthesise(TEXTS, WRITER, 2, 3, Store(None), check))
    alone = list(synthesise(TEXTS[2:], WRITER, 2, 3, Store(None), check))
    assert [digest_of(pair.image) for pair in whole[2:]] == [digest_of(pair.image) for pair in alone]
    assert [pair.provenance for pair in whole[2:]] == [pair.provenance for pair in alone]
    other = list(synthesise(TEXTS[2:], WRITER, 2, 4, Store(None), check))
    assert digest_of(other[0].image) != digest_of(alone[0].image)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)}


def breaking(step: Step, after: int, calls: list[int]) -> Step:
    """The step, counting its outputs and stopped once there are some."""

    def load() -> Run:
        run = step.load()

        def broken(items: Sequence[Item], seeds: Sequence[Sequence[int]]) -> list[list[Result]]:
            if sum(calls) >= after:
                raise Stopped("stopped by signal 15; what was made before is kept")
            made = run(items, seeds)
            calls.append(sum(map(len, made)))
            return made

        return broken

    return replace(step, load=load)


def test_a_killed_synthesis_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    texts = [Sample(index, f"text number {index}") for index in range(10)]
    check = CycleCheck(READER, words_kept, 0.1)
    first: list[int] = []
    with pytest.raises(Stopped):
        write_synthesis(tmp_path / "set", texts, breaking(WRITER, 12, first), 2, 0, Store(tmp_path / "store"), check)
    assert sum(first) == 12 and sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    second: list[int] = []
    write_synthesis(tmp_path / "set", texts, breaking(WRITER, 99, second), 2, 0, Store(tmp_path / "store"), check)
    assert sum(second) == 20 - 12 and len(read_json_lines(tmp_path / "store" / ROWS)) == 40
    write_synthesis(tmp_path / "other", texts, WRITER, 2, 0, Store(tmp_path / "elsewhere"), check)
    assert content(tmp_path / "set") == content(tmp_path / "other")
    manifest = verified_manifest(tmp_path / "set")
    assert manifest is not None and manifest["pairs"] == 20 and manifest["made"] == 20 and manifest["dropped"] == {}


@pytest.mark.parametrize("checked", [False, True])
def test_the_embedded_models_make_a_folder_that_datasets_opens(checked: bool, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    characters = [draw_character(1000, index) for index in (0, 1, 3)]
    artist = imagination_step("tiny", 5, 3.0, None, CPU, 16, 200)
    captioner = captioning_step(WEIGHTS / "captioner", None, "", CPU, "captioner", 16, max_new_tokens=24)
    least = text_cosine(find_extractor("tiny").load(CPU))
    texts = [Sample(index, full_caption(character)) for index, character in enumerate(characters)]
    check = CycleCheck(captioner, least, 0.2) if checked else None
    totals = write_synthesis(tmp_path / "drawn", texts, artist, 2, 0, Store(tmp_path / "store"), check)
    assert totals.pairs + totals.dropped.total() == 6 and totals.pairs >= 4
    opened = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "drawn"), split="train", cache_dir=str(tmp_path / "hub")
    )
    assert len(opened) == totals.pairs and opened[0]["image"].size == (32, 32)
    rows = read_json_lines(tmp_path / "drawn/train/metadata.jsonl")
    assert opened["captions"][:] == [row["captions"] for row in rows]
    provenance = opened[0]["provenance"]
    assert provenance["step"] == artist.name and provenance["identity"] == artist.identity
    assert ("cycle" in provenance) is checked and all(set(row["provenance"]) == set(provenance) for row in rows)
    if checked:
        assert min(score for row in rows for score in row["provenance"]["cycle"]["scores"]) >= 0.2

    images = [Sample(index, Image.fromarray(render(character))) for index, character in enumerate(characters)]
    write_synthesis(tmp_path / "said", images, captioner, 2, 0, Store(None))
    said = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "said"), split="train", cache_dir=str(tmp_path / "hub")
    )
    assert len(said) == 3 and np.array_equal(np.asarray(said[1]["image"]), render(characters[1]))
    for character, captions in zip(characters, said["captions"], strict=True):
        assert 1 <= len(captions) == len(set(captions)) <= 2
        assert read_attributes(captions[0])["digit"] == character.word


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    def load() -> Any:
        raise AssertionError("it is not to be loaded")

    writer, reader, store = replace(WRITER, load=load), replace(READER, load=load), Store(None)
    speaker = Step("speaker", "text", "audio", load, "speaker")
    with pytest.raises(ConfigError, match="speaker makes audio of text"):
        write_synthesis(tmp_path / "set", TEXTS, speaker, 1, 0, store)
    with pytest.raises(ConfigError, match="writer makes image of text, which does not lead back"):
        write_synthesis(tmp_path / "set", TEXTS, writer, 1, 0, store, CycleCheck(writer, words_kept, 0.5))
    with pytest.raises(ConfigError, match="2 outputs of each are wanted of fixed"):
        write_synthesis(tmp_path / "set", TEXTS, replace(writer, name="fixed", random=False), 2, 0, store)
    with pytest.raises(ConfigError, match="0 outputs of each are wanted of writer"):
        write_synthesis(tmp_path / "set", TEXTS, writer, 0, 0, store)
    with pytest.raises(DataError, match="the index 2 is there twice or below 0"):
        write_synthesis(tmp_path / "set", [TEXTS[0], TEXTS[0]], writer, 1, 0, store)
    with pytest.raises(DataError, match="sample 3 is a int"):
        write_synthesis(tmp_path / "set", [Sample(3, 7)], writer, 1, 0, store)
    with pytest.raises(DataError, match="sample 3 is an image of mode L"):
        write_synthesis(tmp_path / "set", [Sample(3, Image.new("L", (2, 2)))], reader, 1, 0, store)
    with pytest.raises(DataError, match="no pair came of 1 samples\nwhy: 2 x the text is empty"):
        write_synthesis(tmp_path / "set", TEXTS[1:2], WRITER, 2, 0, store)
    with pytest.raises(ValueError, match="least nan is no finite number"):
        CycleCheck(READER, words_kept, float("nan"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="mine is not empty"):
        write_synthesis(tmp_path / "mine", TEXTS, writer, 1, 0, store)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
