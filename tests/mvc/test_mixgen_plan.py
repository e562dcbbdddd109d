"""MixGen's plans: counts, partners, shares, choices, kept tokens, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mvc.mixgen_plan import VARIANTS, MixGenPlan, plan_mixgen
from mvc.randomness import numpy_generator


def plan_of(
    batch_size: int, variant: str = "default", share: float = 0.25, mix: float = 0.5, step: int = 0
) -> MixGenPlan:
    return plan_mixgen(batch_size, numpy_generator(3, "mixgen", step), variant, share, mix)


def test_the_default_is_algorithm_1() -> None:
    plan = plan_of(512)
    assert len(plan) == 128 and plan.batch_size == 512
    assert plan.partner.tolist() == list(range(128, 256))
    assert plan.mix.tolist() == [0.5] * 128


@pytest.mark.parametrize(
    ("batch_size", "share", "count"),
    [
        (8, 0.25, 2),
        (8, 0.0, 0),
        (8, 0.01, 1),
        (2, 0.25, 1),
        (9, 0.5, 4),
        (8, 1.0, 8),
        (3, 0.9, 3),
        (7, 0.5, 4),
        (1, 0, 0),
    ],
)
def test_number_of_new_pairs(batch_size: int, share: float, count: int) -> None:
    plan = plan_of(batch_size, share=share)
    assert len(plan) == len(plan.mix) == len(plan.takes_partner) == len(plan.token_seed) == count


@settings(deadline=None, max_examples=200)
@given(batch_size=st.integers(2, 40), share=st.floats(0, 1), step=st.integers(0, 99), variant=st.sampled_from(VARIANTS))
def test_partners_are_other_rows_and_none_is_taken_twice(
    batch_size: int, share: float, step: int, variant: str
) -> None:
    plan = plan_of(batch_size, variant, share, step=step)
    count = max(1, round(share * batch_size)) if share else 0
    assert len(plan) == count
    partner = plan.partner
    assert ((0 <= partner) & (partner < batch_size)).all() and (partner != np.arange(count)).all()
    assert len(set(partner.tolist())) == count
    if 2 * count <= batch_size:
        assert np.array_equal(partner, np.arange(count) + count)


def test_above_half_of_the_batch_partners_are_drawn_in_one_ring() -> None:
    plan = plan_of(12, share=1.0)
    place, seen = 0, []
    for _ in range(12):
        place = int(plan.partner[place])
        seen.append(place)
    assert sorted(seen) == list(range(12))
    # Each of the 11 others equally often: 3000 draws, the standard deviation of a count is 15.7.
    counts = np.bincount([plan_of(12, share=1.0, step=step).partner[4] for step in range(3000)], minlength=12)
    assert counts[4] == 0 and np.abs(np.delete(counts, 4) - 3000 / 11).max() < 5 * 15.8


def test_a_d_and_e_draw_lambda_from_beta() -> None:
    plans = {variant: plan_of(8000, variant, mix=0.3) for variant in VARIANTS}
    for variant in ("a", "d", "e"):
        drawn = plans[variant].mix
        assert stats.kstest(drawn, stats.beta(0.1, 0.1).cdf).pvalue > 0.01
        assert drawn.var() == pytest.approx(1 / (4 * 1.2), rel=0.05)  # of Beta(x, x): 1 / (4 (2x + 1))
        assert np.array_equal(drawn, plans["a"].mix)
    for variant in ("default", "b"):
        assert (plans[variant].mix == 0.3).all()


def test_b_and_c_take_either_side_equally_often_and_c_has_its_image_whole() -> None:
    plan = plan_of(8000, "c", mix=0.3)
    assert abs(plan.takes_partner.sum() - 1000) < 5 * 500**0.5
    assert np.array_equal(plan.mix, 1.0 - plan.takes_partner)
    assert np.array_equal(plan_of(8000, "b").takes_partner, plan.takes_partner)


def test_plans_repeat_by_seed_and_step_and_differ_between_steps() -> None:
    first, again, other = (plan_of(64, "e", 0.75, step=step) for step in (1, 1, 2))
    for name in ("partner", "mix", "takes_partner", "token_seed"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


@settings(deadline=None, max_examples=200)
@given(
    own=st.integers(1, 30),
    other=st.integers(1, 30),
    variant=st.sampled_from(VARIANTS),
    step=st.integers(0, 50),
)
def test_tokens_that_stay(own: int, other: int, variant: str, step: int) -> None:
    plan = plan_of(8, variant, step=step)
    for row in range(len(plan)):
        places = plan.tokens(row, own, other)
        assert (np.diff(places) > 0).all() and 0 <= places[0] and places[-1] < own + other
        counts = (int((places < own).sum()), int((places >= own).sum()))
        mix = float(plan.mix[row])
        match variant:
            case "b":
                assert counts == ((0, other) if plan.takes_partner[row] else (own, 0))
            case "d":
                assert counts == (max(1, round(mix * own)), max(1, round((1 - mix) * other)))
            case "e":
                assert sum(counts) == max(1, round((own + other) / 2))
            case _:
                assert counts == (own, other)
        assert np.array_equal(places, plan.tokens(row, own, other))


def test_every_token_stays_equally_often() -> None:
    # Of 6 tokens 3 stay: 4000 rows, the standard deviation of a count is 31.6.
    plan = plan_of(16000, "e")
    counts = np.bincount(np.concatenate([plan.tokens(row, 2, 4) for row in range(4000)]), minlength=6)
    assert counts.sum() == 3 * 4000 and np.abs(counts - 2000).max() < 5 * 31.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, r"a batch of 1 has no partners to mix: give 2 pairs at least"),
        ({"batch_size": 0, "share": 0.0}, r"a batch of 0 has no partners"),
        ({"variant": "f"}, r"unknown variant 'f' of MixGen; one of default, a, b, c, d, e"),
        ({"share": 1.2}, r"share=1.2 is not in \[0, 1\]"),
        ({"share": -0.1}, r"share=-0.1 is not in \[0, 1\]"),
        ({"share": float("nan")}, r"share=nan is not in \[0, 1\]"),
        ({"mix": 1.01}, r"mix=1.01 is not in \[0, 1\]"),
        ({"mix": -2}, r"mix=-2 is not in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_mixgen(**{"batch_size": 8, "random": np.random.default_rng(0), **arguments})  # type: ignore[arg-type]
