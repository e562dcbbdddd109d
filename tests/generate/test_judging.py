"""Filters on a run: fitted once to its real images, then asked about the pool, the same answer every time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc import extractors
from mvc.candidates import Pool, add_candidates, pool_of, put_in_place, write_image
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError
from mvc.generate.judging import (
    Judging,
    accepted_slots,
    judge_pool,
    judging_order,
    prepare_judging,
    slot_of,
    verdict_facts,
)
from mvc.generate.verdicts import Judged
from mvc.images import decode, to_uint8
from mvc.randomness import numpy_generator
from mvc.synthetic import Candidate
from tests.generate.toy_run import experiment, write_run
from tests.mvc.rows import candidate
from tests.tiny_parts import IMAGE_SIZE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 cats and 3 dogs for training, one of each for validation and for testing."""
    return write_run(tmp_path_factory.mktemp("run"), held_out=1, tuned=False)


def prepare(run: Path, **looks: Any) -> Judging:
    return prepare_judging(run, experiment(run, looks), load_index(run), IMAGE_SIZE)


def noise(number: int) -> np.ndarray[Any, Any]:
    return numpy_generator(0, "judged", number).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def real(run: Path, name: str) -> np.ndarray[Any, Any]:
    """A real image as a generator that learnt it by heart would draw it."""
    pixels: np.ndarray[Any, Any] = to_uint8(decode(run / "pictures" / name), IMAGE_SIZE)
    return pixels


def saved_as_jpeg(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return np.array(Image.open(buffer))


def put(pool: Pool, row: Candidate, pixels: np.ndarray[Any, Any] | None) -> Candidate:
    if pixels is not None:
        row["sha256"] = write_image(pool.accepted, row["file_name"], pixels)
    add_candidates(pool, [row])
    return row


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return pool_of(tmp_path)


def reasons_of(said: dict[str, Judged]) -> dict[str, list[str]]:
    return {name: verdict.reasons for name, verdict in said.items()}


def test_first_attempts_come_first_then_sources_then_indices() -> None:
    rows = [
        candidate("cat", 0, attempt=2),
        candidate("cat", 1, "import"),
        candidate("dog", 0, "pretrained"),
        candidate("dog", 1),
        candidate("cat", 1),
        candidate("dog", 0),
    ]
    names = [row["file_name"] for row in sorted(rows, key=judging_order)]
    assert names == [rows[number]["file_name"] for number in (5, 4, 3, 2, 1, 0)]
    assert slot_of(rows[0]) == ("finetuned", "cat", 0)


def test_planted_images_are_refused_for_what_they_are(run: Path, pool: Pool) -> None:
    rows = [
        put(pool, candidate("cat", 0), None),
        put(pool, candidate("cat", 1), np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 9, np.uint8)),
        put(pool, candidate("cat", 2), real(run, "cat/0.png")),
        put(pool, candidate("cat", 3), saved_as_jpeg(real(run, "dog/1.png"))),
        put(pool, candidate("dog", 0), real(run, "cat/4.png")),
        put(pool, candidate("dog", 1), real(run, "dog/4.png")),
        put(pool, candidate("dog", 2), noise(1)),
        put(pool, candidate("dog", 3), noise(1)),
        put(pool, candidate("cat", 4), noise(1)),
        put(pool, candidate("dog", 2, attempt=2), noise(2)),
        put(pool, candidate("dog", 3, attempt=2), noise(3)),
    ]
    said = judge_pool(prepare(run), pool, rows)
    refused = {
        "cat/finetuned-00000.png": ["not finite"],
        "cat/finetuned-00001.png": ["blank"],
        "cat/finetuned-00002.png": ["copy of a training image"],
        "cat/finetuned-00003.png": ["copy of a training image"],
        "dog/finetuned-00000.png": ["copy of a held-out image"],
        "dog/finetuned-00001.png": ["copy of a held-out image"],
        "dog/finetuned-00003.png": ["repeat"],
        "dog/finetuned-00002-2.png": ["surplus"],
    }
    accepted = {row["file_name"]: [] for row in rows if row["file_name"] not in refused}
    assert reasons_of(said) == {**refused, **accepted}
    scores = said["cat/finetuned-00003.png"].scores
    assert scores["nearest_train_id"] == "dog/1.png" and scores["nearest_train_bits"] <= 6
    assert accepted_slots(rows, said) == {
        ("finetuned", "dog", 2): "dog/finetuned-00002.png",
        ("finetuned", "cat", 4): "cat/finetuned-00004.png",
        ("finetuned", "dog", 3): "dog/finetuned-00003-2.png",
    }
    facts = verdict_facts(said["cat/finetuned-00001.png"])
    assert facts == {"scores": said["cat/finetuned-00001.png"].scores, "accepted": False, "reasons": ["blank"]}
    # Neither the order in which rows come nor where the files are matters.
    put_in_place(pool, {name: not verdict.reasons for name, verdict in said.items()})
    assert judge_pool(prepare(run), pool, rows[::-1]) == {name: said[name] for name in said}


def test_switches_turn_filters_off_but_not_those_against_leaks(run: Path, pool: Pool) -> None:
    rows = [
        put(pool, candidate("cat", 0), real(run, "cat/0.png")),
        put(pool, candidate("cat", 1), real(run, "cat/0.png")),
        put(pool, candidate("cat", 2), real(run, "cat/5.png")),
        put(pool, candidate("cat", 3), None),
    ]
    assert list(reasons_of(judge_pool(prepare(run, copies=False), pool, rows)).values()) == [
        [],
        ["repeat"],
        ["copy of a held-out image"],
        ["not finite"],
    ]
    said = judge_pool(prepare(run, copies=False, repeats=False), pool, rows)
    assert [verdict.reasons for verdict in said.values()][:2] == [[], []]


