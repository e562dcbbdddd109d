"""The generate stage on a whole run: amounts, provenance, what diffusers makes of the same rows, what it refuses."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from mvc import models
from mvc.candidates import pool_of, read_candidates
from mvc.dataset import load_index
from mvc.denoise import make_scheduler
from mvc.errors import ConfigError, DataError
from mvc.generate import drawing
from mvc.generate.filter_stage import run_filter
from mvc.generate.stage import run_generate
from mvc.images import decode, to_tensor
from mvc.mixing import MixingPlan, apply_plan
from mvc.randomness import generator
from mvc.storage import read_json, read_json_lines, sha256_file
from mvc.synthetic import METADATA, read_synthetic, synthetic_folder
from tests.generate.toy_run import (
    BOTH,
    WORDS,
    assert_same_picture,
    contents,
    experiment,
    picture,
    write_run,
)
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def generate(run: Path, looks: dict[str, Any] | None = None, **changes: Any) -> None:
    """Both stages, as `mvc generate` does them."""
    run_generate(run, experiment(run, looks, **changes))
    run_filter(run, experiment(run, looks, **changes))


def test_counts_names_and_sizes(finished: Path) -> None:
    images = read_synthetic(finished)
    found = [(image.class_name, image.row["id"]) for image in images]
    expected = {("cat", "finetuned"): 5, ("cat", "pretrained"): 3, ("dog", "finetuned"): 4, ("dog", "pretrained"): 2}
    assert found == sorted((name, f"{s}-{i:05d}") for (name, s), count in expected.items() for i in range(count))
    assert not (finished / "preview").exists()
    for image in images:
        assert picture(image.path).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert sha256_file(image.path) == image.row["sha256"] and image.row["attempt"] == 1
        assert (image.row["source_image"] is None) == (image.source == "pretrained")
    assert len({image.row["sha256"] for image in images}) == len(images)


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"per_real": 0.5}, {"cat": 2, "dog": 2}),
        ({"per_real": 1.0}, {"cat": 4, "dog": 3}),
        ({"per_class": 3}, {"cat": 3, "dog": 3}),
        # 4 cats and as many synthetic ones are 8; 3 dogs lack 5.
        ({"per_real": 1.0, "balance": True}, {"cat": 4, "dog": 5}),
        ({"per_real": 0.0, "balance": True}, {"dog": 1}),
    ],
)
def test_amounts(prepared: Path, copy_of: Any, amounts: dict[str, Any], expected: dict[str, int]) -> None:
    run = copy_of(prepared)
    generate(run, sources={"pretrained": 1.0}, preview=0, **amounts)
    assert Counter(image.class_name for image in read_synthetic(run)) == expected
    assert read_json(run / "synthetic" / "wanted.json") == {"pretrained": expected}


def text_of(run: Path, row: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding of an image by its row alone, and the empty text's, by diffusers' own encoding."""
    pipeline = StableDiffusionPipeline.from_pretrained(run / "base", use_safetensors=True)
    captions = {item["id"]: item["caption"] for item in read_json_lines(run / "captions.jsonl")}
    own = sorted(name for name in captions if name.startswith(row["class_name"] + "/"))
    states, null = pipeline.encode_prompt([captions[name] for name in own], "cpu", 1, True)
    if row["plan"] is None:
        return states[own.index(row["caption_base"])][None], null[:1]
    assert own[row["plan"]["base"]] == row["caption_base"]
    return apply_plan(MixingPlan.from_rows([row["plan"]]), states), null[:1]


