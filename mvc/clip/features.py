"""Features of many images and texts by a CLIP: in batches, without gradients, of length 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.errors import NumericError
from mvc.stopping import flag

from .inputs import Picture, network_input
from .models import Clip


def image_features(clip: Clip, images: Iterable[Picture], batch_size: int = 64) -> Tensor:
    """Features of images of any size, which are resized and cropped as `network_input` does it.

    Args:
        clip: used in evaluation mode; its modules are left in the modes they were in.
        images: N images; an iterable that opens them one by one holds `batch_size` of them at a time.
        batch_size: changes the last bits of a feature, and nothing else.

    Returns:
        (N, d) float32 on the CPU, each row of length 1.

    Raises:
        NumericError: a feature is not finite; names the image by its number.
        Stopped: a signal asked for a stop.
        ValueError: as `network_input`.
    """
    network: Any = clip.network
    return _features(clip, images, batch_size, lambda some: network_input(some, clip), network.encode_image, "image")


def text_features(clip: Clip, texts: Iterable[str], batch_size: int = 256) -> Tensor:
    """Features of texts; longer ones than the network takes are cut.

    Args:
        clip: as for `image_features`.
        texts: N texts.
        batch_size: as for `image_features`.

    Returns:
        (N, d) float32 on the CPU, each row of length 1. Texts that the tokenizer cannot tell apart have equal rows, up
        to the last bits.

    Raises:
        NumericError: a feature is not finite; names the text by its number.
        Stopped: a signal asked for a stop.
    """
    network: Any = clip.network
    return _features(clip, texts, batch_size, clip.tokenize, network.encode_text, "text")


def _features(
    clip: Clip,
    items: Iterable[Any],
    batch_size: int,
    prepared: Callable[[Sequence[Any]], Tensor],
    encode: Callable[[Tensor], Tensor],
    what: str,
) -> Tensor:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, and has to be 1 or more")
    device = next(clip.network.parameters()).device
    found, left, count = [torch.empty(0, clip.config["model_cfg"]["embed_dim"])], iter(items), 0
    with evaluating(clip.network):
        while some := list(islice(left, batch_size)):
            flag.check(f"features of {count} {what}s were computed, which are not kept")
            with torch.inference_mode():
                rows = F.normalize(encode(prepared(some).to(device)).float(), dim=-1).cpu()
            wrong = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
            if wrong:
                raise NumericError(
                    f"the features of {what} {count + wrong[0]} (counted from 0) are not finite",
                    why="the CLIP overflows or its weights are damaged",
                )
            found.append(rows)
            count += len(some)
    return torch.cat(found)  # outside of inference mode: an ordinary tensor, that training may use


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode inside the block; each of its modules is then in the mode it was in before."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
