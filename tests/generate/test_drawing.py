"""Drawing what is missing: stopped, killed, damaged or full, the finished set has the bytes of an uninterrupted one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvc import storage
from mvc.candidates import CANDIDATES, pool_of, read_candidates
from mvc.errors import EnvironmentFault, Stopped
from mvc.generate import drawing
from mvc.generate import source as source_module
from mvc.generate.drawing import batches_of
from mvc.generate.filter_stage import run_filter
from mvc.generate.jobs import ClassTable, Scales, jobs_of
from mvc.generate.stage import run_generate
from mvc.stopping import flag
from mvc.storage import read_json
from mvc.synthetic import METADATA, read_synthetic, synthetic_folder
from tests.generate.toy_run import BOTH, contents, experiment, picture

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STRICT = {"copy_bits": 64, "copy_similarity": 0.75}
"""So strict a filter for likeness that random pictures repeat each other, and are drawn up to three times."""


def generate(run: Path, looks: dict[str, Any] | None = None, **changes: Any) -> None:
    """Both stages, as `mvc generate` does them."""
    run_generate(run, experiment(run, looks, sources=BOTH, **changes))
    run_filter(run, experiment(run, looks, sources=BOTH, **changes))


@pytest.fixture(scope="module")
def redrawn(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set whose filters refused many images."""
    run = tmp_path_factory.mktemp("redrawn")
    shutil.copytree(prepared, run, dirs_exist_ok=True)
    generate(run, STRICT)
    return run


def test_batches_go_source_after_source_and_index_after_index() -> None:
    table, scales = ClassTable(3, 77, 32, 0, 0), Scales(1.0, None)
    jobs = [
        job
        for source in ("sdedit", "finetuned")
        for name in ("dog", "cat")
        for job in jobs_of(0, source, name, range(2), 1, table, scales)
    ]
    names = [[f"{job.source} {job.class_name} {job.index}" for job in batch] for batch in batches_of(jobs, 3)]
    assert names == [
        ["finetuned cat 0", "finetuned dog 0", "finetuned cat 1"],
        ["finetuned dog 1"],
        ["sdedit cat 0", "sdedit dog 0", "sdedit cat 1"],
        ["sdedit dog 1"],
    ]


def test_what_is_refused_is_drawn_afresh_and_what_is_lacking_is_said(redrawn: Path) -> None:
    rows = read_candidates(pool_of(redrawn)).values()
    summary = read_json(redrawn / "synthetic" / "summary.json")
    attempts = [sum(row["attempt"] == attempt for row in rows) for attempt in (1, 2, 3)]
    accepted = read_synthetic(redrawn)
    slots = {(image.source, image.class_name, image.row["index"]) for image in accepted}
    # Each slot once, and each attempt only for what the one before left open.
    assert attempts[0] == 14 > attempts[1] > attempts[2] > 0 and len(slots) == len(accepted) == summary["accepted"]
    assert {image.row["attempt"] for image in accepted} >= {1, 2}
    assert summary["wanted"] == 14 == summary["accepted"] + sum(summary["shortfall"].values())
    assert sum(summary["shortfall"].values()) > 0, "else the test of a shortfall shows nothing"
    assert summary["drawn"] == len(rows) == summary["accepted"] + sum(summary["rejected"].values())
    by_slot: dict[Any, list[Any]] = {}
    for row in rows:
        by_slot.setdefault((row["source"], row["class_name"], row["index"]), []).append(row)
    for tries in by_slot.values():
        assert sorted(row["attempt"] for row in tries) == list(range(1, len(tries) + 1))
        assert len({row["sha256"] for row in tries}) == len(tries)
        assert len({str(row["plan"]) for row in tries}) == (len(tries) if tries[0]["plan"] else 1)