def test_what_is_said_of_a_candidate_depends_on_no_later_one(run: Path, pool: Pool) -> None:
    judging = prepare(run, copy_bits=64, copy_similarity=0.7)
    rows = [put(pool, candidate("cat", number), noise(number)) for number in range(12)]
    later = [put(pool, candidate("cat", number, attempt=2), noise(20 + number)) for number in range(12)]
    first = judge_pool(judging, pool, rows)
    assert 0 < sum(bool(verdict.reasons) for verdict in first.values()) < 12
    both = judge_pool(judging, pool, [*rows, *later])
    assert {name: both[name] for name in first} == first


def test_a_pool_of_nothing_finite_is_judged(run: Path, pool: Pool) -> None:
    rows = [put(pool, candidate(name, 0), None) for name in ("cat", "dog")]
    assert list(reasons_of(judge_pool(prepare(run), pool, rows)).values()) == [["not finite"]] * 2
    assert judge_pool(prepare(run), pool, []) == {}


def test_an_image_that_is_gone_is_named(run: Path, pool: Pool) -> None:
    rows = [put(pool, candidate("cat", 0), noise(0))]
    (pool.accepted / rows[0]["file_name"]).unlink()
    with pytest.raises(DataError, match="cat/finetuned-00000.png is missing"):
        judge_pool(prepare(run), pool, rows)


def test_networks_are_loaded_once_and_only_for_images_not_seen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loads = write_run(tmp_path / "run", held_out=1, tuned=False), []
    load_folder = extractors._load_folder

    def counted(*arguments: Any) -> Any:
        loads.append(arguments)
        return load_folder(*arguments)

    monkeypatch.setattr(extractors, "_load_folder", counted)
    judging = prepare(run)
    assert len(loads) == 1 and not judging.looker.loaded
    pool = pool_of(run)
    rows = [put(pool, candidate("cat", number), noise(number)) for number in range(3)]
    judge_pool(judging, pool, rows)
    assert len(loads) == 2 and not judging.looker.loaded
    # The second time nothing is looked at.
    again = prepare(run)
    judge_pool(again, pool, rows)
    judging.false_rejects()
    assert len(loads) == 2 and again.fitted.thresholds == judging.fitted.thresholds
    # Class agreement by the same CLIP reads the texts, with one network for both.
    prepare(run, clip="tiny")
    assert len(loads) == 3


def test_class_agreement_by_clip_and_by_classifier_have_their_scores(run: Path, pool: Pool) -> None:
    row = candidate("cat", 0)
    row["source_image"], row["caption_base"], row["caption_partners"] = "cat/0.png", "cat/0.png", []
    put(pool, row, noise(5))
    (verdict,) = judge_pool(prepare(run, clip="tiny", clip_threshold=-2.0), pool, [row]).values()
    assert verdict.reasons == [] and -2 <= verdict.scores["clip_margin"] <= 2
    (verdict,) = judge_pool(prepare(run, clip="tiny", clip_threshold=2.0), pool, [row]).values()
    assert verdict.reasons == ["other class (clip)"]
    (verdict,) = judge_pool(prepare(run, classifier=True, classifier_threshold=1.0), pool, [row]).values()
    assert verdict.reasons == ["other class (classifier)"] and 0 < verdict.scores["class_probability"] < 1
    by_one = verdict.scores["class_probability"]
    # Without parents every classifier has a say, so the probability is another one.
    row["source_image"] = row["caption_base"] = None
    (verdict,) = judge_pool(prepare(run, classifier=True), pool, [row]).values()
    assert verdict.scores["class_probability"] != by_one


def test_false_rejects_are_shares_of_real_validation_images(run: Path, tmp_path: Path) -> None:
    shares = prepare(run, clip="tiny", classifier=True).false_rejects()
    assert set(shares) >= {"blank", "copy of a training image", "other class (clip)", "other class (classifier)", "any"}
    assert all(0 <= share <= 1 for share in shares.values()) and shares["blank"] == 0
    assert prepare(write_run(tmp_path, tuned=False)).false_rejects() == {}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"cat": ["red"], "dog": ["wet", "old"]}, "class cat has one training image"),
        ({"cat": ["red", "big"], "dog": []}, "there is one class"),
    ],
)
def test_where_no_classifier_can_be_learnt_the_others_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: dict[str, list[str]], why: str
) -> None:
    run = write_run(tmp_path, words=words, held_out=1, tuned=False)
    judging = prepare(run, classifier=True)
    assert judging.fitted.classifiers is None and judging.fitted.thresholds["class_probability"] is None
    assert f"filter: {why}, so no classifier judges" in capsys.readouterr().err
    pool = pool_of(run)
    rows = [put(pool, candidate("cat", 0), noise(0)), put(pool, candidate("cat", 1), noise(0))]
    assert [verdict.reasons for verdict in judge_pool(judging, pool, rows).values()] == [[], ["repeat"]]


def test_unknown_extractors_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="filter.extractor: 'nothing' is no extractor"):
        prepare(run, extractor="nothing")
    with pytest.raises(ConfigError, match="filter.clip: 'nothing' is no extractor"):
        prepare(run, clip="nothing")
