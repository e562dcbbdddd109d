"""The page holds what the files say, asks for nothing from outside, and survives unfinished and hostile runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mvc.config import Experiment, ReportSection, RunSection
from mvc.errors import DataError
from mvc.report import sections
from mvc.report.classifiers import read_comparison
from mvc.report.page import write_report
from mvc.storage import write_text

from .made_up_run import (
    SENTENCE,
    write_captions,
    write_data,
    write_filters,
    write_images,
    write_quality,
    write_record,
    write_results,
    write_run,
    write_training,
    write_watched_training,
)
from .page_reader import Page, page_of, table_rows

CLASSES = ["one", "two"]
PICTURES = 6 + 12 + 3
"""Of a whole run without samples on the way: rows of samples, pairs of nearest images, reasons with pictures."""


def test_page_holds_verdict_and_table(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "my run", CLASSES))
    assert page.texts.count(SENTENCE) == 1 and page.source.index(SENTENCE) < page.source.index("<table")
    assert "only 2 validation images" in page.text and "standard error 7.1 points" in page.text
    rows = table_rows(page)
    assert "real|85.0 ± 1.2|–|–|3" in rows
    assert "duplicate|85.2 ± 1.1|+0.2|0.61|3" in rows
    assert "two_phase|88.1 ± 0.7|+3.1|0.012|3" in rows
    assert page.source.count('<tr class="best"><td>two_phase') == 1
    assert page.texts.count("my run") == 1 and "2025-01-02" in page.text
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[0] == "Test accuracy in per cent, mean over seeds: real 85.0; duplicate 85.2; two_phase 88.1"
    assert labels[1].startswith("Loss over 60 logged steps;")


def test_page_holds_data_captions_and_settings(tmp_path: Path) -> None:
    experiment = Experiment(run=RunSection(dir="somewhere/private", seed=41))
    page = page_of(write_run(tmp_path / "run", CLASSES), experiment)
    rows = table_rows(page)
    assert "number one (one)|5|1|1|7" in rows and "all|10|2|2|14" in rows
    assert "12 of 40 images are left out" in page.text and "3 copies in test" in page.text
    assert "skipped: 2." in page.text and "Made by rule, as the folder has none: validation." in page.text
    assert "a white figure 2 one" in page.texts and "a white figure 3 one" not in page.texts
    assert (
        "10 captions (10 by blip). 7 read the same as another of their class. All captions the same: one." in page.text
    )
    assert "say nothing behind" not in page.text
    assert "seed: 41" in page.source and "somewhere" not in page.source
    assert "data|1.2 s|finished" in rows and "train|4 min 05 s|finished" in rows
    assert "torch|2.15.0" in rows and "memory, GiB|7.8" in rows
    assert not any(row.startswith("report|") for row in rows)


def test_samples_are_labelled_and_limited(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    alts = [image["alt"] for image in page_of(run).all("img")]
    assert alts[:6] == [
        f"{count} {kind} images of number {name}"
        for name in CLASSES
        for count, kind in ((5, "real"), (4, "pre-trained"), (6, "fine-tuned"))
    ]
    page = page_of(run, Experiment(report=ReportSection(samples=2, classes=1)))
    assert [image["alt"][0] for image in page.all("img")[:3]] == ["2", "2", "2"]
    assert not any("images of number two" in image["alt"] for image in page.all("img"))
    assert "1 more classes are not shown" in page.text
    assert {(image["width"], image["height"]) for image in page.all("img")[:3]} == {("196", "96")}


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", CLASSES))
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name.endswith(("href", "src", "srcset", "action", "data", "poster"))
    ]
    assert len(addresses) > 20 and all(value.startswith(("data:", "#")) for value in addresses)
    assert "http" not in page.source.replace("http-equiv", "") and "@import" not in page.source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page.source))
    assert not page.all("script") and not page.all("iframe")
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert str(tmp_path) not in page.source


def test_names_in_the_page_are_unique_and_found(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", CLASSES))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names) > 20
    used = re.findall(r"""href="#([^"]*)|url\(#([^)]*)""", page.source)
    assert used and {a or b for a, b in used} <= set(names)


def test_user_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)"
    run, classes = tmp_path / "<b>run", ["<img src=x onerror=alert(2)>", evil]
    write_run(run, classes)
    write_captions(run, classes, "</style></pre><script>alert(3)</script>")
    row = f'{evil},0.5,0.1,3,0.4 0.5 0.6,-0.35,0.5,0.5\n"a""><i>",0.5,,1,0.5,,,\n'
    write_results(run, f"{evil} & 'more'", "arm,mean,standard_deviation,seeds,values,difference,p_value\n" + row)
    page = page_of(run, Experiment.model_validate({"data": {"path": "</pre><script>"}}))
    for tag in ("script", "b", "i"):
        assert not page.all(tag)
    assert len(page.all("img")) == PICTURES and all(
        set(image) == {"src", "width", "height", "alt"} for image in page.all("img")
    )
    assert f"{evil} & 'more'" in page.text and "<b>run" in page.text
    assert f"number {evil}" in page.text and "</pre><script>alert(3)</script> 0" in page.text
    assert "path: </pre><script>" in page.text


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    first = write_report(write_run(tmp_path / "a" / "run", CLASSES), Experiment()).read_bytes()
    second = write_report(write_run(tmp_path / "b" / "run", CLASSES), Experiment()).read_bytes()
    again = write_report(tmp_path / "b" / "run", Experiment()).read_bytes()
    assert first == second == again


