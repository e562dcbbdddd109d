"""MixGen in a DataLoader: a collate function that mixes what another one has put together.

Workers collate batches out of order and know no step, and a counter within one would depend on how many of them there
are. What a batch and its worker both know are the numbers of its samples, so these come with the samples, and the plan
is drawn from (seed, numbers in their order): equal for equal batches, with any number of workers, after any stop.
A shuffled loader gives other batches each epoch, and so other plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mvc.mixgen import mix_images, mix_texts
from mvc.mixgen_plan import MixGenPlan, plan_mixgen
from mvc.mixgen_tokens import CLIP_END, CLIP_PAD, CLIP_START, mix_token_ids
from mvc.randomness import numpy_generator


class _Samples(Protocol):
    """A map-style data set."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


class NumberedSamples(Dataset[tuple[int, Any]]):
    """A data set whose samples come with their number: (index, sample).

    Args:
        dataset: map-style.
    """

    def __init__(self, dataset: _Samples) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


@dataclass(frozen=True)
class MixGenCollate:
    """Puts numbered samples together by `collate` and mixes the batch (MixGen, Algorithm 1).

    It can be pickled if `collate` can. Randomness: (seed, "mixgen", numbers of the samples in their order).

    Args:
        seed: of the run.
        collate: from a list of samples to (images, texts) or to a dict that holds both; torch's by default. Images are
            as `mvc.mixgen.mixgen` takes them; texts a sequence of strings, or (B, L) int64 token ids. Other entries of
            a dict stay as they are: a row's label is that of its own image still.
        variant, share, mix: as in `mvc.mixgen_plan.plan_mixgen`.
        image_key, text_key: where a dict has images and texts.
        start, end, pad: as in `mvc.mixgen_tokens.mix_token_ids`, if texts are token ids.

    Raises:
        ValueError: a setting is out of its range; or, when called, what a batch lacks.
    """

    seed: int
    collate: Callable[[list[Any]], Any] = default_collate
    variant: str = "default"
    share: float = 0.25
    mix: float = 0.5
    image_key: str = "image"
    text_key: str = "text"
    start: int = CLIP_START
    end: int = CLIP_END
    pad: int = CLIP_PAD

    def __post_init__(self) -> None:
        self._plan(range(2))  # so that a wrong setting is told here and not by a worker

    def __call__(self, samples: Sequence[tuple[int, Any]]) -> Any:
        """A batch of `samples`, each (number, sample): (images, texts), or the dict with both exchanged."""
        for sample in samples:
            if not (isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], Integral)):
                raise ValueError(
                    f"a sample is a {type(sample).__name__} and not (number, sample): "
                    "wrap the data set in NumberedSamples"
                )
        plan = self._plan([int(number) for number, _ in samples])
        batch = self.collate([sample for _, sample in samples])
        if isinstance(batch, Mapping):
            for key in (self.image_key, self.text_key):
                if key not in batch:
                    raise ValueError(f"a batch has no '{key}', but {', '.join(map(repr, batch))}")
            images, texts = self._mixed(plan, batch[self.image_key], batch[self.text_key])
            return {**batch, self.image_key: images, self.text_key: texts}
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            entries = f" of {len(batch)} entries" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(f"a batch is a {type(batch).__name__}{entries}: give (images, texts) or a dict")
        return self._mixed(plan, batch[0], batch[1])

    def _plan(self, numbers: Sequence[int]) -> MixGenPlan:
        random = numpy_generator(self.seed, "mixgen", *numbers)
        return plan_mixgen(len(numbers), random, self.variant, self.share, self.mix)

    def _mixed(self, plan: MixGenPlan, images: Any, texts: Any) -> tuple[Any, Any]:
        # Out of place: a collate function may hand out views of the data set's own memory.
        if isinstance(texts, Tensor):
            return mix_images(plan, images), mix_token_ids(plan, texts, self.start, self.end, self.pad)
        return mix_images(plan, images), mix_texts(plan, texts)
