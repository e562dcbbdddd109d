"""The page: gathers the parts that a run has so far, and writes them as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from markupsafe import Markup

from mvc.config import Experiment
from mvc.config_file import to_yaml
from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.report import sections

from .classifiers import read_further
from .evidence import read_published, read_sweeps, read_test_split
from .filters import read_filters, read_refused
from .grids import Grids, read_grids
from .pictures import BLOCKS, GAP, blocks_of, columns_of, data_uri, find_samples, strip, tile_sides
from .plots import loss_curve, ratio_curves, timestep_curve
from .quality import HEADINGS, read_pairs, read_quality
from .rendering import comparison_parts, gather, write_page


@dataclass(frozen=True)
class Row:
    """The images of one class and source; `uri` is empty where there are none."""

    heading: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Gallery:
    """Sample images: (words of the class, a row for each kind of images), and the shape of a row."""

    classes: list[tuple[str, list[Row]]]
    hidden: int
    """Classes that are not shown."""
    width: int
    height: int


def write_report(run: Path, experiment: Experiment) -> Path:
    """Write run/report/index.html from what is there; parts that are not there yet are said to be absent.

    Nothing is random, and equal runs give equal bytes.

    Args:
        run: the run folder.
        experiment: sections report and data.background are used, and all of it is shown.

    Returns:
        The file written.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    parts: dict[str, Callable[[], object]] = {
        **comparison_parts(run, [run], run),
        "further": partial(read_further, run),
        "sweeps": partial(_sweeps, run / "results"),
        "test_split": partial(read_test_split, run),
        "published": partial(read_published, run, run / "results"),
        "samples": partial(_gallery, run, experiment),
        "quality": partial(read_quality, run),
        "pairs": partial(read_pairs, run, experiment.data.background),
        "filters": partial(read_filters, run),
        "refused": partial(read_refused, run, experiment.data.background),
        "training": partial(_training, run),
        "grids": partial(_grids, run),
        "data": partial(sections.data, run),
        "captions": partial(sections.captions, run, experiment.report.classes),
        "machine": partial(sections.machine, run),
    }
    content, absent = gather(run, parts)
    # Without run.dir, as in experiment.yaml of the run.
    settings = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": ""})})
    return write_page(
        run,
        "page.html.jinja",
        absent=absent,
        settings=to_yaml(settings),
        splits=sections.SPLITS,
        figures=HEADINGS,
        **content,
    )


def _sweeps(results: Path) -> dict[str, object] | None:
    """The plot of the ratios that were tried, and what it does not say; None where none were."""
    found = read_sweeps(results)
    if not found:
        return None
    plot = ratio_curves([(one.arm, one.ratios, one.accuracies, one.chosen) for one in found])
    return {"plot": Markup(plot), "notes": [note for one in found for note in one.notes]}


def _training(run: Path) -> dict[str, object]:
    """The plots of the fine-tuning, empty where no loss is finite, and what went wrong in it."""
    found, watched = sections.losses(run), sections.validation(run)
    by_timestep = any(value for value in (*found.early, *found.late))
    return {
        "plot": Markup(loss_curve(found.steps, found.values, watched.steps, watched.values)) if found.steps else "",
        "timesteps": Markup(timestep_curve(found.early, found.late)) if by_timestep else "",
        "validated_on": watched.on if watched.steps else "",
        "bad": found.bad,
        "skipped": found.skipped,
    }


def _grids(run: Path) -> Grids:
    """The samples drawn during the fine-tuning, their classes in words."""
    found, words = read_grids(run), sections.class_words(run)
    return replace(found, classes=[words.get(name, name) for name in found.classes])


def _gallery(run: Path, experiment: Experiment) -> Gallery:
    """The sample images of the page, drawn."""
    if not (run / "data" / "index.jsonl").exists():
        raise DataError("No samples yet: the folder of images has not been read.")
    found = find_samples(run, experiment.report.classes, experiment.report.samples)
    shown = blocks_of(found)
    columns = max(1, *(columns_of(found, source) for source in shown))
    sides = tile_sides(found)
    classes = []
    for samples in found:
        rows = []
        for source in shown:
            heading, files = BLOCKS[source], samples.files[source]
            picture = data_uri(strip(files, columns, sides, experiment.data.background)) if files else ""
            rows.append(Row(heading, picture, f"{len(files)} {heading} images of {samples.words}"))
        classes.append((samples.words, rows))
    hidden = len(load_index(run).classes) - len(found)
    return Gallery(classes, hidden, columns * (sides[1] + GAP) - GAP, sides[1])