def noise_of(row: Any) -> torch.Tensor:
    drawn = generator(row["seed"], f"noise {row['source']} {row['class_name']}", row["index"], row["attempt"])
    return torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=drawn)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_fine_tuned_image_is_what_diffusers_makes_of_its_row(tmp_path: Path, scaled: bool) -> None:
    run = write_run(tmp_path, scaled)
    # A guidance of its own for each image.
    generate(run, preview=0, guidance_scale=[2.0, 5.0], image_guidance_scale=[1.0, 2.0])
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(run / "model", use_safetensors=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    images = read_synthetic(run)
    assert len({image.row["guidance_scale"] for image in images}) == len(images)
    for image in images[::4]:
        row = image.row
        assert row["source_image"] is not None
        real = to_tensor(decode(run / "pictures" / row["source_image"]), IMAGE_SIZE)
        with torch.no_grad():
            latents = pipeline.vae.encode(real[None]).latent_dist.mode()
        text, null = text_of(run, row)
        expected = pipeline(
            image=latents * pipeline.vae.config.scaling_factor if scaled else latents,
            prompt_embeds=text,
            negative_prompt_embeds=null,
            latents=noise_of(row),
            num_inference_steps=row["num_inference_steps"],
            guidance_scale=row["guidance_scale"],
            image_guidance_scale=row["image_guidance_scale"],
            output_type="np",
        ).images
        assert_same_picture(image.path, expected[0])


def test_a_pre_trained_image_is_what_diffusers_makes_of_its_row(finished: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(finished / "base", use_safetensors=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for image in [image for image in read_synthetic(finished) if image.source == "pretrained"][::2]:
        text, null = text_of(finished, image.row)
        expected = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=null,
            latents=noise_of(image.row),
            num_inference_steps=2,
            guidance_scale=7.5,
            output_type="np",
        ).images
        assert_same_picture(image.path, expected[0])


def test_a_finished_set_loads_no_model(finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of(finished)
    monkeypatch.setattr(drawing, "load_source", lambda *arguments: pytest.fail("a model was loaded"))
    generate(run, sources=BOTH)
    assert contents(run) == contents(finished)


def test_more_images_keep_the_earlier_ones_and_fewer_leave_no_extra(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    generate(run, sources=BOTH, per_real=3.0)
    now, before = contents(run), contents(finished)
    pictures = {name for name in before if name.endswith(".png")}
    assert {name: now[name] for name in pictures} == {name: before[name] for name in pictures}
    assert len(read_synthetic(run)) == 21
    (run / "synthetic" / "train" / "cat" / "mine.png").write_bytes(b"somebody's own")
    generate(run, sources=BOTH)
    assert {**before, "synthetic/train/cat/mine.png": b"somebody's own"} == contents(run)


def test_other_settings_make_all_images_of_that_source_again(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    generate(run, sources=BOTH, guidance_scale=2.0)
    for image, old in zip(read_synthetic(run), read_synthetic(finished), strict=True):
        assert (image.row["sha256"] == old.row["sha256"]) == (image.source == "pretrained")


def test_an_image_depends_neither_on_batch_size_nor_on_the_other_source(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    shutil.rmtree(run / "synthetic")
    generate(run, batch_size=8, preview=3)
    for place, source in ((synthetic_folder(run), "finetuned"), (run / "preview" / "pretrained", "pretrained")):
        for name in WORDS:
            for number in range(2):
                expected = picture(synthetic_folder(finished) / name / f"{source}-{number:05d}.png")
                assert_same_picture(place / name / f"{source}-{number:05d}.png", expected / 255)


def test_previews_of_sources_outside_the_set(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    generate(run, sources={"pretrained": 1.0}, per_real=1.0)
    names = [path.relative_to(run / "preview").as_posix() for path in sorted((run / "preview").glob("*/*/*.png"))]
    assert names == [f"finetuned/{name}/finetuned-{number:05d}.png" for name in WORDS for number in range(2)]
    assert {image.source for image in read_synthetic(run)} == {"pretrained"}
    rows = [row["file_name"] for row in read_json_lines(run / "preview" / "finetuned" / "candidates.jsonl")]
    assert [f"finetuned/{name}" for name in rows] == names
    # Fewer of them: the others go, those that stay are as they were.
    kept = (run / "preview" / "finetuned" / "cat" / "finetuned-00000.png").read_bytes()
    generate(run, sources={"pretrained": 1.0}, per_real=1.0, preview=1)
    assert [path.name for path in (run / "preview" / "finetuned" / "cat").iterdir()] == ["finetuned-00000.png"]
    assert (run / "preview" / "finetuned" / "cat" / "finetuned-00000.png").read_bytes() == kept


@pytest.mark.parametrize(("factor", "reason"), [(3e38, "not finite"), (0.0, "blank")])
def test_a_model_that_makes_no_images_is_reported(prepared: Path, copy_of: Any, factor: float, reason: str) -> None:
    run = copy_of(prepared)
    path = run / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.weight"] = torch.full_like(weights["decoder.conv_out.weight"], factor)
    save_file(weights, path)
    run_generate(run, experiment(run, {"attempts": 2}, per_class=2, preview=0))
    rows = read_candidates(pool_of(run))
    assert sorted(row["attempt"] for row in rows.values()) == [1] * 4 + [2] * 4
    assert all((row["sha256"] is None) == (reason == "not finite") for row in rows.values())
    with pytest.raises(DataError, match="the filters refuse all 8 images") as caught:
        run_filter(run, experiment(run, {"attempts": 2}, per_class=2))
    assert f"8 {reason}" in caught.value.why
    assert not (synthetic_folder(run) / METADATA).exists()


def test_refusals(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    with pytest.raises(ConfigError, match="per_real=0.1 rounds to no image in every class"):
        run_generate(run, experiment(run, per_real=0.1))
    shutil.rmtree(run / "model")
    with pytest.raises(DataError, match="holds no fine-tuned model"):
        run_generate(run, experiment(run))


def test_the_training_caches_are_used_as_they_are(finished: Path) -> None:
    """What generation needs of the caches has the keys that training gives them."""
    from mvc.train import materials as training

    places = [finished / "cache" / "embeddings.safetensors", *(finished / "cache" / "latents").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in places}
    settings = experiment(finished)
    dataset = load_index(finished)
    base = models.resolve_base(settings.model.base)
    captions = training.training_captions(finished, dataset)
    materials = training.gather_materials(finished, settings, dataset, captions, base, IMAGE_SIZE)
    assert {path: path.stat().st_mtime_ns for path in places} == before
    assert len(before) == 2 and materials.images.moments([0]).shape == (1, 8, LATENT_SIZE, LATENT_SIZE)
    assert read_json(finished / "model" / models.FACTS)["image_latents_scaled"] is False
