"""Interpolation: properties of the great circle, its two edges, and new pairs of one class with one t."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvc.multimodal.interpolation import Between, draw_between, interpolate_pairs, lerp, slerp

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/interpolation.md"


def units(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    both = F.normalize(drawn, dim=2).to(dtype)
    return both[0], both[1]


def angle(one: Tensor, other: Tensor) -> Tensor:
    """Of unit vectors; near 0 an arc cosine would lose half of the digits."""
    return 2 * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 40), t=st.floats(0, 1))
def test_between_unit_vectors_length_stays_and_speed_is_constant(seed: int, width: int, t: float) -> None:
    first, second = units(3, width, seed)
    made, whole = slerp(first, second, t), angle(first, second)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(angle(first, made), t * whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(angle(made, second), (1 - t) * whole, rtol=1e-9, atol=1e-9)
    # From the other end it is the same way.
    torch.testing.assert_close(made, slerp(second, first, 1 - t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", [lerp, slerp])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_ends_are_exact(path: object, dtype: torch.dtype) -> None:
    first, second = (3 * values for values in units(4, 7, dtype=dtype))
    assert torch.equal(path(first, second, 0.0), first)  # type: ignore[operator]
    assert torch.equal(path(first, second, 1.0), second)  # type: ignore[operator]
    mixed = path(first, second, torch.tensor([0.0, 1.0, 0.0, 1.0]))  # type: ignore[operator]
    assert mixed.dtype == dtype and torch.equal(mixed, torch.stack([first[0], second[1], first[2], second[3]]))


def test_slerp_against_its_formula() -> None:
    """Shoemake's sin((1 - t) a) / sin(a) and sin(t a) / sin(a), where the sine is far from 0."""
    first, second = units(5, 6)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    whole = (first * second).sum(1).arccos()
    wanted = ((1 - t) * whole).sin()[:, None] * first + (t * whole).sin()[:, None] * second
    torch.testing.assert_close(slerp(first, second, t), wanted / whole.sin()[:, None])


def test_lengths_go_along_a_line_and_shapes_do_not_matter() -> None:
    first, second = units(2, 48)
    made = slerp(2 * first, 5 * second, 0.25)
    torch.testing.assert_close(made.norm(dim=1), torch.full((2,), 2.75, dtype=torch.float64))
    torch.testing.assert_close(made / 2.75, slerp(first, second, 0.25))
    latents = slerp((2 * first).view(2, 3, 4, 4), (5 * second).view(2, 3, 4, 4), 0.25)
    assert torch.equal(latents.flatten(1), made)


