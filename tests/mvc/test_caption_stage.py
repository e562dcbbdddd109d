"""The caption stage on real captioners: what it writes, keeps, resumes, counts and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.caption_stage import run_caption, summarise
from mvc.captions import load_captioner
from mvc.config import Experiment
from mvc.data_stage import run_data
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, EnvironmentFault, Stopped
from mvc.families import PARTS
from mvc.images import decode
from mvc.stopping import flag
from tests.mvc.text_models import clip_tokenizer, pictures, save_blip, text_encoder

CLASSES = ("big_cat", "dog")
TRAIN = [f"train/{name}/{number}.png" for name in CLASSES for number in range(5)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A data folder with two classes, a captioner, and a base model of which only the tokenizer is needed."""
    images = iter(pictures(30))
    for split, count in (("train", 5), ("validation", 1), ("test", 1)):
        for name in CLASSES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                next(images).save(folder / f"{number}.png")
    save_blip(tmp_path / "captioner")
    for part in PARTS:
        (tmp_path / "base" / part).mkdir(parents=True)
    clip_tokenizer().save_pretrained(tmp_path / "base" / "tokenizer")
    text_encoder().config.save_pretrained(tmp_path / "base" / "text_encoder")
    return tmp_path


def experiment_of(work: Path, **captions: Any) -> Experiment:
    captions = {"captioner": "blip", "model": str(work / "captioner"), "max_new_tokens": 6, "batch_size": 4, **captions}
    return Experiment.model_validate(
        {
            "run": {"dir": str(work / "run"), "device": "cpu"},
            "data": {"path": str(work / "data")},
            "captions": captions,
            "model": {"base": str(work / "base")},
        }
    )


def run_of(work: Path, **captions: Any) -> list[dict[str, Any]]:
    """Run the stage, the data stage first where it has not been; returns the rows of captions.jsonl."""
    experiment, run = experiment_of(work, **captions), work / "run"
    if not (run / "data" / "index.jsonl").exists():
        run_data(run, experiment)
    run_caption(run, experiment)
    return rows_of(run / "captions.jsonl")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_training_image_gets_its_own_description(work: Path) -> None:
    rows = run_of(work)
    assert [row["id"] for row in rows] == TRAIN and all(row["captioner"] == "blip" for row in rows)
    dataset = load_index(work / "run")
    describe = load_captioner(work / "captioner", None, torch.device("cpu"), 6, 1)
    for row, record in zip(rows, dataset.split("train"), strict=True):
        text = describe([decode(dataset.image_path(record))])[0]
        words = "big cat" if record.class_name == "big_cat" else "dog"
        assert row["class_name"] == record.class_name
        assert row["caption"] == f"This is an image of {words}." + (f" {text}." if text else "")
    assert len({row["caption"] for row in rows}) > 4
    assert not (work / "run" / "cache" / "captions.partial.jsonl").exists()


def test_a_second_run_loads_no_model_and_changes_nothing(work: Path) -> None:
    first = run_of(work)
    (work / "captioner" / "model.safetensors").unlink()
    assert run_of(work) == first


def test_edited_rows_are_kept_and_missing_ones_are_captioned(work: Path) -> None:
    first = run_of(work)
    edited = [dict(row) for row in first]
    edited[2]["caption"] = "my own words"
    del edited[5], edited[0]
    write_rows(work / "run" / "captions.jsonl", list(reversed(edited)))
    again = run_of(work)
    assert again[2]["caption"] == "my own words"
    assert [row for number, row in enumerate(again) if number != 2] == first[:2] + first[3:]
    write_rows(work / "run" / "captions.jsonl", [*again, {"id": "train/dog/99.png", "caption": "a dog"}])
    with pytest.raises(DataError, match="line 11, id 'train/dog/99.png': is no training image"):
        run_of(work)


def test_a_killed_captioning_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_of(work)
    run, partial = work / "run", work / "run" / "cache" / "captions.partial.jsonl"
    (run / "captions.jsonl").unlink()
    with monkeypatch.context() as stopped:
        stopped.setattr(flag, "signal", 15)
        with pytest.raises(Stopped, match="4 of 10 captions are kept"):
            run_of(work)
    assert len(rows_of(partial)) == 4 and not (run / "captions.jsonl").exists()
    # What is there is used as it is, a torn last line is not.
    kept = rows_of(partial)
    kept[1]["caption"] = "kept from before"
    write_rows(partial, kept)
    with partial.open("a") as file:
        file.write('{"id": "train/dog/0.png", "capt')
    resumed = run_of(work)
    assert resumed[1]["caption"] == "kept from before"
    assert resumed[:1] + resumed[2:] == whole[:1] + whole[2:] and not partial.exists()


