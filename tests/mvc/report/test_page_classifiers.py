"""What the page shows of a comparison of classifiers, with all files that it may leave and with damaged ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mvc.storage import read_json, write_json, write_json_lines, write_text

from .compared import write_comparison
from .made_up_run import write_run
from .page_reader import page_of, table_rows

CLASSES = ["one", "two"]
WEAK = [[[80, 20], [30, 70]], [[82, 18], [28, 72]], [[78, 22], [32, 68]]]
STRONG = [[[81, 19], [5, 95]], [[83, 17], [4, 96]], [[79, 21], [6, 94]]]


def write_all_of_classifiers(run: Path, classes: list[str]) -> None:
    """All files that the classify stage may leave, for two classes."""
    write_comparison(run / "results", {"real": WEAK, "duplicate": WEAK, "rsp": STRONG}, classes)
    write_comparison(run / "results" / "wrn_28_2", {"real": STRONG, "rsp": WEAK}, classes)
    tried = [
        {"ratio": ratio, "effective": min(ratio, 1.5), "accuracies": [accuracy], "keys": ["0"]}
        for ratio, accuracy in ((1.0, 0.7), (2.0, 0.8))
    ]
    write_json(run / "results" / "ratios.json", {"rsp": {"chosen": 2.0, "tried": tried}})
    write_json(run / "results" / "leaks.json", {"training": [f"test/{classes[0]}/1.png"]})
    write_json_lines(run / "test_openings.jsonl", [{"arms": ["real"]}, {"arms": ["real", "rsp"]}])
    facts = {"backbone": "small", "arm": "rsp", "seed": 1, "image_size": 32, "validation_accuracy": 0.875}
    write_json(run / "results" / "classifier" / "classifier.json", {**facts, "classes": classes})


def test_page_shows_all_that_is_known_of_the_classifiers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    write_all_of_classifiers(run, CLASSES)
    page = page_of(run)
    verdict = read_json(run / "results" / "verdict.json")
    assert page.texts.count("Use synthetic images") == 1
    assert verdict["sentence"].removeprefix("use synthetic images: ") in page.texts
    assert '<p class="verdict helped">' in page.source and "gain over real +13.0 points (" in page.text
    rows = table_rows(page)
    assert any(row.startswith("rsp|88.0 ± 1.5|+13.0|") for row in rows)
    assert sum(row.startswith("number two|+25.0|") for row in rows) == 1
    cells = re.findall(r'<td class="([^"]*)" style="--share: ([0-9.]+)">(.*?)</td>', page.source)
    assert cells == [
        ("right deep", "0.8", "80"), ("", "0.2", "20"), ("", "0.3", "30"), ("right deep", "0.7", "70"),
        ("right deep", "0.81", "81"), ("", "0.19", "19"), ("", "0.05", "5"), ("right deep", "0.95", "95"),
    ]  # fmt: skip
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[1].startswith("Gain in points with its 95 % interval: duplicate +0.0 (")
    assert labels[2] == "Validation accuracy by ratio: rsp: best at 2 of 1, 2"
    assert "rsp 1.5 instead of 2" in page.text and "The probabilities of rsp are off by" in page.text
    assert "1 test image is left out: the same picture is among the training images" in page.texts
    assert "test/one/1.png" in page.texts and "The test split was opened 2 times" in page.texts
    assert "Backbone wrn_28_2" in page.texts and "Do not use synthetic images:" in page.texts
    assert 'network, facts = load_classifier(Path("results/classifier"))' in page.text


def test_what_classifiers_leave_is_escaped_and_asks_for_nothing(tmp_path: Path) -> None:
    classes = ["<i>one</i>", "two</td><script>"]
    run = write_run(tmp_path / "run", classes)
    write_all_of_classifiers(run, classes)
    page = page_of(run)
    assert not page.all("i") and not page.all("script") and not page.all("a")
    assert "number <i>one</i>" in page.texts and "test/<i>one</i>/1.png" in page.texts
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    assert "http" not in page.source.replace("http-equiv", "") and str(tmp_path) not in page.source


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("results/ratios.json", '{"rsp": 1}', "results/ratios.json cannot be used TypeError: "),
        ("results/leaks.json", "[]", "results/leaks.json cannot be used AttributeError: "),
        ("results/rsp-seed0.json", "{", "results/rsp-seed0.json is not JSON"),
        ("results/classifier/classifier.json", "{}", "results/classifier/classifier.json cannot be used KeyError: "),
        ("results/wrn_28_2/table.csv", "arm", "results/wrn_28_2/table.csv cannot be used ValueError: it holds no arm"),
    ],
)
def test_one_damaged_file_of_the_classifiers_spoils_its_part_alone(
    tmp_path: Path, name: str, content: str, line: str
) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    write_all_of_classifiers(run, CLASSES)
    write_text(run / name, content)
    page = page_of(run)
    assert len([text for text in page.texts if text.startswith(line)]) == 1
    assert page.texts.count("Use synthetic images") == 1 and "Samples" in page.texts


def test_a_damaged_index_leaves_the_verdict(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    write_all_of_classifiers(run, CLASSES)
    write_text(run / "data" / "classes.json", "{}")
    page = page_of(run)
    assert page.texts.count("Use synthetic images") == 1
    assert any(row.startswith("two|+25.0|") for row in table_rows(page)) and 'class="matrix' not in page.source
