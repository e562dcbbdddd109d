"""The runs that growth is measured on are what the generate and filter stages take for their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth import POOL, Pools, Work, found_of
from benchmarks.pools import CLASSES, REAL, fill, grown, inputs_of, job_table, wanting, write_run
from mvc.candidates import is_closed, pool_of, read_candidates
from mvc.generate.stage import belonging
from mvc.synthetic import read_rejected, read_synthetic

SIZES = (2 * CLASSES, 4 * CLASSES)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    return Pools.of(write_run(tmp_path_factory.mktemp("runs") / "first"), SIZES)


@pytest.mark.parametrize("images", SIZES)
def test_every_image_is_found_again(pools: Pools, images: int) -> None:
    inputs = pools.inputs[images]
    pool = pool_of(inputs.run)
    slots, jobs = job_table(inputs)
    kept = belonging(inputs, pool, slots)
    assert len(kept) == len(slots) == len(jobs) == images
    assert is_closed(pool, kept) and kept == read_candidates(pool)
    assert len({row["sha256"] for row in kept.values()}) == images
    assert all(len(text.ids) == REAL for text in inputs.texts.values()) and len(inputs.texts) == CLASSES
    pools.scan(images)


def test_an_image_that_is_gone_is_noticed(pools: Pools, tmp_path: Path) -> None:
    run = grown(pools.inputs[SIZES[0]].run, tmp_path / "run")
    inputs = inputs_of(run, SIZES[0])
    next(pool_of(run).accepted.rglob("*.png")).unlink()
    with pytest.raises(RuntimeError, match="a finished image was not found again"):
        Pools({SIZES[0]: inputs}).scan(SIZES[0])
    fill(run, inputs)
    Pools({SIZES[0]: inputs}).scan(SIZES[0])


def test_the_filter_stage_takes_a_pool_again_and_again(pools: Pools) -> None:
    run = pools.inputs[SIZES[0]].run
    assert pools.filtered(SIZES[0]) > 0 and pools.filtered(SIZES[0]) > 0 and pools.judged(SIZES[0]) > 0
    accepted = read_synthetic(run)
    assert accepted and len(accepted) + len(read_rejected(run)) == SIZES[0]


def test_as_many_jobs_as_are_wanted(pools: Pools) -> None:
    inputs = wanting(pools.inputs[SIZES[0]], POOL)
    assert len(job_table(inputs)[1]) == POOL


def test_row_and_gate_of_some_work() -> None:
    work = Work("work", (10, 20, 40, 80), lambda images: 0.0)
    row, gate = found_of(work, [[0.1, 0.2, 0.4, 0.8], [0.1, 0.2, 0.4, 0.8], [0.1, 0.4, 1.6, 6.4]])
    assert row == ("work", "10", "0.100", "0.200", "0.400", "0.800", "10.000", "1.00")
    assert gate.value == pytest.approx(1.0) and gate.verdict == "ok"
    assert found_of(work, [[0.1, 0.22, 0.5, 1.12]])[1].verdict == "short"
    assert found_of(work, [[0.1, 0.4, 1.6, 6.4]])[1].verdict == "FAIL"
