"""`mvc augment` as people give it: files and pipes, what is wrong with them, stops, and nothing lost."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mvc.augment_command import PROVENANCE, settings_of
from mvc.cli import app
from mvc.config_augment import METHODS
from mvc.errors import ConfigError, DataError, MvcError
from mvc.modality.store import ROWS
from mvc.storage import read_json, read_json_lines
from tests.mvc.modality.chat_server import serving

REVIEWS = [
    ("it 's a charming and often affecting journey .", "1"),
    ("the script is thin and the jokes are tired", "0"),
    ("", "0"),
    ("a gorgeous , witty , seductive movie", "1"),
    ("x" * 10_000, "0"),
    ("скучный фильм", "0"),
]
COMMAND = [sys.executable, "-m", "mvc", "augment"]


def write_table(path: Path, rows: list[tuple[str, str]] = REVIEWS, delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([("sentence", "label"), *rows])
    return path


def run(*given: str) -> Any:
    done = CliRunner().invoke(app, ["augment", *given], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_comes_back_with_its_augmentations(tmp_path: Path) -> None:
    source, out = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    done = run("eda", str(source), "--text", "sentence", "-o", str(out), "--summary", str(tmp_path / "summary.json"))
    rows = read(out)
    origins = [json.loads(row[PROVENANCE]) for row in rows]
    originals = [
        (row["sentence"], row["label"]) for row, one in zip(rows, origins, strict=True) if one["method"] == "original"
    ]
    assert originals == REVIEWS
    labels = dict(enumerate((label for _, label in REVIEWS), 1))
    for row, one in zip(rows, origins, strict=True):
        assert row["label"] == labels[one["row"]]
    counts = [sum(one["row"] == number and one["method"] == "eda" for one in origins) for number in range(1, 7)]
    assert counts[0] == counts[1] == counts[3] == 5 and counts[2] == counts[4] == 0 and 0 < counts[5] <= 3
    summary = read_json(tmp_path / "summary.json")
    assert summary["rows not augmented"] == [
        [3, "the text is empty"],
        [5, "the text has 10,000 characters, more than max_characters=1,000"],
    ]
    assert summary["rows"] == 6 and summary["augmentations"] == sum(counts) and summary["method"] == "eda"
    assert "row 3 was not augmented: the text is empty" in done.stderr
    assert "augmentations of 4 of 6 rows by eda" in done.stderr


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    source = str(write_table(tmp_path / "in.csv"))
    contents = []
    for number, more in enumerate(([], [], ["--seed", "1"], ["batch_size=1"])):
        out = tmp_path / f"{number}.jsonl"
        run("eda", source, "--text", "sentence", "-o", str(out), *more)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] == contents[3] != contents[2]


def test_only_new_limit_and_settings(tmp_path: Path) -> None:
    source, out = write_table(tmp_path / "in.csv"), tmp_path / "out.tsv"
    given = ["--text", "sentence", "-o", str(out), "--only-new", "--limit", "2"]
    run("eda", str(source), *given, "eda.operations=[deletion]", "augmentations_per_sample=1")
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 2
    for row, (text, _) in zip(rows, REVIEWS, strict=False):
        assert len(row["sentence"].split()) == len(text.split()) - 1
        assert json.loads(row[PROVENANCE])["made"]["sentence"]["steps"] == [{"step": "EDA", "operation": "deletion"}]


def test_pairs_of_texts(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    pair = {"s1": "a man rides a large horse", "s2": "a person is on an animal", "label": 1, "id": "a-1"}
    source.write_text(json.dumps(pair) + "\n" + json.dumps({**pair, "s2": None}) + "\n")
    run("eda", str(source), "--text", "s1", "--text", "s2", "-o", str(out), "augmentations_per_sample=2")
    rows = read_json_lines(out)
    assert [row[PROVENANCE]["method"] for row in rows] == ["original", "eda", "eda", "original"]
    assert rows[0]["label"] == 1 and rows[3]["s2"] is None  # values keep their type
    assert all(row["s1"] != pair["s1"] and row["s2"] != pair["s2"] and row["id"] == "a-1" for row in rows[1:3])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (["magic", "IN"], ConfigError, "there is no method magic(.|\n)*one of back_speech"),
        (["back_captioning", "IN"], ConfigError, "back_captioning is for images(.|\n)*mvc generate"),
        (["eda", "IN", "IN"], ConfigError, "two tables were given"),
        (["eda", "IN", "eda.shares=0.2"], ConfigError, "unknown key 'eda.shares'(.|\n)*did you mean 'eda.share'"),
        (["eda", "IN", "eda.share=2"], ConfigError, "eda.share = 2 cannot be used"),
        (["eda", "IN", "method=eda"], ConfigError, "the method is given twice"),
        (["eda", "IN"], DataError, "no column 'text'|has no column text|sentence"),
        (["eda", "NONE.csv"], DataError, "NONE.csv"),
        (["eda", "EMPTY.csv"], DataError, "is empty"),
        (["eda", "HEADER.csv", "--text", "sentence"], DataError, "has no rows"),
        (["eda", "IN", "--to", "xml"], ConfigError, "xml"),
        (["eda", "TWICE.csv", "--text", "sentence"], DataError, f"has a column {PROVENANCE}"),
        (["eda", "TWICE.jsonl", "--text", "sentence"], DataError, f"has a column {PROVENANCE}"),
        (
            ["back_speech", "IN", "--text", "sentence", "speech.voice=nobody"],
            MvcError,
            "no voice 'nobody'|flite is missing",
        ),
        (["rewriting", "IN", "--text", "sentence", "rewriting.rewriter=chat"], ConfigError, "chat.base_url"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    tmp_path: Path, given: list[str], kind: type[MvcError], message: str
) -> None:
    write_table(tmp_path / "IN.csv")
    (tmp_path / "EMPTY.csv").write_text("")
    write_table(tmp_path / "HEADER.csv", [])
    (tmp_path / "TWICE.csv").write_text(f"sentence,{PROVENANCE}\na b c,x\n")
    (tmp_path / "TWICE.jsonl").write_text(json.dumps({"sentence": "a large dog", PROVENANCE: {}}) + "\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    names = {"IN": "IN.csv"}
    words = [
        str(tmp_path / names.get(one, one)) if one in ("IN",) or one.endswith((".csv", ".jsonl")) else one
        for one in given
    ]
    with pytest.raises(kind, match=message):
        run(*words, "-o", str(tmp_path / "out.csv"), "--work", str(tmp_path / "work"))
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_output_that_is_there_is_replaced_only_if_that_is_said(tmp_path: Path) -> None:
    source, out = str(write_table(tmp_path / "in.csv")), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="out.csv"):
        run("eda", source, "--text", "sentence", "-o", str(out))
    assert out.read_text() == "mine"
    run("eda", source, "--text", "sentence", "-o", str(out), "--overwrite")
    assert len(read(out)) > 6


def test_a_table_of_which_nothing_can_be_augmented_is_an_error(tmp_path: Path) -> None:
    source, out = write_table(tmp_path / "in.csv", [("", "0"), (" ", "1")]), tmp_path / "out.csv"
    with pytest.raises(DataError, match="not one of 2 rows could be augmented(.|\n)*of row 1, the text is empty"):
        run("eda", str(source), "--text", "sentence", "-o", str(out))
    assert not out.exists()


def test_every_method_prints_its_settings(tmp_path: Path) -> None:
    for method in METHODS:
        assert f"method: {method}" in run(method, "--dry-run", "augmentations_per_sample=3").stdout
    assert settings_of("back_speech", ["speech.pitch=null"]).speech.pitch is None


def test_requests_are_told_before_they_are_sent(tmp_path: Path) -> None:
    source, out = write_table(tmp_path / "in.csv", REVIEWS[:3]), tmp_path / "out.jsonl"
    with serving() as server:
        given = [
            "rewriting.rewriter=chat",
            "rewriting.rewrites=2",
            f"chat.base_url={server.base_url}",
            "chat.model=toy",
        ]
        done = run("rewriting", str(source), "--text", "sentence", "-o", str(out), *given, "chat.input_price=1")
    lines = done.stderr.splitlines()
    assert len(server.asked) == 2  # the empty text is not sent
    assert lines[0].startswith(f"rewriting: 2 requests to {server.base_url} (model toy), about ")
    assert "less than 0.01 at the prices given" in lines[0]
    new = [row["sentence"] for row in read_json_lines(out) if row[PROVENANCE]["method"] == "rewriting"]
    assert sorted(new) == sorted(f"{text}, in words {place}." for text, _ in REVIEWS[:2] for place in range(2))


def test_it_works_in_a_shell_pipe() -> None:
    table = io.StringIO()
    csv.writer(table, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([("text", "label"), *REVIEWS[:2]])
    done = subprocess.run([*COMMAND, "eda", "--from", "tsv"], input=table.getvalue(), capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 1 + 2 * 6 and lines[0] == f"text\tlabel\t{PROVENANCE}"
    assert done.stderr.startswith("augment: 10 augmentations of 2 of 2 rows by eda")


def test_rows_come_out_as_they_go_in_and_a_reader_may_leave() -> None:
    given = [*COMMAND, "eda", "--from", "jsonl", "batch_size=1", "augmentations_per_sample=1"]
    with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        for number in range(2):
            process.stdin.write(json.dumps({"text": f"one large dog and {number} cats"}).encode() + b"\n")
            process.stdin.flush()
            rows = [json.loads(process.stdout.readline()) for _ in range(2)]  # before the next one goes in
            assert [row[PROVENANCE]["row"] for row in rows] == [number + 1] * 2
        process.stdout.close()
        process.stdin.write(b'{"text": "another large dog"}\n' * 50)
        process.stdin.close()
        assert process.wait(60) == 0
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")
def test_rows_that_a_voice_cannot_speak_are_told_and_the_others_done(tmp_path: Path) -> None:
    source, out = write_table(tmp_path / "in.csv", REVIEWS[2:]), tmp_path / "out.csv"
    given = ["--text", "sentence", "-o", str(out), "augmentations_per_sample=1", "speech.edit_distance=null"]
    done = run("back_speech", str(source), *given)
    rows = [(row["sentence"], json.loads(row[PROVENANCE])) for row in read(out)]
    assert [(origin["method"], origin["row"]) for _, origin in rows] == [
        ("original", 1),
        ("original", 2),
        ("back_speech", 2),
        ("original", 3),
        ("original", 4),
    ]
    assert "movie" in rows[2][0] and rows[2][1]["made"]["sentence"]["steps"][0] == {
        "step": "flite (rms)",
        "file": rows[2][1]["made"]["sentence"]["steps"][0]["file"],
    }
    assert (tmp_path / "out.csv.work" / rows[2][1]["made"]["sentence"]["steps"][0]["file"]).is_file()
    for line in (
        "row 1 was not augmented: the text is empty",
        "row 3 was not augmented: the text has 10,000 characters, more than max_characters=1,000",
        "row 4 was not augmented: it holds letters that the voice cannot speak, such as 'с'",
    ):
        assert line in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")
def test_a_killed_back_speech_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = [(f"the {word} movie is a pleasure to watch", "1") for word in ("long", "short", "quiet", "loud")]
    source, out = write_table(tmp_path / "in.csv", rows), tmp_path / "out.jsonl"
    given = [*COMMAND, "back_speech", str(source), "--text", "sentence", "batch_size=1", "augmentations_per_sample=2"]
    whole = subprocess.run([*given, "-o", str(tmp_path / "whole.jsonl")], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    journal = tmp_path / "out.jsonl.work" / ROWS
    for ending, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        with subprocess.Popen([*given, "-o", str(out)], stderr=subprocess.PIPE) as process:
            start, before = time.monotonic(), journal.stat().st_size if journal.exists() else 0
            while time.monotonic() - start < 60 and (not journal.exists() or journal.stat().st_size <= before):
                time.sleep(0.02)
            process.send_signal(ending)
            assert process.wait(60) == code
        assert not out.exists() and journal.stat().st_size > before
    heard = len(read_json_lines(journal, torn_tail=True))
    done = subprocess.run([*given, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again = subprocess.run([*given, "-o", str(out), "--overwrite"], capture_output=True, text=True)
    assert again.returncode == 0 and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert heard < len(read_json_lines(journal)) == len(read_json_lines(tmp_path / "whole.jsonl.work" / ROWS))