ABSENT = {
    "data": "No data yet: the folder of images has not been read.",
    "samples": "No samples yet: the folder of images has not been read.",
    "captions": "No captions yet.",
    "quality": "No figures of quality yet: the synthetic set has not been measured.",
    "filters": "No filters yet: no synthetic set has been judged.",
    "training": "No loss curve yet: the model has not been fine-tuned.",
    "results": "No verdict yet: the classifiers have not been compared.",
    "record": "No run.json, so nothing is known of versions, hardware and timings.",
}


def test_empty_run_gives_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run")
    assert [text for text in ABSENT.values() if text not in page.texts] == []
    assert page.text.count("settings") == 0 and "Settings" in page.text


def test_a_run_grows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    left = dict(ABSENT)

    def check(*done: str) -> Page:
        for name in done:
            left.pop(name)
        page = page_of(run)
        assert [text for text in ABSENT.values() if text in page.texts] == list(left.values())
        return page

    write_data(run, CLASSES)
    assert check("data", "samples").texts.count("none") == 4
    write_captions(run, CLASSES)
    check("captions")
    write_training(run, steps=1)
    check("training")
    write_images(run, CLASSES)
    assert "none" not in check().texts
    write_filters(run, CLASSES)
    check("filters")
    write_quality(run, CLASSES)
    check("quality")
    write_text(run / "results" / "real-seed0.json", "{}")
    left["results"] = ABSENT["results"][:-1] + "; classifiers measured so far: 1."
    page = page_of(run)
    assert left["results"] in page.texts and len(page.all("svg")) == 1
    left["results"] = ABSENT["results"]
    write_results(run)
    check("results")
    write_record(run)
    assert check("record").all("svg")[1]["aria-label"].startswith("Loss over 1 logged steps")


def test_empty_loss_log_is_no_curve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_text(run / "logs" / "train.jsonl", '{"step": 1, "lo')
    assert ABSENT["training"] in page_of(run).texts


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    broken = {
        "results/table.csv": ("arm,mean\nreal,0.5\n", " cannot be used KeyError: 'standard_deviation'"),
        "logs/train.jsonl": ('{"step": 1}\n', " cannot be used KeyError: 'loss'"),
        "run.json": ('{"stages": {"data": {}}}', " cannot be used KeyError: 'seconds'"),
        "captions.jsonl": ("x\n", ", line 1 is not JSON Expecting value: line 1 column 1 (char 0)"),
        "data/summary.json": ("{}", " cannot be used KeyError: 'left_out'"),
        "quality/quality.json": ("{}", " cannot be used KeyError: 'overall'"),
        "synthetic/summary.json": ("[]", " cannot be used TypeError: list indices must be integers or slices, not str"),
    }
    for name, (content, _) in broken.items():
        write_text(run / name, content)
    page = page_of(run)
    assert [name + line for name, (_, line) in broken.items() if name + line not in page.texts] == []
    assert len(page.all("img")) == 6 and str(tmp_path) not in page.source


