"""The source back_captioning: drawn as diffusers draws its texts, from any model, and an ordinary set of rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from mvc.candidates import CANDIDATES, pool_of, read_candidates
from mvc.config import Experiment
from mvc.config_augment import BackCaptioningSection
from mvc.denoise import make_scheduler
from mvc.errors import ConfigError, DataError
from mvc.generate.filter_stage import run_filter
from mvc.generate.regenerate import regenerate
from mvc.generate.stage import run_generate
from mvc.randomness import generator
from mvc.stages import BACK_CAPTIONS
from mvc.storage import read_json, read_json_lines, write_json_lines
from mvc.synthetic import METADATA, read_synthetic, synthetic_folder
from tests.generate.toy_run import WORDS, assert_same_picture, experiment, picture
from tests.other_pipelines import SIDE, write_sd3
from tests.tiny_parts import IMAGE_SIZE, write_xl_pipeline

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def write_texts(run: Path) -> None:
    """Two texts of each training image."""
    rows = [
        {
            "id": f"{name}/{number}.png",
            "branch": [0, place],
            "text": f"This is an image of {name}. {how} {word} {name}.",
        }
        for name, own in WORDS.items()
        for number, word in enumerate(own)
        for place, how in enumerate(("a", "another very"))
    ]
    write_json_lines(run / BACK_CAPTIONS, rows)


def settings(run: Path, back: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    given = {"sources": {"back_captioning": 1.0}, "preview": 0, "pretrained_guidance_scale": 3.0, **changes}
    section = BackCaptioningSection.model_validate(back or {})
    return experiment(run, **given).model_copy(update={"back_captioning": section})


@pytest.fixture(scope="module")
def captioned(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with texts and a set of two images of each training image, fine-tuned on nothing."""
    run = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("captioned") / "run"))
    write_texts(run)
    run_generate(run, settings(run))
    run_filter(run, settings(run))
    return run


def test_rows_say_what_an_image_was_drawn_from(captioned: Path) -> None:
    images = read_synthetic(captioned)
    assert len(images) == 14 and {image.source for image in images} == {"back_captioning"}
    said = {(row["id"], tuple(row["branch"])): row["text"] for row in read_json_lines(captioned / BACK_CAPTIONS)}
    for image in images:
        row = image.row
        assert row["text"] == said[str(row["source_image"]), tuple(row["branch"] or [])]
        assert row["source_image"] == f"{row['class_name']}/{row['index'] % len(WORDS[row['class_name']])}.png"
        assert (row["caption_base"], row["plan"], row["guidance"], row["guidance_scale"]) == (None, None, "text", 3.0)
    drawn = [(image.row["source_image"], image.row["text"], image.row["index"]) for image in images]
    assert len(set(drawn)) == 14


