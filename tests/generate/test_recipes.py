"""Jobs become rows and rows jobs again, and a row of each source says what diffusers needs to make the image."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

from mvc.denoise import make_scheduler
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.generate.filter_stage import run_filter
from mvc.generate.inputs import jobs_for, read_inputs, wanted_slots
from mvc.generate.recipes import job_of, model_folder, recipes_of
from mvc.generate.stage import run_generate
from mvc.images import decode, to_tensor
from mvc.models import model_identity
from mvc.randomness import generator
from mvc.storage import read_json, read_json_lines, write_json
from mvc.synthetic import read_synthetic
from tests.generate.toy_run import WORDS, assert_same_picture, contents, experiment, picture, real_picture, write_run
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, tiny_xl_unet, write_pipeline, write_xl_pipeline

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a set of all five sources, and its settings of section generate."""
    from PIL import Image

    run = write_run(tmp_path_factory.mktemp("mixed"))
    write_pipeline(run / "edit", seed=3, in_channels=8)
    for label, name in enumerate(WORDS):
        for number in range(3):
            path = run / "theirs" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(real_picture(label + 7, number)).save(path)
    settings = {
        "sources": {"finetuned": 0.2, "pretrained": 0.2, "sdedit": 0.2, "instruct_pix2pix": 0.2, "import": 0.2},
        "per_class": 10,
        "num_inference_steps": 5,
        "sdedit_strength": 0.6,
        "pretrained_guidance_scale": (4.0, 8.0),
        "image_guidance_scale": (1.1, 1.9),
        "edit_model": str(run / "edit"),
        "edit_instruction": "turn it into another {class_name}, please",
        "import_path": str(run / "theirs"),
    }
    run_generate(run, experiment(run, **settings))
    run_filter(run, experiment(run, **settings))
    return run, settings


def rows_of(run: Path, source: str) -> list[Any]:
    return [image for image in read_synthetic(run) if image.source == source]


def noise_of(row: Any) -> torch.Generator:
    return generator(row["seed"], f"noise {row['source']} {row['class_name']}", row["index"], row["attempt"])


def latents_of(pipeline: Any, run: Path, row: Any) -> torch.Tensor:
    """Mode of the posterior of a row's real image, unscaled."""
    real = to_tensor(decode(run / "pictures" / row["source_image"]), IMAGE_SIZE)
    with torch.no_grad():
        mode: torch.Tensor = pipeline.vae.encode(real[None]).latent_dist.mode()
    return mode


def test_shares_are_kept_in_every_class(mixed: tuple[Path, dict[str, Any]]) -> None:
    run, settings = mixed
    counts = Counter((image.class_name, image.source) for image in read_synthetic(run))
    assert counts == {(name, source): 2 for name in WORDS for source in settings["sources"]}
    by_source = read_json(run / "synthetic" / "summary.json")["by_source"]
    assert {source: own["accepted"] for source, own in by_source.items()} == dict.fromkeys(settings["sources"], 4)


def test_a_row_leads_back_to_its_job(mixed: tuple[Path, dict[str, Any]]) -> None:
    run, settings = mixed
    inputs = read_inputs(run, experiment(run, **settings))
    for attempt in (1, 2):
        jobs = jobs_for(inputs, wanted_slots(inputs), attempt)
        recipes = recipes_of(inputs, jobs)
        assert len(jobs) == len(recipes) == 20 if attempt == 1 else len(jobs) == len(recipes)
        for job, recipe in zip(jobs, recipes.values(), strict=True):
            # What is kept is JSON.
            assert job_of(inputs, json.loads(json.dumps(recipe))) == job
    lost: Any = {**recipe, "source_image": "cat/99.png"}
    with pytest.raises(DataError, match="was made from cat/99.png, which the run no longer has"):
        job_of(inputs, lost)
    with pytest.raises(DataError, match="which the run no longer has"):
        job_of(inputs, {**lost, "class_name": "cow"})


