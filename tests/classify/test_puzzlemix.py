"""Cuts and moves against all possibilities on small grids, saliency against its closed form, and what a pass leaves."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from mvc.classify.mixing import own_share, partners
from mvc.classify.networks import build_network
from mvc.classify.puzzlemix import (
    BETA,
    ETA,
    GAMMA,
    XI,
    best_labels,
    best_moves,
    block_masks,
    join,
    minimum_cut,
    move_cells,
    puzzlemix,
    saliency,
)
from mvc.randomness import generator, numpy_generator

LABELS = np.array(list(itertools.product((0, 0.5, 1), repeat=9))).reshape(-1, 3, 3)


def small(classes: int = 3) -> nn.Module:
    return build_network("small", classes, 16, 0, torch.full((3,), 0.5), torch.full((3,), 0.25))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed, "values"))


def bright(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two batches of saliencies with a bright spot each."""
    x = torch.linspace(-1, 1, size)
    centre = draw(2, count, 2, 1, 1, seed=seed) * 1.6 - 0.8
    spot = torch.exp(-((x[:, None] - centre[:, :, 0]) ** 2 + (x - centre[:, :, 1]) ** 2) / 0.1)
    return spot[0] + 0.01, spot[1] + 0.01


def test_minimum_cut_is_the_best_of_all_choices() -> None:
    rng = numpy_generator(0, "cuts")
    choices = np.array(list(itertools.product((0, 1), repeat=9)))
    for _ in range(60):
        cost, first, second = rng.normal(size=9), rng.integers(0, 9, 14), rng.integers(0, 9, 14)
        capacity = rng.random(14) * (first != second)
        energy = choices @ cost + (choices[:, first] * (1 - choices[:, second])) @ capacity
        found = minimum_cut(cost, first, second, capacity)
        assert np.array_equal(choices[energy.argmin()], found)


def test_minimum_cut_keeps_to_what_is_forbidden_and_bears_large_costs() -> None:
    # 0 wants to be 1 and 1 wants to be 0, but a 1 must not precede a 0: the stronger wish decides.
    edge = np.array([0]), np.array([1]), np.array([np.inf])
    assert minimum_cut(np.array([-2.0, 1.0]), *edge).tolist() == [True, True]
    assert minimum_cut(np.array([-1.0, 2.0]), *edge).tolist() == [False, False]
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    assert minimum_cut(np.array([-1e9, 1e9, -1e-3, 1e-3]), *none).tolist() == [True, False, False, False]
    assert minimum_cut(np.full(5000, -1e6), *none).all() and not minimum_cut(np.full(5000, 1e6), *none).any()


@pytest.mark.parametrize("smooth", [0.0, 0.1, 1.0])
def test_labels_are_the_best_of_all_masks(smooth: float) -> None:
    rng = numpy_generator(1, "masks")
    cost, prior = rng.normal(size=(100, 3, 3)), (-0.2, 0.1)
    down, right = smooth * rng.random((100, 2, 3)), smooth * rng.random((100, 3, 2))
    found = best_labels(cost, prior, down, right)
    fixed = prior[0] * (LABELS == 0.5).sum(axis=(1, 2)) + prior[1] * (LABELS == 1).sum(axis=(1, 2))
    below, beside = np.diff(LABELS, axis=1) ** 2, np.diff(LABELS, axis=2) ** 2
    for one, u, d, r in zip(found, cost, down, right, strict=True):
        energy = fixed + (LABELS * u).sum(axis=(1, 2)) + (below * d).sum(axis=(1, 2)) + (beside * r).sum(axis=(1, 2))
        assert np.array_equal(LABELS[energy.argmin()], one)
    assert smooth or {0, 0.5, 1} == set(np.unique(found))


def seam_cost(images: tuple[Tensor, Tensor], first: tuple[int, int], second: tuple[int, int]) -> np.ndarray:
    """d[label of first, label of second] of two neighbouring 2 x 2 blocks; label 1 is images[0]."""
    (top, left), (low, right) = first, second
    table = np.zeros((2, 2))
    for a, b in itertools.product((0, 1), repeat=2):
        upper, lower = images[1 - a], images[1 - b]
        if top != low:
            rows = upper[:, 2 * top + 1, 2 * left : 2 * left + 2], lower[:, 2 * low, 2 * left : 2 * left + 2]
        else:
            rows = upper[:, 2 * top : 2 * top + 2, 2 * left + 1], lower[:, 2 * top : 2 * top + 2, 2 * right]
        table[a, b] = (rows[0] - rows[1]).abs().mean()
    return table