def test_images_are_those_that_diffusers_draws_of_the_same_texts(captioned: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(captioned / "base", safety_checker=None)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for image in read_synthetic(captioned)[::4]:
        row = image.row
        noise = generator(5, f"noise back_captioning {row['class_name']}", row["index"], row["attempt"])
        made = pipeline(
            prompt=row["text"], num_inference_steps=2, guidance_scale=3.0, generator=noise, output_type="np"
        ).images[0]
        assert_same_picture(image.path, made)


def test_more_images_leave_those_that_are_there_and_too_many_are_refused(
    captioned: Path, copy_of: Callable[..., Path]
) -> None:
    run = copy_of(captioned)
    before = read_candidates(pool_of(run))
    run_generate(run, settings(run, per_real=4.0))
    after = read_candidates(pool_of(run))
    assert len(after) == 28 and all(after[name] == row for name, row in before.items())
    with pytest.raises(ConfigError, match="20 images of back_captioning are wanted of class cat"):
        run_generate(run, settings(run, per_real=5.0))
    with pytest.raises(ConfigError, match="images give 2 each"):
        run_generate(run, settings(run, {"imaginations": 1}, per_real=3.0))


def test_an_image_is_made_again_from_its_row_alone(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    rows = read_json_lines(run / BACK_CAPTIONS)
    write_json_lines(run / BACK_CAPTIONS, [{**row, "text": "something else"} for row in rows])
    for name in ("cat/back_captioning-00005", "dog/back_captioning-00000"):
        outcome = regenerate(run, settings(run), name, None)
        assert outcome.exit_code == 0 and outcome.as_recorded


def test_a_changed_text_redraws_its_images_alone(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    before = read_candidates(pool_of(run))
    rows = read_json_lines(run / BACK_CAPTIONS)
    changed = {**rows[0], "text": "This is an image of cat. it sleeps."}
    write_json_lines(run / BACK_CAPTIONS, [changed, *rows[1:]])
    run_generate(run, settings(run))
    after = read_candidates(pool_of(run))
    differ = [name for name in after if after[name]["sha256"] != before[name]["sha256"]]
    used = [name for name, row in before.items() if row["text"] == rows[0]["text"]]
    assert differ == used and (not used or all(after[name]["text"] == changed["text"] for name in used))


def test_it_mixes_with_other_sources_and_the_card_names_it(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    both = settings(run, sources={"pretrained": 0.5, "back_captioning": 0.5})
    run_generate(run, both)
    run_filter(run, both)
    assert {image.source for image in read_synthetic(run)} == {"pretrained", "back_captioning"}
    assert "given a rewritten caption of a real image" in (run / "synthetic" / "README.md").read_text()
    lines = (synthetic_folder(run) / METADATA).read_text().splitlines()
    own = [json.loads(line) for line in lines]
    assert all(("text" in row) == (row["source"] == "back_captioning") for row in own)
    assert read_json(run / "synthetic" / "wanted.json")["back_captioning"] == {"cat": 4, "dog": 3}


def test_an_sdxl_draws_with_its_own_text_encoders(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    folder = write_xl_pipeline(run / "xl")
    run_generate(run, settings(run, {"model": str(folder)}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    row = read_candidates(pool_of(run))["cat/back_captioning-00002.png"]
    noise = generator(5, "noise back_captioning cat", 2, 1)
    made = pipeline(
        prompt=row["text"], num_inference_steps=2, guidance_scale=3.0, generator=noise, output_type="np"
    ).images[0]
    assert_same_picture(synthetic_folder(run) / row["file_name"], made)


def test_any_other_model_of_diffusers_draws_by_its_own_pipeline(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    folder = write_sd3(run / "sd3")
    own = settings(run, {"model": str(folder)})
    run_generate(run, own)
    row = read_candidates(pool_of(run))["dog/back_captioning-00001.png"]
    assert (row["scheduler"], row["eta"], row["guidance_interval"]) == (None, None, None)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=row["text"],
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=generator(5, "noise back_captioning dog", 1, 1),
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        output_type="np",
    ).images[0]
    path = synthetic_folder(run) / row["file_name"]
    assert_same_picture(path, made)
    assert picture(path).shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and IMAGE_SIZE != SIDE
    assert regenerate(run, own, "dog/back_captioning-00001", None).exit_code == 0
    ranged = settings(run, {"model": str(folder)}, pretrained_guidance_scale=[2.0, 4.0])
    run_generate(run, ranged)
    scales = {one["guidance_scale"] for one in read_candidates(pool_of(run)).values()}
    assert len(scales) == 14 and all(2.0 <= (scale or 0) <= 4.0 for scale in scales)


@pytest.mark.slow
def test_several_processes_draw_the_same_images(captioned: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(captioned)
    before = read_candidates(pool_of(run))
    shutil.rmtree(run / "synthetic")
    run_generate(run, settings(run, num_processes=2))
    after = read_candidates(pool_of(run))
    assert {name: row["sha256"] for name, row in after.items()} == {name: row["sha256"] for name, row in before.items()}
    assert after == before


def test_texts_have_to_be_there(prepared: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(prepared)
    with pytest.raises(DataError, match="back_captions.jsonl is missing"):
        run_generate(run, settings(run))


def test_rows_of_earlier_versions_are_read_and_stay_as_they_are(finished: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(finished)
    lines = read_json_lines(run / "synthetic" / CANDIDATES)
    assert not any({"text", "branch"} & set(line) for line in lines)  # as versions before wrote them
    rows = read_candidates(pool_of(run))
    assert all(row["text"] is None and row["branch"] is None for row in rows.values())
