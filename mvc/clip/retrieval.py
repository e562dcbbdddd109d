"""Retrieval: whether an image finds its texts, and a text its image, among all others (MixGen, Hao et al., Sec. 3.2).

Scores are exact, so that they cannot depend on how the work is cut or ordered: features of length 1 are rounded to
multiples of 2**-26, about what float32 keeps. All sums of an inner product are then integers below 2**53 in units of
2**-52, which float64 adds without any error in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_UNITS = 2.0**26


@dataclass(frozen=True)
class Retrieval:
    """Recall of both directions, in per cent.

    Attributes:
        text_retrieval: by K, the share of images of which a right text is among the K best texts.
        image_retrieval: by K, the share of texts of which the image is among the K best images.
    """

    text_retrieval: dict[int, float]
    image_retrieval: dict[int, float]

    @property
    def rsum(self) -> float:
        """RSUM: the sum of all recalls of both directions; 600 at most for three K."""
        return sum(self.text_retrieval.values()) + sum(self.image_retrieval.values())


def retrieval(
    image_features: Tensor,
    text_features: Tensor,
    image_of_text: Sequence[int] | Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
) -> Retrieval:
    """R@K in both directions from features.

    An image has several texts as a rule; the best of them counts. A wrong candidate whose score equals the right one's
    counts as better, so that features that tell nothing apart find nothing.

    Args:
        image_features: (I, d), of any length: cosines are compared.
        text_features: (T, d), likewise.
        image_of_text: (T,) the number of each text's image, 0 to I - 1; each image has a text.
        ks: the K.
        chunk: images and texts a block; of no influence on the result. Memory is 9 * chunk**2 bytes beside the
            features, and never I * T.

    Returns:
        recalls by K.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, an image without a text, a number that is no
            image's, or a K below 1 or above the number of images or of texts, which every model would reach.
    """
    smallest = min(len(image_features), len(text_features))
    wrong = [k for k in ks if not 1 <= k <= smallest]
    if wrong or not ks:
        raise ValueError(f"ks is {tuple(ks)}: each K has to be 1 to {smallest}, the smaller number of images and texts")
    of_images, of_texts = ranks(image_features, text_features, image_of_text, chunk)
    return Retrieval(
        text_retrieval={k: _per_cent(of_images, k) for k in ks},
        image_retrieval={k: _per_cent(of_texts, k) for k in ks},
    )


def ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Sequence[int] | Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """How many wrong candidates come before the right one, or level with it; 0 is found at once.

    Args:
        image_features, text_features, image_of_text, chunk: as for `retrieval`.

    Returns:
        (I,) int64, wrong texts before the best of an image's own; (T,) int64, wrong images before a text's own.

    Raises:
        ValueError: as `retrieval`, but for the K.
    """
    owner = torch.as_tensor(image_of_text, dtype=torch.int64, device=image_features.device)
    _check(image_features, text_features, owner, chunk)
    images, texts = (F.normalize(features.float(), dim=-1) for features in (image_features, text_features))
    own = torch.cat([(_exact(images[owner[part]]) * _exact(texts[part])).sum(1) for part in _parts(len(texts), chunk)])
    best = own.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, own, "amax")
    # An image's own texts are no wrong candidates: those level with the best one of them are taken off again below.
    of_images = -torch.bincount(owner[own == best[owner]], minlength=len(images))
    of_texts = torch.full_like(owner, -1)
    for rows in _parts(len(images), chunk):
        left = _exact(images[rows])
        for columns in _parts(len(texts), chunk):
            scores = left @ _exact(texts[columns]).T
            of_images[rows] += (scores >= best[rows, None]).sum(1)
            of_texts[columns] += (scores >= own[columns]).sum(0)
    return of_images, of_texts


def _exact(features: Tensor) -> Tensor:
    return (features.double() * _UNITS).round()


def _parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _per_cent(found: Tensor, k: int) -> float:
    return 100.0 * int((found < k).sum()) / len(found)


def _check(images: Tensor, texts: Tensor, owner: Tensor, chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, and has to be 1 or more")
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or owner.shape != texts.shape[:1]:
        raise ValueError(
            f"features of shapes {tuple(images.shape)} and {tuple(texts.shape)} with the images of {len(owner)} texts "
            "do not fit: (I, d), (T, d) and (T,) are needed"
        )
    for name, features in (("image", images), ("text", texts)):
        wrong = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"the features of {name} {wrong[0]} (counted from 0) are not finite")
    strange = owner[(owner < 0) | (owner >= len(images))].tolist()
    if strange:
        raise ValueError(f"a text belongs to image {strange[0]}, of {len(images)} images")
    lonely = (torch.bincount(owner, minlength=len(images)) == 0).nonzero().flatten().tolist()
    if lonely:
        raise ValueError(f"image {lonely[0]} (counted from 0) has no text that it could find")
