"""Initial weights, weights files and stems."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mvc.classify.networks import Normalised, SmallNet, build_network
from mvc.errors import ConfigError, EnvironmentFault

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.1])


def small(seed: int = 0, classes: int = 10, weights: Path | None = None) -> nn.Module:
    return build_network("small", classes, 32, seed, MEAN, STD, weights)


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_equal_seeds_give_equal_initial_weights_whatever_was_drawn_before() -> None:
    first = tensors(small())
    torch.rand(7, generator=torch.default_generator)
    second, other = tensors(small()), tensors(small(1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_small_net_is_small_and_takes_odd_sizes() -> None:
    network = small()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 100_000 <= count <= 300_000
    assert network(torch.zeros(2, 3, 29, 29)).shape == (2, 10)


def test_normalisation_is_done_by_the_network() -> None:
    network = Normalised(nn.Identity(), MEAN, STD)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(MEAN.view(1, 3, 1, 1).expand(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4), atol=1e-6)
    assert torch.allclose(network(images)[:, 2], (images[:, 2] - 0.3) / 0.1, atol=1e-5)


def test_resnet_keeps_resolution_on_small_images_only() -> None:
    low = build_network("resnet18", 5, 32, 0, MEAN, STD)
    high = build_network("resnet18", 5, 96, 0, MEAN, STD)
    assert low.network.conv1.weight.shape == (64, 3, 3, 3) and isinstance(low.network.maxpool, nn.Identity)
    assert high.network.conv1.weight.shape == (64, 3, 7, 7)
    with torch.inference_mode():
        assert low.network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)
        assert high.network.forward_features(torch.zeros(1, 3, 96, 96)).shape == (1, 512, 3, 3)
        assert low.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def saved(path: Path, network: nn.Module, **changes: torch.Tensor | None) -> Path:
    weights = {**network.state_dict(), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}, path)
    return path


def test_weights_of_the_same_classes_are_taken_whole(tmp_path: Path) -> None:
    source = SmallNet(10)
    network = small(weights=saved(tmp_path / "w.safetensors", source))
    given, taken = tensors(source), tensors(network)
    assert all(torch.equal(given[name], taken[f"network.{name}"]) for name in given)


def test_head_of_other_classes_is_replaced_by_the_seeded_one(tmp_path: Path) -> None:
    source = SmallNet(1000)
    path = saved(tmp_path / "w.safetensors", source)
    taken, fresh = tensors(small(weights=path)), tensors(small())
    assert torch.equal(taken["network.fc.weight"], fresh["network.fc.weight"])
    assert torch.equal(taken["network.fc.bias"], fresh["network.fc.bias"])
    assert torch.equal(taken["network.features.0.0.weight"], source.features[0][0].weight)


def test_weights_decide_the_stem(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", build_network("resnet18", 3, 224, 1, MEAN, STD).network)
    network = build_network("resnet18", 5, 32, 0, MEAN, STD, path)
    assert network.network.conv1.weight.shape == (64, 3, 7, 7)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = SmallNet(10)
    path = tmp_path / "w.safetensors"
    saved(path, source, features__4__0__weight=None)
    with pytest.raises(EnvironmentFault, match=r"lacks features\.4\.0\.weight"):
        small(weights=path)
    saved(path, source, rogue=torch.zeros(1))
    with pytest.raises(EnvironmentFault, match="has unknown rogue"):
        small(weights=path)
    saved(path, source, features__0__0__weight=torch.zeros(1, 3, 3, 3))
    with pytest.raises(EnvironmentFault, match=r"another shape of features\.0\.0\.weight"):
        small(weights=path)
    saved(path, source, fc__bias=torch.full((10,), float("nan")))
    with pytest.raises(EnvironmentFault, match=r"fc\.bias holds values that are not finite"):
        small(weights=path)
    path.write_bytes(b"\0" * 20)
    with pytest.raises(EnvironmentFault, match="cannot read"):
        small(weights=path)
    with pytest.raises(ConfigError, match=r"w\.pth is not a safetensors file"):
        small(weights=tmp_path / "w.pth")
