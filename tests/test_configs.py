"""The shipped experiments: each can be asked for as its header says, and holds the arms of its tables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mvc.arguments import resolve, shipped_experiments
from mvc.arms import Arm, parse_arm
from mvc.classify.backbones import check_backbone
from mvc.cli import app
from mvc.config import Experiment

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = shipped_experiments()
PAPER = sorted(set(SHIPPED) - {"digits", "small_gpu"})


@cache
def experiment(name: str) -> Experiment:
    return resolve([name, "data.path=somewhere"])


def arms(name: str) -> list[Arm]:
    return [parse_arm(text) for text in experiment(name).classify.arms]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_dry_run_prints_the_whole_experiment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    given = ["run", str(SHIPPED[name]), "--data", "FOLDER", "--dry-run"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    shown, written = yaml.safe_load(done.stdout), yaml.safe_load(SHIPPED[name].read_text())
    assert shown["data"]["path"] == str(tmp_path / "FOLDER") and shown["run"]["dir"] == f"runs/{name}"
    for section, values in written.items():
        for key in values:
            assert key in shown[section]
    assert shown["classify"]["arms"] == experiment(name).classify.arms
    assert [path.name for path in tmp_path.iterdir()] == ["FOLDER"]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_arms_fit_the_sources_and_have_what_they_are_compared_with(name: str) -> None:
    made = {source for source, share in experiment(name).generate.sources.items() if share > 0}
    names = {arm.name for arm in arms(name)}
    for arm in arms(name):
        assert arm.source is None or arm.source in made
        if arm.uses_synthetic:
            assert Arm("real", augmentation=arm.augmentation).name in names
            if name in PAPER:
                assert Arm("duplicate", augmentation=arm.augmentation).name in names


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_backbones_exist_and_take_the_images(name: str) -> None:
    settings = experiment(name).classify
    for backbone in settings.backbones:
        if backbone != "auto":
            check_backbone(backbone, settings.image_size or 224, settings.pretrained)


@pytest.mark.parametrize("name", PAPER)
def test_headers_are_readable_and_tell_what_is_ours(name: str) -> None:
    head = SHIPPED[name].read_text().split("\n\n")[0]
    assert all(line.startswith("# ") and len(line) <= 120 for line in head.splitlines())
    assert "ours: " in head or "Ours: " in head
    assert "# Data: " in head


TABLES = {
    # Test accuracies of the MVC paper's Tables 1 to 5 and Back-Modality's Table 2, row by row.
    "cifar10": ["94.9 95.9 95.9 95.8 95.6 96.2 96.3 96.6", "96.1 97.3 97.4 97.3 96.5 97.6 97.6 97.7"],
    "cifar10_reduced": ["79.5 83.8 83.7 83.9 82.9 86.2 86.6 86.4", "81.2 85.9 86.1 85.6 85.1 87.4 87.3 87.5"],
    "cifar100": ["75.4 78.7 78.5 78.3 76.9 80.7 80.4 81.5", "81.2 82.7 82.4 82.9 83.3 84.5 84.4 84.9"],
    "cifar100_reduced": ["39.7 45.4 44.7 44.8 46.1 47.7 47.5 47.8", "41.5 46.3 45.9 45.7 47.8 48.7 48.1 48.5"],
    "tiny_imagenet": ["27.3 30.5 30.4 33.2 35.4 35.5", "46.3 47.9 48.6 49.4"],
    "caltech101": [
        "95 96.1 96.4 97.2 97.5",
        "95.2 95.1 95.5 95.8 96.3",
        "96.2 96.7 96.9 97.5 97.9",
        "96.1 96.8 97.2 95.4 96.3 97.2",
        "95.1 95.6 95.8 94.9 95.3 95.8",
        "96.7 97.3 97.5 97.2 97.2 97.5",
    ],
    "brain_tumor": ["93.2 94.4 95.6 96.1 96.8", "91.9 93.3 94.5 95.2 95.2", "92.3 94.7 95.6 95.8 96.7"],
    "tiny_imagenet_few_shot": [
        "2.40 5.19 8.64 11.75",
        "2.61 5.77 9.11 12.59",
        "3.41 6.35 9.84 13.23",
        "4.42 8.19 11.78 14.34",
        "4.48 10.26 12.52 15.66",
        "10.67 14.55 16.13 20.07",
    ],
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_headers_hold_the_rows_of_the_papers_tables(name: str) -> None:
    lines = [line for line in SHIPPED[name].read_text().split("\n\n")[0].splitlines() if line.startswith("#   ")]
    rows = [" ".join(re.findall(r"(?<= )\d+(?:\.\d+)?(?=\*? |\*?$)", line)) for line in lines]
    assert [row for row in rows if row in TABLES[name]] == TABLES[name]


@pytest.mark.parametrize(
    ("name", "backbones", "wanted"),
    [
        ("cifar10", ["wrn_28_2", "wrn_28_10"], 12),
        ("cifar100", ["wrn_28_2", "wrn_28_10"], 12),
        ("cifar10_reduced", ["wrn_28_2", "wrn_28_10"], 12),
        ("cifar100_reduced", ["wrn_28_2", "wrn_28_10"], 14),
        ("tiny_imagenet", ["resnet50", "efficientnet_b3"], 12),
        ("caltech101", ["resnet50", "efficientnet_b0", "vit_base_patch16_224"], 11),
        ("brain_tumor", ["resnet50", "efficientnet_b0", "wide_resnet50_2"], 7),
        ("tiny_imagenet_few_shot", ["resnet18"], 9),
        ("diffda_eval", ["resnet50"], 6),
    ],
)
def test_every_column_of_the_tables_is_an_arm(name: str, backbones: list[str], wanted: int) -> None:
    settings = experiment(name).classify
    assert settings.backbones == backbones and len(settings.arms) == wanted
    assert len(settings.seed_list) == (5 if name.endswith("few_shot") else 3)
    sources = {"finetuned": 1.0} if name == "brain_tumor" else {"finetuned": 0.5, "pretrained": 0.5}
    if name.endswith("few_shot"):
        sources = {"finetuned": 1 / 3, "pretrained": 1 / 3, "back_captioning": 1 / 3}
    assert experiment(name).generate.sources == pytest.approx(sources, abs=1e-5)
    table_1 = {f"{arm}{aug}" for arm in ("real", "two_phase") for aug in ("", "+autoaugment", "+randaugment")}
    if name.startswith("cifar") or name == "tiny_imagenet":
        assert {*table_1, "real+fast_autoaugment", "two_phase+fast_autoaugment"} <= set(settings.arms)
    if name in ("caltech101", "brain_tumor"):
        assert table_1 - {"two_phase"} <= set(settings.arms)
    if name in ("caltech101", "cifar100_reduced"):
        assert {"two_phase@pretrained+autoaugment", "two_phase@finetuned+autoaugment"} <= set(settings.arms)


def test_reduced_sets_have_4000_labelled_images() -> None:
    assert experiment("cifar10_reduced").data.shots == 4000 // 10
    assert experiment("cifar100_reduced").data.shots == 4000 // 100


def test_the_page_names_every_one_of_them() -> None:
    page = (ROOT / "docs" / "paper_experiments.md").read_text()
    for name in PAPER:
        assert f"| `{name}` |" in page and f"mvc run configs/{name}.yaml --data FOLDER" in page