@pytest.mark.parametrize("share", [0.3, 0.55])
def test_mask_minimises_the_papers_energy(share: float) -> None:
    own, other, salient = draw(4, 3, 6, 6), draw(4, 3, 6, 6, seed=1), (draw(4, 6, 6, seed=2), draw(4, 6, 6, seed=3))
    masks = block_masks(own, other, salient, share, 3)
    neighbours = [((y, x), (y + 1, x)) for y in range(2) for x in range(3)]
    neighbours += [((y, x), (y, x + 1)) for y in range(3) for x in range(2)]
    for n in range(4):
        s = [part[n].reshape(3, 2, 3, 2).mean(dim=(1, 3)) for part in salient]
        first, second = ((part / part.sum()).double().numpy() for part in s)
        energy = -(LABELS * first + (1 - LABELS) * second).sum(axis=(1, 2))
        energy -= ETA / 9 * binom.logpmf(2 * LABELS, 2, share).sum(axis=(1, 2))
        for i, j in neighbours:
            d = seam_cost((own[n], other[n]), i, j)
            z, w = LABELS[:, i[0], i[1]], LABELS[:, j[0], j[1]]
            seam = d[0, 0] + z * (d[1] - d[0]).sum() / 2 + w * (d[:, 1] - d[:, 0]).sum() / 2
            seam += (z - w) ** 2 * (d[0, 1] + d[1, 0] - d[0, 0] - d[1, 1]) / 2
            for a, b in itertools.product((0, 1), repeat=2):
                assert np.allclose(seam[(z == a) & (w == b)], d[a, b])  # between, it is interpolated
            energy += BETA / 48 * ((z - w) ** 2 + GAMMA * seam)
        best = torch.from_numpy(LABELS[energy.argmin()])
        assert torch.equal(masks[n].double(), best.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize(("cells", "xi"), [(2, XI), (2, 0.1), (3, 0.05)])
def test_moves_are_the_best_of_all_permutations(cells: int, xi: float) -> None:
    rng = numpy_generator(cells, "moves")
    count = 40 if cells == 2 else 2
    salient = rng.dirichlet(np.full(cells**2, 0.3), size=count).reshape(count, cells, cells)
    seen = rng.choice([0, 0.5, 1], size=(count, cells, cells))
    place = np.array(list(itertools.product(range(cells), repeat=2))) / (cells - 1)
    travel = xi * ((place[:, None] - place) ** 2).sum(axis=2)
    orders = np.array(list(itertools.permutations(range(cells**2))))
    spots = np.arange(cells**2)
    moved = 0
    for one, s, z in zip(
        best_moves(salient, seen, xi), salient.reshape(count, -1), seen.reshape(count, -1), strict=True
    ):
        energy = travel[spots, orders].sum(axis=1) - (s[orders] * z).sum(axis=1)
        assert travel[spots, one].sum() - (s[one] * z).sum() == pytest.approx(energy.min(), abs=1e-9)
        moved += int((one != spots).any())
    assert (moved > 0) == (xi < XI)  # two cells a side are too far apart for the published price


def test_salient_cell_moves_next_door_into_view() -> None:
    # All saliency is in cell (3, 4), just outside the left half, which alone is seen: it changes places with (3, 3).
    images, salient, mask = draw(2, 3, 32, 32), torch.zeros(2, 32, 32), torch.zeros(2, 32, 32)
    salient[:, 12:16, 16:20], mask[:, :, :16] = 1, 1
    expected = images.clone()
    expected[..., 12:16, 12:16], expected[..., 12:16, 16:20] = images[..., 12:16, 16:20], images[..., 12:16, 12:16]
    assert torch.equal(move_cells(images, salient, mask), expected)


def test_nothing_moves_where_all_or_nothing_is_seen() -> None:
    images = draw(2, 3, 28, 28)
    for mask in (torch.ones(2, 28, 28), torch.zeros(2, 28, 28)):
        assert torch.equal(move_cells(images, draw(2, 28, 28, seed=1), mask), images)


@pytest.mark.parametrize(
    ("size", "grid"), [(8, 2), (8, 4), (20, 8), (28, 4), (28, 8), (29, 2), (29, 8), (32, 2), (32, 4), (32, 8), (32, 16)]
)
def test_shares_are_those_of_the_pixels(size: int, grid: int) -> None:
    # Moves inside an image of one value change nothing, so the mean of the mixture tells the true share.
    own, other = torch.full((6, 3, size, size), 0.75), torch.full((6, 3, size, size), 0.25)
    mixed, share = join(own, other, bright(6, size), 0.45, grid)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), 0.25 + share / 2, atol=1e-5)
    assert ((share > 0) & (share < 1)).any()


