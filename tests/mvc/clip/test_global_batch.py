"""The large-batch gradient by two processes: that of one, whatever their shares, and errors that both meet."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from mvc.clip.contrastive import clip_loss
from mvc.clip.global_batch import gathered, process, shares, sum_gradients
from tests.mvc.clip.clip_toys import pictures, resnet_config, texts, toy_clip, vit_config
from tests.mvc.clip.contrastive_reference import distance, in_parts, whole_batch
from tests.two_processes import in_two_processes

CASES: dict[str, tuple[list[int], int]] = {
    "equal": ([6, 6], 4),
    "unequal": ([6, 5], 4),
    "one pass": ([6, 5], 50),
    "far from equal": ([1, 9], 2),
    "objective": ([4, 5], 2),
    "dropout": ([8, 3], 4),  # cut at the rows at which one process cuts
}
"""Rows of each process, and rows of a micro-batch."""


def network_of(case: str) -> tuple[Any, Tensor, Tensor]:
    """The network and the global batch of a case."""
    config = vit_config(patch_dropout=0.5) if case == "dropout" else vit_config()
    with tempfile.TemporaryDirectory() as folder:
        clip = toy_clip(Path(folder), config)
    rows = sum(CASES[case][0])
    return clip.network.double().train(), pictures(rows).double(), clip.tokenize(texts(rows))


def neighbours(image_features: Tensor, text_features: Tensor, factor: Tensor) -> Tensor:
    """An objective in which each row has a partner, who may be another process's."""
    return clip_loss(image_features + 0.5 * image_features.roll(1, 0), text_features, factor)


def options(case: str) -> dict[str, Any]:
    return {"seed": 2, "step": 3, **({"objective": neighbours} if case == "objective" else {})}


def _said(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "none"


def _process(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does: all cases in one group, and errors that both have to meet."""
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    said: dict[str, Any] = {"process": process()}
    for case, (counts, size) in CASES.items():
        network, images, ids = network_of(case)
        own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        loss, found = in_parts(network, images[own], ids[own], size, **options(case))
        said[case] = float(loss)
        save_file(found, folder / f"{case}-{rank}.safetensors")
    network, images, ids = network_of("equal")
    said["empty"] = _said(lambda: in_parts(network, images[: 2 * rank], ids[: 2 * rank], 4))
    said["unmatched"] = _said(lambda: in_parts(network, images[:3], ids[: 3 - rank], 4))
    resnet = toy_clip(folder / str(rank), resnet_config()).network.train()
    said["BatchNorm"] = _said(lambda: in_parts(resnet, images[:6].float(), ids[:6], 12))
    distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left: their gradients and what they said."""
    folder = tmp_path_factory.mktemp("two")
    for rank in range(2):
        (folder / str(rank)).mkdir()
    in_two_processes(_process, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_gloo_processes_equal_one(case: str, two: Path) -> None:
    network, images, ids = network_of(case)
    loss, expected = in_parts(network, images, ids, CASES[case][1], **options(case))
    first, second = (load_file(two / f"{case}-{rank}.safetensors") for rank in range(2))
    assert distance(first, expected) < 1e-12
    # Equal to the bit, or their weights would drift apart.
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for rank in range(2):
        said = json.loads((two / f"{rank}.json").read_text())
        assert said[case] == pytest.approx(float(loss), rel=1e-12) and said["process"] == rank
    if case in ("equal", "unequal", "one pass"):
        assert distance(first, whole_batch(network, images, ids)[1]) < 1e-12


@pytest.mark.slow
def test_errors_are_met_by_both(two: Path) -> None:
    for rank in range(2):
        said = json.loads((two / f"{rank}.json").read_text())
        assert "0 images and 0 texts of process 0: as many of both are needed" in said["empty"]
        assert "3 images and 2 texts of process 1" in said["unmatched"]
        assert "BatchNorm (visual.bn1" in said["BatchNorm"] and "not all 12 of the batch" in said["BatchNorm"]


def test_one_process_has_all_rows() -> None:
    network, rows = torch.nn.Linear(2, 1), torch.ones(3, 2)
    network(rows).sum().backward()
    sum_gradients(network)
    assert network.weight.grad is not None and network.weight.grad.tolist() == [[3, 3]]
    assert process() == 0 and shares(3, 3, torch.device("cpu")) == [3] and gathered(rows, [3]) is rows