@pytest.mark.parametrize("batches", [2, 6])
def test_stopped_by_a_signal_it_goes_on_to_the_same_bytes(
    prepared: Path, redrawn: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    run, calls = copy_of(prepared), []

    def draw_and_signal(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == batches:
            monkeypatch.setattr(flag, "signal", 15)
        return source_module.draw(*arguments)

    monkeypatch.setattr(drawing, "draw", draw_and_signal)
    with pytest.raises(Stopped, match=r"stopped by signal 15; \d+ of \d+ images are kept"):
        generate(run, STRICT)
    assert len(calls) == batches and not (run / "synthetic" / CANDIDATES).exists()
    kept = {path: path.stat().st_mtime_ns for path in run.glob("synthetic/train/*/*.png")}
    assert 0 < len(kept) <= 3 * batches
    monkeypatch.setattr(flag, "signal", None)
    monkeypatch.setattr(drawing, "draw", source_module.draw)
    generate(run, STRICT)
    assert contents(run) == contents(redrawn)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path.exists())


@pytest.mark.parametrize("files", [0, 16])
def test_killed_while_writing_it_goes_on_to_the_same_bytes(
    prepared: Path, redrawn: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    run, written = copy_of(prepared), []
    write_image = drawing.write_image

    def write_some(*arguments: Any) -> str:
        written.append(arguments)
        if len(written) > files:
            raise KeyboardInterrupt
        return write_image(*arguments)

    monkeypatch.setattr(drawing, "write_image", write_some)
    with pytest.raises(KeyboardInterrupt):
        generate(run, STRICT)
    (run / "synthetic" / "train" / "cat").mkdir(parents=True, exist_ok=True)
    for folder in ("synthetic", "synthetic/train", "synthetic/train/cat"):
        (run / folder / ".tmp-1-half.png").write_bytes(b"half")
    monkeypatch.setattr(drawing, "write_image", write_image)
    generate(run, STRICT)
    assert contents(run) == contents(redrawn)


def test_a_journal_with_a_torn_line_and_files_without_rows_cost_only_these(
    redrawn: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(redrawn)
    folder = run / "synthetic"
    # As a kill leaves it: in work, the last row half written, another one never; their files are there.
    lines = (folder / CANDIDATES).read_bytes().splitlines(keepends=True)
    (folder / "candidates.partial.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:-40])
    (folder / CANDIDATES).unlink()
    (synthetic_folder(run) / METADATA).unlink()
    jobs = list[str]()

    def drawn(source: Any, batch: Any) -> Any:
        jobs.extend(f"{job.class_name}/{job.id}" for job in batch)
        return source_module.draw(source, batch)

    monkeypatch.setattr(drawing, "draw", drawn)
    generate(run, STRICT)
    assert contents(run) == contents(redrawn)
    assert 0 < len(jobs) <= 2 * 3, "more than the batches of the two"


@pytest.mark.parametrize("cut", [1, 60, 1000])
def test_a_list_of_candidates_that_was_cut_off_is_made_whole(redrawn: Path, copy_of: Any, cut: int) -> None:
    run = copy_of(redrawn)
    path = run / "synthetic" / CANDIDATES
    path.write_bytes(path.read_bytes()[:-cut])
    generate(run, STRICT)
    assert contents(run) == contents(redrawn)


def test_deleted_and_damaged_files_are_made_again_alone(redrawn: Path, copy_of: Any) -> None:
    run = copy_of(redrawn)
    pool = pool_of(run)
    accepted, rejected = (sorted(folder.glob("*/*.png")) for folder in (pool.accepted, pool.rejected))
    before = {path: path.stat().st_mtime_ns for path in (*accepted, *rejected)}
    gone, damaged = [accepted[1], rejected[0]], [accepted[-1], rejected[-1]]
    for path in gone:
        path.unlink()
    for path in damaged:
        path.write_bytes(b"damaged")
    generate(run, STRICT)
    assert contents(run) == contents(redrawn)
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {*gone, *damaged}


def test_fewer_attempts_later_keep_what_was_drawn(redrawn: Path, copy_of: Any) -> None:
    run = copy_of(redrawn)
    generate(run, {**STRICT, "attempts": 1})
    pictures = [name for name in contents(redrawn) if name.endswith(".png")]
    assert all(contents(run)[name] == contents(redrawn)[name] for name in pictures)


def pixels_by_name(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    folder = run / "synthetic"
    return {path.relative_to(folder).as_posix(): picture(path).astype(int) for path in folder.rglob("*.png")}


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_another_batch_size_gives_the_same_set(redrawn: Path, prepared: Path, copy_of: Any, batch_size: int) -> None:
    run = copy_of(prepared)
    generate(run, STRICT, batch_size=batch_size)
    ours, theirs = pixels_by_name(run), pixels_by_name(redrawn)
    assert ours.keys() == theirs.keys()
    for name, pixels in ours.items():
        difference = np.abs(pixels - theirs[name])
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    # On a pool that is there it changes nothing at all.
    before = contents(run)
    generate(run, STRICT, batch_size=5)
    assert contents(run) == before


@pytest.mark.parametrize("spoilt_attempts", [1, 2])
def test_an_image_that_is_not_finite_is_drawn_again_alone(
    prepared: Path, finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, spoilt_attempts: int
) -> None:
    run = copy_of(prepared)
    draw_noise = source_module.draw_noise

    def spoil(seed: int, jobs: Any, shape: Any) -> torch.Tensor:
        noise = draw_noise(seed, jobs, shape)
        for number, job in enumerate(jobs):
            if job.slot == ("finetuned", "cat", 1) and job.attempt <= spoilt_attempts:
                noise[number] = float("nan")
        return noise

    monkeypatch.setattr(source_module, "draw_noise", spoil)
    generate(run)
    good = f"finetuned-00001-{spoilt_attempts + 1}"
    for image, old in zip(read_synthetic(run), read_synthetic(finished), strict=True):
        spoilt = old.row["file_name"] == "cat/finetuned-00001.png"
        assert image.row["id"] == (good if spoilt else old.row["id"])
        assert (image.path.read_bytes() == old.path.read_bytes()) != spoilt
        assert image.row["batch_size"] == (1 if spoilt else old.row["batch_size"])
    refused = storage.read_json_lines(run / "synthetic" / "rejected.jsonl")
    assert sorted((row["attempt"], row["sha256"], row["reasons"]) for row in refused) == [
        (attempt, None, ["not finite"]) for attempt in range(1, spoilt_attempts + 1)
    ]
    assert not (run / "synthetic" / "rejected").exists()


@pytest.mark.parametrize("files", [2, 9])
def test_a_full_disk_stops_cleanly_and_keeps_the_finished_images(
    prepared: Path, finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    run, written = copy_of(prepared), []
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".png"):
            if len(written) >= files:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentFault, match="cannot write .*png") as caught:
        generate(run)
    assert caught.value.why == "No space left on device"
    monkeypatch.setattr(os, "replace", replace)
    # Also those of the batch that did not fit as a whole.
    assert len(read_candidates(pool_of(run))) == files
    assert not list(run.glob("synthetic/**/.tmp-*"))
    kept = {path: path.stat().st_mtime_ns for path in written}
    generate(run)
    assert contents(run) == contents(finished)
    assert {path: path.stat().st_mtime_ns for path in written} == kept
