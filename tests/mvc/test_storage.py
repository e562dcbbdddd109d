"""Files are whole or absent; damaged folders are noticed; one writer a run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mvc.errors import DataError, EnvironmentFault
from mvc.storage import (
    append_json_lines,
    exclusive,
    files_below,
    files_like,
    publish_folder,
    read_json,
    read_json_lines,
    remove_leftovers,
    verified_manifest,
    write_bytes,
    write_json,
    write_json_lines,
)
from tests.folders import sha256_folder


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(EnvironmentFault, match="cannot write .*a.bin"):
            write_bytes(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "é"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="broken.json is not JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(DataError, match="absent.json is missing"):
        read_json(tmp_path / "absent.json")


def test_a_torn_last_line_is_dropped_and_never_joined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_json_lines(path, [{"a": 1}, {"a": 2}])
    with open(path, "ab") as file:
        file.write(b'{"a": 3')
    assert read_json_lines(path, torn_tail=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="line 3 is not JSON"):
        read_json_lines(path)
    append_json_lines(path, [{"a": 4}])
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_json_lines_errors(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "x.jsonl", [{"a": 1}])
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        read_json_lines(tmp_path / "x.jsonl")
    assert read_json_lines(tmp_path / "absent.jsonl", torn_tail=True) == []


def test_published_folder_is_verified_by_content(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "step-1", {"step": 1}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "w.bin").write_bytes(b"abc")
        (folder / "sub" / "w.bin").chmod(0o600)
    assert (tmp_path / "step-1" / "sub" / "w.bin").stat().st_mode & 0o777 == 0o644
    manifest = verified_manifest(tmp_path / "step-1")
    assert manifest is not None and manifest["step"] == 1
    assert manifest["files"]["sub/w.bin"]["bytes"] == 3
    (tmp_path / "step-1" / "sub" / "w.bin").write_bytes(b"abd")
    assert verified_manifest(tmp_path / "step-1") is None
    assert verified_manifest(tmp_path / "absent") is None


def test_a_failed_publication_leaves_the_old_folder(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "model", {}) as folder:
        (folder / "a").write_text("old")
    before = sha256_folder(tmp_path / "model")
    with pytest.raises(RuntimeError, match="in the middle"), publish_folder(tmp_path / "model", {}) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError("in the middle")
    assert sha256_folder(tmp_path / "model") == before
    assert os.listdir(tmp_path) == ["model"]
    with publish_folder(tmp_path / "model", {}) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "model" / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_leftovers_are_removed_and_never_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-x").mkdir()
    (tmp_path / ".tmp-2-y").write_text("half")
    (tmp_path / "kept").write_text("whole")
    assert files_below(tmp_path) == files_like(tmp_path, "*") == [tmp_path / "kept"]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_files_that_match_are_those_that_are_written(tmp_path: Path) -> None:
    for name in ("b-seed1.json", "b-seed0.json", ".tmp-7-b-seed2.json", "in/b-seed3.json", "b.json"):
        write_json(tmp_path / name, {})
    assert files_like(tmp_path, "*-seed*.json") == [tmp_path / "b-seed0.json", tmp_path / "b-seed1.json"]
    assert files_like(tmp_path, "**/*-seed3.json") == files_like(tmp_path, "*/*") == [tmp_path / "in" / "b-seed3.json"]
    assert files_like(tmp_path / "nowhere", "*") == []


def test_second_writer_is_refused_by_name_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from mvc.storage import exclusive
with exclusive(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault, match=f"in use by process {holder.pid} on"), exclusive(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with exclusive(tmp_path):
            pass


def test_a_full_disk_adds_no_row_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_json_lines(path, [{"a": 1}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        # The first rows would still fit.
        with pytest.raises(EnvironmentFault, match="cannot write .*log.jsonl(.|\n)*File too large"):
            append_json_lines(path, [{"a": number} for number in range(50)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json_lines(path) == [{"a": 1}]
    append_json_lines(path, [{"a": 2}])
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_manifest_vouches_for_itself(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "step-1", {"step": 1}) as folder:
        (folder / "a.txt").write_text("x")
    path = tmp_path / "step-1/manifest.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 3'))
    assert verified_manifest(tmp_path / "step-1") is None
