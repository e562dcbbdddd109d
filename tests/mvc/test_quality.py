"""Figures on features: against closed forms, naive loops and the definitions, for few images and for many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from mvc.errors import NumericError
from mvc.quality import (
    FIGURES,
    Matrix,
    cmmd,
    figures,
    frechet_distance,
    kernel_distance,
    nearest,
    prdc,
    significant,
)
from mvc.randomness import numpy_generator


def normal(count: int, width: int, *index: int) -> Matrix:
    return numpy_generator(0, "test quality", count, width, *index).normal(size=(count, width))


def standard(count: int, width: int, *index: int) -> Matrix:
    """Samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    samples = normal(count, width, *index)
    samples -= samples.mean(axis=0)
    factor = np.linalg.cholesky(samples.T @ samples / (count - 1))
    return samples @ np.linalg.inv(factor).T


def test_frechet_distance_of_known_moments() -> None:
    # Covariances that commute: sum of (difference of means)^2 + (difference of standard deviations)^2.
    one = standard(40, 5, 1) * [1, 2, 3, 0, 5] + [0, 1, 0, 0, -2]
    other = standard(30, 5, 2) * [2, 2, 1, 4, 5] + [7, 1, 0, 0, 0]
    expected = (7**2 + 2**2) + (1 + 0 + 4 + 16 + 0)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(one.astype(np.float32), other) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(other, other + 3.0) == pytest.approx(5 * 9, rel=1e-7)


def test_frechet_distance_against_its_formula() -> None:
    mix = normal(12, 12, 3)
    one, other = normal(200, 12, 1) @ mix + 100.0, normal(60, 12, 2) @ mix.T + 101.0
    first, second = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(first @ second).real
    shift = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    expected = shift + np.trace(first) + np.trace(second) - 2 * np.trace(root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "width"), [(7, 9, 40), (2, 3, 64), (30, 30, 59), (30, 31, 60), (2, 2, 1000)])
def test_frechet_distance_of_few_images_in_many_dimensions(n: int, m: int, width: int) -> None:
    one, other = normal(n, width, 1) + 100.0, 2 * normal(m, width, 2) + 101.0
    # With covariances A'A and B'B, the trace of the root of their product is the sum of the singular values of AB'.
    a, b = (one - one.mean(axis=0)) / np.sqrt(n - 1), (other - other.mean(axis=0)) / np.sqrt(m - 1)
    shift = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    expected = shift + np.square(a).sum() + np.square(b).sum() - 2 * scipy.linalg.svdvals(a @ b.T).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_equal_sets_is_zero() -> None:
    for samples in (normal(50, 8), normal(5, 64), np.ones((3, 4))):
        found = frechet_distance(samples, samples)
        assert found is not None and 0.0 <= found < 1e-5 * max(1.0, float(np.square(samples).sum()))


def unbiased(one: Matrix, other: Matrix) -> float:
    """KID by its definition, in loops."""

    def kernel(x: Matrix, y: Matrix) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(one), len(other)
    own = sum(kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j) / (n * (n - 1))
    own += sum(kernel(x, y) for i, x in enumerate(other) for j, y in enumerate(other) if i != j) / (m * (m - 1))
    return own - 2 * sum(kernel(x, y) for x, y in itertools.product(one, other)) / (n * m)


def test_kernel_distance_against_loops() -> None:
    one, other = normal(9, 4, 1) + 0.5, normal(9, 4, 2)
    assert kernel_distance(one, other, seed=0) == pytest.approx(unbiased(one, other), rel=1e-12)
    # Of sets of different sizes: subsets of the larger one, whose mean is the value of all of it.
    larger = normal(24, 4, 1) + 0.5
    found = np.array([kernel_distance(larger, other, seed=seed) for seed in range(40)])
    assert found.mean() == pytest.approx(unbiased(larger, other), abs=3 * found.std() / np.sqrt(40))
    assert found.std() < 0.2 * found.mean()
    assert found[0] == kernel_distance(larger, other, seed=0) and len(set(found)) == 40


def test_kernel_distances_do_not_grow_for_few_images() -> None:
    """Both are unbiased: zero on average for two sets of one kind, be they ever so small."""
    pairs = [(normal(4, 6, 1, i) + 1, normal(5, 6, 2, i) + 1) for i in range(150)]
    for values in ([kernel_distance(*pair, seed=0) for pair in pairs], [cmmd(*pair) for pair in pairs]):
        numbers = np.array(values, dtype=np.float64)
        error = numbers.std() / np.sqrt(len(numbers))
        assert abs(numbers.mean()) < 3 * error and numbers.min() < 0 < numbers.max()


def test_cmmd_against_loops() -> None:
    one, other = normal(7, 5, 1) * 9, normal(4, 5, 2) + 2

    def kernel(x: Matrix, y: Matrix) -> float:
        difference = x / np.linalg.norm(x) - y / np.linalg.norm(y)
        return float(np.exp(-(difference @ difference) / (2 * 10.0**2)))

    within = sum(kernel(x, y) for x, y in itertools.permutations(one, 2)) / (7 * 6)
    within += sum(kernel(x, y) for x, y in itertools.permutations(other, 2)) / (4 * 3)
    expected = 1000 * (within - 2 * sum(kernel(x, y) for x, y in itertools.product(one, other)) / 28)
    assert cmmd(one, other) == pytest.approx(expected, rel=1e-9)
    assert cmmd(3 * one, other) == pytest.approx(expected, rel=1e-9)


