"""Making an image again from its row: the same bytes for any row, and plain words where it is not the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mvc import models
from mvc.candidates import close_pool, find_image, pool_of, read_candidates
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError, EnvironmentFault, NumericError
from mvc.generate.regenerate import Outcome, find_row, regenerate
from mvc.generate.stage import run_generate
from mvc.images import decode, to_uint8
from mvc.storage import exclusive, sha256_file
from mvc.synthetic import Candidate
from tests.generate.toy_run import experiment, write_run
from tests.tiny_parts import IMAGE_SIZE, write_pipeline

SHARES = {"finetuned": 0.4, "pretrained": 0.2, "sdedit": 0.1, "instruct_pix2pix": 0.2, "import": 0.1}
# A CLIP that sees another class about half of the time: these are drawn up to three times.
LOOKS = {"attempts": 3, "clip": "tiny", "clip_threshold": 0.0}


def all_sources(run: Path) -> Experiment:
    """Every source, scales drawn from ranges, batches of 4."""
    return experiment(
        run,
        LOOKS,
        sources=SHARES,
        per_real=4.0,
        batch_size=4,
        preview=0,
        guidance_scale=[2.0, 4.0],
        image_guidance_scale=[1.0, 2.0],
        guidance_interval=[0.1, 1.0],
        scheduler="ddim",
        eta=0.5,
        sdedit_strength=0.7,
        num_inference_steps=3,
        edit_model=str(run / "edit"),
        import_path=str(run / "foreign"),
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pool of all sources."""
    run = write_run(tmp_path_factory.mktemp("drawn"))
    write_pipeline(run / "edit", 3, in_channels=8)
    for name in ("cat", "dog"):
        shutil.copytree(run / "pictures" / name, run / "foreign" / name)
    run_generate(run, all_sources(run))
    return run


def name_of(row: Candidate) -> str:
    return f"{row['class_name']}/{row['id']}"


def first(run: Path, source: str) -> Candidate:
    rows = sorted(read_candidates(pool_of(run)).values(), key=lambda row: row["file_name"])
    return next(row for row in rows if row["source"] == source)


