"""Puzzle Mix: join the salient parts of two images by a minimum cut, and move what would be hidden into view.

Kim, Choo, Song: "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020. Own code from the
paper; its published code was looked at for settings and scales only. The mask z in {0, 1/2, 1}, the share of the first
image, minimises

    - sum z s(own) - sum (1 - z) s(other) + beta sum (z_i - z_j)^2 + beta gamma sum d(seam) - eta sum log p(z | share)

over the blocks of a grid, s being saliencies that add up to 1; then each image's blocks are moved so that salient ones
are seen: min xi sum distance - sum s z over all permutations. Targets mix by the mask's mean. Settings are those
published for CIFAR-100. Otherwise here:

- The mask is the exact optimum, by one minimum cut; the paper swaps pairs of labels.
- Mask and moves are found once, in this order, as in the published code; the paper alternates.
- Moves are exact (an assignment problem) instead of the paper's masked iteration.
- The seam's distance is that of the two pixel rows beside it, instead of means of 4 x 4 pixels.
- Moves are those of cells on a grid of 8 x 8 whatever the mask's grid: the published 4 pixels at 32 pixels.
- No adversarial perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from scipy.special import logit
from torch import Tensor, nn

from mvc.randomness import numpy_generator, seeded_global

from .mixing import blend, own_share, partners

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHA = 1.0
"""Of Beta(alpha, alpha)."""
BETA = 1.2
"""Cost of two neighbouring blocks from different images; divided by 16 times the blocks a side, as published."""
GAMMA = 0.5
"""Cost of a visible seam, in parts of BETA; at most 1, so that no weight of the cut is negative."""
ETA = 0.2
"""Weight of the prior that asks for the drawn share; divided by the number of blocks, as published."""
XI = 0.8
"""Cost of moving a cell over the whole side, squared distance; saliencies add up to 1."""
GRIDS = (2, 4, 8, 16)
"""Blocks a side of the mask; one is drawn for each batch, at most half the image's side."""
CELLS = 8
"""Cells a side that are moved."""


