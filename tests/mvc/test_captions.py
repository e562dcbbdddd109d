"""Captions: their text, captioners that really run, captions that come with the data, and the edited file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mvc.captions import (
    full_caption,
    load_captioner,
    metadata_descriptions,
    read_caption_rows,
    read_captions,
)
from mvc.errors import DataError, EnvironmentFault
from tests.mvc.text_models import pictures, save_blip, save_blip2

PREFIX = "This is an image of {class_name}."
CPU = torch.device("cpu")
NAMES = {"train/cat/1.png": "cat", "train/cat/2.png": "cat", "train/dog/1.png": "dog"}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("a red cat", "This is an image of tabby cat. a red cat."),
        ("  a \n red\tcat . . ", "This is an image of tabby cat. a red cat."),
        ("a red cat...", "This is an image of tabby cat. a red cat."),
        ("what a cat!", "This is an image of tabby cat. what a cat!"),
        ("", "This is an image of tabby cat."),
        (" . ", "This is an image of tabby cat."),
        ("This is an image of tabby cat. it sleeps", "This is an image of tabby cat. it sleeps."),
        ("{class_name} {0}", "This is an image of tabby cat. {class_name} {0}."),
    ],
)
def test_caption_is_prefix_and_clean_description(description: str, expected: str) -> None:
    assert full_caption(PREFIX, "tabby cat", description) == expected


@pytest.mark.parametrize("save", [save_blip, save_blip2])
def test_captioner_equals_the_model_called_by_hand(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "captioner")
    texts = load_captioner(folder, None, CPU, 6, 1)(pictures(6))
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
    for picture, text in zip(pictures(6), texts, strict=True):
        tokens = model.generate(**processor(images=[picture], return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert processor.decode(tokens[0], skip_special_tokens=True).strip() == text
    assert len(set(texts)) > 1 and all(len(text.split()) <= 6 for text in texts)
    assert not any("[" in text or "<" in text for text in texts)
    assert texts == load_captioner(folder, None, CPU, 6, 1)(pictures(6))


def test_beams_and_length_reach_the_model(tmp_path: Path) -> None:
    folder = save_blip2(tmp_path / "captioner")
    greedy = load_captioner(folder, None, CPU, 6, 1)(pictures(6))
    assert load_captioner(folder, None, CPU, 6, 3)(pictures(6)) != greedy
    short = load_captioner(folder, None, CPU, 2, 1)(pictures(6))
    assert max(len(text.split()) for text in short) == 2 < max(len(text.split()) for text in greedy)


def test_a_captioner_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot load the captioning model .*nowhere"):
        load_captioner(tmp_path / "nowhere", None, CPU, 6, 1)
    folder = save_blip(tmp_path / "captioner")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(EnvironmentFault, match="cannot load the captioning model"):
        load_captioner(folder, None, CPU, 6, 1)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(EnvironmentFault, match="safetensors"):
        load_captioner(folder, None, CPU, 6, 1)


def test_missing_weights_are_refused_not_made_up(tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "captioner")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "crossattention" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EnvironmentFault, match=f"weights are missing: {name}"):
        load_captioner(folder, None, CPU, 6, 1)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = save_blip(tmp_path / "captioner")
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EnvironmentFault, match="weights are not finite"):
        load_captioner(folder, None, CPU, 6, 1)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metadata_of_the_folder_and_of_its_train_folder(tmp_path: Path) -> None:
    assert metadata_descriptions(tmp_path) == {}
    write_rows(
        tmp_path / "metadata.jsonl",
        [
            {"file_name": "train/cat/1.png", "text": "one"},
            {"file_name": "train/cat/2.png", "caption": "two", "label": "cat"},
            {"file_name": "test/cat/9.png", "label": "cat"},
        ],
    )
    write_rows(
        tmp_path / "train" / "metadata.jsonl",
        [
            {"file_name": "./dog/1.png", "captions": ["first", "second"]},
            {"file_name": "dog\\2.png", "text": ""},
            {"file_name": "dog\\3.png", "text": "three"},
        ],
    )
    assert metadata_descriptions(tmp_path) == {
        "train/cat/1.png": "one",
        "train/cat/2.png": "two",
        "train/dog/1.png": "first",
        "train/dog/3.png": "three",
    }


@pytest.mark.parametrize("row", [{"text": "no name"}, {"file_name": "a.png", "text": 3}, {"file_name": 1}])
def test_metadata_that_cannot_be_used_names_the_line(tmp_path: Path, row: dict[str, Any]) -> None:
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "fine"}, row])
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2 cannot be used"):
        metadata_descriptions(tmp_path)


def good_rows() -> list[dict[str, Any]]:
    return [
        {"id": name, "class_name": label, "caption": f"a {label}.", "captioner": "blip"}
        for name, label in NAMES.items()
    ]


def test_an_edited_file_may_be_short_and_untidy(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = good_rows()
    path.write_text(
        "\ufeff"
        + json.dumps({"caption": " my  own\n cat ", "id": "train/cat/2.png"})
        + "\r\n\n"
        + json.dumps(rows[0])
        + "\n"
    )
    read = read_caption_rows(path, NAMES)
    assert list(read) == ["train/cat/2.png", "train/cat/1.png"]
    expected = {"id": "train/cat/2.png", "class_name": "cat", "caption": "my own cat", "captioner": "hand"}
    assert read["train/cat/2.png"] == expected
    with pytest.raises(DataError, match="no caption for 1 of 3 images, such as train/dog/1.png"):
        read_captions(path, NAMES)
    write_rows(path, rows)
    assert read_captions(path, NAMES) == {name: f"a {label}." for name, label in NAMES.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "train/cat/9.png"}, "line 2, id 'train/cat/9.png': is no training image"),
        ({"id": "train/cat/1.png"}, "line 2, id 'train/cat/1.png': comes twice"),
        ({"caption": " \t"}, "line 2, id 'train/cat/2.png': the caption is empty"),
        ({"caption": None}, "line 2, id 'train/cat/2.png': a value is not text"),
        ({"class_name": "dog"}, "line 2, id 'train/cat/2.png': class_name is 'dog', the image is in 'cat'"),
        ({"text": "oops"}, "line 2, id 'train/cat/2.png': unknown key text"),
    ],
)
def test_a_wrong_edit_names_line_and_id(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = good_rows()
    rows[1].update(change)
    with pytest.raises(DataError, match=message):
        read_caption_rows(write_rows(tmp_path / "captions.jsonl", rows), NAMES)


def test_blank_lines_do_not_shift_line_numbers_and_missing_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("\n\n" + json.dumps({"id": "train/cat/1.png"}) + "\n")
    with pytest.raises(DataError, match="line 3, id 'train/cat/1.png': key caption is missing"):
        read_caption_rows(path, NAMES)
    path.write_text(json.dumps(good_rows()[0]) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_caption_rows(path, NAMES)
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="captions.jsonl is missing"):
        read_captions(path, NAMES)