def test_rows_name_captions_partners_models_and_settings(mixed: tuple[Path, dict[str, Any]]) -> None:
    run, settings = mixed
    ids = {name: [f"{name}/{number}.png" for number in range(len(words))] for name, words in WORDS.items()}
    models = {"pretrained": run / "base", "sdedit": run / "base", "finetuned": run / "model"}
    for image in read_synthetic(run):
        row, own = image.row, ids[image.class_name]
        drawn, edited = image.source != "import", image.source == "instruct_pix2pix"
        if image.source == "finetuned":
            assert row["plan"] is not None and own[row["plan"]["base"]] == row["caption_base"]
            taken = [own[one[0]] for one in (*row["plan"]["coarse"], *row["plan"]["fine"])]
            assert row["caption_partners"] == list(dict.fromkeys(name for name in taken if name != row["caption_base"]))
            assert row["caption_partners"]
        else:
            assert row["caption_partners"] == [] and row["plan"] is None
        assert row["instruction"] == (f"turn it into another {image.class_name}, please" if edited else None)
        assert (row["strength"] == 0.6) == (image.source == "sdedit")
        assert (row["guidance_scale"] is not None) == (row["scheduler"] == "dpmsolver++") == drawn
        if drawn:
            folder = models.get(image.source, run / "edit")
            assert row["model"] == model_identity(folder) and row["num_inference_steps"] == 5
            assert row["image_guidance_scale"] is None or 1.1 <= row["image_guidance_scale"] <= 1.9
        if image.source in ("pretrained", "sdedit", "instruct_pix2pix"):
            assert 4.0 <= row["guidance_scale"] <= 8.0
    scales = [image.row["guidance_scale"] for image in read_synthetic(run) if image.source in ("pretrained", "sdedit")]
    assert len(set(scales)) == len(scales) == 8


def test_an_sdedit_image_is_what_diffusers_makes_of_its_row(mixed: tuple[Path, dict[str, Any]]) -> None:
    run, _ = mixed
    kind: Any = StableDiffusionImg2ImgPipeline
    pipeline = kind.from_pretrained(run / "base", use_safetensors=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    captions = {item["id"]: item["caption"] for item in read_json_lines(run / "captions.jsonl")}
    for image in rows_of(run, "sdedit"):
        row = image.row
        assert row["caption_base"] == row["source_image"]
        expected = pipeline(
            prompt=captions[row["caption_base"]],
            image=latents_of(pipeline, run, row) * pipeline.vae.config.scaling_factor,
            strength=row["strength"],
            num_inference_steps=row["num_inference_steps"],
            guidance_scale=row["guidance_scale"],
            generator=[noise_of(row)],
            output_type="np",
        ).images
        assert_same_picture(image.path, expected[0])


def test_an_edited_image_is_what_diffusers_makes_of_its_row(mixed: tuple[Path, dict[str, Any]]) -> None:
    run, _ = mixed
    kind: Any = StableDiffusionInstructPix2PixPipeline
    pipeline = kind.from_pretrained(run / "edit", use_safetensors=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for image in rows_of(run, "instruct_pix2pix"):
        row = image.row
        shape = (1, 4, LATENT_SIZE, LATENT_SIZE)
        expected = pipeline(
            prompt=row["instruction"],
            image=latents_of(pipeline, run, row),
            latents=torch.randn(shape, generator=noise_of(row)),
            num_inference_steps=row["num_inference_steps"],
            guidance_scale=row["guidance_scale"],
            image_guidance_scale=row["image_guidance_scale"],
            output_type="np",
        ).images
        assert_same_picture(image.path, expected[0])


@pytest.mark.parametrize("scaled", [False, True])
def test_an_sdxl_that_edits_says_itself_how_images_are_scaled(prepared: Path, copy_of: Any, scaled: bool) -> None:
    """Its other texts and VAE go through, and CosXL's way of saying that latents are scaled is understood."""
    run = copy_of(prepared)
    write_xl_pipeline(run / "edit")
    tiny_xl_unet(3, 8).save_pretrained(run / "edit" / "unet")
    index = read_json(run / "edit" / "model_index.json")
    kind = "StableDiffusionXLInstructPix2PixPipeline"
    write_json(run / "edit" / "model_index.json", {**index, "_class_name": kind, "is_cosxl_edit": scaled})
    settings: dict[str, Any] = {"sources": {"instruct_pix2pix": 1.0}, "per_class": 1, "edit_model": str(run / "edit")}
    run_generate(run, experiment(run, **settings))
    run_filter(run, experiment(run, **settings))
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    edit: Any = StableDiffusionXLInstructPix2PixPipeline
    pipeline = edit.from_pretrained(run / "edit", use_safetensors=True)
    assert pipeline.is_cosxl_edit is scaled
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for image in read_synthetic(run):
        row, shape = image.row, (1, 4, LATENT_SIZE, LATENT_SIZE)
        expected = pipeline(
            prompt=row["instruction"],
            image=latents_of(pipeline, run, row),
            latents=torch.randn(shape, generator=noise_of(row)),
            height=IMAGE_SIZE,
            width=IMAGE_SIZE,
            num_inference_steps=row["num_inference_steps"],
            guidance_scale=row["guidance_scale"],
            image_guidance_scale=row["image_guidance_scale"],
            output_type="np",
        ).images
        assert_same_picture(image.path, expected[0])


def test_the_base_edits_where_it_takes_images_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path, tuned=False)
    settings: dict[str, Any] = {"sources": {"instruct_pix2pix": 1.0}, "per_class": 1}
    with pytest.raises(ConfigError, match="instruct_pix2pix cannot use base: its UNet takes 4 channels") as caught:
        run_generate(run, experiment(run, **settings))
    assert "generate.edit_model" in caught.value.do
    write_pipeline(run / "base", in_channels=8)
    assert model_folder(read_inputs(run, experiment(run, **settings)), "instruct_pix2pix") == run / "base"
    run_generate(run, experiment(run, **settings))
    run_filter(run, experiment(run, **settings))
    assert len(read_synthetic(run)) == 2


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        ("channels", ConfigError, "its UNet takes 9 channels"),
        ("missing", EnvironmentFault, r"generate.edit_model .*edit is not there"),
        ("size", ConfigError, "data.image_size=32 is no multiple of 64"),
    ],
)
def test_models_that_cannot_edit_are_refused(prepared: Path, copy_of: Any, spoil: str, kind: Any, message: str) -> None:
    from diffusers import AutoencoderKL

    run = copy_of(prepared)
    if spoil != "missing":
        write_pipeline(run / "edit", in_channels=9 if spoil == "channels" else 8)
    if spoil == "size":
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 7,
            up_block_types=("UpDecoderBlock2D",) * 7,
            block_out_channels=(4,) * 7,
            layers_per_block=1,
            norm_num_groups=4,
        ).save_pretrained(run / "edit" / "vae")
    settings: dict[str, Any] = {"sources": {"instruct_pix2pix": 1.0}, "edit_model": str(run / "edit")}
    with pytest.raises(kind, match=message):
        run_generate(run, experiment(run, **settings))
    assert not list(run.glob("synthetic/**/*.png"))


