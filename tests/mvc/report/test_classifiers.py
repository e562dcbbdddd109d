"""The comparison as the classify stage writes it, read for the page; older runs; what is confused with what."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mvc.errors import DataError
from mvc.report.classifiers import HEADINGS, Gain, read_comparison, read_further
from mvc.report.confusion import MOST_CLASSES, MOST_PAIRS, read_confusions
from mvc.storage import read_json, write_json, write_text

from .compared import write_comparison
from .made_up_run import SENTENCE, write_results

CLASSES = ["cat", "dog"]
WORDS = {"cat": "a cat", "dog": "a dog"}
WEAK = [[[80, 20], [30, 70]], [[82, 18], [28, 72]], [[78, 22], [32, 68]]]
"""Accuracies 75, 77 and 73 per cent."""
STRONG = [[[81, 19], [5, 95]], [[83, 17], [4, 96]], [[79, 21], [6, 94]]]
"""13, 12.5 and 13.5 points better, nearly all of it by the second class."""


def use(folder: Path) -> None:
    write_comparison(folder, {"real": WEAK, "duplicate": WEAK, "rsp@finetuned": STRONG}, CLASSES, warnings=["few"])


def test_a_decision_with_all_that_it_rests_on(tmp_path: Path) -> None:
    use(tmp_path)
    found = read_comparison(tmp_path)
    verdict = read_json(tmp_path / "verdict.json")
    assert verdict["decision"] == "use"
    assert (found.decision, found.headline, found.helped) == ("use", "Use synthetic images", True)
    assert f"use synthetic images: {found.sentence}" == verdict["sentence"]
    assert (found.best, found.reference, found.warnings[-1]) == ("rsp@finetuned", "real", "few")
    facts = dict(found.facts)
    assert facts["arm chosen on validation"] == "rsp@finetuned"
    assert facts["gain over real"].startswith("+13.0 points (+") and facts["gain over repeated real images"] == (
        "+13.0 points"
    )
    assert facts["synthetic images for each real one"] == "2" and facts["augmentation"] == "default"
    (gain,) = found.gains
    # 70 per cent of the second class before, 95 after; one image more of the first is chance.
    assert gain[:2] == ("dog", "+25.0") and found.losses == []
    low, high = (float(end) for end in gain[2].split(" to "))
    assert 0 < low < 25 < high


def test_table_has_the_columns_that_something_is_in(tmp_path: Path) -> None:
    use(tmp_path)
    found = read_comparison(tmp_path)
    # Nothing is known of affinity.
    assert found.headings == [heading for heading in HEADINGS if heading != "affinity"]
    assert [heading for heading, _ in found.explained] == [
        heading for heading in found.headings if heading not in ("accuracy", "seeds")
    ]
    real, duplicate, rsp = (dict(zip(found.headings, arm.texts, strict=True)) for arm in found.arms)
    assert real["accuracy"] == "75.0 ± 2.0" and real["gain"] == real["95 % interval"] == real["ratio"] == "–"
    assert duplicate["gain"] == "+0.0" and duplicate["p"] == "1" and duplicate["ratio"] == "2"
    assert rsp["gain"] == "+13.0" and rsp["balanced"] == "88.0" and rsp["diversity"] == "0.500"
    # The classifier says 0.9 of every image and is right on 0.88 of them, 2 points less on average.
    assert abs(float(rsp["ECE"]) - 2.0) < 0.7
    assert [arm.best for arm in found.arms] == [False, False, True] and not any(arm.over for arm in found.arms)
    assert found.arms[0].gain is None
    with open(tmp_path / "table.csv", newline="") as file:
        row = list(csv.DictReader(file))[2]
    assert found.arms[2].gain == Gain(float(row["difference"]), float(row["low"]), float(row["high"]))
    assert found.arms[2].values == pytest.approx([0.88, 0.895, 0.865])
    assert found.reliability == (
        f"The probabilities of rsp@finetuned are off by {rsp['ECE']} points on average, those of real by {real['ECE']} "
        "(expected calibration error, 15 bins, mean over the seeds)."
    )


def test_the_unusual_reference_is_named(tmp_path: Path) -> None:
    arms = {"real": WEAK, "real+randaugment": WEAK, "combined": WEAK, "rsp+randaugment": STRONG}
    write_comparison(tmp_path, arms, CLASSES)
    assert [arm.over for arm in read_comparison(tmp_path).arms] == ["", "", "", "real+randaugment"]


def test_other_decisions(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"real": STRONG, "rsp": WEAK}, CLASSES)
    found = read_comparison(tmp_path)
    assert found.headline == "Do not use synthetic images" and found.sentence.startswith("even the best arm, rsp")
    assert [row[0] for row in found.losses] == ["dog"] and not found.helped
    write_comparison(tmp_path, {"real": WEAK[:1], "rsp": STRONG[:1]}, CLASSES)
    found = read_comparison(tmp_path)
    assert found.headline == "Not told" and found.sentence.startswith("1 seed cannot tell")
    # One seed has no interval, no p and no effect size.
    assert not {"95 % interval", "p", "effect size"} & set(found.headings) and "gain" in found.headings
    assert found.arms[1].gain == Gain(0.13, None, None)
    write_comparison(tmp_path, {"real": WEAK}, CLASSES)
    found = read_comparison(tmp_path)
    assert found.headline == "Not told" and found.facts == [] and found.best == ""


def test_older_runs_have_a_sentence_and_a_short_table(tmp_path: Path) -> None:
    write_results(tmp_path)
    found = read_comparison(tmp_path / "results")
    assert (found.decision, found.headline, found.sentence) == ("", "", SENTENCE)
    assert found.headings == ["accuracy", "gain", "p", "seeds"] and not (found.facts or found.gains or found.losses)
    assert found.reliability == found.reference == "" and read_confusions([tmp_path / "results"], found, WORDS) is None
    assert found.arms[2].gain == Gain(0.031, None, None)


def test_further_backbones_are_read_by_name(tmp_path: Path) -> None:
    assert read_further(tmp_path) == []
    use(tmp_path / "results")
    assert read_further(tmp_path) == []
    for name in ("wrn_28_2", "resnet18"):
        write_comparison(tmp_path / "results" / name, {"real": STRONG, "rsp": WEAK}, CLASSES)
    assert [(name, found.decision) for name, found in read_further(tmp_path)] == [
        ("resnet18", "do not use"),
        ("wrn_28_2", "do not use"),
    ]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    use(tmp_path)
    write_text(tmp_path / "table.csv", "arm,mean\nreal,0.5\n")
    with pytest.raises(DataError, match=r"table.csv cannot be used\nwhy: KeyError: 'reference'|'standard_deviation'"):
        read_comparison(tmp_path)
    write_json(tmp_path / "verdict.json", {"sentence": "x", "helped": True, "best_arm": None})
    with pytest.raises(DataError, match="verdict.json cannot be used\nwhy: KeyError: 'warnings'"):
        read_comparison(tmp_path)


def test_confusion_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    use(tmp_path)
    # A seed that was left out of the comparison since.
    stale = read_json(tmp_path / "real-seed0.json")
    stale["test"] |= {"accuracy": 0.1, "confusion": [[0, 100], [80, 20]]}
    write_json(tmp_path / "real-seed7.json", stale)
    found = read_confusions([tmp_path], read_comparison(tmp_path), WORDS)
    assert found is not None and found.classes == ["a cat", "a dog"] and found.pairs == []
    assert [matrix.arm for matrix in found.matrices] == ["real", "rsp@finetuned"]
    texts = [[[cell.text for cell in row] for row in matrix.rows] for matrix in found.matrices]
    assert texts == [[["80", "20"], ["30", "70"]], [["81", "19"], ["5", "95"]]]
    assert found.matrices[0].rows[0][0].share == pytest.approx(0.8)
    assert [cell.deep for cell in found.matrices[0].rows[0]] == [True, False]


def test_confusion_of_several_runs_is_added_up(tmp_path: Path) -> None:
    folders = [tmp_path / "seed-0", tmp_path / "seed-1"]
    for folder, matrix in zip(folders, ([[60, 40], [0, 100]], [[100, 0], [1, 99]]), strict=True):
        write_comparison(folder, {"real": [matrix], "rsp": [matrix]}, CLASSES)
    both = {name: [[[60, 40], [0, 100]], [[100, 0], [1, 99]]] for name in ("real", "rsp")}
    write_comparison(tmp_path / "all", both, CLASSES, units=[(0, 0), (1, 0)])
    found = read_confusions(folders, read_comparison(tmp_path / "all"), WORDS)
    assert found is not None
    assert [[cell.text for cell in row] for row in found.matrices[1].rows] == [["80", "20"], ["<1", "100"]]


def test_of_many_classes_the_most_confused_pairs_are_shown(tmp_path: Path) -> None:
    count = MOST_CLASSES + 1
    names = [f"class {number:02d}" for number in range(count)]
    plain = [[10 if row == column else 0 for column in range(count)] for row in range(count)]
    real, rsp = [list(row) for row in plain], [list(row) for row in plain]
    for true, taken, wrong in ((3, 5, 6), (5, 3, 1)):
        real[true][true] -= wrong
        real[true][taken] += wrong
    rsp[20][20], rsp[20][0] = 6, 4
    write_comparison(tmp_path, {"real": [real, real], "rsp": [rsp, rsp]}, names)
    found = read_confusions([tmp_path], read_comparison(tmp_path), {name: name for name in names})
    assert found is not None and found.matrices == [] and found.arms == ["real", "rsp"]
    assert found.pairs == [
        ("class 03", "class 05", ["60.0", "0.0"]),
        ("class 20", "class 00", ["0.0", "40.0"]),
        ("class 05", "class 03", ["10.0", "0.0"]),
    ]
    assert len(found.pairs) <= MOST_PAIRS


def test_no_matrix_where_the_classes_are_not_known(tmp_path: Path) -> None:
    use(tmp_path)
    assert read_confusions([tmp_path], read_comparison(tmp_path), {}) is None
    assert read_confusions([], read_comparison(tmp_path), WORDS) is None