def test_noise_keeps_its_spread_on_the_sphere_and_loses_it_on_the_line() -> None:
    """Half way between independent noises the line has sqrt(1/2) of the length, which no denoiser has seen."""
    noise = torch.randn(2, 64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert slerp(noise[0], noise[1], 0.5).std().item() == pytest.approx(1, abs=0.01)
    assert lerp(noise[0], noise[1], 0.5).std().item() == pytest.approx(0.5**0.5, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiny", [1e-3, 1e-5, 1e-7, 1e-12, 0.0])
def test_nearly_parallel_vectors(dtype: torch.dtype, tiny: float) -> None:
    first, across = units(6, 5, dtype=dtype)
    second = F.normalize(first + tiny * across, dim=1)
    for t in (0.0, 0.3, 0.5, 0.999, 1.0):
        made = slerp(first, second, t)
        assert made.isfinite().all()
        torch.testing.assert_close(made.norm(dim=1), first.norm(dim=1), rtol=0, atol=4 * torch.finfo(dtype).eps)
        # So near each other circle and line are the same but for the square of the angle.
        torch.testing.assert_close(made, lerp(first, second, t), rtol=0, atol=tiny**2 + 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiny", [1e-2, 1e-4, 1e-7, 1e-12, 0.0])
def test_nearly_opposite_vectors(dtype: torch.dtype, tiny: float) -> None:
    first, across = units(6, 5, dtype=dtype)
    second = F.normalize(tiny * across - first, dim=1)
    whole = angle(first, second)
    for t in (0.0, 0.25, 0.5, 0.9, 1.0):
        made = slerp(first, second, t)
        torch.testing.assert_close(made.norm(dim=1), torch.ones(6, dtype=dtype), rtol=0, atol=1e-6)
        torch.testing.assert_close(angle(first, made), t * whole, rtol=0, atol=2e-6)
        torch.testing.assert_close(angle(made, second), (1 - t) * whole, rtol=0, atol=2e-6)
    assert torch.equal(slerp(first, -first, 0.5), slerp(first, -first, 0.5))
    with pytest.raises(ValueError, match="vectors of one number, such as 1 and its opposite, have no way around"):
        slerp(torch.ones(2, 1, dtype=dtype), torch.tensor([[1], [-1]], dtype=dtype), 0.5)
    torch.testing.assert_close(slerp(torch.ones(1, 1), 3 * torch.ones(1, 1), 0.5), torch.full((1, 1), 2.0))


def test_a_vector_without_direction_is_left_along_a_line() -> None:
    first, second = torch.zeros(2, 3), torch.tensor([[3.0, 0, 4], [0, 0, 0]])
    torch.testing.assert_close(slerp(first, second, 0.5), torch.tensor([[1.5, 0, 2], [0, 0, 0]]))
    torch.testing.assert_close(slerp(second, first, 0.25), torch.tensor([[2.25, 0, 3], [0, 0, 0]]))


def test_gradients_are_right_and_finite_at_the_edges() -> None:
    first, second = (values.requires_grad_() for values in units(3, 4))
    assert torch.autograd.gradcheck(lambda one, other: slerp(one, other, 0.3), (2 * first, second))
    equal = torch.ones(2, 4, requires_grad=True)
    for other in (equal.detach(), -equal.detach(), torch.zeros(2, 4)):
        (gradient,) = torch.autograd.grad(slerp(equal, other, 0.5).sum(), equal)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("path", [lerp, slerp])
def test_wrong_arguments_are_named(path: object) -> None:
    first, second = units(3, 4)
    for value in (1.5, -0.5, float("nan")):
        with pytest.raises(ValueError, match=rf"t {value:g} is outside \[0, 1\]"):
            path(first, second, value)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"t is \(2,\) for 3 samples"):
        path(first, second, torch.tensor([0.1, 0.2]))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"samples are \(3, 4\) torch.float64 and \(2, 4\) torch.float64"):
        path(first, second[:2], 0.5)  # type: ignore[operator]
    with pytest.raises(ValueError, match="values of torch.int64 have nothing between them"):
        path(first.long(), second.long(), 0.5)  # type: ignore[operator]


LABELS = [0, 1, 0, 2, 1, 0, 3]


def test_new_pairs_lie_between_two_of_one_class() -> None:
    before = torch.get_rng_state()
    between = draw_between(LABELS, range(4000), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    labels = np.array(LABELS)
    assert (labels[between.first] == labels[between.second]).all() and not (between.first == between.second).any()
    # First ones are uniform among 0, 1, 2, 4, 5; and of the two others of class 0, each is the second in half.
    counts = Counter(between.first.tolist())
    assert set(counts) == {0, 1, 2, 4, 5}
    assert all(abs(count - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5 for count in counts.values())
    of_zero = between.second[between.first == 0].tolist()
    assert abs(of_zero.count(2) / len(of_zero) - 0.5) < 4 * (0.25 / len(of_zero)) ** 0.5
    assert abs(between.t.mean().item() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert between.t.var().item() == pytest.approx(1 / 12, rel=0.1)


def test_a_new_pair_depends_on_its_own_index_alone() -> None:
    some, all_of_them = draw_between(LABELS, [7, 3], seed=5), draw_between(LABELS, range(10), seed=5)
    for name in ("first", "second", "t"):
        assert torch.equal(getattr(some, name), getattr(all_of_them, name)[[7, 3]])
    assert not torch.equal(draw_between(LABELS, range(10), seed=6).t, all_of_them.t)


def test_both_modalities_go_equally_far() -> None:
    images, texts = units(7, 4 * 8 * 8)[0].view(7, 4, 8, 8), units(7, 5, seed=1)[0]
    between = draw_between(LABELS, range(6), seed=0)
    new_images, new_texts = interpolate_pairs(images, texts, between)
    assert new_images.shape == (6, 4, 8, 8) and new_texts.shape == (6, 5)
    for new, values in ((new_images, images), (new_texts, texts)):
        flat, own = values.flatten(1), new.flatten(1)
        shares = angle(flat[between.first], own) / angle(flat[between.first], flat[between.second])
        torch.testing.assert_close(shares, between.t.double(), rtol=1e-6, atol=1e-9)
    straight = interpolate_pairs(images, texts, between, text_path=lerp)
    assert torch.equal(straight[0], new_images)
    torch.testing.assert_close(straight[1], lerp(texts[between.first], texts[between.second], between.t))
    ends = Between(between.first, between.second, torch.zeros(6))
    assert torch.equal(interpolate_pairs(images, texts, ends)[0], images[between.first])


def test_no_class_of_two_and_no_pairs_are_named() -> None:
    with pytest.raises(ValueError, match="none of the 3 classes of 3 pairs has two of them"):
        draw_between([0, 1, 2], [0], 0)
    with pytest.raises(ValueError, match="7 images and 6 texts are no pairs"):
        interpolate_pairs(torch.ones(7, 2), torch.ones(6, 2), draw_between(LABELS, [0], 0))
    nothing = draw_between(LABELS, [], 0)
    assert interpolate_pairs(torch.ones(7, 2), torch.ones(7, 2), nothing)[0].shape == (0, 2)