@pytest.mark.parametrize(
    ("read", "name", "content", "message"),
    [
        (read_comparison, "results/verdict.json", "{", "verdict.json is not JSON"),
        (
            read_comparison,
            "results/table.csv",
            "arm,mean\n",
            "table.csv cannot be used\nwhy: ValueError: it holds no arm",
        ),
        (sections.captions, "caption_summary.json", "[]", "caption_summary.json cannot be used"),
    ],
)
def test_broken_files_are_errors(
    tmp_path: Path, read: Callable[..., object], name: str, content: str, message: str
) -> None:
    write_text(write_run(tmp_path, CLASSES) / name, content)
    with pytest.raises(DataError, match=message):
        read(*([tmp_path, 4] if read is sections.captions else [tmp_path / "results"]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245.2, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7530, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert sections.duration(seconds) == text


def test_percent() -> None:
    assert [sections.percent(value, signed=True) for value in (0.0314, -0.0314, -0.0001)] == ["+3.1", "-3.1", "+0.0"]
    assert sections.percent(1.0) == "100.0"


def test_losses_that_are_not_finite(tmp_path: Path) -> None:
    rows = ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": null}', '{"step": 3, "loss": 0.25}']
    write_text(tmp_path / "logs" / "train.jsonl", "\n".join(rows))
    assert sections.losses(tmp_path) == sections.Losses([1, 3], [0.5, 0.25], 2)
    page = page_of(tmp_path)
    assert "the loss is not finite at step 2" in page.texts and len(page.all("svg")) == 1
    write_text(tmp_path / "logs" / "train.jsonl", rows[1])
    page = page_of(tmp_path)
    assert "the loss is not finite at step 2" in page.texts and not page.all("svg")


def test_what_the_log_says_of_steps_and_timesteps(tmp_path: Path) -> None:
    write_watched_training(tmp_path, CLASSES)
    found = sections.losses(tmp_path)
    assert (found.bad, found.skipped, len(found.steps)) == (9, 2, 49)
    for values, steps in ((found.early, range(1, 11)), (found.late, range(41, 51))):
        expected = [[2.0**-place / step for step in steps if step % 10 != place] for place in range(10)]
        assert values == pytest.approx([sum(column) / len(column) for column in expected])
    assert sections.validation(tmp_path) == sections.Validation([0, 40, 50], [0.8, 0.25, 0.5], "held-out images")
    assert sections.validation(tmp_path / "other") == sections.Validation([], [], "")


def test_page_shows_how_the_fine_tuning_went(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    write_watched_training(run, CLASSES)
    page = page_of(run)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[1].endswith("validation loss 0.8 at first, 0.5 at last, least 0.25 at step 40")
    assert labels[2].startswith("Loss from the least noise to the most: at the beginning 0.")
    assert "its moving mean; validation loss on held-out images." in page.text
    assert "because a loss or a gradient was not finite: 2." in page.text
    assert "From left to right: number one, number two." in page.text
    alts = [image["alt"] for image in page.all("img")][PICTURES:]
    assert alts == ["2 condition images", *(f"2 samples at step {step}" for step in (0, 25, 50))]
    assert {(image["width"], image["height"]) for image in page.all("img")[PICTURES:]} == {("196", "96")}
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    assert "No samples were drawn on the way: train.sample_steps is 0." not in page.texts


def test_page_of_a_training_that_nothing_watched(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", CLASSES))
    assert "No samples were drawn on the way: train.sample_steps is 0." in page.texts
    assert len(page.all("svg")) == 2 and "validation loss" not in page.text and "changed nothing" not in page.text


def test_lost_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    for path in (run / "data" / "images" / "train" / "one").iterdir():
        os.remove(path)
    page = page_of(run)
    # Neither the row of the first class nor the pairs with them, all of the first class, nor the copies' originals.
    assert page.texts.count("none") == 1 and len(page.all("img")) == 5 + 3
    assert "The images are not where they were, so no pairs can be shown." in page.texts
    os.remove(run / "synthetic" / "train" / "one" / "finetuned-0000.png")
    page = page_of(run)
    line = "synthetic/train/one/finetuned-0000.png is missing metadata.jsonl names it"
    assert line in page.texts and len(page.all("img")) == 3 and SENTENCE in page.texts
