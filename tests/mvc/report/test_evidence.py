"""Ratios that were tried, what the test split went through, and the lines that load the classifier to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.classify.networks import build_network
from mvc.errors import DataError
from mvc.randomness import generator
from mvc.report.evidence import MOST_IDS, Sweep, TestSplit, read_published, read_sweeps, read_test_split
from mvc.storage import publish_folder, write_json, write_json_lines, write_text

WEIGHTS = "model.safetensors"
TRIED: list[dict[str, Any]] = [
    {"ratio": 2.0, "effective": 1.25, "accuracies": [0.5, 0.7], "keys": ["c", "d"]},
    {"ratio": 0.5, "effective": 0.51, "accuracies": [0.8, 0.9], "keys": ["a", "b"]},
]


def test_ratios(tmp_path: Path) -> None:
    assert read_sweeps(tmp_path) == []
    write_json(tmp_path / "ratios.json", {"rsp": {"chosen": 0.5, "tried": TRIED}})
    assert read_sweeps(tmp_path) == [Sweep("rsp", [0.5, 2.0], [[0.8, 0.9], [0.5, 0.7]], 0.5, ["rsp 1.25 instead of 2"])]
    write_json(tmp_path / "ratios.json", {"rsp": {"chosen": 4.0, "tried": TRIED}})
    with pytest.raises(DataError, match=r"ratios.json cannot be used\nwhy: ValueError: rsp: the ratio 4.0 was not"):
        read_sweeps(tmp_path)


def test_test_split(tmp_path: Path) -> None:
    assert read_test_split(tmp_path) == TestSplit([], [])
    opening = {"classifiers": "0", "arms": ["real", "rsp"]}
    write_json_lines(tmp_path / "test_openings.jsonl", [opening])
    assert read_test_split(tmp_path) == TestSplit([], [])
    write_json_lines(tmp_path / "test_openings.jsonl", [opening, {**opening, "arms": ["real"]}])
    names = [f"test/cat/{number}.png" for number in range(MOST_IDS + 2)]
    write_json(tmp_path / "results" / "leaks.json", {"synthetic": names[:1], "training": names})
    assert read_test_split(tmp_path) == TestSplit(
        [("synthetic", 1, names[:1]), ("training", MOST_IDS + 2, names[:MOST_IDS])], ["real, rsp", "real"]
    )
    write_text(tmp_path / "results" / "leaks.json", "[]")
    with pytest.raises(DataError, match=r"leaks.json cannot be used"):
        read_test_split(tmp_path)


def test_the_lines_of_python_load_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    assert read_published(tmp_path, tmp_path / "results") is None
    network = build_network("small", 2, 32, 0, torch.full((3,), 0.5), torch.full((3,), 0.25))
    facts = {"backbone": "small", "classes": ["cat", "dog"], "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    facts |= {"background": "white", "arm": "rsp", "seed": 3, "validation_accuracy": 0.875}
    with publish_folder(tmp_path / "results" / "classifier", {"key": "0"}) as folder:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / "classifier.json", facts)
    found = read_published(tmp_path, tmp_path / "results")
    assert found is not None and found.sentence == (
        "Network small, trained as rsp with seed 3 (87.5 % on the validation images). "
        "It lies in results/classifier of the run folder."
    )
    # As a user does, in the run folder.
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(found.code, names)
    assert names["facts"]["classes"] == ["cat", "dog"]
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "test published"))
    torch.testing.assert_close(names["network"](images), network.eval()(images))
