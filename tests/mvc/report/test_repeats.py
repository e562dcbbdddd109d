"""The page of repeats: the verdict over all runs, and the way to the page of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvc.errors import DataError
from mvc.report.repeats import write_repeats_report
from mvc.storage import write_json, write_text

from .compared import write_comparison
from .made_up_run import write_data
from .page_reader import Page, table_rows
from .test_classifiers import CLASSES, STRONG, WEAK


def write_repeats(root: Path, finished: int = 3) -> Path:
    """Repeats of which the first ones are compared, and together, if all are."""
    write_json(root / "repeats.json", {"kind": "seed", "values": [0, 1, 2]})
    for place in range(finished):
        run = root / f"seed-{place}"
        write_data(run, CLASSES)
        write_comparison(run / "results", {"real": [WEAK[place]], "rsp": [STRONG[place]]}, CLASSES)
        write_text(run / "report" / "index.html", "")
    if finished == 3:
        units = [(place, 0) for place in range(3)]
        write_comparison(root / "results", {"real": WEAK, "rsp": STRONG}, CLASSES, units)
    return root


def page_of(root: Path) -> Page:
    path = write_repeats_report(root)
    assert path == root / "report" / "index.html"
    return Page(path)


def test_verdict_table_plots_and_runs(tmp_path: Path) -> None:
    page = page_of(write_repeats(tmp_path / "digits"))
    assert page.texts.count("Use synthetic images") == 1 and "3 data seeds" in page.text
    rows = table_rows(page)
    assert any(row.startswith("real|75.0 ± 2.0|–|–") for row in rows)
    # What the two arms had in each run; one classifier a run tells nothing by itself.
    assert rows[-3:] == [
        "seed-0|not told|75.0|88.0|+13.0",
        "seed-1|not told|77.0|89.5|+12.5",
        "seed-2|not told|73.0|86.5|+13.5",
    ]
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[0] == "Test accuracy in per cent, mean over seeds: real 75.0; rsp 88.0"
    assert labels[1].startswith("Gain in points with its 95 % interval: rsp +13.0 (")
    # The matrices of all three runs, in the words of the classes.
    assert page.text.count("number dog") == 5 and "75" in page.text
    links = [link["href"] for link in page.all("a")]
    assert links == [f"../seed-{place}/report/index.html" for place in range(3)]
    assert all((tmp_path / "digits" / "report" / link).resolve().is_file() for link in links)
    assert str(tmp_path) not in page.source and "http" not in page.source.replace("http-equiv", "")


def test_unfinished_repeats(tmp_path: Path) -> None:
    page = page_of(write_repeats(tmp_path, finished=1))
    assert "No verdict yet: the classifiers have not been compared." in page.texts
    assert table_rows(page)[1:] == ["seed-0|not told", "seed-1|not finished", "seed-2|not finished"]
    assert [link["href"] for link in page.all("a")] == ["../seed-0/report/index.html"]
    assert page_of(write_repeats(tmp_path, finished=0)).all("a")


def test_a_run_that_was_compared_otherwise(tmp_path: Path) -> None:
    root = write_repeats(tmp_path)
    write_comparison(root / "seed-1" / "results", {"real": WEAK[:1], "combined": STRONG[:1]}, CLASSES)
    assert table_rows(page_of(root))[-2] == "seed-1|not told|–|–|–"


def test_equal_repeats_give_equal_bytes(tmp_path: Path) -> None:
    first = write_repeats_report(write_repeats(tmp_path / "a" / "run")).read_bytes()
    assert first == write_repeats_report(write_repeats(tmp_path / "b" / "run")).read_bytes()


def test_no_repeats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no repeats: it has no repeats\.json"):
        write_repeats_report(tmp_path)
    write_json(tmp_path / "repeats.json", {"kind": "seed", "values": []})
    with pytest.raises(DataError, match=r"repeats\.json cannot be used\nwhy: ValueError: it names no run"):
        write_repeats_report(tmp_path)
