"""Room on the disk is asked for before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvc.disk import bytes_below, existing_parent, free_bytes, require_space, size_text
from mvc.errors import EnvironmentFault


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (3 * 2**41, "6144.0 GiB")],
)
def test_sizes_are_powers_of_1024(size: int, text: str) -> None:
    assert size_text(size) == text


def test_free_space_is_that_of_the_file_system_where_the_folder_will_lie(tmp_path: Path) -> None:
    future = tmp_path / "runs" / "x"
    assert existing_parent(future) == tmp_path
    facts = os.statvfs(tmp_path)
    # Others write on this disk as well.
    assert free_bytes(future) == pytest.approx(facts.f_bavail * facts.f_frsize, abs=2**30)
    assert not future.exists()


def test_what_does_not_fit_is_refused_with_place_need_and_free(tmp_path: Path) -> None:
    require_space(tmp_path / "run", 1, "one byte")
    with pytest.raises(EnvironmentFault) as caught:
        require_space(tmp_path / "run", 2**60, "4 checkpoints")
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert f"too little space in {tmp_path / 'run'} for 4 checkpoints" in text
    assert f"{2**30}.0 GiB are needed and " in text and "are free" in text and "run.dir" in text
    assert not (tmp_path / "run").exists()


def test_files_below_a_folder_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 7)
    assert bytes_below(tmp_path / "a") == 17 and bytes_below(tmp_path / "absent") == 0
