"""The filter stage on a pool of known images: what is published, refused, counted, told, and done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from mvc.candidates import pool_of
from mvc.config import Experiment
from mvc.errors import DataError
from mvc.generate import filter_stage
from mvc.generate.filter_stage import run_filter
from mvc.generate.verdicts import Judged
from mvc.storage import read_json, read_json_lines, sha256_file
from mvc.synthetic import read_rejected, read_synthetic
from tests.generate.made_up_set import CLASSES, SIDE, Pixels, candidate, fill_pool, pixels_of, write_real

WANTED = {"finetuned": {"big_dog": 3, "cat": 5}, "pretrained": {"cat": 2}}


def changed(pixels: Pixels) -> Pixels:
    """Two levels up and down, which no eye sees."""
    noise = np.random.default_rng(0).integers(-2, 3, pixels.shape)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)


def pictures() -> dict[str, Any]:
    """The pool by file name: row and picture."""
    made: list[tuple[Any, Pixels | None]] = [
        (candidate("big_dog", index), pixels_of("dog", index)) for index in range(3)
    ]
    made += [
        (candidate("cat", 0), pixels_of("cat", 0)),
        (candidate("cat", 1), np.zeros((SIDE, SIDE, 3), dtype=np.uint8)),
        (candidate("cat", 1, attempt=2), pixels_of("cat", 1)),
        (candidate("cat", 2), None),
        (candidate("cat", 2, attempt=2), changed(pixels_of("real train cat", 3))),
        (candidate("cat", 3), changed(pixels_of("real test big_dog", 0))),
        (candidate("cat", 3, attempt=2), pixels_of("cat", 3)),
        (candidate("cat", 3, attempt=3), pixels_of("cat", 33)),
        (candidate("cat", 4), pixels_of("cat", 4)),
        (candidate("cat", 0, "pretrained"), pixels_of("cat", 100)),
        (candidate("cat", 1, "pretrained"), changed(pixels_of("cat", 100))),
    ]
    return {row["file_name"]: (row, pixels) for row, pixels in made}


REFUSED = {
    "cat/finetuned-00001.png": "blank",
    "cat/finetuned-00002.png": "not finite",
    "cat/finetuned-00002-2.png": "copy of a training image",
    "cat/finetuned-00003.png": "copy of a held-out image",
    "cat/finetuned-00003-3.png": "surplus",
    "cat/pretrained-00001.png": "repeat",
}


def experiment(**looks: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "run": {"device": "cpu"},
            "data": {"path": "pets", "licence": "CC BY 4.0"},
            "model": {"base": "owner/model"},
            "filter": {"classifier": False, **looks},
        }
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pool that nothing has judged."""
    run = tmp_path_factory.mktemp("drawn")
    write_real(run)
    fill_pool(run, pictures(), WANTED)
    return run


