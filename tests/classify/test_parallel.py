"""One classifier by several processes: the same losses and weights as by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from mvc.classify import parallel
from mvc.classify.images import Images
from mvc.classify.loop import fit
from mvc.classify.mixing import mixer
from mvc.classify.networks import build_network
from mvc.errors import ConfigError, MvcError
from mvc.randomness import generator, seeded_global
from tests.two_processes import in_two_processes

STEPS, CLASSES = 6, 3
RATES = [3e-3] * STEPS


class Toy(nn.Module):
    """Convolutions and GroupNorm, whose result for an image does not depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_global(0, "parallel toy"):
            layers = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def images_of(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=generator(seed, "parallel"))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Seven images, which two processes cannot share equally, with weights in their targets."""
    weights = 0.5 + torch.rand(7, 1, generator=generator(step, "weights"))
    labels = torch.randint(0, CLASSES, (7,), generator=generator(step, "labels"))
    return images_of(7, step), F.one_hot(labels, CLASSES) * weights


def validation(rank: int = 0) -> Images:
    """Of other labels in every process, so that the curve tells whose it is."""
    pixels = (255 * images_of(20, 99)).byte().permute(0, 2, 3, 1)
    return Images(pixels, (torch.arange(20) + rank) % CLASSES)


def small() -> nn.Module:
    network: nn.Module = build_network("small", CLASSES, 8, 0, torch.full((3,), 0.5), torch.full((3,), 0.3), None)
    return network


CASES: dict[str, dict[str, Any]] = {
    "adamw": {"ema_decay": 0.5},
    "sgd": {"optimizer": "sgd"},
}


def trained(case: str, rank: int = 0) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights and numbers of one fit of the toy."""
    network = Toy()
    options = {"weight_decay": 1e-2, "evaluation_steps": 2, "validation": validation(rank), **CASES[case]}
    found = fit(network, batch, RATES, **options)
    return network.state_dict(), [found.best_step, found.validation_accuracy, found.curve, found.training_loss]


def _failure(call: Any) -> str:
    try:
        call()
    except MvcError as error:
        return str(error)
    return "none"


def _not_finite(step: int) -> tuple[Tensor, Tensor]:
    images, targets = batch(step)
    if step == STEPS - 1:
        targets[1] = torch.nan  # of process 1 alone
    return images, targets


def _process(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does: fits in two groups, one after the other, and errors that both have to meet."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    said: dict[str, Any] = {}
    for case in CASES:
        assert parallel.join(torch.device("cpu")) == torch.device("cpu") and parallel.size() == 2
        weights, said[case] = trained(case, rank)
        save_file(weights, folder / f"{case}-{rank}.safetensors")
        distributed.destroy_process_group()
    parallel.join(torch.device("cpu"))
    options: dict[str, Any] = {"weight_decay": 0.0, "evaluation_steps": 3, "validation": None}
    network = small()
    for name in ("mixup", "alignmixup", "puzzlemix"):  # forward passes in parts, and gradients within them
        fit(network, batch, RATES, mixer=mixer(name, 0), **options)
    # The small net's weights lie in channels-last order.
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / f"small-{rank}.safetensors")
    said["few"] = _failure(lambda: fit(Toy(), lambda step: (images_of(1, 0), torch.ones(1, 3)), RATES, **options))
    said["not finite"] = _failure(lambda: fit(Toy(), _not_finite, RATES, **options))
    distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left: their weights and what they said."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(_process, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_gloo_processes_equal_one(case: str, two: Path) -> None:
    weights, expected = trained(case)
    for rank in range(2):
        best, accuracy, curve, loss = json.loads((two / f"{rank}.json").read_text())[case]
        # Process 1 has other validation labels, and no say.
        assert [best, accuracy] == expected[:2]
        assert [tuple(point[:2]) for point in curve] == [point[:2] for point in expected[2]]
        assert [point[2] for point in curve] == pytest.approx([point[2] for point in expected[2]], abs=1e-5)
        assert loss == pytest.approx(expected[3], abs=1e-5)
        for name, value in load_file(two / f"{case}-{rank}.safetensors").items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5, msg=f"{name} of process {rank}")


@pytest.mark.slow
def test_processes_end_with_equal_weights_and_running_statistics(two: Path) -> None:
    first, second = (load_file(two / f"small-{rank}.safetensors") for rank in range(2))
    before = small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in before)
    assert sum(torch.equal(first[name], before[name]) for name in before) == 2  # mean and std of the images


@pytest.mark.slow
def test_errors_are_met_by_all(two: Path) -> None:
    for rank in range(2):
        said = json.loads((two / f"{rank}.json").read_text())
        assert "a batch of 1 images for 2 processes" in said["few"]
        assert "loss is not finite by step 6" in said["not finite"]


def test_one_process_gives_back_what_it_got() -> None:
    images, targets = batch(0)
    network, device = Toy(), torch.device("cpu")
    assert parallel.size() == 1 and parallel.join(device) is device
    assert parallel.part(images, targets) == (images, targets)
    assert parallel.mean(targets) is targets and parallel.spread(network, device) is network
    assert parallel.of_first(lambda: (0.5, 1.5), device) == (0.5, 1.5)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.cuda.device_count()
    place = {"RANK": 0, "WORLD_SIZE": there + 2, "LOCAL_WORLD_SIZE": there + 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=f"{there + 2} processes on this machine, which has {there} GPUs"):
        parallel.join(torch.device("cuda"))