@pytest.mark.parametrize("size", [20, 32])
def test_extreme_shares_give_back_one_image(size: int) -> None:
    own, other = draw(4, 3, size, size), draw(4, 3, size, size, seed=1)
    for share, image in ((1.0, own), (0.0, other)):
        mixed, shares = join(own, other, bright(4, size), share, 4)
        assert torch.equal(mixed, image) and torch.equal(shares, torch.full((4,), share))


def test_more_is_shown_where_more_is_wanted() -> None:
    own, other = draw(8, 3, 32, 32), draw(8, 3, 32, 32, seed=1)
    means = [join(own, other, bright(8, 32), share, 8)[1].mean().item() for share in (0.05, 0.3, 0.5, 0.7, 0.95)]
    assert means == sorted(means) and means[0] < 0.2 and 0.3 < means[2] < 0.7 and means[-1] > 0.8


def test_mixture_shows_the_salient_parts_of_both() -> None:
    # Images are their own saliency maps: a mixture keeps far more of both than their mean or a chance mask would.
    spots = bright(16, 32, seed=4)
    first, second = (spot[:, None].expand(-1, 3, -1, -1) for spot in spots)
    black = torch.zeros_like(first)
    mask = block_masks(first, second, spots, 0.5, 8)
    kept = [(mask * spots[0]).sum() / spots[0].sum(), ((1 - mask) * spots[1]).sum() / spots[1].sum()]
    assert min(kept) > 0.65
    assert torch.equal(join(black, black, spots, 0.5, 8)[0], black)


def test_saliency_of_a_linear_net_has_its_closed_form() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 5, 4))
    images, targets = draw(6, 3, 5, 5), draw(6, 4, seed=1)
    weight: Tensor = network[1].weight
    error = network(images).softmax(dim=1) * targets.sum(dim=1, keepdim=True) - targets
    expected = (error @ weight).view(6, 3, 5, 5).pow(2).sum(dim=1).sqrt()
    assert torch.allclose(saliency(network, images, targets), expected, atol=1e-6)


def test_saliency_pass_leaves_nothing_behind() -> None:
    network, images, targets = small(), draw(8, 3, 16, 16), torch.eye(8, 3)
    network.train()
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    before = copy.deepcopy(network.state_dict())
    salient = saliency(network, images, targets)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(first.grad, torch.ones_like(first)) and not images.requires_grad and not salient.requires_grad
    assert all(weight.grad is None for weight in list(network.parameters())[1:])
    # It sees the net as training does, with the batch's statistics; and these are kept again afterwards.
    leaf = images.clone().requires_grad_()
    loss = -(targets * network(leaf).log_softmax(dim=1)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.allclose(salient, gradient.pow(2).sum(dim=1).sqrt(), atol=1e-6)
    assert not all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_step_counts_one_batch_and_reaches_the_weights() -> None:
    network, images, targets = small(), draw(8, 3, 16, 16), torch.eye(8)[:, :3]
    network.train()
    logits, _ = puzzlemix(network, images, targets, 0, seed=0)
    counts = [tensor for name, tensor in network.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts and all(count == 1 for count in counts)
    logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_gradients_that_are_not_finite_do_not_end_in_the_graph() -> None:
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), draw(4, 3, 8, 8)
    with torch.no_grad():
        network[1].weight.fill_(float("nan"))
    logits, labels = puzzlemix(network, images, torch.eye(2).repeat(2, 1), 0, seed=0)
    assert logits.isnan().all() and labels.isfinite().all()


@pytest.mark.parametrize("step", range(6))
def test_images_and_targets_of_a_step(step: int) -> None:
    network, images, targets = small(6).eval(), draw(6, 3, 16, 16), torch.eye(6)
    logits, labels = puzzlemix(network, images, targets, step, seed=0)
    other, grid = partners(6, 0, step), int(numpy_generator(0, "puzzlemix grid", step).choice([2, 4, 8]))
    salient = saliency(network, images, targets)
    mixed, share = join(images, images[other], (salient, salient[other]), own_share(1.0, 0, step), grid)
    assert torch.allclose(logits, network(mixed), atol=1e-6)
    # A row holds the share at the image's own class and the rest at its partner's.
    alone = other == torch.arange(6)
    assert torch.allclose(labels.diagonal(), torch.where(alone, 1.0, share), atol=1e-6)
    assert torch.allclose(labels.gather(1, other[:, None])[:, 0], torch.where(alone, 1.0, 1 - share), atol=1e-6)
