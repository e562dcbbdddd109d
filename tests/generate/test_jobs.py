"""The job table: counts, and that an image depends on (seed, source, class, index) alone."""

from __future__ import annotations

import pytest
import torch

from mvc.generate.jobs import Job, draw_noise, finetuned_jobs, images_per_source, in_batches, pretrained_jobs
from mvc.mixing import draw_plan

SIZES = {"images": 7, "tokens": 77, "width": 32, "coarse": 2, "fine": 3}


@pytest.mark.parametrize(
    ("real", "per_real", "shares", "expected"),
    [
        (5, 4.0, {"finetuned": 1.0}, {"finetuned": 20}),
        (5, 0.5, {"finetuned": 1.0}, {"finetuned": 3}),
        (10, 1.0, {"finetuned": 0.29, "pretrained": 0.71}, {"finetuned": 3, "pretrained": 7}),
        (100, 1.0, {"finetuned": 0.29, "pretrained": 0.71}, {"finetuned": 29, "pretrained": 71}),
        (5, 1.0, {"finetuned": 0.5, "pretrained": 0.5}, {"finetuned": 3, "pretrained": 2}),
        (3, 4.0, {"finetuned": 1.0, "pretrained": 0.0}, {"finetuned": 12, "pretrained": 0}),
        (1, 0.1, {"finetuned": 1.0}, {"finetuned": 0}),
    ],
)
def test_counts(real: int, per_real: float, shares: dict[str, float], expected: dict[str, int]) -> None:
    assert images_per_source(real, per_real, shares) == expected


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.77])
def test_more_images_never_take_one_from_a_source(share: float) -> None:
    before = {"finetuned": 0, "pretrained": 0}
    for real in range(1, 200):
        now = images_per_source(real, 1.0, {"finetuned": share, "pretrained": 1 - share})
        assert sum(now.values()) == real
        assert all(now[source] >= before[source] for source in now)
        before = now


def test_a_larger_table_begins_with_the_smaller_one() -> None:
    assert finetuned_jobs(0, "cat", 30, **SIZES)[:11] == finetuned_jobs(0, "cat", 11, **SIZES)
    assert pretrained_jobs(0, "cat", 30, 7)[:11] == pretrained_jobs(0, "cat", 11, 7)


def test_jobs_differ_by_seed_class_and_index() -> None:
    table = finetuned_jobs(0, "cat", 20, **SIZES)
    for other in (finetuned_jobs(1, "cat", 20, **SIZES), finetuned_jobs(0, "dog", 20, **SIZES)):
        assert [job.plan for job in table] != [job.plan for job in other]
        assert [job.condition for job in table] != [job.condition for job in other]
    assert len({str(job.plan) for job in table}) == 20


def test_all_images_and_captions_of_a_class_get_their_turn() -> None:
    table = finetuned_jobs(0, "cat", 700, **SIZES)
    plain = pretrained_jobs(0, "cat", 700, 7)
    for drawn in ([job.condition for job in table], [job.caption for job in table], [job.caption for job in plain]):
        # Mean 100, standard deviation 9.3.
        assert all(60 < drawn.count(number) < 140 for number in range(7))
    assert all(job.plan is not None and job.plan["base"] == job.caption for job in table)


def test_plans_are_not_those_of_training() -> None:
    training = draw_plan(0, "cat", range(20), 7, 77, 32, 2, 3)
    table = finetuned_jobs(0, "cat", 20, **SIZES)
    assert not any(job.plan == training.row(number) for job in table for number in range(20))


def test_batches_hold_every_job_once_and_grow_at_the_end() -> None:
    small = [job for name in ("cat", "dog") for job in pretrained_jobs(0, name, 6, 3)]
    large = [job for name in ("cat", "dog") for job in pretrained_jobs(0, name, 9, 3)]
    batches = in_batches(small, 4)
    assert sorted(map(repr, sum(batches, []))) == sorted(map(repr, small))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert in_batches(large, 4)[:3] == batches
    assert [len(batch) for batch in in_batches(large, 4)] == [4, 4, 4, 4, 2]


def test_noise_belongs_to_the_image_not_to_the_batch() -> None:
    jobs = pretrained_jobs(0, "cat", 5, 3)
    together = draw_noise(0, jobs, 1, (4, 8, 8))
    for number, job in enumerate(jobs):
        assert torch.equal(draw_noise(0, [job], 1, (4, 8, 8))[0], together[number])
    other = [Job("finetuned", "cat", 0, 0, 0, None), Job("pretrained", "dog", 0, 0, None, None)]
    for different in (draw_noise(0, other, 1, (4, 8, 8)), draw_noise(0, jobs[:1], 2, (4, 8, 8)).repeat(2, 1, 1, 1)):
        # Independent normal samples of 256 values: correlation 0 with standard deviation 0.06.
        for sample in different:
            both = torch.stack([sample.flatten(), together[0].flatten()])
            assert abs(torch.corrcoef(both)[0, 1]) < 0.25
    assert together.dtype == torch.float32 and abs(together.std() - 1) < 0.1