def test_cmmd_of_two_directions() -> None:
    # All vectors of a set alike: 2 - 2 exp(-|x - y|^2 / 200), and the squared chord of a right angle is 2.
    one, other = np.tile([3.0, 0.0], (1500, 1)), np.tile([0.0, 5.0], (4, 1))
    assert cmmd(one, other) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)), rel=1e-12)


def naive_prdc(samples: Matrix, reference: Matrix, k: int) -> dict[str, float]:
    def radius(points: Matrix, i: int) -> float:
        return float(np.sort(np.linalg.norm(np.delete(points, i, axis=0) - points[i], axis=1))[k - 1])

    real = [radius(reference, i) for i in range(len(reference))]
    fake = [radius(samples, j) for j in range(len(samples))]
    inside = np.zeros((len(samples), len(reference)), dtype=bool)
    reach = np.zeros_like(inside)
    for j, i in itertools.product(range(len(samples)), range(len(reference))):
        distance = np.linalg.norm(samples[j] - reference[i])
        inside[j, i], reach[j, i] = distance <= real[i], distance <= fake[j]
    return {
        "precision": float(inside.any(axis=1).mean()),
        "recall": float(reach.any(axis=0).mean()),
        "density": float(inside.sum() / (k * len(samples))),
        "coverage": float(inside.any(axis=0).mean()),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_by_brute_force(k: int) -> None:
    samples, reference = normal(40, 3, 1) * 0.8 + 1.8, normal(25, 3, 2)
    expected = naive_prdc(samples, reference, k)
    assert prdc(samples, reference, k) == pytest.approx(expected, rel=1e-12)
    assert prdc(samples + 1e4, reference + 1e4, k) == pytest.approx(expected, rel=1e-12)
    assert all(0 < value < 1 for name, value in expected.items() if name != "density")


def test_prdc_of_planted_sets() -> None:
    # On a line at 0, 1, ..., 9: one sample beside the point 0, ten far away.
    reference = np.arange(10.0)[:, None]
    samples = np.concatenate([[[0.1]], 1000 + np.arange(10.0)[:, None]])
    found = prdc(samples, reference, 1)
    # The sphere of radius 1 around 0 holds it, and so does that around 1.
    assert found == {"precision": 1 / 11, "recall": 1.0, "density": 2 / 11, "coverage": 0.2}
    assert prdc(reference, reference, 1) == {"precision": 1.0, "recall": 1.0, "density": 2.8, "coverage": 1.0}
    # Copies of one image: nothing is varied, though all is precise.
    copies = np.full((10, 1), 4.0)
    assert prdc(copies, reference, 1) == {"precision": 1.0, "recall": 0.1, "density": 3.0, "coverage": 0.3}


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = normal(300, 6, 1) + 0.3, normal(200, 6, 2)
    whole = figures(samples, reference, 4, seed=1)
    monkeypatch.setattr("mvc.quality._BLOCK", 7)
    monkeypatch.setattr("mvc.quality._MEBIBYTES", 0.01)
    assert figures(samples, reference, 4, seed=1) == pytest.approx(whole, rel=1e-5)
    # 0.01 MiB hold 6 rows of 200 distances: the blocks were many.
    assert 0.01 * 2**20 / (200 * 8) < 7


def test_few_images_have_no_figures() -> None:
    none = dict.fromkeys(FIGURES)
    many = normal(6, 32)
    for count in (0, 1):
        assert figures(many[:count], many, 2, seed=0) == none
        assert figures(many, many[:count], 2, seed=0) == none
    small = figures(normal(3, 32, 1), many, 3, seed=0)
    assert [name for name, value in small.items() if value is None] == ["recall"]
    small = figures(many, normal(3, 32, 1), 3, seed=0)
    assert [name for name, value in small.items() if value is None] == ["precision", "density", "coverage"]
    assert list(small) == list(FIGURES)


def test_figures_are_rounded_and_repeatable() -> None:
    samples, reference = normal(30, 8, 1).astype(np.float32), normal(20, 8, 2).astype(np.float32)
    found = figures(samples, reference, 3, seed=5)
    assert found == figures(samples, reference, 3, seed=5) and None not in found.values()
    assert all(value == significant(value) for value in found.values() if value is not None)
    assert found["frechet_distance"] == significant(frechet_distance(samples, reference) or 0)
    assert significant(1 / 3) == 0.333333 and significant(2e6 / 3) == 666667.0 and str(significant(-0.0)) == "0.0"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    broken = normal(5, 4)
    broken[2, 1] = bad
    for compare in (frechet_distance, cmmd, nearest):
        with pytest.raises(NumericError, match="the features of an image are not finite\nwhy: the extractor gave nan"):
            compare(broken, normal(5, 4))


def test_nearest_of_each() -> None:
    samples, reference = normal(50, 16, 1) + 1000, normal(30, 16, 2) + 1000
    table: NDArray[np.float64] = np.linalg.norm(samples[:, None] - reference[None], axis=2)
    distances, rows = nearest(samples, reference)
    assert np.array_equal(rows, table.argmin(axis=1)) and rows.dtype == np.int64
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-12)
    distances, rows = nearest(reference[::-1].astype(np.float32), reference.astype(np.float32))
    assert np.array_equal(rows, np.arange(30)[::-1]) and (distances == 0).all()
    distances, rows = nearest(np.zeros((0, 16)), reference)
    assert distances.shape == rows.shape == (0,)
