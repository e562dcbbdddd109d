"""The page of repeats: what several runs on other training images say together, and the way to the page of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mvc.errors import DataError
from mvc.repeats import REPEATS
from mvc.storage import read_json

from .classifiers import HEADLINES, Comparison, read_comparison, read_further
from .rendering import comparison_parts, gather, write_page
from .sections import percent, reading, require

_KINDS = {"seed": "data seed", "fold": "fold"}


@dataclass(frozen=True)
class Repeat:
    """One of the runs.

    Attributes:
        name: of its folder.
        page: its report, relative to that of the repeats; empty where it has none yet.
        decision: its own one in words.
        texts: accuracies of reference and chosen arm of all runs together, and the gain between them.
    """

    name: str
    page: str
    decision: str
    texts: list[str]


def write_repeats_report(folder: Path) -> Path:
    """Write report/index.html of a folder of repeats, from what is there so far.

    Nothing is random, and equal folders give equal bytes.

    Args:
        folder: with repeats.json, a run for each data seed or fold, and results/ once they are concluded.

    Returns:
        The file written.

    Raises:
        DataError: the folder holds no repeats.
        EnvironmentFault: the file cannot be written.
    """
    kind, runs = _runs(folder)
    parts: dict[str, Callable[[], object]] = {
        **comparison_parts(folder, runs, runs[0]),
        "further": partial(read_further, folder),
    }
    content, absent = gather(folder, parts)
    together = content["results"]
    shown = together if isinstance(together, Comparison) else None
    return write_page(
        folder,
        "repeats.html.jinja",
        absent=absent,
        kind=_KINDS.get(kind, kind),
        runs=[_repeat(run, shown) for run in runs],
        **content,
    )


def _runs(folder: Path) -> tuple[str, list[Path]]:
    """What is repeated, and the folder of each run."""
    path = folder / REPEATS
    require(path, f"{folder} holds no repeats: it has no {REPEATS}.")
    found = read_json(path)
    with reading(path):
        kind = str(found["kind"])
        runs = [folder / f"{kind}-{int(value)}" for value in found["values"]]
        if not runs:
            raise ValueError("it names no run")
        return kind, runs


def _repeat(run: Path, together: Comparison | None) -> Repeat:
    page = f"../{run.name}/report/index.html" if (run / "report" / "index.html").exists() else ""
    try:
        own = read_comparison(run / "results")
    except DataError:
        return Repeat(run.name, page, "not finished", ["–"] * 3)
    decision = HEADLINES.get(own.decision, "").lower() or "–"
    if together is None:
        return Repeat(run.name, page, decision, [])
    means = {arm.name: sum(arm.values) / len(arm.values) for arm in own.arms if arm.values}
    reference, best = means.get(together.reference), means.get(together.best)
    if reference is None or best is None:
        return Repeat(run.name, page, decision, ["–"] * 3)
    return Repeat(run.name, page, decision, [percent(reference), percent(best), percent(best - reference, signed=True)])
