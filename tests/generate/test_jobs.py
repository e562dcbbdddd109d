"""The job table: counts, and that an image depends on (seed, source, class, index, attempt) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mvc.generate.jobs import (
    ClassTable,
    Job,
    Scales,
    draw_noise,
    draw_step_noise,
    in_batches,
    jobs_of,
    split_by_share,
)
from mvc.mixing import draw_plan

TABLE = ClassTable(images=7, tokens=77, width=32, coarse=2, fine=3)
FIXED = Scales(7.5, None)


def table_of(
    source: str = "finetuned",
    name: str = "cat",
    count: int = 20,
    seed: int = 0,
    attempt: int = 1,
    scales: Scales = FIXED,
    images: int = 7,
) -> list[Job]:
    return jobs_of(seed, source, name, range(count), attempt, replace(TABLE, images=images), scales)


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (20, {"finetuned": 1.0}, {"finetuned": 20}),
        (10, {"finetuned": 0.29, "pretrained": 0.71}, {"finetuned": 3, "pretrained": 7}),
        (100, {"finetuned": 0.29, "pretrained": 0.71}, {"finetuned": 29, "pretrained": 71}),
        (5, {"finetuned": 0.5, "pretrained": 0.5}, {"finetuned": 3, "pretrained": 2}),
        (12, {"finetuned": 1.0, "pretrained": 0.0}, {"finetuned": 12, "pretrained": 0}),
        (7, {"finetuned": 0.4, "sdedit": 0.3, "import": 0.3}, {"finetuned": 3, "sdedit": 2, "import": 2}),
        (0, {"finetuned": 1.0}, {"finetuned": 0}),
    ],
)
def test_counts(total: int, shares: dict[str, float], expected: dict[str, int]) -> None:
    assert split_by_share(total, shares) == expected


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.77])
def test_more_images_never_take_one_from_a_source(share: float) -> None:
    before = {"finetuned": 0, "pretrained": 0}
    for total in range(1, 200):
        now = split_by_share(total, {"finetuned": share, "pretrained": 1 - share})
        assert sum(now.values()) == total
        assert all(now[source] >= before[source] for source in now)
        before = now


@pytest.mark.parametrize("source", ["finetuned", "pretrained", "sdedit", "instruct_pix2pix"])
@pytest.mark.parametrize("attempt", [1, 3])
def test_a_row_of_the_table_depends_on_its_own_index_alone(source: str, attempt: int) -> None:
    ranges = Scales((1.0, 9.0), (1.0, 2.0))
    whole = table_of(source, count=30, attempt=attempt, scales=ranges)
    assert whole[:11] == table_of(source, count=11, attempt=attempt, scales=ranges)
    chosen = [17, 3, 29]
    assert jobs_of(0, source, "cat", chosen, attempt, TABLE, ranges) == [whole[index] for index in chosen]


def test_jobs_differ_by_seed_class_index_and_attempt() -> None:
    table = table_of()
    for other in (table_of(seed=1), table_of(name="dog"), table_of(attempt=2), table_of(attempt=3)):
        assert [job.plan for job in table] != [job.plan for job in other]
        assert [job.condition for job in table] != [job.condition for job in other]
    assert len({str(job.plan) for job in table}) == 20
    plain, again = table_of("pretrained"), table_of("pretrained", attempt=2)
    assert [job.caption for job in plain] != [job.caption for job in again]


def test_ids_and_slots_say_source_number_and_later_attempts() -> None:
    first, second = table_of(count=3)[2], table_of("sdedit", count=3, attempt=2)[2]
    assert (first.id, first.slot) == ("finetuned-00002", ("finetuned", "cat", 2))
    assert (second.id, second.slot) == ("sdedit-00002-2", ("sdedit", "cat", 2))


def test_all_images_and_captions_of_a_class_get_their_turn() -> None:
    table, plain, begun = (table_of(source, count=700) for source in ("finetuned", "pretrained", "sdedit"))
    drawn: Sequence[Sequence[int | None]] = [
        [job.condition for job in table],
        [job.caption for job in table],
        [job.caption for job in plain],
        [job.condition for job in begun],
    ]
    for numbers in drawn:
        # Mean 100, standard deviation 9.3.
        assert all(60 < numbers.count(number) < 140 for number in range(7))
    assert all(job.plan is not None and job.plan["base"] == job.caption for job in table)


def test_each_source_refers_to_what_it_uses() -> None:
    uses = {source: table_of(source)[0] for source in ("finetuned", "pretrained", "sdedit", "instruct_pix2pix")}
    assert uses["finetuned"].plan is not None and uses["finetuned"].condition is not None
    assert (uses["pretrained"].condition, uses["pretrained"].plan) == (None, None)
    # A caption describes the image that is begun from.
    assert all(job.caption == job.condition and job.plan is None for job in table_of("sdedit"))
    assert (uses["instruct_pix2pix"].caption, uses["instruct_pix2pix"].plan) == (None, None)
    assert uses["instruct_pix2pix"].condition is not None


@pytest.mark.parametrize("source", ["finetuned", "pretrained", "sdedit", "instruct_pix2pix"])
def test_a_class_of_one_image_is_conditioned_on_that_one_and_mixes_nothing(source: str) -> None:
    for job in table_of(source, images=1):
        assert job.caption in (0, None) and job.condition in (0, None)
        if job.plan is not None:
            assert {row[0] for row in (*job.plan["coarse"], *job.plan["fine"])} == {0}


def test_plans_are_not_those_of_training() -> None:
    training = draw_plan(0, "cat", range(20), 7, 77, 32, 2, 3)
    assert not any(job.plan == training.row(number) for job in table_of() for number in range(20))


def test_guidance_is_a_number_or_uniform_in_its_range() -> None:
    jobs = table_of(count=600, scales=Scales((2.0, 6.0), (1.0, 1.5)))
    assert {job.guidance_scale for job in table_of()} == {7.5} and table_of()[0].image_guidance_scale is None
    for values, low, high in (
        ([job.guidance_scale for job in jobs], 2.0, 6.0),
        ([job.image_guidance_scale for job in jobs], 1.0, 1.5),
    ):
        drawn = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        assert len(drawn.unique()) > 590 and low <= drawn.min() and drawn.max() <= high
        # A uniform value has the mean (low + high) / 2 and the standard deviation (high - low) / sqrt(12).
        spread = (high - low) / 12**0.5
        assert abs(drawn.mean() - (low + high) / 2) < 4 * spread / 600**0.5
        assert abs(drawn.std() / spread - 1) < 0.1
    again = table_of(count=600, attempt=2, scales=Scales((2.0, 6.0), (1.0, 1.5)))
    assert not any(one.guidance_scale == other.guidance_scale for one, other in zip(jobs, again, strict=True))
    # Text and image scale are drawn apart.
    both = torch.tensor([[job.guidance_scale or 0, job.image_guidance_scale or 0] for job in jobs]).T
    assert abs(torch.corrcoef(both)[0, 1]) < 0.2


def test_a_range_of_no_width_is_its_number() -> None:
    assert {job.guidance_scale for job in table_of(scales=Scales((3.0, 3.0), None))} == {3.0}


def test_imported_files_are_taken_in_their_order_and_the_rest_by_later_attempts() -> None:
    nothing = Scales(None, None)
    table = replace(TABLE, files=[f"cat/{letter}.png" for letter in "abcde"])
    first = jobs_of(0, "import", "cat", range(3), 1, table, nothing)
    assert [job.file for job in first] == ["cat/a.png", "cat/b.png", "cat/c.png"]
    assert jobs_of(0, "import", "cat", [2], 1, table, nothing) == first[2:]
    assert {(job.caption, job.condition, job.guidance_scale, str(job.plan)) for job in first} == {
        (None, None, None, "None")
    }
    # Whichever three are refused, two files are left for them.
    left = replace(TABLE, files=["cat/d.png", "cat/e.png"])
    later = jobs_of(0, "import", "cat", [0, 1, 2], 2, left, nothing)
    assert [(job.index, job.file, job.id) for job in later] == [
        (0, "cat/d.png", "import-00000-2"),
        (1, "cat/e.png", "import-00001-2"),
    ]
    assert len(jobs_of(0, "import", "cat", range(9), 1, table, nothing)) == 5


def test_batches_hold_every_job_once_and_grow_at_the_end() -> None:
    small = [job for name in ("cat", "dog") for job in table_of("pretrained", name, 6)]
    large = [job for name in ("cat", "dog") for job in table_of("pretrained", name, 9)]
    batches = in_batches(small, 4)
    assert sorted(map(repr, sum(batches, []))) == sorted(map(repr, small))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert in_batches(large, 4)[:3] == batches
    assert [len(batch) for batch in in_batches(large, 4)] == [4, 4, 4, 4, 2]


SHAPE = (4, 8, 8)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]))


def test_noise_belongs_to_the_image_not_to_the_batch() -> None:
    jobs = table_of("pretrained", count=5)
    together = draw_noise(0, jobs, SHAPE)
    for number, job in enumerate(jobs):
        assert torch.equal(draw_noise(0, [job], SHAPE)[0], together[number])
    others = [
        replace(jobs[0], source="finetuned"),
        replace(jobs[0], class_name="dog"),
        replace(jobs[0], attempt=2),
        replace(jobs[0], index=9),
    ]
    # Independent normal samples of 256 values: correlation 0 with standard deviation 0.06.
    for sample in (*draw_noise(0, others, SHAPE), draw_noise(1, jobs[:1], SHAPE)[0], together[1]):
        assert correlation(sample, together[0]) < 0.25
    assert together.dtype == torch.float32 and abs(together.std() - 1) < 0.1


def test_noise_of_steps_is_another_for_each_step_and_image() -> None:
    jobs = table_of("finetuned", count=3)
    steps = [draw_step_noise(0, jobs, SHAPE, step) for step in range(3)]
    assert torch.equal(draw_step_noise(0, jobs[1:2], SHAPE, 2)[0], steps[2][1])
    again = draw_step_noise(0, table_of("finetuned", count=3, attempt=2), SHAPE, 0)
    for sample in (draw_noise(0, jobs, SHAPE)[0], steps[1][0], steps[2][0], steps[0][1], again[0]):
        assert correlation(sample, steps[0][0]) < 0.25