def test_twenty_rows_have_the_same_bytes(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_candidates(pool_of(drawn))
    chosen = random.Random(0).sample(sorted(rows), 20)
    # Of every source, of later attempts, and of a batch that had fewer images than the others.
    assert {rows[name]["source"] for name in chosen} == set(SHARES)
    assert any(rows[name]["attempt"] > 1 for name in chosen)
    assert any(rows[name]["batch_size"] not in (1, 4) for name in chosen if rows[name]["source"] != "import")
    files = {path: path.stat().st_mtime_ns for path in drawn.rglob("*") if path.is_file()}
    # What the row says counts, whatever the experiment says by now.
    other = experiment(drawn, num_inference_steps=9, guidance="paper", scheduler="euler", batch_size=2, eta=0.0)
    generate = other.generate.model_copy(
        update={"edit_model": str(drawn / "edit"), "import_path": str(drawn / "foreign"), "edit_instruction": "no"}
    )
    other = other.model_copy(
        update={
            "run": other.run.model_copy(update={"seed": 1}),
            "data": other.data.model_copy(update={"image_size": 64}),
            "generate": generate,
        }
    )
    for name in chosen:
        outcome = regenerate(drawn, other if rows[name]["index"] % 2 else all_sources(drawn), name)
        path = find_image(pool_of(drawn), name)
        assert outcome == Outcome(name.removesuffix(".png"), path, True, True, IMAGE_SIZE**2, 0, 0)
        assert outcome.exit_code == 0 and outcome.describe().endswith(f": the same bytes as {path}")
    for path, time in files.items():
        assert path.stat().st_mtime_ns == time or "cache" in path.parts, path


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_has_the_same_bytes(tmp_path: Path, precision: str) -> None:
    run = write_run(tmp_path)
    chosen = experiment(run, {"attempts": 1}, mixed_precision=precision, preview=0, per_real=1.0)
    run_generate(run, chosen)
    for row in list(read_candidates(pool_of(run)).values())[::3]:
        outcome = regenerate(run, experiment(run), name_of(row))
        assert outcome.as_recorded and outcome.file_as_recorded and outcome.differing == 0


@pytest.fixture
def run(drawn: Path, copy_of: Callable[[Path], Path]) -> Path:
    """A copy of the run, whose experiment names places of the first one."""
    return copy_of(drawn)


def test_by_id_or_by_class_and_id(run: Path) -> None:
    rows = read_candidates(pool_of(run))
    alone = next(row for row in rows.values() if sum(other["id"] == row["id"] for other in rows.values()) == 1)
    for text in (alone["id"], name_of(alone), alone["file_name"]):
        assert find_row(rows, text, run) == alone
    with pytest.raises(ConfigError, match="2 classes have an image finetuned-00000\ndo: give one: \n  cat/fin"):
        find_row(rows, "finetuned-00000", run)
    with pytest.raises(ConfigError, match=r"has no image cat/nothing\nwhy: images are called like cat/finetuned-00000"):
        find_row(rows, "cat/nothing", run)
    with pytest.raises(DataError, match="has no synthetic images"):
        regenerate(run / "elsewhere", all_sources(run), "cat/finetuned-00000")


def test_the_new_picture_is_written_where_asked(run: Path, tmp_path: Path) -> None:
    row, out = first(run, "finetuned"), tmp_path / "new" / "again.png"
    regenerate(run, all_sources(run), name_of(row), out)
    assert sha256_file(out) == row["sha256"]
    with pytest.raises(ConfigError, match=r"again\.png exists"):
        regenerate(run, all_sources(run), name_of(row), out)
    with pytest.raises(ConfigError, match=r"again\.jpg does not end in \.png"):
        regenerate(run, all_sources(run), name_of(row), out.with_suffix(".jpg"))


def changed_by(run: Path, row: Candidate, levels: int) -> Path:
    """Changes three pixels of an image's file."""
    path = find_image(pool_of(run), row["file_name"])
    assert path is not None
    pixels = np.array(decode(path)).astype(int)
    pixels[0, :3, 1] += np.where(pixels[0, :3, 1] < 128, levels, -levels)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_a_file_that_was_changed(run: Path) -> None:
    row = first(run, "pretrained")
    path = changed_by(run, row, 40)
    outcome = regenerate(run, all_sources(run), name_of(row))
    assert outcome == Outcome(name_of(row), path, True, False, IMAGE_SIZE**2, 3, 40) and outcome.exit_code == 5
    assert outcome.describe() == (
        f"{name_of(row)}: 3 of 1024 pixels differ from {path}, by 40 of 255 at the most; "
        "that file is not what its row names, the new picture is"
    )


def test_rounding_is_told_from_a_difference(run: Path) -> None:
    """As if the set had been made on another machine: file and row agree, the new picture is a little off."""
    pool, row = pool_of(run), first(run, "finetuned")
    for code in (0, 5):  # one level off, then two
        path = changed_by(run, row, 1)
        rows = read_candidates(pool)
        rows[row["file_name"]]["sha256"] = sha256_file(path)
        close_pool(pool, rows)
        outcome = regenerate(run, all_sources(run), name_of(row))
        assert not outcome.as_recorded and outcome.file_as_recorded and outcome.differing == 3
        assert outcome.exit_code == code and ("(rounding: " in outcome.describe()) == (code == 0)


def test_same_pixels_in_other_bytes(run: Path) -> None:
    row = first(run, "finetuned")
    path = find_image(pool_of(run), row["file_name"])
    assert path is not None
    with Image.open(path) as image:
        pixels = np.array(image)
    Image.fromarray(pixels).save(path, compress_level=0)
    outcome = regenerate(run, all_sources(run), name_of(row))
    assert outcome.exit_code == 0 and f"the same pixels as {path}; that file is not what" in outcome.describe()


def test_a_file_of_another_size_or_none(run: Path) -> None:
    row = first(run, "finetuned")
    path = find_image(pool_of(run), row["file_name"])
    assert path is not None
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)
    outcome = regenerate(run, all_sources(run), name_of(row))
    assert (outcome.differing, outcome.largest, outcome.exit_code) == (64, 255, 5)
    path.unlink()
    outcome = regenerate(run, all_sources(run), name_of(row))
    assert outcome == Outcome(name_of(row), None, True, None) and outcome.exit_code == 0
    assert outcome.describe() == f"{name_of(row)}: as its row says; it has no file"
    assert Outcome("x", None, False, None).exit_code == 5


