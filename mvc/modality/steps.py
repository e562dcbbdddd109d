"""One model of a chain, F, H or G: which modality it takes and gives, and how a batch of items becomes outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

Modality = Literal["image", "text", "audio"]
Item = Any
"""A str, an RGB PIL image or an `audio.Audio`, as the modality says."""


@dataclass(frozen=True)
class Output:
    """What a step made of an item.

    Attributes:
        value: of the modality that the step gives.
        facts: JSON values worth knowing, such as how far a pitch was shifted; they become provenance.
    """

    value: Item
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """What a step cannot do with one item, while others go on.

    Attributes:
        why: in words that complete "row 7: ...".
    """

    why: str


Result = Output | Refused
Run = Callable[[Sequence[Item], Sequence[Sequence[int]]], list[list[Result]]]
"""Items and, for each, the seeds of the outputs that are wanted of it; gives as many results for it as it has seeds."""


@dataclass(frozen=True, eq=False)
class Step:
    """A model, or an augmentation, from one modality to another.

    Nothing is loaded before `run` is used, so that a chain that doesn't fit is refused at once.

    Attributes:
        name: for people and provenance, such as "flite (rms)".
        takes: modality of its items.
        gives: modality of its outputs.
        load: loads what it needs and gives the function that does a batch.
        identity: everything that an output depends on besides the item and the seed: settings, and digests of weights.
        random: whether the seed matters; other outputs of the same item are not worth asking for where it does not.
        together: all outputs of an item come from one call, of which the first seed is the seed.
        batch_size: outputs at once.
        keep: outputs cost enough to be worth storing.
    """

    name: str
    takes: Modality
    gives: Modality
    load: Callable[[], Run]
    identity: str
    random: bool = True
    together: bool = False
    batch_size: int = 16
    keep: bool = True

    @cached_property
    def run(self) -> Run:
        """The function that does a batch; loaded once.

        Raises:
            EnvironmentFault: a program, package, voice or model is missing.
        """
        return self.load()


def one_each(function: Callable[[Sequence[Item], Sequence[int]], list[Result]]) -> Run:
    """A `Run` from a function that makes one output for each pair of an item and a seed, in one flat batch."""

    def run(items: Sequence[Item], seeds: Sequence[Sequence[int]]) -> list[list[Result]]:
        flat = [item for item, own in zip(items, seeds, strict=True) for _ in own]
        made = iter(function(flat, list(chain.from_iterable(seeds))))
        return [[next(made) for _ in own] for own in seeds]

    return run


def within(
    batch: Sequence[Item], why_not: Callable[[Item], str | None], function: Callable[[list[Item]], list[Any]]
) -> list[Result]:
    """Do a batch but for the items that a step cannot take.

    Args:
        batch: the items.
        why_not: why an item cannot be taken, in words; None if it can.
        function: does those that can; gives a value, an Output or a Refused for each.
    """
    reasons = [why_not(item) for item in batch]
    made = iter(function([item for item, reason in zip(batch, reasons, strict=True) if reason is None]))
    results: list[Result] = []
    for reason in reasons:
        value = next(made) if reason is None else Refused(reason)
        results.append(value if isinstance(value, Output | Refused) else Output(value))
    return results
