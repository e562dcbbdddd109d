"""The images of the points of `mvc tune`: those that generation would make, kept as long as they are still right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvc import models
from mvc.candidates import pool_of, read_candidates
from mvc.config import Experiment
from mvc.errors import Stopped
from mvc.generate import drawing
from mvc.generate.stage import run_generate
from mvc.generate.tune import POINTS, draw_point, is_drawn, pictures_of, pool_of_point
from mvc.generate.tune_points import Point, points_of
from mvc.stopping import flag
from mvc.storage import read_json_lines, write_json_lines
from tests.generate.toy_run import experiment
from tests.tiny_parts import tiny_unet

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PUBLISHED = "model/manifest.json"


def tuned(run: Path, *points: dict[str, Any], per_class: int = 2) -> list[Point]:
    tune = {"points": list(points), "per_class": per_class}
    return points_of(Experiment.model_validate({**experiment(run).model_dump(), "tune": tune}))


def draw(run: Path, point: Point, model: str = PUBLISHED, folder: Path | None = None) -> dict[str, bytes]:
    draw_point(run, point, run / model, folder)
    return images(run, point)


def images(run: Path, point: Point) -> dict[str, bytes]:
    place = run / POINTS / point.folder
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in sorted(place.rglob("*.png"))}


def test_the_images_are_those_that_generation_makes(prepared: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(prepared)
    shares = {"finetuned": 0.5, "pretrained": 0.5}
    (point,) = tuned(run, {"generate.sources": shares, "generate.guidance_scale": 2.0, "mixing.coarse": 1})
    found = draw(run, point)
    assert sorted(found) == [f"{name}/{source}-00000.png" for name in ("cat", "dog") for source in shares]
    made = experiment(run, per_class=2, sources=shares, guidance_scale=2.0, preview=0)
    made = made.model_copy(update={"mixing": made.mixing.model_copy(update={"coarse": 1})})
    run_generate(run, made)
    pool = pool_of(run)
    assert found == {name: (pool.accepted / name).read_bytes() for name in found}
    rows, expected = read_candidates(pool_of_point(run, point)), read_candidates(pool)
    assert rows == {name: expected[name] for name in rows}
    assert is_drawn(run, point, run / PUBLISHED)
    pictures = pictures_of(run, point)
    assert [picture.class_name for picture in pictures] == ["cat", "dog", "cat", "dog"]
    for picture, row in zip(pictures, (rows[f"{one.class_name}/{one.path.name}"] for one in pictures), strict=True):
        assert picture.sha256 == row["sha256"] and picture.path.is_file()
        assert {row["caption_base"], *row["caption_partners"]} <= picture.parents
        assert (row["source_image"] in picture.parents) == (row["source"] == "finetuned")


def test_points_differ_in_what_they_set_alone(prepared: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(prepared)
    one, other = tuned(run, {"generate.guidance_scale": 1.0}, {"generate.guidance_scale": 4.0})
    assert draw(run, one) != draw(run, other)
    rows = [read_candidates(pool_of_point(run, point)) for point in (one, other)]
    for name in rows[0]:
        differ = {key for key, value in rows[0][name].items() if rows[1][name][key] != value}  # type: ignore
        assert differ == {"guidance_scale", "sha256"}


def test_a_stopped_point_goes_on_where_it_was(
    prepared: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(prepared)
    (point,) = tuned(run, {}, per_class=3)
    whole = draw(run, point)
    shutil.rmtree(run / POINTS)
    calls, real_draw = [], drawing.draw

    def stopping(source: Any, jobs: Any) -> Any:
        calls.append(len(jobs))
        if len(calls) == 1:
            monkeypatch.setattr(flag, "signal", 15)
        return real_draw(source, jobs)

    monkeypatch.setattr(drawing, "draw", stopping)
    with pytest.raises(Stopped):
        draw(run, point)
    assert len(images(run, point)) == 3 and not is_drawn(run, point, run / PUBLISHED)
    monkeypatch.setattr(flag, "signal", None)
    assert draw(run, point) == whole
    # A batch of three before the stop, the other one after it.
    assert calls == [3, 3]


def test_more_images_a_class_are_added_to_those_there(prepared: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(prepared)
    (few,), (more,) = tuned(run, {}, per_class=3), tuned(run, {}, per_class=6)
    first = draw(run, few)
    stamps = {name: (run / POINTS / few.folder / name).stat().st_mtime_ns for name in first}
    assert not is_drawn(run, more, run / PUBLISHED)
    assert len(draw(run, more)) == 12 and is_drawn(run, more, run / PUBLISHED)
    assert stamps == {name: (run / POINTS / few.folder / name).stat().st_mtime_ns for name in first}
    assert not is_drawn(run, few, run / PUBLISHED)
    assert draw(run, few) == first


def test_images_are_drawn_again_when_what_they_were_made_from_changes(
    prepared: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(prepared)
    (point,) = tuned(run, {})
    before = draw(run, point)
    captions = read_json_lines(run / "captions.jsonl")
    write_json_lines(run / "captions.jsonl", [{**row, "caption": row["caption"] + " again"} for row in captions])
    assert not is_drawn(run, point, run / PUBLISHED)
    after = draw(run, point)
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
    (run / POINTS / point.folder / "cat" / "finetuned-00000.png").write_bytes(b"spoilt")
    assert not is_drawn(run, point, run / PUBLISHED)
    assert draw(run, point) == after


def test_a_point_can_draw_with_another_model(prepared: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(prepared)
    (point,) = tuned(run, {})
    published = draw(run, point)
    other = run / "tune" / "models" / "other"
    models.save_model(other, tiny_unet(2, in_channels=8), run / "base", None, {"image_latents_scaled": False})
    # Another model's manifest is another digest.
    assert not is_drawn(run, point, other / "manifest.json")
    cached = {path: path.stat().st_mtime_ns for path in (run / "cache").rglob("*.safetensors")}
    drawn = draw(run, point, "tune/models/other/manifest.json", other)
    assert set(drawn) == set(published) and not set(drawn.values()) & set(published.values())
    rows = read_candidates(pool_of_point(run, point))
    assert {row["model"] for row in rows.values()} == {models.model_identity(other)}
    # Latents and embeddings are those of the run, and nothing else was left behind.
    assert {path: path.stat().st_mtime_ns for path in (run / "cache").rglob("*.safetensors")} == cached
    assert [path.name for path in other.parent.iterdir()] == ["other"]
    swapped = shutil.move(run / "model", run / "kept")
    shutil.copytree(other, run / "model")
    shutil.rmtree(run / POINTS)
    assert draw(run, point) == drawn
    assert Path(swapped).exists()
