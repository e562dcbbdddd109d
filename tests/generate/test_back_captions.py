"""The texts of back-captioning: how they are made, kept, edited and chosen, and what is wrong with a file of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvc import stopping
from mvc.config import Experiment
from mvc.config_augment import BackCaptioningSection
from mvc.errors import ConfigError, DataError, Stopped
from mvc.generate import back_caption_stage
from mvc.generate.back_caption_stage import run_back_caption
from mvc.generate.back_captions import BackTable, BackText, read_back_captions, require_enough
from mvc.modality.words import split_words
from mvc.stages import BACK_CAPTIONS
from mvc.storage import read_json_lines, write_json_lines
from mvc.tiny import WEIGHTS
from tests.generate.toy_run import WORDS, experiment

CLASSES = {f"{name}/{number}.png": name for name, own in WORDS.items() for number in range(len(own))}


def back(run: Path, **changes: Any) -> Experiment:
    """An experiment with the embedded captioner and EDA."""
    own = {"captioner": str(WEIGHTS / "captioner"), "max_new_tokens": 24, **changes}
    return experiment(run).model_copy(update={"back_captioning": BackCaptioningSection.model_validate(own)})


@pytest.fixture(scope="module")
def written(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 2 x 2 texts of each of its seven images."""
    run = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("written") / "run"))
    run_back_caption(run, back(run))
    return run