def test_another_model_is_said_before_anything_is_loaded(run: Path) -> None:
    weights = run / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights)
    with pytest.raises(
        DataError, match="was made by another model than the run has now\nwhy: its row says [0-9a-f]{12}"
    ):
        regenerate(run, all_sources(run), name_of(first(run, "finetuned")))
    shutil.rmtree(run / "model")
    with pytest.raises(DataError, match="holds no fine-tuned model"):
        regenerate(run, all_sources(run), name_of(first(run, "finetuned")))
    assert regenerate(run, all_sources(run), name_of(first(run, "sdedit"))).as_recorded


def test_an_imported_image_is_read_again(run: Path) -> None:
    row, own = first(run, "import"), all_sources(run)
    assert row["imported_file"] is not None
    source = run / "foreign" / row["imported_file"]
    path = find_image(pool_of(run), row["file_name"])
    assert path is not None
    np.testing.assert_array_equal(np.array(decode(path)), to_uint8(decode(source), IMAGE_SIZE))
    with pytest.raises(ConfigError, match="was imported\ndo: set generate.import_path"):
        regenerate(run, experiment(run), name_of(row))
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(source)
    with pytest.raises(DataError, match="has changed since"):
        regenerate(run, own, name_of(row))
    source.unlink()
    with pytest.raises(DataError, match="is missing"):
        regenerate(run, own, name_of(row))


def test_one_user_of_a_run_at_a_time(run: Path) -> None:
    with exclusive(run), pytest.raises(EnvironmentFault, match="is in use by"):
        regenerate(run, all_sources(run), name_of(first(run, "finetuned")))


def test_images_that_are_not_finite(run: Path) -> None:
    """A VAE whose last layer overflows: rows and files of before, then rows that say so."""
    base, row = run / "base" / "vae" / "diffusion_pytorch_model.safetensors", first(run, "pretrained")
    tensors = load_file(base)
    tensors["decoder.conv_out.weight"] = tensors["decoder.conv_out.weight"] * 0 + 3e38
    save_file(tensors, base)
    own, pool = experiment(run), pool_of(run)
    rows = read_candidates(pool)
    with pytest.raises(DataError, match="was made by another model"):
        regenerate(run, own, name_of(row))
    rows[row["file_name"]]["model"] = models.model_identity(run / "base")
    close_pool(pool, rows)
    with pytest.raises(NumericError, match="is not finite when it is made again"):
        regenerate(run, own, name_of(row))
    path = find_image(pool, row["file_name"])
    assert path is not None
    path.unlink()
    rows[row["file_name"]]["sha256"] = None
    close_pool(pool, rows)
    assert regenerate(run, own, name_of(row)) == Outcome(name_of(row), None, True, None)


def test_what_an_image_was_made_from_is_gone(run: Path) -> None:
    row = first(run, "finetuned")
    rows: dict[str, Any] = dict(read_candidates(pool_of(run)))
    rows[row["file_name"]]["source_image"] = "cat/99.png"
    close_pool(pool_of(run), rows)
    with pytest.raises(DataError, match=r"was made from cat/99\.png, which the run no longer has"):
        regenerate(run, all_sources(run), name_of(row))
