"""How a page is made of parts: each is read by itself, so that one that is absent or damaged spoils no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import mvc
from mvc.errors import DataError
from mvc.storage import write_text

from .classifiers import Comparison, read_comparison
from .confusion import read_confusions
from .plots import accuracies, gains
from .sections import class_words

RESULTS = "results"
Parts = dict[str, Callable[[], object]]


def gather(run: Path, parts: Mapping[str, Callable[[], object]]) -> tuple[dict[str, object], dict[str, str]]:
    """Read all parts of a page.

    Args:
        run: the folder whose path is cut from what is said of absent parts.
        parts: name -> what reads it.

    Returns:
        name -> part, None for those that are absent, and name -> why, of those.
    """
    content: dict[str, object] = {}
    absent: dict[str, str] = {}
    for name, build in parts.items():
        try:
            content[name] = build()
        except DataError as error:
            content[name] = None
            # The page tells nothing of where the run lies, which may change.
            absent[name] = " ".join(text for text in (error.what, error.why) if text).replace(f"{run}/", "")
    return content, absent


def write_page(run: Path, template: str, **values: object) -> Path:
    """Fill a template and write report/index.html of a folder.

    Args:
        run: the folder; its name is the page's heading.
        template: name of a file beside this one.
        values: what the template shows; all texts are escaped but `Markup`.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template(template).render(name=run.resolve().name, version=mvc.__version__, **values)
    path = run / "report" / "index.html"
    write_text(path, page)
    return path


def comparison_parts(run: Path, sources: Sequence[Path], indexed: Path) -> Parts:
    """The parts that show a comparison of classifiers, of one run or of repeats.

    Args:
        run: folder with results/verdict.json and results/table.csv.
        sources: the runs whose classifiers are compared.
        indexed: a run of them, for the words of the classes.
    """
    folder = run / RESULTS
    return {
        "results": partial(read_comparison, folder),
        "words": partial(_words, indexed),
        "plots": lambda: _plots(read_comparison(folder)),
        "confusions": lambda: read_confusions(
            [source / RESULTS for source in sources], read_comparison(folder), _words(indexed)
        ),
    }


def _words(run: Path) -> dict[str, str]:
    """Class folder -> words; none where the index cannot be read, of which its own part of the page tells."""
    try:
        return class_words(run)
    except DataError:
        return {}


def _plots(comparison: Comparison) -> dict[str, Markup]:
    """The accuracies, and the gains where an interval is known."""
    plots = {"accuracies": Markup(accuracies([(arm.name, arm.values) for arm in comparison.arms])), "gains": Markup()}
    known = [(arm.name, arm.gain.difference, arm.gain.low, arm.gain.high) for arm in comparison.arms if arm.gain]
    if any(low is not None for _, _, low, _ in known):
        plots["gains"] = Markup(gains(known, comparison.best))
    return plots