def test_another_instruction_makes_the_edited_images_again_and_no_other(
    mixed: tuple[Path, dict[str, Any]], copy_of: Any
) -> None:
    run = copy_of(mixed[0])
    settings = {**mixed[1], "edit_model": str(run / "edit"), "import_path": str(run / "theirs")}
    before = contents(run)
    run_generate(run, experiment(run, **settings))
    run_filter(run, experiment(run, **settings))
    assert contents(run) == before, "a copy of a run is the same run"
    run_generate(run, experiment(run, **{**settings, "edit_instruction": "make it big"}))
    run_filter(run, experiment(run, **{**settings, "edit_instruction": "make it big"}))
    now = {name: data for name, data in contents(run).items() if name.endswith(".png")}
    changed = {name.split("/")[-1].split("-")[0] for name, data in now.items() if before.get(name) != data}
    assert changed == {"instruct_pix2pix"}


def test_a_mixture_resumes_to_the_same_bytes(mixed: tuple[Path, dict[str, Any]], copy_of: Any) -> None:
    run = copy_of(mixed[0])
    settings = {**mixed[1], "edit_model": str(run / "edit"), "import_path": str(run / "theirs")}
    before = contents(run)
    for path in sorted(run.glob("synthetic/train/*/*.png"))[::3]:
        path.unlink()
    run_generate(run, experiment(run, **settings))
    run_filter(run, experiment(run, **settings))
    assert contents(run) == before


def test_pictures_of_sources_differ(mixed: tuple[Path, dict[str, Any]]) -> None:
    images = [picture(image.path).tobytes() for image in read_synthetic(mixed[0])]
    assert len(set(images)) == len(images) == 20


def test_stable_diffusion_itself_is_not_touched(mixed: tuple[Path, dict[str, Any]]) -> None:
    """What generation wrote beside the base model is nothing."""
    assert StableDiffusionPipeline.from_pretrained(mixed[0] / "base", use_safetensors=True) is not None
    assert sorted(path.name for path in (mixed[0] / "base").iterdir()) == [
        *("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
    ]