@pytest.mark.parametrize("key", ["settings", "image"])
def test_partial_rows_of_other_settings_or_images_are_not_used(work: Path, key: str) -> None:
    whole = run_of(work)
    (work / "run" / "captions.jsonl").unlink()
    row = {**whole[0], "caption": "stale", "settings": "", "image": "", key: "other"}
    write_rows(work / "run" / "cache" / "captions.partial.jsonl", [row])
    assert run_of(work) == whole


def test_captions_of_the_data_come_first_then_the_model(work: Path) -> None:
    write_rows(work / "data" / "metadata.jsonl", [{"file_name": TRAIN[0], "text": "asleep ."}])
    write_rows(work / "data" / "train" / "metadata.jsonl", [{"file_name": "dog/1.png", "captions": ["runs", "no"]}])
    rows = run_of(work, captioner="auto")
    assert {row["id"]: row["caption"] for row in rows if row["captioner"] == "file"} == {
        TRAIN[0]: "This is an image of big cat. asleep.",
        "train/dog/1.png": "This is an image of dog. runs.",
    }
    assert sum(row["captioner"] == "blip" for row in rows) == 8
    (work / "run" / "captions.jsonl").unlink()
    with pytest.raises(DataError, match="8 of 10 training images have no caption, such as train/big_cat/1.png"):
        run_of(work, captioner="file")
    (work / "data" / "train" / "metadata.jsonl").unlink()
    write_rows(work / "data" / "metadata.jsonl", [{"file_name": name, "caption": name[-5]} for name in TRAIN])
    rows = run_of(work, captioner="file", model=None)
    assert [row["caption"][-2:] for row in rows] == [f"{number}." for number in range(5)] * 2


def test_template_says_once_that_nothing_can_be_mixed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_of(work, captioner="auto", model=None)
    assert {row["caption"] for row in rows} == {"This is an image of big cat.", "This is an image of dog."}
    said = capsys.readouterr().err
    assert said.count("captions.model=Salesforce/blip-image-captioning-large") == 1
    assert "all captions the same, so mixing changes nothing: big_cat, dog" in said
    (work / "run" / "captions.jsonl").unlink()
    assert run_of(work, captioner="template", prefix="{class_name}, drawn")[0]["caption"] == "big cat, drawn"


def test_blip_needs_a_model_and_says_so(work: Path) -> None:
    with pytest.raises(ConfigError, match="captions.captioner=blip needs a model"):
        run_of(work, model=None)
    with pytest.raises(EnvironmentFault, match="cannot load the captioning model .*absent"):
        run_of(work, model=str(work / "absent"))


def test_summary_counts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"train/big_cat/0.png": "same", "train/big_cat/1.png": "same", "train/dog/0.png": "same"}
    texts["train/dog/1.png"] = "This is an image of dog."
    texts["train/dog/2.png"] = "long " * 40
    run_of(work)
    rows = [{"id": name, "caption": texts.get(name, f"caption {name}")} for name in TRAIN]
    write_rows(work / "run" / "captions.jsonl", rows)
    capsys.readouterr()
    run_of(work)
    summary = json.loads((work / "run" / "caption_summary.json").read_text())
    assert summary["captions"] == 10 and summary["captioners"] == {"hand": 10}
    dog = {"id": "train/dog/1.png", "caption": "This is an image of dog."}
    assert summary["empty"] == {"count": 1, "examples": [dog]}
    assert summary["repeated"]["count"] == 2 and summary["repeated"]["share"] == pytest.approx(0.2)
    assert [row["id"] for row in summary["repeated"]["examples"]] == TRAIN[:2]
    assert summary["over_long"]["count"] == 1 and summary["over_long"]["limit"] == 77
    assert summary["single_caption_classes"] == summary["same_caption_classes"] == []
    said = capsys.readouterr().err
    assert "2 (20%) read the same as another of their class" in said and "1 have more than 77 tokens" in said
    assert "train/dog/1.png: This is an image of dog." in said


def test_limit_counts_start_and_end_tokens() -> None:
    """75 one-token words fill 77 positions; one more loses its end. Classes with one caption are named."""
    rows = [
        {"id": "1", "class_name": "a", "caption": " ".join(["red"] * 75), "captioner": "hand"},
        {"id": "2", "class_name": "a", "caption": " ".join(["red"] * 76), "captioner": "hand"},
        {"id": "3", "class_name": "b", "caption": "blue", "captioner": "hand"},
    ]
    summary = summarise(rows, "{class_name}", {"a": "a", "b": "b"}, clip_tokenizer())
    assert [row["id"] for row in summary["over_long"]["examples"]] == ["2"]
    assert summary["single_caption_classes"] == ["b"]
