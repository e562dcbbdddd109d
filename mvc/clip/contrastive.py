"""The contrastive loss of CLIP, and its exact gradient over a batch that is too large for one pass or one process.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, Fig. 3; Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, Sec. 3.2 (GradCache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mvc.randomness import derived_seed, seeded_global

from .global_batch import gathered, process, shares, sum_gradients

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(image features (B, d), text features (B, d), factor) of the global batch to the loss, one number.

Features are the network's own, not of length 1; the factor is exp(logit_scale). It has no parameters that are trained,
and gives the same in every process: what it draws depends on a seed.
"""

MAX_LOGIT_SCALE = math.log(100)
"""Logits are cosines times 100 at most (Radford et al., Sec. 2.5)."""
_ROW_SUM = 1e-4


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    targets: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean of two cross-entropies: of each image over all texts, and of each text over all images.

    Features are brought to length 1 inside, in float32 (float64 where they are), also below autocast.

    Args:
        image_features: (B, d) of any length; row i belongs to row i of the texts.
        text_features: (B, d).
        logit_scale: the factor itself, exp of the network's parameter.
        targets: two (B, B) matrices whose rows add up to 1: what share of image i belongs to text j, and what share of
            text i to image j. None is the identity for both.

    Returns:
        a number, of the type that it is computed in.

    Raises:
        ValueError: shapes that do not fit, or rows of targets that do not add up to 1.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            f"features of shapes {tuple(image_features.shape)} and {tuple(text_features.shape)}: both have to be (B, d)"
        )
    dtype = torch.promote_types(torch.promote_types(image_features.dtype, text_features.dtype), torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = (F.normalize(features.to(dtype), dim=-1) for features in (image_features, text_features))
        logits = logit_scale * images @ texts.T
        if targets is None:
            own = torch.arange(len(logits), device=logits.device)
            return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        for name, shares_of in zip(("image", "text"), targets, strict=True):
            _check_targets(shares_of, len(logits), name)
        of_images, of_texts = (shares_of.to(logits) for shares_of in targets)
        return (F.cross_entropy(logits, of_images) + F.cross_entropy(logits.T, of_texts)) / 2


def _check_targets(targets: Tensor, count: int, name: str) -> None:
    if targets.shape != (count, count):
        raise ValueError(f"targets of each {name} are {tuple(targets.shape)}: ({count}, {count}) is needed")
    sums = targets.sum(dim=1)
    wrong = (~((sums - 1).abs() <= _ROW_SUM)).nonzero().flatten().tolist()  # so that NaN is wrong, too
    if wrong:
        raise ValueError(f"targets of {name} {wrong[0]} (counted from 0) add up to {float(sums[wrong[0]]):g} and not 1")


def clamp_logit_scale(network: nn.Module) -> None:
    """After a step: keep `network.logit_scale` in [0, ln 100], as open_clip's own training does it."""
    with torch.no_grad():
        _parameter(network).clamp_(0, MAX_LOGIT_SCALE)


def contrastive_backward(
    network: nn.Module,
    images: Tensor,
    token_ids: Tensor,
    micro_batch_size: int,
    *,
    seed: int,
    step: int,
    objective: Objective = clip_loss,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Replace `.grad` of all parameters by the gradient of the loss of the global batch.

    The features of all micro-batches are computed without a graph, then the gradient of the loss with respect to the
    features, then each micro-batch goes through the network once more and passes its part of that gradient on. Nothing
    is approximated: the gradient is that of one pass over all rows, whatever the micro-batch size and however the rows
    are shared among the processes of torch's process group, if there is one. Activations take the memory of one
    micro-batch; features and logits (B, B) of the global batch are held by every process. A process whose rows all
    fit a micro-batch makes one pass.

    Dropout and the like draw from (seed, "CLIP dropout", step, row), with the place of a micro-batch's first row in the
    global batch: equal in both passes, but other masks where micro-batches or shares are cut at other rows.

    Args:
        network: open_clip's, with `encode_image`, `encode_text`, `logit_scale`; the module itself and no wrapper such
            as DistributedDataParallel. All processes have the same weights. In training mode or not, as it was left.
        images: (b, 3, S, S) float, this process's rows; moved to the network's device one micro-batch at a time.
        token_ids: (b, L) int64, their texts. The global batch is the rows of process 0, then those of process 1, and so
            on; shares may differ in size, and none is empty.
        micro_batch_size: rows that go through the network at a time.
        seed, step: decide the random numbers; read only if the network draws any.
        objective: from features of the global batch to the loss; features are float32 or the network's wider type.
        autocast_dtype: bfloat16 computes the network's passes under autocast; None in the types that there are, also
            where the caller has autocast on.

    Returns:
        the loss of the global batch, without a graph; the same in all processes.

    Raises:
        ValueError: sizes that do not fit, another autocast_dtype, or BatchNorm that takes its statistics from the rows
            at hand while these are not the whole batch.
    """
    device, place = _parameter(network).device, process()
    counts = shares(len(images), len(token_ids), device)
    _check(network, counts, micro_batch_size, autocast_dtype)
    start = sum(counts[:place])
    parts = [slice(row, row + micro_batch_size) for row in range(0, counts[place], micro_batch_size)]

    def encoded(part: slice) -> tuple[Tensor, Tensor]:
        with _dropout(seed, step, start + part.start, device):
            return _encode(network, images[part].to(device), token_ids[part].to(device), autocast_dtype)

    for parameter in network.parameters():
        parameter.grad = None
    # Autocast of the caller would reach the backward passes, too.
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        with torch.set_grad_enabled(len(parts) == 1):
            kept = [encoded(part) for part in parts]
        whole = [gathered(torch.cat(features).detach(), counts) for features in zip(*kept, strict=True)]
        loss, (*of_features, of_scale) = _gradients(objective, whole[0], whole[1], _parameter(network))
        own = [gradient[start : start + counts[place]] for gradient in of_features]
        for part in parts:
            features = kept[0] if len(parts) == 1 else encoded(part)
            pairs = [(one, gradient[part]) for one, gradient in zip(features, own, strict=True) if one.requires_grad]
            torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])
    sum_gradients(network)
    _set_scale_gradient(network, of_scale)
    return loss


def _parameter(network: nn.Module) -> Tensor:
    scale: Tensor = network.logit_scale  # type: ignore[assignment]
    return scale


def _encode(network: Any, images: Tensor, token_ids: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    # Without its cache: weights that the pass without a graph has cast would have no gradient in the second one.
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        features = network.encode_image(images), network.encode_text(token_ids)
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in features]
    return wide[0], wide[1]


def _gradients(
    objective: Objective, image_features: Tensor, text_features: Tensor, log_scale: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients with respect to both features and to the logarithm of the factor."""
    leaves = [one.detach().requires_grad_() for one in (image_features, text_features, log_scale)]
    loss = objective(leaves[0], leaves[1], leaves[2].exp())
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    filled = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    return loss.detach(), filled


def _set_scale_gradient(network: nn.Module, gradient: Tensor) -> None:
    """Every process has found this gradient from the global batch: it is taken once, and not summed."""
    scale = _parameter(network)
    if not scale.requires_grad:
        return
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(gradient, 0)
    scale.grad = gradient


@contextmanager
def _dropout(seed: int, step: int, row: int, device: torch.device) -> Iterator[None]:
    """Seed what a network draws from in one pass; the global state is as before afterwards."""
    place = (seed, "CLIP dropout", step, row)
    with seeded_global(*place):
        if device.type != "cuda":
            yield
            return
        with torch.random.fork_rng(devices=[device]):  # seeded_global is of the CPU alone
            torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed(*place))
            yield


def _check(network: nn.Module, counts: list[int], micro_batch_size: int, dtype: torch.dtype | None) -> None:
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {micro_batch_size}, and has to be 1 or more")
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"autocast_dtype is {dtype}: bfloat16 or None; float16 would need a scaled loss")
    if len(counts) == 1 and counts[0] <= micro_batch_size:
        return
    # Without running statistics a layer takes those of the rows at hand in evaluation mode too.
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    if layers:
        raise ValueError(
            f"BatchNorm ({layers[0]} and {len(layers) - 1} more) in training mode sees {micro_batch_size} rows or a "
            f"process's share, and not all {sum(counts)} of the batch: put these layers in evaluation mode, or use one "
            f"process and a micro_batch_size of {sum(counts)}"
        )
