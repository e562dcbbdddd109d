"""The outputs of a chain as a tree for each sample, filled level by level in batches over all samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvc.randomness import derived_seed
from mvc.stopping import flag

from .steps import Item, Output, Refused, Result, Step
from .store import Store, key_of

Path = tuple[int, ...]
"""Which output of each level, from the first one on: (i, j, k) of l x m x n."""
Judge = Callable[[Item, Item], tuple[bool, Mapping[str, Any]]]
"""The sample's own item and an output: whether it may pass, and JSON values worth knowing, such as a distance."""


@dataclass(frozen=True)
class Filter:
    """Looks at the outputs of a level.

    Attributes:
        name: what a refused output is counted as, such as "black and white".
        judge: says whether one may pass.
    """

    name: str
    judge: Judge


@dataclass(frozen=True)
class Level:
    """A step within a chain.

    Attributes:
        step: the model.
        count: outputs of each item: l, m or n of Sec. 2.2.
        filters: what they have to pass.
        attempts: how often an output that does not pass is drawn before it is given up.
    """

    step: Step
    count: int = 1
    filters: tuple[Filter, ...] = ()
    attempts: int = 1


@dataclass(frozen=True)
class Sample:
    """What is to be augmented.

    Attributes:
        index: its number in the whole data set, which its draws depend on.
        item: of the modality that the chain takes.
        part: name of the part of the sample, where a sample has several that are augmented each for itself.
    """

    index: int
    item: Item
    part: str = ""


@dataclass(frozen=True)
class Filtered:
    """An output that no attempt brought past the filters; `why` is the filter's name."""

    why: str


Node = Output | Refused | Filtered
_Place = tuple[str, int, Path]


@dataclass(frozen=True)
class _Request:
    """One call's worth of one item: the item, its seeds, and the nodes that the outputs are."""

    item: Item
    seeds: list[int]
    places: list[_Place]


class Nodes:
    """What is known of the trees of some samples.

    Args:
        levels: of the chain.
        seed: randomness from (seed, "back-modality" and part, sample, level, path, attempt).
        store: where outputs are looked up and kept.
    """

    def __init__(self, levels: Sequence[Level], seed: int, store: Store) -> None:
        self._levels, self._seed, self._store = levels, seed, store
        self._known: dict[_Place, Node] = {}

    def of(self, sample: Sample, path: Path) -> Node:
        """The node of a path, which `fill` has been asked for."""
        return self._known[sample.part, sample.index, path]

    def trail(self, sample: Sample, path: Path) -> list[Node]:
        """The nodes from the first level to a leaf, or to the one that ends the way there."""
        found: list[Node] = []
        for end in range(1, len(path) + 1):
            found.append(self.of(sample, path[:end]))
            if not isinstance(found[-1], Output):
                break
        return found

    def fill(self, leaves: Sequence[tuple[Sample, Path]]) -> None:
        """Make what is missing on the way to some leaves, or only so far as their paths go.

        Raises:
            EnvironmentFault: a step lacks what it needs.
            Stopped: a signal asked for a stop; what the last batches made is in the store.
        """
        for number, level in enumerate(self._levels):
            wanted: dict[_Place, tuple[Sample, Item]] = {}
            for sample, path in leaves:
                parent = self._item_before(sample, path[:number]) if number < len(path) else None
                if parent is None:
                    continue
                last = range(level.count) if level.step.together else [path[number]]
                for place in ((sample.part, sample.index, (*path[:number], one)) for one in last):
                    if place not in self._known:
                        wanted[place] = (sample, parent[0])
            self._make(number, level, wanted)

    def _item_before(self, sample: Sample, path: Path) -> tuple[Item] | None:
        """What a level works on; None where a level before it gave nothing."""
        if not path:
            return (sample.item,)
        node = self._known.get((sample.part, sample.index, path))
        return (node.value,) if isinstance(node, Output) else None

    def _make(self, number: int, level: Level, wanted: Mapping[_Place, tuple[Sample, Item]]) -> None:
        """Make nodes of a level, and draw those again that a filter refuses."""
        due = list(wanted)
        for attempt in range(1, level.attempts + 1):
            made = self._outputs(level.step, self._requests(number, level, due, wanted, attempt))
            for place in due:
                self._known[place] = _judged(level.filters, wanted[place][0], made[place])
            due = [place for place in due if isinstance(self._known[place], Filtered)]
            if not due or not level.step.random:
                break

    def _requests(
        self,
        number: int,
        level: Level,
        due: Iterable[_Place],
        wanted: Mapping[_Place, tuple[Sample, Item]],
        attempt: int,
    ) -> list[_Request]:
        groups: dict[_Place, list[_Place]] = {}
        for part, index, path in due:
            group = (part, index, path[:-1] if level.step.together else path)
            groups.setdefault(group, []).append((part, index, path))
        requests = []
        for (part, index, path), places in groups.items():
            if level.step.together:  # a call gives all of them, whichever are due
                places = [(part, index, (*path, one)) for one in range(level.count)]
            seeds = [
                derived_seed(self._seed, f"back-modality {part}".strip(), index, number, *own, attempt)
                for _, _, own in places
            ]
            requests.append(_Request(wanted[groups[part, index, path][0]][1], seeds, places))
        return requests

    def _outputs(self, step: Step, requests: Sequence[_Request]) -> dict[_Place, Result]:
        """The outputs of all requests, from the store where they are there, else batch by batch."""
        found: dict[str, list[Result]] = {}
        due: dict[str, _Request] = {}
        keys = [key_of(step, request.item, request.seeds) for request in requests]
        for key, request in zip(keys, requests, strict=True):
            if key in found or key in due:
                continue
            known = self._store.find(key)
            if known is None:
                due[key] = request
            else:
                found[key] = known
        for batch in _batches(due, step.batch_size):
            flag.check("what was made before is kept")
            results = step.run([due[key].item for key in batch], [due[key].seeds for key in batch])
            found.update(self._store.add(step, dict(zip(batch, results, strict=True))))
        return {
            place: one
            for key, request in zip(keys, requests, strict=True)
            for place, one in zip(request.places, found[key], strict=True)
        }


def _batches(due: Mapping[str, _Request], size: int) -> list[list[str]]:
    """Keys in batches of about `size` outputs."""
    batches: list[list[str]] = []
    room = 0
    for key, request in due.items():
        if room < len(request.seeds) or not batches:
            batches.append([])
            room = size
        batches[-1].append(key)
        room -= len(request.seeds)
    return batches


def _judged(filters: Sequence[Filter], sample: Sample, result: Result) -> Node:
    """A result after the filters: with what they noted, or as refused by one."""
    if isinstance(result, Refused):
        return result
    facts = dict(result.facts)
    for one in filters:
        passes, noted = one.judge(sample.item, result.value)
        facts.update(noted)
        if not passes:
            return Filtered(one.name)
    return Output(result.value, facts)
