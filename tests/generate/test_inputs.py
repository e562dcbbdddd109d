"""What generation reads before it draws, and what it refuses: names, captions, indices and models that don't fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mvc.candidates import pool_of, read_candidates
from mvc.errors import ConfigError, DataError, EnvironmentFault, MvcError
from mvc.generate.filter_stage import run_filter
from mvc.generate.inputs import jobs_for, read_inputs, require_folder_names, scales, wanted_slots
from mvc.generate.stage import run_generate
from mvc.storage import read_json_lines, write_json_lines
from mvc.synthetic import read_synthetic
from tests.folders import sha256_folder
from tests.generate.toy_run import BOTH, contents, experiment, write_run
from tests.tiny_parts import tiny_unet, tiny_xl_unet, write_xl_pipeline

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PRETRAINED: dict[str, Any] = {"sources": {"pretrained": 1.0}, "preview": 0, "per_class": 2}


def generate(run: Path, **changes: Any) -> None:
    """Both stages, as `mvc generate` does them."""
    run_generate(run, experiment(run, **changes))
    run_filter(run, experiment(run, **changes))


def test_slots_come_source_by_source_index_by_index(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    inputs = read_inputs(run, experiment(run, sources={"sdedit": 0.25, "pretrained": 0.75}, per_class=4))
    assert wanted_slots(inputs) == [
        *(("pretrained", name, index) for index in range(3) for name in ("cat", "dog")),
        *(("sdedit", name, 0) for name in ("cat", "dog")),
    ]


def test_jobs_are_those_of_their_slots_in_any_company(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    inputs = read_inputs(run, experiment(run, sources=BOTH, guidance_scale=(1.0, 9.0)))
    slots = wanted_slots(inputs)
    jobs = {job.slot: job for job in jobs_for(inputs, slots, 2)}
    assert set(jobs) == set(slots) and all(job.attempt == 2 for job in jobs.values())
    for chosen in (slots[3:5], slots[::-3]):
        assert jobs_for(inputs, chosen, 2) == [jobs[slot] for slot in _grouped(chosen)]


def _grouped(slots: list[Any]) -> list[Any]:
    groups = dict.fromkeys((source, name) for source, name, _ in slots)
    return [slot for group in groups for slot in slots if slot[:2] == group]


def test_each_source_has_its_guidance(prepared: Path) -> None:
    settings = experiment(
        prepared, guidance_scale=2.0, image_guidance_scale=(1.0, 1.5), pretrained_guidance_scale=(3.0, 4.0)
    )
    assert (scales(settings, "finetuned").text, scales(settings, "finetuned").image) == (2.0, (1.0, 1.5))
    assert (scales(settings, "sdedit").text, scales(settings, "sdedit").image) == ((3.0, 4.0), None)
    assert (scales(settings, "instruct_pix2pix").text, scales(settings, "instruct_pix2pix").image) == (
        (3.0, 4.0),
        (1.0, 1.5),
    )
    assert (scales(settings, "import").text, scales(settings, "import").image) == (None, None)
    assert scales(experiment(prepared, guidance="paper"), "finetuned").image is None


GOOD = [
    "-rf",
    "two words",
    "con",
    "nul",
    "a.b",
    "🐈",
    "ünder",
    "n" * 255,
    "%s",
    "x\ny",
    "$(true)",
]


def test_names_that_a_folder_can_have_are_used_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path, words={name: ["red", "wet"] for name in GOOD}, tuned=False)
    generate(run, **{**PRETRAINED, "sources": {"pretrained": 0.5, "sdedit": 0.5}})
    found = {image.class_name for image in read_synthetic(run)}
    assert found == set(GOOD) == {path.name for path in (run / "synthetic" / "train").iterdir() if path.is_dir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("base", "cache", "captions.jsonl", "data", "pictures", "synthetic")
    ]
    before = contents(run)
    (run / "synthetic" / "train" / "-rf" / "sdedit-00000.png").unlink()
    generate(run, **{**PRETRAINED, "sources": {"pretrained": 0.5, "sdedit": 0.5}})
    assert contents(run) == before


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc", "a/b", "a\\b", "a\0b", ".tmp-1-x", "n" * 256, "\ud800"]
)
def test_names_that_are_no_folder_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the class name .* is no folder name") as caught:
        require_folder_names(["cat", name])
    assert caught.value.do == "rename the class and start another run"
    run = write_run(tmp_path / "run", tuned=False)
    _rename_class(run, "dog", name)
    before = sha256_folder(tmp_path)
    with pytest.raises(DataError):
        run_generate(run, experiment(run, **PRETRAINED))
    assert sha256_folder(tmp_path) == before


def _rename_class(run: Path, old: str, new: str) -> None:
    """As someone does it who edits the index by hand."""
    index = [{**row, "class_name": new} if row["class_name"] == old else row for row in _rows(run / "data/index.jsonl")]
    (run / "data" / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in index))
    classes = json.loads((run / "data" / "classes.json").read_text())
    classes["classes"] = [
        {"folder": new if row["folder"] == old else row["folder"], "words": row["words"]} for row in classes["classes"]
    ]
    ordered = sorted(classes["classes"], key=lambda row: row["folder"])
    classes["classes"] = [{**row, "label": label} for label, row in enumerate(ordered)]
    (run / "data" / "classes.json").write_text(json.dumps(classes))
    labels = {row["folder"]: row["label"] for row in classes["classes"]}
    rows = [{**row, "label": labels[row["class_name"]]} for row in index]
    (run / "data" / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = [{key: row[key] for key in ("id", "caption", "captioner")} for row in _rows(run / "captions.jsonl")]
    (run / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path)


@pytest.mark.parametrize("twins", [("cat", "Cat"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")])
def test_names_that_are_one_folder_on_other_disks_are_refused(tmp_path: Path, twins: tuple[str, str]) -> None:
    run = write_run(tmp_path, words={name: ["red", "wet"] for name in twins}, tuned=False)
    with pytest.raises(DataError, match="differ only in case or Unicode form") as caught:
        run_generate(run, experiment(run, **PRETRAINED))
    assert all(f"{name!a}" in caught.value.what for name in twins)
    assert not (run / "synthetic").exists()


def _edit(path: Path, change: Any) -> None:
    write_json_lines(path, change(_rows(path)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("captions.jsonl", lambda rows: [{**rows[0], "class_name": "cow"}, *rows[1:]], "class_name is 'cow'"),
        ("captions.jsonl", lambda rows: [{**rows[0], "id": "cow/0.png"}, *rows[1:]], "is no training image"),
        ("captions.jsonl", lambda rows: rows[1:], "has no caption for 1 of 7 images"),
        ("data/index.jsonl", lambda rows: [{**rows[0], "class_name": "cow"}, *rows[1:]], "label 0 is not the class"),
        ("data/index.jsonl", lambda rows: [{**rows[0], "label": 7}, *rows[1:]], "cannot be used"),
        ("data/index.jsonl", lambda rows: [{**rows[0], "path": "../../x.png"}, *rows[1:]], "leads out of the data"),
        ("data/index.jsonl", lambda rows: [{**row, "split": "test"} for row in rows], "has no training images"),
        ("data/index.jsonl", lambda rows: [{**row, "used": False} for row in rows], "has no training images"),
        ("captions.jsonl", None, "captions.jsonl is missing"),
        ("data/index.jsonl", None, "index.jsonl is missing"),
        ("pictures/cat/0.png", None, "0.png"),
    ],
)
def test_what_earlier_stages_wrote_has_to_fit(tmp_path: Path, file: str, change: Any, message: str) -> None:
    run = write_run(tmp_path, tuned=False)
    if change is None:
        (run / file).unlink()
    else:
        _edit(run / file, change)
    with pytest.raises(DataError, match=message):
        run_generate(run, experiment(run, **PRETRAINED))
    assert not list(run.glob("synthetic/**/*.png"))


def test_a_class_without_training_images_gets_none(tmp_path: Path) -> None:
    run = write_run(tmp_path, words={"cat": ["red", "big"], "dog": []}, held_out=2, tuned=False)
    generate(run, **PRETRAINED)
    assert {image.class_name for image in read_synthetic(run)} == {"cat"}


@pytest.mark.parametrize("source", ["finetuned", "pretrained", "sdedit"])
def test_a_class_with_one_image_is_enough(tmp_path: Path, source: str) -> None:
    run = write_run(tmp_path, words={"cat": ["red"], "dog": ["wet", "old"]})
    generate(run, sources={source: 1.0}, preview=0, per_class=2)
    made = [image.row for image in read_synthetic(run) if image.class_name == "cat"]
    assert len(made) == 2
    assert {row["source_image"] for row in made} == {None if source == "pretrained" else "cat/0.png"}
    assert {row["caption_base"] for row in made} == {"cat/0.png"} and all(not row["caption_partners"] for row in made)


def test_filters_that_cannot_be_set_up_say_so_before_anything_is_drawn(prepared: Path, copy_of: Any) -> None:
    run = copy_of(prepared)
    with pytest.raises(ConfigError, match="filter.clip: 'nothing' is no extractor"):
        run_generate(run, experiment(run, {"clip": "nothing"}, **PRETRAINED))
    assert not read_candidates(pool_of(run))


@pytest.fixture
def run(prepared: Path, copy_of: Any) -> Path:
    copied: Path = copy_of(prepared)
    return copied


def refuse(run: Path, kind: type[MvcError], message: str, **changes: Any) -> None:
    with pytest.raises(kind, match=message):
        run_generate(run, experiment(run, **{"preview": 0, **changes}))
    assert not list(run.glob("synthetic/**/*.png"))


def test_a_fine_tuned_model_of_another_family_is_refused(run: Path) -> None:
    shutil.rmtree(run / "base")
    write_xl_pipeline(run / "base")
    refuse(run, DataError, "was fine-tuned from another kind of model than model.base")


def test_an_sdxl_in_the_place_of_the_fine_tuned_model_is_refused(run: Path) -> None:
    tiny_xl_unet(0, 8).save_pretrained(run / "model" / "unet")
    refuse(run, DataError, "was fine-tuned from another kind of model than model.base")


@pytest.mark.parametrize("channels", [4, 9])
def test_a_fine_tuned_model_that_takes_no_image_is_refused(run: Path, channels: int) -> None:
    tiny_unet(0, channels).save_pretrained(run / "model" / "unet")
    refuse(run, DataError, f"is not a model that takes an image: its UNet has {channels} channels")


@pytest.mark.parametrize("source", ["pretrained", "sdedit"])
def test_an_inpainting_base_is_refused(run: Path, source: str) -> None:
    tiny_unet(0, 9).save_pretrained(run / "base" / "unet")
    refuse(run, ConfigError, "takes 9 channels", sources={source: 1.0})


def test_damaged_weights_are_said(run: Path) -> None:
    path = run / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(run, EnvironmentFault, "unet", sources={"pretrained": 1.0})


def test_caches_that_are_missing_or_damaged_are_made_again(finished: Path, copy_of: Any) -> None:
    run, before = copy_of(finished), contents(finished)

    def again(spoil: Any) -> None:
        caches = sorted((run / "cache").rglob("*.safetensors"))
        kinds = {path.relative_to(run).parts[1] for path in caches}
        assert kinds == {"embeddings.safetensors", "latents", "features"}
        for path in caches:
            spoil(path)
        shutil.rmtree(run / "synthetic")
        generate(run, sources=BOTH)
        assert contents(run) == before

    again(lambda path: path.unlink())
    again(lambda path: path.write_bytes(path.read_bytes()[:-7]))
    again(_zero)


def _zero(path: Path) -> None:
    """Whole as a file, wrong in its numbers."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, facts)