def test_each_image_has_l_x_m_texts_that_begin_with_its_class(written: Path) -> None:
    rows = read_json_lines(written / BACK_CAPTIONS)
    assert Counter(row["id"] for row in rows) == dict.fromkeys(CLASSES, 4)
    assert [row["branch"] for row in rows[:4]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    for row in rows:
        start = f"This is an image of {row['class_name']}."
        assert row["class_name"] == CLASSES[row["id"]]
        assert row["text"].startswith(start) and row["caption"].startswith(start)
        nouns = [word.core for word in split_words(row["caption"].removeprefix(start), keep_nouns=True) if word.fixed]
        assert [noun for noun in nouns if noun not in row["text"].replace(".", " ").split()] == []
    assert sum(row["text"] != row["caption"] for row in rows) > len(rows) // 2
    texts = read_back_captions(written, CLASSES)
    assert [one.branch for one in texts["cat/0.png"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert texts["dog/2.png"][3].text == [row["text"] for row in rows if row["id"] == "dog/2.png"][3]


def test_ablations_are_switches(prepared: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(prepared)
    run_back_caption(run, back(run, captions=1, rewriter="none"))
    rows = read_json_lines(run / BACK_CAPTIONS)
    assert len(rows) == len(CLASSES)
    assert all(row["branch"] == [0] and row["text"] == row["caption"] and row["rewriter"] is None for row in rows)


def test_rows_that_are_there_are_kept_and_the_same_is_made_again(written: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(written)
    rows = read_json_lines(run / BACK_CAPTIONS)
    edited = [{**row, "text": "This is an image of cat. asleep."} if row["id"] == "cat/0.png" else row for row in rows]
    write_json_lines(run / BACK_CAPTIONS, [row for row in edited if row["id"] != "dog/1.png"])
    run_back_caption(run, back(run))
    found = read_back_captions(run, CLASSES)
    assert {one.text for one in found["cat/0.png"]} == {"This is an image of cat. asleep."}
    assert found["dog/1.png"] == read_back_captions(written, CLASSES)["dog/1.png"]


def test_a_stopped_stage_goes_on_where_it_was(
    written: Path, prepared: Path, copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(prepared)
    monkeypatch.setattr(back_caption_stage, "_CHUNK", 2)
    settings = back(run).model_copy(update={"captions": back(run).captions.model_copy(update={"batch_size": 2})})
    stopping.flag.signal = None
    seen: list[int] = []
    original = back_caption_stage.decode

    def stop_at_the_fifth(*given: Any) -> Any:
        seen.append(1)
        if len(seen) == 5:
            stopping.flag.signal = 15
        return original(*given)

    monkeypatch.setattr(back_caption_stage, "decode", stop_at_the_fifth)
    try:
        with pytest.raises(Stopped, match="what was made before is kept"):
            run_back_caption(run, settings)
    finally:
        stopping.flag.signal = None
    assert not (run / BACK_CAPTIONS).exists()
    captioned = len(read_json_lines(run / back_caption_stage.FOLDER / "outputs.jsonl"))
    assert captioned == 8  # two captions of the first four images
    run_back_caption(run, settings)
    assert (run / BACK_CAPTIONS).read_bytes() == (written / BACK_CAPTIONS).read_bytes()
    assert len(read_json_lines(run / back_caption_stage.FOLDER / "outputs.jsonl")) == 2 * len(CLASSES)


def test_what_is_lacking_is_said_before_any_image_is_captioned(prepared: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(prepared)
    with pytest.raises(ConfigError, match="back_captioning needs a captioner(.|\n)*captions.model"):
        run_back_caption(run, back(run, captioner=None))
    with pytest.raises(ConfigError, match="chat.base_url"):
        run_back_caption(run, back(run, rewriter="chat"))
    with pytest.raises(ConfigError, match="language_model.model"):
        run_back_caption(run, back(run, rewriter="language_model"))
    assert not (run / back_caption_stage.FOLDER).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": "a"}, "line 1, id 'cat/0.png': unknown key texts"),
        ({"id": "cat/9.png"}, "line 1, id 'cat/9.png': is no training image of this run"),
        ({"branch": []}, "line 1, id 'cat/0.png': branch is no list of numbers"),
        ({"branch": [0, -1]}, "branch is no list of numbers"),
        ({"branch": [True]}, "branch is no list of numbers"),
        ({"branch": [0, 1]}, r"line 2, id 'cat/0.png': branch \[0, 1\] comes twice"),
        ({"text": " "}, "line 1, id 'cat/0.png': the text is empty"),
        ({"text": 3}, "line 1, id 'cat/0.png': the text is empty"),
    ],
)
def test_a_wrong_row_is_named(
    written: Path, copy_of: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    run = copy_of(written)
    rows = read_json_lines(run / BACK_CAPTIONS)
    write_json_lines(run / BACK_CAPTIONS, [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(DataError, match=message):
        read_back_captions(run, CLASSES)


def test_missing_keys_rows_and_files_are_named(written: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(written)
    rows = read_json_lines(run / BACK_CAPTIONS)
    write_json_lines(run / BACK_CAPTIONS, [{key: rows[0][key] for key in ("id", "branch")}])
    with pytest.raises(DataError, match="line 1, id 'cat/0.png': key text is missing"):
        read_back_captions(run, CLASSES)
    write_json_lines(run / BACK_CAPTIONS, [row for row in rows if row["class_name"] == "cat"])
    with pytest.raises(DataError, match="has no text for 3 of 7 images, such as dog/0.png"):
        read_back_captions(run, CLASSES)
    (run / BACK_CAPTIONS).unlink()
    with pytest.raises(DataError, match="back_captions.jsonl is missing"):
        read_back_captions(run, CLASSES)


def table(images: int, texts: int, imaginations: int) -> BackTable:
    return BackTable([[BackText([t], f"{i} {t}") for t in range(texts)] for i in range(images)], imaginations)


def test_indices_take_each_text_of_each_image_n_times_and_no_more() -> None:
    own = table(3, 4, 2)
    chosen = [own.chosen(0, "cat", index) for index in range(3 * 8)]
    assert Counter((image, text.text) for image, text in chosen) == {
        (i, f"{i} {t}"): 2 for i in range(3) for t in range(4)
    }
    assert [image for image, _ in chosen] == [index % 3 for index in range(24)]
    assert [own.chosen(0, "cat", index) for index in (5, 1)] == [chosen[5], chosen[1]]
    others = [own.chosen(1, "cat", index) for index in range(24)], [own.chosen(0, "dog", index) for index in range(24)]
    assert chosen not in others


def test_five_of_eight_are_chosen_uniformly() -> None:
    """Sec. 3.2: l = m = n = 2 give 8 augmentations of an image, of which 5 are taken."""
    counts = Counter(
        (text.text)
        for seed in range(1500)
        for index in range(5)
        for _, text in [table(1, 4, 2).chosen(seed, "a", index)]
    )
    assert sum(counts.values()) == 7500 and all(abs(count - 1875) < 100 for count in counts.values())


def test_more_than_there_is_cannot_be_asked_for() -> None:
    require_enough({"cat": table(3, 4, 2)}, {"cat": 24})
    with pytest.raises(
        ConfigError, match="25 images of back_captioning are wanted of class cat, and its 3 training"
    ) as error:
        require_enough({"cat": table(3, 4, 2)}, {"cat": 25})
    assert "images give 8 each" in error.value.what and "each drawn 2 times" in error.value.why
    assert "raise back_captioning.captions, rewrites or imaginations" in error.value.do
