"""Hard negatives among the training pairs, as the CLIP sees them at the moment."""

from __future__ import annotations

import torch
from torch import Tensor

from mvc.clip.features import image_features, text_features
from mvc.clip.models import Clip
from mvc.clip.pairs import Pairs
from mvc.multimodal.mining import hard_negatives


def negatives_of(clip: Clip, pairs: Pairs, count: int, batch_size: int = 64) -> Tensor:
    """For each image the images whose first caption is most easily mistaken for its own.

    Pairs with an equal first caption are no negatives of each other.

    Args:
        clip: used in evaluation mode; its modules are left in the modes they were in.
        pairs: N training pairs.
        count: k, negatives of each.
        batch_size: images at once.

    Returns:
        (N, k) int64 rows, as `mining.Negatives` has them.

    Raises:
        DataError: an image cannot be decoded.
        NumericError: features are not finite.
        Stopped: a signal asked for a stop.
    """
    first = [captions[0] for captions in pairs.captions]
    images = image_features(clip, (pairs.image(row) for row in range(len(pairs))), batch_size)
    texts = text_features(clip, first, batch_size)
    with torch.no_grad():
        return hard_negatives(images, texts, count, same=[[text.casefold() for text in first]]).rows
