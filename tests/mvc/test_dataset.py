from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvc.class_names import class_words, codes
from mvc.config import DataSection, Experiment
from mvc.data_stage import run_data
from mvc.dataset import CLASSES, INDEX, load_index
from mvc.errors import ConfigError, DataError
from mvc.images import decode
from mvc.storage import read_json, read_json_lines, sha256_file, write_json, write_json_lines
from tests.mvc.pictures import fill


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path / "my data", {"train/red_fox": 6, "train/owl": 6, "test/owl": 2, "test/red_fox": 3})
    run_data(tmp_path / "run", Experiment(data=DataSection(path=str(tmp_path / "my data"), shots=3)))
    return tmp_path / "run"


def test_load_index_reads_what_was_frozen(run: Path) -> None:
    dataset = load_index(run)
    assert dataset.classes == ["owl", "red_fox"] and dataset.words == ["owl", "red fox"]
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [6, 2, 5]
    assert [record.id for record in dataset.records] == sorted(record.id for record in dataset.records)
    for record in dataset.records:
        assert dataset.classes[record.label] == record.class_name
        assert sha256_file(dataset.image_path(record)) == record.sha256
        assert decode(dataset.image_path(record)).size == (record.width, record.height) == (40, 40)
    assert len(read_json_lines(run / INDEX)) == 17


def rewrite(run: Path, **change: Any) -> None:
    rows = read_json_lines(run / INDEX)
    write_json_lines(run / INDEX, [{**rows[0], "used": True, **change}, *rows[1:]])


@pytest.mark.parametrize(
    "change,text",
    [
        ({"path": "../../etc/passwd.png"}, "line 1: ValueError: path .* leads out"),
        ({"path": "/etc/x.png"}, "leads out"),
        ({"label": 1}, "label 1 is not the class 'owl'"),
        ({"label": 7}, "line 1: IndexError"),
        ({"label": -2}, "label -2 is not the class"),
    ],
)
def test_broken_index_is_refused(run: Path, change: dict[str, Any], text: str) -> None:
    rewrite(run, **change)
    with pytest.raises(DataError, match=text):
        load_index(run)


def test_an_index_from_before_there_were_groups_is_read(run: Path) -> None:
    assert all(record.group is None for record in load_index(run).records)
    rows = [{key: value for key, value in row.items() if key != "group"} for row in read_json_lines(run / INDEX)]
    before = load_index(run)
    write_json_lines(run / INDEX, rows)
    assert load_index(run) == before
    write_json_lines(run / INDEX, [{**rows[0], "used": True, "group": "p7"}, *rows[1:]])
    assert next(record.group for record in load_index(run).records if record.id == rows[0]["id"]) == "p7"
    write_json_lines(run / INDEX, [{key: value for key, value in row.items() if key != "mode"} for row in rows])
    with pytest.raises(DataError, match="mode"):
        load_index(run)


def test_broken_or_missing_classes_are_refused(run: Path) -> None:
    content = read_json(run / CLASSES)
    write_json(run / CLASSES, {**content, "classes": content["classes"][::-1]})
    with pytest.raises(DataError, match="not sorted by folder name"):
        load_index(run)
    write_json(run / CLASSES, {"classes": []})
    with pytest.raises(DataError, match="KeyError: 'root'"):
        load_index(run)
    (run / CLASSES).unlink()
    with pytest.raises(DataError, match="classes.json is missing"):
        load_index(run)


def test_classes_file_has_the_agreed_form(run: Path) -> None:
    content = json.loads((run / CLASSES).read_text())
    assert content["classes"][1] == {"folder": "red_fox", "words": "red fox", "label": 1}
    assert Path(content["root"]).is_absolute()


def test_words_of_classes() -> None:
    classes = ["grand_piano", "n01443537", "ice-cream", "_"]
    assert class_words(classes, {"n01443537": "goldfish"}) == ["grand piano", "goldfish", "ice cream", "_"]
    with pytest.raises(ConfigError, match="(?s)'grand_paino', which is no class folder.*'grand_piano'"):
        class_words(classes, {"grand_paino": "piano"})
    with pytest.raises(ConfigError, match="ice-cream is empty"):
        class_words(classes, {"ice-cream": " "})
    with pytest.raises(ConfigError, match="same words: a b, a_b -> a b"):
        class_words(["a b", "a_b"], {})


def test_codes() -> None:
    names = ["n01443537", "class_7", "007", "001.Albatross", "c3", "cat", "no_tumor", "seven", "b52", "2cv"]
    assert codes(names, {}) == ["n01443537", "class_7", "007", "001.Albatross", "c3"]
    assert codes(names, {"007": "bond"}) == ["n01443537", "class_7", "001.Albatross", "c3"]
