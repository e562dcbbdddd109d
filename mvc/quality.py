"""How far a set of images is from another: figures on feature vectors, one row an image.

Each figure compares samples with a reference, features of real images that nothing was trained on. A figure that is
undefined for so few images is None. None of them reads the images: what they mean depends on what made the features.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvc.errors import NumericError
from mvc.randomness import seeded_global

FIGURES = ("frechet_distance", "kernel_distance", "cmmd", "precision", "recall", "density", "coverage")
"""Names of what `figures` computes, in the order in which they are shown."""
SUBSETS, SUBSET_SIZE = 50, 500
"""Of the kernel distance; the size is smaller where a set is."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Of CMMD, as its paper has them."""

_BLOCK = 1024
"""Rows of a kernel matrix that are in memory at once."""
_MEBIBYTES = 64
"""Size of a block of distances."""
_TIE = 1e-9
"""Relative slack of a radius, so that a point on a sphere counts as inside whatever the last bit says."""

Features = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: what it is given are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Hand back what came."""
        return features


def figures(samples: Features, reference: Features, neighbours: int, seed: int) -> dict[str, float | None]:
    """All figures of `FIGURES`, rounded to six significant digits (what is behind them differs between machines).

    Args:
        samples: (n, d), any float type; computed with in float64, like the reference.
        reference: (m, d).
        neighbours: k of precision, recall, density and coverage.
        seed: of the subsets of the kernel distance.

    Raises:
        NumericError: a feature is not finite.
    """
    values: dict[str, float | None] = {
        "frechet_distance": frechet_distance(samples, reference),
        "kernel_distance": kernel_distance(samples, reference, seed),
        "cmmd": cmmd(samples, reference),
        **prdc(samples, reference, neighbours),
    }
    return {name: None if value is None else significant(value) for name, value in values.items()}


def significant(value: float) -> float:
    """The value rounded to six significant digits; never -0.0."""
    return float(f"{value:.6g}") + 0.0


def _matrix(features: Features) -> Matrix:
    matrix = np.asarray(features, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise NumericError(
            "the features of an image are not finite",
            why="the extractor gave nan or inf",
            do="choose another extractor",
        )
    return matrix


def _tensors(samples: Matrix, reference: Matrix) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(samples)), torch.from_numpy(np.ascontiguousarray(reference))


def frechet_distance(samples: Features, reference: Features) -> float | None:
    """Squared Frechet distance between normal distributions fitted to both sets (FID, if Inception made the features).

    Computed by torchmetrics in float64. It falls with the number of images alone, so only sets of equal size compare.
    Nothing is random. Heusel et al. 2017, "GANs trained by a two time-scale update rule".

    Args:
        samples: (n, d).
        reference: (m, d).

    Returns:
        A number >= 0; None where a set has fewer than two images.

    Raises:
        NumericError: a feature is not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    one, other = _matrix(samples), _matrix(reference)
    if min(len(one), len(other)) < 2:
        return None
    # The distance knows no origin; near it, sums of squares lose no digits.
    centre = other.mean(axis=0)
    one, other = _in_their_span(one - centre, other - centre)
    metric = FrechetInceptionDistance(feature=_Given(one.shape[1])).set_dtype(torch.float64)
    fake, real = _tensors(one, other)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(0.0, float(metric.compute()))


