"""The generate stage on a whole run: counts, provenance, resuming to the byte, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from mvc import models
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.denoise import make_scheduler
from mvc.errors import ConfigError, DataError, NumericError, Stopped
from mvc.generate import source as source_module
from mvc.generate import stage
from mvc.generate.stage import run_generate
from mvc.images import decode, to_tensor
from mvc.mixing import MixingPlan, apply_plan
from mvc.randomness import generator, numpy_generator
from mvc.stopping import flag
from mvc.storage import read_json, read_json_lines, sha256_file, write_json, write_json_lines
from mvc.synthetic import METADATA, read_synthetic, synthetic_folder
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, tiny_unet, write_pipeline

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

WORDS = {"cat": ["red", "green", "big", "small"], "dog": ["wet", "old", "thin"]}
SETTINGS: dict[str, Any] = {
    "per_real": 2.0,
    "num_inference_steps": 2,
    "guidance": "dual",
    "guidance_scale": 3.0,
    "image_guidance_scale": 1.5,
    "batch_size": 3,
    "preview": 2,
}


def write_run(run: Path, scaled: bool = False) -> Path:
    """A run as the stages before leave it: 4 cats and 3 dogs, their captions, a model with random weights."""
    base = write_pipeline(run / "base")
    index, captions = [], []
    for label, (name, words) in enumerate(WORDS.items()):
        for number, word in enumerate(words):
            path = run / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = numpy_generator(0, "picture", label, number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            record = {"id": f"{name}/{number}.png", "path": f"{name}/{number}.png", "class_name": name, "label": label}
            facts = {"split": "train", "sha256": sha256_file(path), "width": 36, "height": 40, "mode": "RGB"}
            index.append({**record, **facts, "used": True})
            text = f"This is an image of {name}. a {word} {name}."
            captions.append({"id": record["id"], "class_name": name, "caption": text, "captioner": "file"})
    classes = [{"folder": name, "words": name, "label": label} for label, name in enumerate(WORDS)]
    write_json(run / "data" / "classes.json", {"root": "pictures", "classes": classes})
    write_json_lines(run / "data" / "index.jsonl", index)
    write_json_lines(run / "captions.jsonl", captions)
    models.save_model(run / "model", tiny_unet(1, in_channels=8), base, None, {"image_latents_scaled": scaled})
    return run


def experiment(run: Path, **changes: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "run": {"device": "cpu", "seed": 5},
            "data": {"image_size": IMAGE_SIZE},
            "mixing": {"coarse": 2, "fine": 3},
            "model": {"base": str(run / "base")},
            "generate": {**SETTINGS, **changes},
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, run, dirs_exist_ok=True)
    run_generate(run, experiment(run, sources=BOTH))
    return run


BOTH = {"finetuned": 0.6, "pretrained": 0.4}


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    # The base model's path is no part of a recipe, its content is: a copy of a run is the same run.
    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True))

    return copy


def contents(run: Path) -> dict[str, bytes]:
    files = (path for place in ("synthetic", "preview") for path in sorted((run / place).rglob("*")))
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.is_file()}


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


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def noise_of(row: Any) -> torch.Tensor:
    drawn = generator(row["seed"], f"noise {row['source']} {row['class_name']}", row["index"], row["attempt"])
    return torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=drawn)


def assert_same_picture(path: Path, expected: np.ndarray) -> None:
    """At most one of 256 levels apart, for the rounding of single against batched convolutions."""
    difference = np.abs(picture(path).astype(int) - np.rint(expected[0] * 255).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("scaled", [False, True])
def test_a_fine_tuned_image_is_what_diffusers_makes_of_its_row(tmp_path: Path, scaled: bool) -> None:
    run = write_run(tmp_path, scaled)
    run_generate(run, experiment(run, preview=0))
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(run / "model", use_safetensors=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for image in read_synthetic(run)[::4]:
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
        assert_same_picture(image.path, expected)


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
        assert_same_picture(image.path, expected)


def test_a_finished_set_loads_no_model(finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of(finished)
    monkeypatch.setattr(stage, "load_source", lambda *arguments: pytest.fail("a model was loaded"))
    run_generate(run, experiment(run, sources=BOTH))
    assert contents(run) == contents(finished)


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_stopped_by_a_signal_it_goes_on_to_the_same_bytes(
    prepared: Path, finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    run, calls = copy_of(prepared), []

    def draw_and_signal(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == batches:
            monkeypatch.setattr(flag, "signal", 15)
        return source_module.draw_usable(*arguments)

    monkeypatch.setattr(stage, "draw_usable", draw_and_signal)
    with pytest.raises(Stopped, match=r"stopped by signal 15; \d+ of \d+ images are kept"):
        run_generate(run, experiment(run, sources=BOTH))
    assert len(calls) == batches and not (synthetic_folder(run) / METADATA).exists()
    kept = len(list(run.glob("synthetic/train/*/*.png")))
    assert 0 < kept < len(read_synthetic(finished))
    monkeypatch.setattr(flag, "signal", None)
    monkeypatch.setattr(stage, "draw_usable", source_module.draw_usable)
    run_generate(run, experiment(run, sources=BOTH))
    assert contents(run) == contents(finished)


@pytest.mark.parametrize("files", [0, 4, 7])
def test_killed_while_writing_it_goes_on_to_the_same_bytes(
    prepared: Path, finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    run, written = copy_of(prepared), []
    write_image = stage.write_image

    def write_some(*arguments: Any) -> str:
        written.append(arguments)
        if len(written) > files:
            raise KeyboardInterrupt
        return write_image(*arguments)

    monkeypatch.setattr(stage, "write_image", write_some)
    with pytest.raises(KeyboardInterrupt):
        run_generate(run, experiment(run, sources=BOTH))
    (run / "synthetic" / "train" / ".tmp-1-half.png").write_bytes(b"half")
    monkeypatch.setattr(stage, "write_image", write_image)
    run_generate(run, experiment(run, sources=BOTH))
    assert contents(run) == contents(finished)


def test_deleted_and_damaged_files_are_made_again_alone(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    folder = synthetic_folder(run)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    (folder / "cat" / "finetuned-00002.png").unlink()
    (folder / "dog" / "pretrained-00001.png").write_bytes(b"damaged")
    run_generate(run, experiment(run, sources=BOTH))
    assert contents(run) == contents(finished)
    changed = sorted(path.name for path, time in before.items() if path.stat().st_mtime_ns != time)
    assert changed == ["finetuned-00002.png", "pretrained-00001.png"]


def test_more_images_keep_the_earlier_ones_and_fewer_leave_no_extra(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    run_generate(run, experiment(run, sources=BOTH, per_real=3.0))
    now, before = contents(run), contents(finished)
    pictures = {name for name in before if name.endswith(".png")}
    assert {name: now[name] for name in pictures} == {name: before[name] for name in pictures}
    assert len(read_synthetic(run)) == 21
    (run / "synthetic" / "train" / "cat" / "mine.png").write_bytes(b"somebody's own")
    run_generate(run, experiment(run, sources=BOTH))
    assert {**before, "synthetic/train/cat/mine.png": b"somebody's own"} == contents(run)


def test_other_settings_make_all_images_of_that_source_again(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    run_generate(run, experiment(run, sources=BOTH, guidance_scale=2.0))
    for image, old in zip(read_synthetic(run), read_synthetic(finished), strict=True):
        assert (image.row["sha256"] == old.row["sha256"]) == (image.source == "pretrained")


def test_an_image_depends_neither_on_batch_size_nor_on_the_other_source(finished: Path, copy_of: Any) -> None:
    run = copy_of(finished)
    shutil.rmtree(run / "synthetic")
    run_generate(run, experiment(run, batch_size=8, preview=3))
    for place, source in ((synthetic_folder(run), "finetuned"), (run / "preview" / "pretrained", "pretrained")):
        for name in WORDS:
            for number in range(2):
                own = f"{number}.png" if source == "pretrained" else f"{source}-{number:05d}.png"
                expected = picture(synthetic_folder(finished) / name / f"{source}-{number:05d}.png")
                assert_same_picture(place / name / own, expected[None] / 255)


def test_previews_of_sources_outside_the_set(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    run_generate(run, experiment(run, sources={"pretrained": 1.0}, per_real=1.0))
    names = [path.relative_to(run / "preview").as_posix() for path in sorted((run / "preview").glob("*/*/*.png"))]
    assert names == [f"finetuned/{name}/{number}.png" for name in WORDS for number in range(2)]
    assert {image.source for image in read_synthetic(run)} == {"pretrained"}


def test_an_unusable_image_is_drawn_again_and_the_others_stay(
    prepared: Path, finished: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(prepared)
    draw_noise = source_module.draw_noise

    def spoil(seed: int, jobs: Any, attempt: int, shape: Any) -> torch.Tensor:
        noise = draw_noise(seed, jobs, attempt, shape)
        for number, job in enumerate(jobs):
            if (job.source, job.class_name, job.index) == ("finetuned", "cat", 1) and attempt < 3:
                noise[number] = float("nan")
        return noise

    monkeypatch.setattr(source_module, "draw_noise", spoil)
    run_generate(run, experiment(run, sources=BOTH))
    for image, old in zip(read_synthetic(run), read_synthetic(finished), strict=True):
        spoilt = image.row["file_name"] == "cat/finetuned-00001.png"
        assert image.row["attempt"] == (3 if spoilt else 1)
        assert (image.path.read_bytes() == old.path.read_bytes()) != spoilt


@pytest.mark.parametrize(("factor", "state"), [(3e38, "not finite"), (0.0, "flat")])
def test_a_model_that_makes_no_images_is_reported(prepared: Path, copy_of: Any, factor: float, state: str) -> None:
    run = copy_of(prepared)
    path = run / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.weight"] = torch.full_like(weights["decoder.conv_out.weight"], factor)
    save_file(weights, path)
    with pytest.raises(NumericError, match=rf"finetuned-00000 of class cat \(index 0\) is {state}"):
        run_generate(run, experiment(run))
    assert not list(run.glob("synthetic/train/*/*.png"))


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

    before = {path: path.stat().st_mtime_ns for path in (finished / "cache").rglob("*.safetensors")}
    settings = experiment(finished)
    dataset = load_index(finished)
    base = models.resolve_base(settings.model.base)
    captions = training.training_captions(finished, dataset)
    materials = training.gather_materials(finished, settings, dataset, captions, base, IMAGE_SIZE)
    assert {path: path.stat().st_mtime_ns for path in (finished / "cache").rglob("*.safetensors")} == before
    assert len(before) == 2 and materials.images.moments([0]).shape == (1, 8, LATENT_SIZE, LATENT_SIZE)
    assert read_json(finished / "model" / models.FACTS)["image_latents_scaled"] is False
