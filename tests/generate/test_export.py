"""Exports open in torchvision and `datasets`, are whole or absent, and go to the hub by explicit choice alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from torchvision.datasets import ImageFolder

from mvc.candidates import write_image
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, EnvironmentFault, Stopped
from mvc.generate import export
from mvc.generate.card import Origin, card_text
from mvc.generate.export import export_set, push_set
from mvc.stopping import flag
from mvc.storage import read_json_lines, verified_manifest, write_text
from mvc.synthetic import candidate_of, read_synthetic, synthetic_folder, write_rows
from tests.generate.hub_server import Hub, serving
from tests.generate.made_up_set import CLASSES, candidate, pixels_of, write_real

COUNTS = {("big_dog", "finetuned"): 2, ("cat", "finetuned"): 1, ("cat", "pretrained"): 2}
SCORES = {"spread": 250.0, "nearest_train_id": "train/cat/0.png", "clip_margin": None}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished set of five images."""
    place = tmp_path / "run"
    write_real(place)
    folder, rows = synthetic_folder(place), []
    for (name, source), count in COUNTS.items():
        for index in range(count):
            row = candidate(name, index, source)
            row["sha256"] = write_image(folder, row["file_name"], pixels_of(f"{name} {source}", index))
            rows.append({**row, "scores": SCORES, "accepted": True})
    summary = {"wanted": 5, "drawn": 5, "accepted": 5, "shortfall": {}, "rejected": {}, "false_rejects": {}}
    facts = {"by_source": {"finetuned": {}, "pretrained": {}}, "held_out": 4, "thresholds": {}}
    made = [candidate_of(row) for row in rows]
    origin = Origin("pets", "", "tiny", "", {})
    card = card_text(origin, load_index(place), made, made, {**summary, **facts, "extractor": "x", "clip": None})
    write_text(place / "synthetic" / "README.md", card)
    write_rows(folder / "metadata.jsonl", rows)
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` keeps what it reads in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_imagefolder_has_the_same_bytes_and_opens_everywhere(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "set"
    assert export_set(run, target) == 5
    images = [f"train/{image.row['file_name']}" for image in read_synthetic(run)]
    assert names(target) == sorted(["README.md", "manifest.json", "train/metadata.jsonl", *images])
    for name in [*images, "train/metadata.jsonl"]:
        assert (target / name).read_bytes() == (run / "synthetic" / name).read_bytes()
    assert (target / "README.md").read_bytes() == (run / "synthetic" / "README.md").read_bytes()
    facts = verified_manifest(target)
    assert facts is not None and facts["format"] == "imagefolder" and facts["images"] == 5

    folder = ImageFolder(str(target / "train"))
    assert folder.classes == ["big_dog", "cat"] and folder.targets == [0, 0, 1, 1, 1]
    for opened in (
        datasets.load_dataset("imagefolder", data_dir=str(target), split="train"),
        datasets.load_dataset(str(target), split="train"),
    ):
        rows = {row["id"] + row["label"]: row for row in opened}
        assert len(rows) == len(opened) == 5
        assert rows["pretrained-00001cat"]["plan"] is None and rows["finetuned-00000cat"]["plan"]["base"] == 1
        found = np.array(rows["finetuned-00001big_dog"]["image"])
        np.testing.assert_array_equal(found, pixels_of("big_dog finetuned", 1))


def test_the_run_itself_opens_without_its_rejected_images(run: Path) -> None:
    row = candidate("cat", 7)
    write_image(run / "synthetic" / "rejected", row["file_name"], pixels_of("bad"))
    assert len(datasets.load_dataset(str(run / "synthetic"), split="train")) == 5


def test_parquet_holds_the_files_their_labels_and_all_that_is_known(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    assert export_set(run, target, "parquet") == 5
    assert names(target) == ["README.md", "data/train-00000-of-00001.parquet", "manifest.json"]
    for opened in (
        datasets.load_dataset("parquet", data_files=str(target / "data" / "*.parquet"), split="train"),
        datasets.load_dataset(str(target), split="train"),
    ):
        assert opened.features["label"] == datasets.ClassLabel(names=list(CLASSES))
        assert opened["label"] == [0, 0, 1, 1, 1]
        bare = opened.cast_column("image", datasets.Image(decode=False))
        for got, image in zip(bare, read_synthetic(run), strict=True):
            assert got["image"] == {"bytes": image.path.read_bytes(), "path": f"{image.row['id']}.png"}
            known = {**got, "label": image.class_name, "plan": json.loads(got["plan"] or "null")}
            known["scores"] = json.loads(got["scores"])
            del known["image"]
            assert known == {key: value for key, value in image.row.items() if key not in ("accepted", "reasons")}
        assert opened[4]["image"].size == (32, 32)
    card = DatasetCard.load(target / "README.md")
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert card.text == DatasetCard.load(run / "synthetic" / "README.md").text


def test_parquet_in_several_files_and_the_same_bytes_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(image.path.stat().st_size for image in read_synthetic(run))
    monkeypatch.setattr(export, "SHARD_BYTES", 2 * size)
    for name in ("a", "b"):
        export_set(run, tmp_path / name, "parquet")
    assert len(names(tmp_path / "a" / "data")) == 3
    assert datasets.load_dataset(str(tmp_path / "a"), split="train")["label"] == [0, 0, 1, 1, 1]
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_class_without_images_keeps_the_labels_of_the_real_data(run: Path, tmp_path: Path) -> None:
    folder = synthetic_folder(run)
    write_rows(
        folder / "metadata.jsonl", [r for r in read_json_lines(folder / "metadata.jsonl") if r["label"] == "cat"]
    )
    export_set(run, tmp_path / "set", "parquet")
    opened = datasets.load_dataset(str(tmp_path / "set"), split="train")
    assert opened["label"] == [1, 1, 1] and opened.features["label"].names == list(CLASSES)


def test_a_folder_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("my own")
    with pytest.raises(ConfigError, match="mine is not empty"):
        export_set(run, target)
    with pytest.raises(ConfigError, match=r"thesis\.txt is no folder"):
        export_set(run, target / "thesis.txt")
    with pytest.raises(ConfigError, match="lies within the synthetic set"):
        export_set(run, run / "synthetic" / "train" / "out")
    assert names(target) == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    assert export_set(run, target) == 5  # an empty one will do


def test_damaged_missing_and_unfinished_sets_leave_nothing(run: Path, tmp_path: Path) -> None:
    target, image = tmp_path / "set", synthetic_folder(run) / "cat" / "pretrained-00001.png"
    Image.fromarray(pixels_of("another")).save(image)
    for kind in export.FORMATS:
        with pytest.raises(DataError, match=r"pretrained-00001\.png is damaged"):
            export_set(run, target, kind)
    with pytest.raises(DataError, match="is damaged"):
        push_set(run, "owner/name")
    image.unlink()
    with pytest.raises(DataError, match=r"pretrained-00001\.png is missing"):
        export_set(run, target)
    (synthetic_folder(run) / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="no finished synthetic set"):
        export_set(run, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_names_that_lead_elsewhere_are_refused(run: Path, tmp_path: Path) -> None:
    path = synthetic_folder(run) / "metadata.jsonl"
    rows = read_json_lines(path)
    write_rows(path, [{**rows[0], "file_name": f"../train/{rows[0]['file_name']}"}, *rows[1:]])
    with pytest.raises(DataError, match=r"has the file name '\.\./train"):
        export_set(run, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_lost_card_is_said(run: Path, tmp_path: Path) -> None:
    (run / "synthetic" / "README.md").unlink()
    with pytest.raises(DataError, match=r"README\.md is missing") as caught:
        export_set(run, tmp_path / "set")
    assert "mvc filter" in str(caught.value)


def test_a_stop_or_a_full_place_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="nothing was exported"):
        export_set(run, tmp_path / "set")
    monkeypatch.setattr(flag, "signal", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="another --to"):
        export_set(run, tmp_path / "file" / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every connection that is tried, all of them refused."""
    tried: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "refused by the test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_nothing_is_sent_unless_it_is_asked_for(run: Path, tmp_path: Path, no_network: list[object]) -> None:
    for kind in export.FORMATS:
        export_set(run, tmp_path / kind, kind)
    assert not no_network


def test_a_hub_that_cannot_be_reached(run: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="cannot be sent to owner/name on the hub\nwhy: .*[Oo]ffline") as caught:
        push_set(run, "owner/name")
    assert "the run is unchanged" in str(caught.value) and not no_network


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "of nobody")
        yield server


# huggingface_hub hands its HTTP library a file in the old way.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_what_the_hub_receives(run: Path, tmp_path: Path, hub: Hub) -> None:
    for private in (True, True, False):  # again, and without a word about it, it stays private
        assert push_set(run, "owner/name", private) == f"{hub.address}/datasets/owner/name"
        assert hub.private
    assert sorted(hub.files) == ["README.md", "data/train-00000-of-00001.parquet"]
    (tmp_path / "sent.parquet").write_bytes(hub.files["data/train-00000-of-00001.parquet"])
    export_set(run, tmp_path / "set", "parquet")
    sent, kept = (
        datasets.load_dataset("parquet", data_files=str(path), split="train").cast_column(
            "image", datasets.Image(decode=False)
        )
        for path in (tmp_path / "sent.parquet", tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    )
    assert sent.features == kept.features and sent.to_list() == kept.to_list()
    card = DatasetCard(hub.files["README.md"].decode())
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert card.text == DatasetCard.load(run / "synthetic" / "README.md").text
    assert card.data.dataset_info["splits"][0]["num_examples"] == 5


def test_what_is_public_is_not_taken_for_private(run: Path, hub: Hub) -> None:
    hub.private = False
    with pytest.raises(ConfigError, match="owner/name is public already"):
        push_set(run, "owner/name", private=True)
    assert not hub.files


def test_a_hub_that_refuses(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"{hub.address}/elsewhere")
    with pytest.raises(EnvironmentFault, match="cannot be sent to owner/name on the hub\nwhy: .*404"):
        push_set(run, "owner/name")


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "owner/na me", ""])
def test_a_name_that_is_none(run: Path, name: str, no_network: list[object]) -> None:
    with pytest.raises(ConfigError, match="is no name of a data set on the hub"):
        push_set(run, name)
    assert not no_network