def _in_their_span(one: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
    """Few vectors in many dimensions, turned so that the dimensions which they don't reach fall away."""
    if len(one) + len(other) >= one.shape[1]:
        return one, other
    basis = np.linalg.qr(np.concatenate([one, other]).T)[0]
    return one @ basis, other @ basis


def kernel_distance(samples: Features, reference: Features, seed: int) -> float | None:
    """Squared maximum mean discrepancy with the kernel (x . y / d + 1)^3 (KID, if Inception made the features).

    The mean over `SUBSETS` subsets of torchmetrics' unbiased estimate: near 0, even below it, for two sets of one kind,
    whatever their sizes. Binkowski et al. 2018, "Demystifying MMD GANs".

    Args:
        samples: (n, d).
        reference: (m, d).
        seed: of the subsets; randomness from (seed, "kernel distance").

    Returns:
        None where a set has fewer than two images.

    Raises:
        NumericError: a feature is not finite.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    fake, real = _tensors(_matrix(samples), _matrix(reference))
    size = min(len(fake), len(real), SUBSET_SIZE)
    if size < 2:
        return None
    with warnings.catch_warnings():
        # It says that it keeps the features in memory, which is where they are.
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save", category=UserWarning)
        metric = KernelInceptionDistance(feature=_Given(fake.shape[1]), subsets=SUBSETS, subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with seeded_global(seed, "kernel distance"):
        return float(metric.compute()[0])


def cmmd(samples: Features, reference: Features) -> float | None:
    """Squared maximum mean discrepancy of unit-length features with a Gaussian kernel, sigma 10, times 1000.

    Meant for features of CLIP. The unbiased estimate, as the paper has it: near 0, even below it, for two sets of one
    kind. (The authors' code has the biased one, which for few images is mainly a measure of how few they are.)
    Nothing is random. Jayasumana et al. 2024, "Rethinking FID".

    Args:
        samples: (n, d); vectors are brought to unit length here.
        reference: (m, d).

    Returns:
        None where a set has fewer than two images.

    Raises:
        NumericError: a feature is not finite.
    """
    one, other = _unit(_matrix(samples)), _unit(_matrix(reference))
    n, m = len(one), len(other)
    if min(n, m) < 2:
        return None
    # Sums over the kernel less 1, where the diagonal is 0: the ones cancel, and would take the digits with them.
    own = _kernel_sum(one, one) / (n * (n - 1)) + _kernel_sum(other, other) / (m * (m - 1))
    return CMMD_SCALE * (own - 2 * _kernel_sum(one, other) / (n * m))


def _unit(features: Matrix) -> Matrix:
    norms: Matrix = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float64).tiny)


def _kernel_sum(one: Matrix, other: Matrix) -> float:
    """Sum of exp(-|x - y|^2 / (2 sigma^2)) - 1 over all pairs, in blocks."""
    total = 0.0
    norms = np.square(other).sum(axis=1)
    for start in range(0, len(one), _BLOCK):
        block = one[start : start + _BLOCK]
        squares = np.square(block).sum(axis=1)[:, None] + norms - 2 * block @ other.T
        total += float(np.expm1(-np.maximum(squares, 0.0) / (2 * CMMD_SIGMA**2)).sum())
    return total


def prdc(samples: Features, reference: Features, neighbours: int) -> dict[str, float | None]:
    """Precision, recall, density and coverage, from spheres that reach to each image's k-th neighbour of its own set.

    precision: share of samples inside a sphere of the reference; recall: share of the reference inside a sphere of the
    samples (Kynkaanniemi et al. 2019, "Improved precision and recall metric"). density: spheres of the reference around
    a sample, divided by k, which outliers of the reference move less than precision; coverage: share of the reference's
    spheres that hold a sample (Naeem et al. 2020, "Reliable fidelity and diversity metrics"). Recall and coverage grow
    with the number of samples. Nothing is random.

    Args:
        samples: (n, d).
        reference: (m, d).
        neighbours: k >= 1.

    Returns:
        The four, by name; recall is None where n <= k, the others where m <= k, all where a set has fewer than two.

    Raises:
        NumericError: a feature is not finite.
    """
    from sklearn.metrics import pairwise_distances_chunked

    one, other = _matrix(samples), _matrix(reference)
    n, m = len(one), len(other)
    if min(n, m) < 2:
        return dict.fromkeys(("precision", "recall", "density", "coverage"))
    centre = other.mean(axis=0)
    one, other = one - centre, other - centre
    radii, radii_of_samples = _radii(other, neighbours), _radii(one, neighbours)
    inside, spheres, start = 0, 0, 0
    holds, reached = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
    for distances in pairwise_distances_chunked(one, other, working_memory=_MEBIBYTES):
        if radii is not None:
            within = distances <= radii
            inside += int(within.any(axis=1).sum())
            spheres += int(within.sum())
            holds |= within.any(axis=0)
        if radii_of_samples is not None:
            reached |= (distances <= radii_of_samples[start : start + len(distances), None]).any(axis=0)
        start += len(distances)
    return {
        "precision": None if radii is None else inside / n,
        "recall": None if radii_of_samples is None else float(reached.mean()),
        "density": None if radii is None else spheres / (neighbours * n),
        "coverage": None if radii is None else float(holds.mean()),
    }


def _radii(features: Matrix, neighbours: int) -> Matrix | None:
    """Distance of each row to its k-th neighbour among the others; None where there are fewer."""
    from sklearn.neighbors import NearestNeighbors

    if len(features) <= neighbours:
        return None
    searched = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features)
    radii: Matrix = searched.kneighbors()[0][:, -1] * (1 + _TIE)
    return radii


def nearest(samples: Features, reference: Features) -> tuple[Matrix, NDArray[np.int64]]:
    """The row of the reference that is nearest to each sample. Nothing is random.

    Args:
        samples: (n, d).
        reference: (m, d), m >= 1.

    Returns:
        Euclidean distances (n,), exactly 0 for equal features, and row numbers (n,).

    Raises:
        NumericError: a feature is not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    one, other = _matrix(samples), _matrix(reference)
    if not len(one):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    centre = other.mean(axis=0)
    searched = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(other - centre)
    rows: NDArray[np.int64] = searched.kneighbors(one - centre, return_distance=False)[:, 0].astype(np.int64)
    # The search goes through products of matrices, which leave equal vectors a little apart.
    return np.linalg.norm(one - other[rows], axis=1), rows