@pytest.fixture(scope="module")
def published(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its set."""
    run = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("published"), dirs_exist_ok=True))
    run_filter(run, experiment())
    return run


@pytest.fixture
def run(drawn: Path, published: Path, tmp_path: Path) -> Path:
    """A pool that nothing has judged, but that was looked at before, which takes the time."""
    copy = Path(shutil.copytree(drawn, tmp_path / "run"))
    shutil.copytree(published / "cache", copy / "cache")
    return copy


def contents(run: Path) -> dict[str, bytes]:
    folder = run / "synthetic"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_image_is_accounted_for(published: Path) -> None:
    run = published
    names = set(pictures())
    accepted, rejected = read_synthetic(run), read_rejected(run)
    assert {row["file_name"]: row["reasons"][0] for row in rejected} == REFUSED
    assert {image.row["file_name"] for image in accepted} == names - set(REFUSED)
    pool = pool_of(run)
    for image in accepted:
        assert sha256_file(image.path) == image.row["sha256"] and image.row["accepted"]
        assert image.row["scores"]["nearest_train_id"].startswith("train/")
    assert "reasons" not in read_json_lines(pool.accepted / "metadata.jsonl")[0]
    for row in rejected:
        assert not row["accepted"] and (pool.rejected / row["file_name"]).is_file() == (row["sha256"] is not None)
    assert not list(pool.rejected.glob("big_dog"))


def test_the_summary_counts_wanted_as_accepted_and_lacking(published: Path) -> None:
    run = published
    summary = read_json(run / "synthetic" / "summary.json")
    assert {key: summary[key] for key in ("wanted", "drawn", "accepted", "shortfall", "rejected")} == {
        "wanted": 10,
        "drawn": 14,
        "accepted": 8,
        "shortfall": {"cat": 2},
        "rejected": dict.fromkeys(REFUSED.values(), 1),
    }
    assert summary["by_class"]["big_dog"] == {"wanted": 3, "drawn": 3, "accepted": 3, "rejected": {}}
    assert summary["by_class"]["cat"]["accepted"] == 5
    assert summary["by_source"]["pretrained"] == {"wanted": 2, "drawn": 2, "accepted": 1, "rejected": {"repeat": 1}}
    assert summary["held_out"] == 4 and summary["extractor"] == "the tiny CLIP" and summary["clip"] is None
    assert summary["thresholds"]["copy_bits"] == 4
    # None of the real validation images is like another one, and none is blank.
    assert summary["false_rejects"] == {"blank": 0.0, "copy of a training image": 0.0, "repeat": 0.0, "any": 0.0}


def test_the_card_lies_beside_the_set(published: Path) -> None:
    run = published
    card = DatasetCard.load(run / "synthetic" / "README.md")
    assert card.data.pretty_name == "Synthetic images for pets" and "- real images: CC BY 4.0" in card.text
    assert "10 images were wanted, 14 drawn, 8 accepted. Lacking: 2;" in card.text
    assert "| copy of a training image | 1 | 0.0% |" in card.text and "base model: owner/model\n" in card.text


def test_what_is_lacking_is_told_class_by_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_filter(run, experiment())
    text = " ".join(capsys.readouterr().err.split())
    assert "filter: 8 of 10 images accepted, 14 drawn, 5 refused (1 blank, 1 copy of a held-out image," in text
    assert "Lacking after all attempts; nothing was put in their place" in text
    assert "│ cat │ 7 │ 5 │ 2 │ 1 blank, 1 copy" in text and "big_dog" not in text


def test_class_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"wanted": 2, "drawn": 1, "accepted": 1, "rejected": {}}
    summary = {**own, "shortfall": {"[red]x[/red]": 1}, "by_class": {"[red]x[/red]": own}}
    filter_stage._tell(summary)
    assert "[red]x[/red]" in capsys.readouterr().err


def test_it_is_the_same_again_and_after_other_thresholds(run: Path, published: Path) -> None:
    run_filter(run, experiment(copies=False, repeats=False))
    names = {image.row["file_name"] for image in read_synthetic(run)}
    # What was refused is accepted now; copies of held-out images never are.
    assert "cat/finetuned-00002-2.png" in names and "cat/pretrained-00001.png" in names
    assert "cat/finetuned-00003.png" not in names
    assert read_json(run / "synthetic" / "summary.json")["shortfall"] == {}
    run_filter(run, experiment())
    assert contents(run) == contents(published)
    run_filter(run, experiment())
    assert contents(run) == contents(published)


@pytest.mark.parametrize("step", ["put_in_place", "write_rows", "write_json", "write_text"])
def test_a_kill_at_any_step_leaves_no_set_and_loses_nothing(
    run: Path, published: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run_filter(run, experiment(repeats=False))  # an older set that is to be replaced
    function: Callable[..., None] = getattr(filter_stage, step)

    def kill(*arguments: Any) -> None:
        function(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filter_stage, step, kill)
        with pytest.raises(KeyboardInterrupt):
            run_filter(run, experiment())
    with pytest.raises(DataError, match="no finished synthetic set"):
        read_synthetic(run)
    run_filter(run, experiment())
    assert contents(run) == contents(published)


def test_a_pool_without_one_good_image(run: Path) -> None:
    black = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    shutil.rmtree(run / "synthetic")
    fill_pool(run, {str(index): (candidate("cat", index), black) for index in range(2)}, {"finetuned": {"cat": 2}})
    with pytest.raises(DataError, match="refuse all 2 images") as caught:
        run_filter(run, experiment())
    assert "why: 2 blank" in str(caught.value) and not (run / "synthetic" / "train" / "metadata.jsonl").exists()


def test_pools_that_are_not_whole(run: Path) -> None:
    run_filter(run, experiment())
    first, second = (run / "synthetic" / "train" / "big_dog" / f"finetuned-0000{number}.png" for number in range(2))
    first.unlink()
    Image.fromarray(pixels_of("another")).save(second)
    with pytest.raises(DataError, match=r"finetuned-00000\.png is missing, and 1 more") as caught:
        run_filter(run, experiment())
    assert "run `mvc generate`: only what is missing is made" in str(caught.value)
    # The pool is open again, without the two, so that generation draws them.
    rows = read_json_lines(run / "synthetic" / "candidates.partial.jsonl")
    assert {row["file_name"] for row in rows} == set(pictures()) - {f"big_dog/{first.name}", f"big_dog/{second.name}"}
    with pytest.raises(DataError, match="holds no finished pool"):
        run_filter(run, experiment())
    with pytest.raises(DataError, match="holds no finished pool"):
        run_filter(run / "elsewhere", experiment())


def test_counts_of_classes_that_nothing_was_drawn_for() -> None:
    row = candidate("cat", 0)
    said = {row["file_name"]: Judged({}, [])}
    wanted = {"finetuned": {name: 2 for name in CLASSES}, "import": {"cat": 1}}
    counts = filter_stage.count_pool({row["file_name"]: row}, said, wanted)
    assert counts["shortfall"] == {"big_dog": 2, "cat": 2} and counts["wanted"] == 5 and counts["accepted"] == 1
    assert counts["by_source"]["import"] == {"wanted": 1, "drawn": 0, "accepted": 0, "rejected": {}}
