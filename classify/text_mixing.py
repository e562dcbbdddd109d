"""TMix: what a network has made of two texts by one of its layers is mixed, and their targets by the same share.

Chen, Yang and Yang, "MixText: Linguistically-Informed Interpolation of Hidden Space for Semi-Supervised Text
Classification", ACL 2020, Sec. 3. Layers have the numbers that are used there: those of BERT-base are 1 to 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.errors import ConfigError
from mvc.randomness import numpy_generator

from .text_networks import TextBatch, layers_of
from .text_training import TextLoss, plain_loss


def partners(count: int, source: np.random.Generator) -> Tensor:
    """(count,) int64: the other text of each mixture.

    The texts stand in a ring in a drawn order, and each one's partner is the next. So none is its own partner but one
    that is alone, and each is the partner of one.
    """
    order = torch.from_numpy(source.permutation(count))
    partner = torch.empty(count, dtype=torch.int64)
    partner[order] = order.roll(-1)
    return partner


def layer_numbers(count: int, mix_layers: Sequence[int]) -> list[int]:
    """The layers that one is drawn from, counted from 1: those named, or the upper half.

    Args:
        count: layers of the network.
        mix_layers: numbers of layers; may be empty.

    Raises:
        ConfigError: there is no layer of that number.
    """
    wrong = sorted({number for number in mix_layers if not 1 <= number <= count})
    if wrong:
        raise ConfigError(
            f"classify.mix_layers names layer {', '.join(map(str, wrong))}",
            why=f"the layers of classify.model have the numbers 1 to {count}",
            do="name layers that there are, or none for the upper half",
        )
    return list(mix_layers) or list(range(count // 2 + 1, count + 1))


def draw_mixture(count: int, numbers: Sequence[int], alpha: float, seed: int, step: int) -> tuple[Tensor, int, float]:
    """What (seed, "tmix", step) decides for a batch.

    Args:
        count: texts of the batch.
        numbers: of the layers that one is drawn from.
        alpha: above 0; the own text's share is max(s, 1 - s) with s from Beta(alpha, alpha).
        seed: model seed.
        step: global step.

    Returns:
        (count,) int64 partners; number of the layer after which texts are mixed; share of the own text, in [0.5, 1].
    """
    source = numpy_generator(seed, "tmix", step)
    partner = partners(count, source)
    number = int(source.choice(numbers))
    drawn = float(source.beta(alpha, alpha))
    return partner, number, max(drawn, 1 - drawn)


def _mixed(states: Tensor, partner: Tensor, share: float) -> Tensor:
    # Indexing makes a copy: the partners' states are those before any of them was mixed. Exact at a share of 1.
    return torch.lerp(states[partner], states, share)


@contextmanager
def mixing_after(layers: Sequence[nn.Module], number: int, partner: Tensor, share: float) -> Iterator[None]:
    """Within this block, a network mixes the states of each text with its partner's, after one of its layers.

    Up to that layer a text attends to its own tokens alone, and from there on to all places where it or its partner
    has a token: after it, the place of a token that only the longer text has holds that token's share.

    Args:
        layers: those of the network.
        number: after which they are mixed, counted from 1.
        partner: (B,) int64 on the network's device.
        share: share of the own text, in [0, 1].
    """

    def mix(layer: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # MPNet's layers give attention weights besides, if asked
            return (_mixed(output[0], partner, share), *output[1:])
        return _mixed(output, partner, share)

    def unite(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states, mask, *others = inputs
        if mask is None:  # nothing is padded
            return inputs
        # Larger where attended to, whether it is boolean or is added to the scores.
        return (states, torch.maximum(mask, mask[partner]), *others)

    with ExitStack() as hooks:
        hooks.callback(layers[number - 1].register_forward_hook(mix).remove)
        for layer in layers[number:]:
            hooks.callback(layer.register_forward_pre_hook(unite).remove)
        yield


def mixed_cross_entropy(logits: Tensor, own: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """share * cross entropy to the own class + (1 - share) * that to the other's; () float32, the mean over B.

    Its gradient is that of MixText's KL divergence from the mixed target, which differs by the target's entropy.

    Args:
        logits: (B, classes).
        own, other: (B,) int64 classes.
        share: of the own class, in [0, 1]; one number or (B,).
    """
    to_own, to_other = (F.cross_entropy(logits.float(), labels, reduction="none") for labels in (own, other))
    return (share * to_own + (1 - share) * to_other).mean()


def tmix_loss(
    network: Any,
    batch: TextBatch,
    labels: Tensor,
    step: int,
    *,
    layers: Sequence[nn.Module],
    numbers: Sequence[int],
    alpha: float,
    seed: int,
) -> Tensor:
    """The loss of a batch whose texts are mixed with each other within the network.

    Args:
        network: in training mode.
        batch: B texts.
        labels: (B,) int64 on the network's device.
        step: global step.
        layers: those of the network.
        numbers, alpha, seed: as in `draw_mixture`.
    """
    partner, number, share = draw_mixture(len(batch), numbers, alpha, seed, step)
    partner = partner.to(labels.device)
    with mixing_after(layers, number, partner, share):
        logits = network(**batch.inputs).logits
    return mixed_cross_entropy(logits, labels, labels[partner], share)


def loss_of(
    arm: str, network: Any, *, seed: int, mix_alpha: float, mix_layers: Sequence[int], span_share: float
) -> TextLoss:
    """How the texts of an arm are judged: `tmix` and `ssmix` mix them, all others leave them as they are.

    Args:
        arm: its name.
        network: from `load_classifier`.
        seed: model seed.
        mix_alpha, mix_layers: tmix: as in `tmix_loss` and `layer_numbers`.
        span_share: ssmix: share of a text that the other's span replaces.

    Raises:
        ConfigError: tmix cannot look into this network, or it has no such layers.
    """
    if arm == "tmix":
        layers = layers_of(network)
        numbers = layer_numbers(len(layers), mix_layers)
        return partial(tmix_loss, layers=layers, numbers=numbers, alpha=mix_alpha, seed=seed)
    if arm == "ssmix":
        from .ssmix import ssmix_loss  # which takes its partners from here

        return partial(ssmix_loss, span_share=span_share, seed=seed)
    return plain_loss