@contextmanager
def _frozen_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm goes on as it is (with the batch's statistics while training), but keeps no running ones."""
    norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    tracking = [norm for norm in norms if norm.track_running_stats]
    try:
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def saliency(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Length over the channels of the loss's gradient at each pixel: one forward and backward pass.

    Weights' gradients and BatchNorm's running statistics stay as they are. The scale of a row of targets does not
    matter to what follows.

    Args:
        network: in the mode and under the autocast that training has.
        images: (B, 3, S, S) float32.
        targets: (B, C) float32.

    Returns:
        (B, S, S) float32, not negative, without gradient; zero where it was not finite.
    """
    with _frozen_statistics(network):
        leaf = images.detach().requires_grad_()
        # The sum and not the mean: gradients of half precision don't vanish in it.
        loss = -(targets * torch.log_softmax(network(leaf).float(), dim=1)).sum()
        gradient: Tensor = torch.autograd.grad(loss, leaf)[0]
    # A diverging network is told from its loss, and must not end in scipy.
    lengths: Tensor = torch.linalg.vector_norm(gradient.float(), dim=1)
    return lengths.nan_to_num(0.0, 0.0, 0.0)


def minimum_cut(cost: Floats, first: Ints, second: Ints, capacity: Floats) -> NDArray[np.bool_]:
    """The choice x in {0, 1} that minimises sum cost x + sum capacity [x_first = 1 and x_second = 0].

    Exact for the numbers rounded to 2**-20 (coarser where there are very large ones).

    Args:
        cost: (n,) what a 1 costs more than a 0.
        first: (e,) index of an edge's first node, second: of its second.
        capacity: (e,) not negative; infinity forbids the pair.

    Returns:
        (n,); of several optima the one with the fewest ones.
    """
    count = len(cost)
    source, sink = count, count + 1
    gain, loss = np.maximum(-cost, 0), np.maximum(cost, 0)
    # No capacity and no flow may pass the largest int32.
    scale = min(2.0**20, 2.0**30 / max(min(gain.sum(), loss.sum()), 1e-30))
    rows = np.concatenate([first, np.full(count, source), np.arange(count)]).astype(np.int32)
    columns = np.concatenate([second, np.arange(count), np.full(count, sink)]).astype(np.int32)
    whole = np.rint(np.minimum(np.concatenate([capacity, gain, loss]) * scale, 2.0**30)).astype(np.int32)
    graph = coo_array((whole, (rows, columns)), shape=(count + 2, count + 2)).tocsr()
    graph.eliminate_zeros()
    residual = (graph - maximum_flow(graph, source, sink).flow).tocsr()
    residual.eliminate_zeros()
    reached = np.zeros(count + 2, dtype=bool)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached[:count]


def best_labels(cost: Floats, prior: tuple[float, float], down: Floats, right: Floats) -> Floats:
    """The labels z in {0, 1/2, 1} that minimise sum cost z + prior + sum weight (z_i - z_j)^2 over neighbours.

    The smoothness is convex, so the optimum is one minimum cut (Ishikawa, 2003) of nodes a = [z >= 1/2], b = [z = 1]:
    w (z_i - z_j)^2 = w/4 (|a_i - a_j| + |b_i - b_j|) + w/2 ([b_i > a_j] + [b_j > a_i]).
    All masks of a batch are parts of one graph, so that the library is called once.

    Args:
        cost: (B, m, m) what a 1 costs more than a 0.
        prior: what a 1/2 and a 1 cost more than a 0 everywhere, besides.
        down: (B, m - 1, m) weight, not negative, between a block and the one below.
        right: (B, m, m - 1) weight between a block and the one to its right.

    Returns:
        (B, m, m) labels; of several optima the lowest.
    """
    count = cost.size
    a = np.arange(count).reshape(cost.shape)
    i = np.concatenate([a[:, :-1].ravel(), a[:, :, :-1].ravel()])
    j = np.concatenate([a[:, 1:].ravel(), a[:, :, 1:].ravel()])
    weight, half = np.concatenate([down.ravel(), right.ravel()]), cost.ravel() / 2
    first = np.concatenate([i, j, count + i, count + j, count + i, count + j, count + a.ravel()])
    second = np.concatenate([j, i, count + j, count + i, j, i, a.ravel()])
    capacity = np.concatenate([np.tile(weight / 4, 4), np.tile(weight / 2, 2), np.full(count, np.inf)])
    nodes = np.concatenate([half + prior[0], half + prior[1] - prior[0]])
    above = minimum_cut(nodes, first, second, capacity).reshape(2, *cost.shape)
    labels: Floats = above.mean(axis=0)
    return labels


def _shares(values: Tensor, side: int) -> Tensor:
    # (B, S, S) to means over blocks of `side` pixels that add up to 1; the last block may be smaller.
    pooled = F.avg_pool2d(values[:, None], side, ceil_mode=True)[:, 0]
    return pooled / pooled.sum(dim=(1, 2), keepdim=True).clamp_min(1e-30)


def _seams(own: Tensor, other: Tensor, side: int) -> Tensor:
    """(2, 2, B, m - 1, m) mean distance of the pixels on both sides of each horizontal seam, in [0, 1].

    The first index tells which image is above the seam (1: own), the second which is below.
    """
    below = torch.arange(side, own.shape[2], side, device=own.device)
    rows = [(image[:, :, below - 1], image[:, :, below]) for image in (other, own)]
    distances = [[(rows[a][0] - rows[b][1]).abs().mean(dim=1) for b in (0, 1)] for a in (0, 1)]
    stacked = torch.stack([torch.stack(row) for row in distances])
    pooled = F.avg_pool1d(stacked.flatten(0, 2), side, ceil_mode=True)
    return pooled.reshape(*stacked.shape[:4], -1)


def block_masks(own: Tensor, other: Tensor, salient: tuple[Tensor, Tensor], share: float, grid: int) -> Tensor:
    """How much of the first image each pixel shows: the optimal masks on a grid of blocks.

    Args:
        own: (B, 3, S, S) float32 in [0, 1].
        other: (B, 3, S, S), the partners.
        salient: (B, S, S) saliencies of own and other.
        share: wanted share of the first image, in [0, 1]; 0 and 1 are kept to.
        grid: blocks a side; fewer where they don't fit into whole pixels.

    Returns:
        (B, S, S) float32 in {0, 1/2, 1}, constant on blocks.
    """
    size = own.shape[-1]
    side = -(-size // grid)
    unary = _shares(salient[1], side) - _shares(salient[0], side)
    blocks = unary.shape[-1]
    beta = BETA / (16 * blocks)
    down, right = _seams(own, other, side), _seams(own.mT, other.mT, side).mT
    # A table d[z_i, z_j] is a constant, costs of z_i and of z_j alone, and a weight of |z_i - z_j|.
    for seam, upper, lower in (
        (down, unary[:, :-1], unary[:, 1:]),
        (right, unary[:, :, :-1], unary[:, :, 1:]),
    ):
        upper += beta * GAMMA * (seam[1, 0] + seam[1, 1] - seam[0, 0] - seam[0, 1]) / 2
        lower += beta * GAMMA * (seam[0, 1] + seam[1, 1] - seam[0, 0] - seam[1, 0]) / 2
    weights = [beta * (1 + GAMMA * (s[0, 1] + s[1, 0] - s[0, 0] - s[1, 1]) / 2) for s in (down, right)]
    # Of the binomial distribution of two draws. At shares of 0 and 1 it is infinite: here larger than all the rest.
    odds = float(np.clip(logit(share), -100 * blocks**2, 100 * blocks**2))
    prior = (-ETA * (odds + math.log(2)) / blocks**2, -ETA * 2 * odds / blocks**2)
    cost, below, beside = (tensor.double().cpu().numpy() for tensor in (unary, *weights))
    mask: Tensor = torch.from_numpy(best_labels(cost, prior, below, beside)).to(own)
    return mask.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :size, :size]


def best_moves(salient: Floats, seen: Floats, xi: float = XI) -> NDArray[np.int64]:
    """Which cell to show at each place: the permutation that minimises xi * distance - saliency seen.

    Args:
        salient: (B, m, m) saliencies of an image's cells, which add up to 1.
        seen: (B, m, m) share of each place that is seen, in [0, 1].
        xi: cost of moving a cell along a whole side.

    Returns:
        (B, m * m) index of the cell that comes to each place; distances are squared, 1 along a whole side.
    """
    cells = salient.shape[-1]
    place = np.stack(np.divmod(np.arange(cells**2), cells), axis=1) / max(cells - 1, 1)
    travel = xi * ((place[:, None] - place) ** 2).sum(axis=2)
    flat = zip(seen.reshape(len(seen), -1), salient.reshape(len(seen), -1), strict=True)
    # Rows are places and columns cells, so that the columns come in the places' order.
    return np.stack([linear_sum_assignment(travel - np.outer(at, of))[1] for at, of in flat])


def move_cells(images: Tensor, salient: Tensor, mask: Tensor, cells: int = CELLS) -> Tensor:
    """Move the cells of images to where the salient ones are seen.

    Args:
        images: (B, 3, S, S) float32.
        salient: (B, S, S) their saliencies.
        mask: (B, S, S) share of each pixel that will be seen, in [0, 1].
        cells: cells a side; fewer where they don't fit into whole pixels.

    Returns:
        (B, 3, S, S); a permutation of the cells where `cells` divides S.
    """
    size = images.shape[-1]
    side = -(-size // cells)
    seen = F.avg_pool2d(mask[:, None], side, ceil_mode=True)[:, 0]
    order = best_moves(_shares(salient, side).double().cpu().numpy(), seen.double().cpu().numpy())
    spare = seen.shape[-1] * side - size
    # Cells at the right and lower border may be cut: the border is repeated outwards.
    padded = F.pad(images, (0, spare, 0, spare), mode="replicate") if spare else images
    columns = F.unfold(padded, side, stride=side)
    index = torch.from_numpy(order).to(images.device)[:, None].expand_as(columns)
    return F.fold(columns.gather(2, index), padded.shape[-2:], side, stride=side)[..., :size, :size]


def join(own: Tensor, other: Tensor, salient: tuple[Tensor, Tensor], share: float, grid: int) -> tuple[Tensor, Tensor]:
    """Join two batches of images; arguments as of `block_masks`.

    Returns:
        (B, 3, S, S) mixed images, and (B,) the share of the first image in each.
    """
    mask = block_masks(own, other, salient, share, grid)
    first, second = move_cells(own, salient[0], mask), move_cells(other, salient[1], 1 - mask)
    return blend(first, second, mask[:, None]), mask.mean(dim=(1, 2))


def puzzlemix(network: nn.Module, images: Tensor, targets: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Join the salient parts of partners; targets mix by the mask's mean.

    Args:
        network: takes (B, 3, S, S), returns (B, C) logits; one more forward and backward pass finds the saliency.
        images: (B, 3, S, S) float32 in [0, 1].
        targets: (B, C) float32; a row adds up to the weight of its sample.
        step: global step.
        seed: model seed; with the step it decides partners, wanted share, grid, and dropout of the pass for saliency.

    Returns:
        Logits of the mixed images and (B, C) mixed targets.
    """
    partner = partners(len(images), seed, step).to(images.device)
    share = own_share(ALPHA, seed, step)
    fitting = [grid for grid in GRIDS if 2 * grid <= images.shape[-1]] or [GRIDS[0]]
    grid = int(numpy_generator(seed, "puzzlemix grid", step).choice(fitting))
    with seeded_global(seed, "puzzlemix saliency", step):
        salient = saliency(network, images, targets)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        mixed, shares = join(images, images[partner], (salient, salient[partner]), share, grid)
    return network(mixed), blend(targets, targets[partner], shares[:, None])
