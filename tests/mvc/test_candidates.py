"""The pool of drawn images: rows and files that survive kills, move with the filters, and never lead out of the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc.candidates import (
    CANDIDATES,
    Pool,
    add_candidates,
    all_there,
    close_pool,
    find_image,
    is_closed,
    journals,
    open_pool,
    pool_of,
    put_in_place,
    read_candidates,
    whole_rows,
    write_image,
)
from mvc.errors import DataError, EnvironmentFault
from mvc.storage import json_line, write_json_lines
from mvc.synthetic import METADATA, Candidate, candidate_of, recipe_of
from tests.mvc.rows import candidate, pixels_of

NAMES = ("cat", "big dog")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return pool_of(tmp_path)


def draw(pool: Pool, *wanted: tuple[str, int, int]) -> dict[str, Candidate]:
    """Write files and rows of images, by class, index and attempt, as work in progress."""
    rows = {}
    for name, index, attempt in wanted:
        row = candidate(name, index, attempt=attempt)
        row["sha256"] = write_image(pool.accepted, row["file_name"], pixels_of(row))
        rows[row["file_name"]] = row
    add_candidates(pool, list(rows.values()))
    return rows


SIX = [(name, index, 1) for name in NAMES for index in range(3)]


def test_what_was_written_is_read_back(pool: Pool) -> None:
    rows = draw(pool, *SIX, ("cat", 0, 2))
    assert read_candidates(pool) == rows
    for row in rows.values():
        path = find_image(pool, row["file_name"])
        assert path == pool.accepted / row["file_name"]
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), pixels_of(row))
    assert whole_rows(pool, rows.values()) == rows


def test_rows_of_several_workers_are_one_pool(pool: Pool) -> None:
    rows = [candidate("cat", index) for index in range(4)]
    for worker, row in enumerate(rows):
        add_candidates(pool, [row], worker)
    assert len(journals(pool)) == 4
    assert read_candidates(pool) == {row["file_name"]: row for row in rows}
    open_pool(pool, read_candidates(pool))
    assert len(journals(pool)) == 1
    assert read_candidates(pool) == {row["file_name"]: row for row in rows}


def test_a_later_row_replaces_an_earlier_one_of_the_same_name(pool: Pool) -> None:
    rows = draw(pool, ("cat", 0, 1))
    close_pool(pool, rows)
    changed: Candidate = {**rows["cat/finetuned-00000.png"], "batch_size": 7}
    add_candidates(pool, [changed])
    assert read_candidates(pool) == {"cat/finetuned-00000.png": changed}


def test_only_whole_files_count(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    names = list(rows)
    (pool.accepted / names[0]).unlink()
    (pool.accepted / names[1]).write_bytes((pool.accepted / names[1]).read_bytes()[:-1])
    assert set(whole_rows(pool, rows.values())) == set(names[2:])
    # An image that is not finite has no file and needs none.
    lost = candidate("cat", 9)
    assert whole_rows(pool, [lost]) == {lost["file_name"]: lost} and lost["sha256"] is None


def test_a_row_cut_short_by_a_kill_is_dropped(pool: Pool) -> None:
    rows = list(draw(pool, *SIX[:4]).values())
    (journal,) = journals(pool)
    journal.write_bytes(journal.read_bytes()[:-20])
    assert list(read_candidates(pool).values()) == rows[:3]
    more = draw(pool, SIX[4])
    assert read_candidates(pool) == {**{row["file_name"]: row for row in rows[:3]}, **more}


def test_a_closed_pool_holds_its_rows_alone(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    cats = {name: row for name, row in rows.items() if row["class_name"] == "cat"}
    (pool.accepted / "cat" / "mine.png").write_bytes(b"somebody's own")
    assert not is_closed(pool, cats)
    close_pool(pool, cats)
    assert is_closed(pool, cats) and not is_closed(pool, rows)
    assert read_candidates(pool) == cats and not journals(pool)
    assert sorted(path.relative_to(pool.folder).as_posix() for path in pool.folder.rglob("*")) == [
        "candidates.jsonl",
        "train",
        "train/cat",
        *(f"train/{name}" for name in sorted(cats)),
        "train/cat/mine.png",
    ]


def test_an_open_pool_and_its_set_count_as_unfinished(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    close_pool(pool, rows)
    (pool.accepted / METADATA).write_text("")
    open_pool(pool, rows)
    assert not (pool.accepted / METADATA).exists() and not (pool.folder / CANDIDATES).exists()
    assert not is_closed(pool, rows) and read_candidates(pool) == rows
    close_pool(pool, rows)
    assert is_closed(pool, rows)


@pytest.mark.parametrize("step", [open_pool, close_pool])
def test_what_a_killed_worker_was_writing_is_removed(pool: Pool, step: Callable[[Pool, Any], None]) -> None:
    rows = draw(pool, ("cat", 0, 1))
    for folder in (pool.folder, pool.accepted / "cat", pool.rejected / "cat"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".tmp-7-finetuned-00001.png").write_bytes(b"half")
    step(pool, rows)
    assert not list(pool.folder.rglob(".tmp-*")) and not list(pool.rejected.rglob(".tmp-*"))
    assert whole_rows(pool, rows.values()) == rows


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_closed_pool_that_was_cut_off_is_not_closed(pool: Pool, cut: int) -> None:
    rows = draw(pool, *SIX)
    close_pool(pool, rows)
    path = pool.folder / CANDIDATES
    path.write_bytes(path.read_bytes()[:-cut])
    assert not is_closed(pool, rows)
    left = len(read_candidates(pool))
    assert left == (6 if cut == 1 else 5)
    assert not all_there(pool.folder.parent) and len(read_candidates(pool)) == left and journals(pool)


def test_closing_proves_that_all_is_there(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    (pool.accepted / "cat" / "finetuned-00001.png").write_bytes(b"something else")
    with pytest.raises(EnvironmentFault, match="finetuned-00001.png is not there as it should be") as caught:
        close_pool(pool, rows)
    assert "not what was written" in caught.value.why
    # It is gone now, so that the next start draws it again.
    with pytest.raises(EnvironmentFault, match="finetuned-00001.png is not there") as caught:
        close_pool(pool, rows)
    assert caught.value.why == "it is gone" and not (pool.folder / CANDIDATES).exists()


def test_a_deleted_image_opens_the_pool_again(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    close_pool(pool, rows)
    run = pool.folder.parent
    assert all_there(run) and is_closed(pool, rows)
    (pool.accepted / "big dog" / "finetuned-00002.png").unlink()
    assert not all_there(run) and not is_closed(pool, rows) and read_candidates(pool) == rows


def accepted_of(rows: dict[str, Candidate], *names: str) -> dict[str, bool]:
    return {name: name in names for name in rows}


def test_images_move_to_where_they_belong_and_back(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    before = {name: (pool.accepted / name).read_bytes() for name in rows}
    close_pool(pool, rows)
    one = "cat/finetuned-00001.png"
    put_in_place(pool, accepted_of(rows, one))
    for name in rows:
        path = find_image(pool, name)
        assert path == (pool.accepted if name == one else pool.rejected) / name and path.read_bytes() == before[name]
    # torchvision refuses class folders without images.
    assert [path.name for path in pool.accepted.iterdir()] == ["cat"]
    assert whole_rows(pool, rows.values()) == rows and all_there(pool.folder.parent)
    put_in_place(pool, accepted_of(rows, *rows))
    assert {name: (pool.accepted / name).read_bytes() for name in rows} == before
    assert not any(pool.rejected.iterdir())


def test_an_image_that_was_made_again_replaces_the_damaged_one(pool: Pool) -> None:
    rows = draw(pool, *SIX)
    put_in_place(pool, accepted_of(rows))
    name = "cat/finetuned-00000.png"
    (pool.rejected / name).write_bytes(b"damaged")
    assert name not in whole_rows(pool, rows.values())
    draw(pool, ("cat", 0, 1))
    assert whole_rows(pool, rows.values()) == rows
    for accepted in (accepted_of(rows), accepted_of(rows, name)):
        put_in_place(pool, accepted)
        assert len(list(pool.folder.rglob("finetuned-00000.png"))) == 2, "one a class"
        assert whole_rows(pool, rows.values()) == rows


def test_a_disk_that_cannot_be_written_loses_no_image(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(pool, *SIX)
    replace, moved = os.replace, []

    def full(source: Any, target: Any) -> None:
        if len(moved) == 2:
            raise OSError(errno.EROFS, "Read-only file system")
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentFault, match="cannot move images") as caught:
        put_in_place(pool, accepted_of(rows))
    assert caught.value.why == "Read-only file system"
    assert whole_rows(pool, rows.values()) == rows
    monkeypatch.setattr(os, "replace", replace)
    put_in_place(pool, accepted_of(rows))
    assert whole_rows(pool, rows.values()) == rows and not any(pool.accepted.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"file_name": "../cat/finetuned-00000.png"},
        {"file_name": "../finetuned-00000.png", "class_name": ".."},
        {"file_name": "/etc/finetuned-00000.png", "class_name": "/etc"},
        {"file_name": "a/b/finetuned-00000.png", "class_name": "a/b"},
        {"file_name": "cat/../../x.png", "id": "../../x"},
        {"file_name": "cat/finetuned-00001.png"},
        {"file_name": None},
        {"file_name": "./finetuned-00000.png", "class_name": "."},
    ],
)
def test_a_row_that_leads_out_of_the_set_is_refused(pool: Pool, changes: dict[str, Any]) -> None:
    pool.folder.mkdir(parents=True)
    rows = [candidate("cat", 3), {**candidate("cat", 0), **changes}]
    (pool.folder / CANDIDATES).write_text("".join(json_line(dict(row)) for row in rows))
    with pytest.raises(DataError, match=r"candidates.jsonl, line 2 names .*which is no image of the set"):
        read_candidates(pool)


def test_names_of_classes_may_hold_anything_that_a_folder_may(pool: Pool) -> None:
    names = ["-rf", " lead", "con", "nul", "a\\b", "🐈", "cafe\u0301", "n" * 255, "%s {x} $HOME", "line\nbreak"]
    rows = draw(pool, *((name, 123456, 12) for name in names))
    close_pool(pool, rows)
    put_in_place(pool, accepted_of(rows))
    assert read_candidates(pool) == rows == whole_rows(pool, rows.values())
    assert sorted(path.name for path in pool.rejected.iterdir()) == sorted(names)


def test_parts_of_a_row() -> None:
    row = candidate("cat", 1)
    assert recipe_of({**row, "scores": {}, "accepted": True, "reasons": []}) == recipe_of(row)
    assert set(row) - set(recipe_of(row)) == {"sha256", "batch_size", "batch_place", "in_float32"}
    assert candidate_of({**row, "scores": {}, "accepted": True, "reasons": []}) == row


def test_a_pool_of_previews_is_in_one_folder(tmp_path: Path) -> None:
    pool = Pool(tmp_path, tmp_path, tmp_path)
    rows = draw(pool, ("cat", 0, 1), ("cat", 1, 1))
    first = {name: rows[name] for name in list(rows)[:1]}
    close_pool(pool, first)
    assert is_closed(pool, first) and not (tmp_path / "cat" / "finetuned-00001.png").exists()
    write_json_lines(tmp_path / "candidates.partial.jsonl", [])
    assert not is_closed(pool, first)
