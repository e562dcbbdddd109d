"""Initial weights, weights files, published weights, stems, features and linear probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mvc.classify.networks import Normalised, SmallNet, build_network, restore_network
from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import generator, seeded_global

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.1])


def small(seed: int = 0, classes: int = 10, weights: Path | None = None) -> Normalised:
    return build_network("small", classes, 32, seed, MEAN, STD, weights)


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_equal_seeds_give_equal_initial_weights_whatever_was_drawn_before() -> None:
    first = tensors(small())
    torch.rand(7, generator=torch.default_generator)
    second, other = tensors(small()), tensors(small(1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_the_small_net_draws_its_layers_in_their_order() -> None:
    taken = tensors(small(seed=4))
    with seeded_global(4, "classifier weights"):
        for number, (before, after) in enumerate([(3, 24), (24, 48), (48, 48), (48, 96), (96, 96)]):
            drawn = nn.Conv2d(before, after, 3, bias=False).weight
            assert torch.equal(taken[f"network.features.{number}.0.weight"], drawn)
        head = nn.Linear(96, 10)
    assert torch.equal(taken["network.fc.weight"], head.weight)
    assert torch.equal(taken["network.fc.bias"], head.bias)


TOYS = ("small", "wrn_28_2", "test_resnet", "test_efficientnet", "test_vit")


@pytest.mark.parametrize("backbone", TOYS)
def test_initial_weights_depend_on_the_seed_alone(backbone: str) -> None:
    first, second = (tensors(build_network(backbone, 5, 32, 3, MEAN, STD)) for _ in range(2))
    other = tensors(build_network(backbone, 5, 32, 4, MEAN, STD))
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if first[name].ndim == 4]
    assert weights and not any(torch.equal(first[name], other[name]) for name in weights)


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


def images(side: int = 32, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=generator(0, "test images"))


FEATURES = {
    "small": (96, 4, 4),
    "wrn_28_2": (128, 8, 8),
    "test_resnet": (96, 4, 4),
    "test_efficientnet": (256, 1, 1),
    "mobilenetv3_small_050": (288, 1, 1),
    "test_vit": (64, 5, 1),
}


@pytest.mark.parametrize("backbone", FEATURES)
@pytest.mark.parametrize("training", [True, False])
def test_head_of_features_is_the_forward_pass(backbone: str, training: bool) -> None:
    network = build_network(backbone, 5, 32, 0, MEAN, STD).train(training)
    with torch.no_grad():
        features = network.features(images())
        assert features.shape == (3, *FEATURES[backbone])
        logits = network.head(features)
        assert logits.shape == (3, 5) and torch.equal(logits, network(images()))
        assert not torch.equal(network.head(features.flip(0)), logits)


def test_features_with_channels_last_are_turned_to_maps_and_back() -> None:
    from timm.models.swin_transformer import SwinTransformer

    with seeded_global(0, "test swin"):
        inner = SwinTransformer(32, 4, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=5)
    network = Normalised(inner, MEAN, STD, "maps_last").eval()
    with torch.no_grad():
        features = network.features(images())
        assert features.shape == (3, 16, 4, 4)
        assert torch.equal(network.head(features), network(images()))


def test_convolutions_lie_with_channels_last() -> None:
    for backbone in ("small", "wrn_28_2", "test_efficientnet"):
        network = build_network(backbone, 5, 32, 0, MEAN, STD)
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)


def test_a_network_without_a_single_map_says_so() -> None:
    with pytest.raises(ConfigError, match="backbone Identity has no single map of features"):
        Normalised(nn.Identity(), MEAN, STD, "none").features(images())


def test_a_transformer_is_made_for_the_side_of_the_images() -> None:
    network = build_network("test_vit", 5, 48, 0, MEAN, STD)
    assert network.network.pos_embed.shape == (1, 3 * 3 + 1, 64)
    assert network(images(48)).shape == (3, 5)
    with pytest.raises(ConfigError, match="test_vit cannot take images of 40 px\nwhy: its patches of 16 px"):
        build_network("test_vit", 5, 40, 0, MEAN, STD)


@pytest.mark.parametrize("backbone", TOYS)
def test_a_linear_probe_moves_its_head_and_nothing_else(backbone: str) -> None:
    network = build_network(backbone, 5, 32, 0, MEAN, STD, train_layers="head").train()
    before = tensors(network)
    head = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in head} == {"weight", "bias"} and len(head) == 2
    assert {module for module in network.network.modules() if module.training} == {
        network.network.get_submodule(name) for name in network.trained or ()
    }
    # All parameters: weight decay must not reach what has no gradient either.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    labels = torch.tensor([0, 1, 4])
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = tensors(network)
    assert {name for name in after if not torch.equal(after[name], before[name])} == head
    assert losses[-1] < losses[0]
    # The whole network moves, for comparison.
    whole = build_network(backbone, 5, 32, 0, MEAN, STD).train()
    assert all(parameter.requires_grad for parameter in whole.parameters()) and whole.network.training


def test_a_probe_drops_nothing_in_its_body() -> None:
    body = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
    network = Normalised(body, MEAN, STD, trained=("2",)).train()
    assert torch.equal(network(images(2)), network(images(2)))
    dropping = Normalised(body, MEAN, STD).train()
    assert not torch.equal(dropping(images(2)), dropping(images(2)))


def test_wide_resnets_and_timms_nets_take_files_of_their_names(tmp_path: Path) -> None:
    for backbone, head in (("wrn_28_2", "fc"), ("test_efficientnet", "classifier"), ("test_vit", "head")):
        source = build_network(backbone, 9, 32, 1, MEAN, STD).network
        path = saved(tmp_path / "w.safetensors", source)
        taken = tensors(build_network(backbone, 5, 32, 0, MEAN, STD, path))
        fresh = build_network(backbone, 5, 32, 0, MEAN, STD)
        for name, tensor in source.state_dict().items():
            expected = fresh.state_dict()[f"network.{name}"] if name.startswith(f"{head}.") else tensor
            assert torch.equal(taken[f"network.{name}"], expected), name


def test_positions_of_another_side_are_resampled(tmp_path: Path) -> None:
    source = build_network("test_vit", 5, 160, 1, MEAN, STD).network
    # A plane over the places, which any resampling keeps inside.
    plane = torch.arange(10.0).view(10, 1) + 100 * torch.arange(10.0)
    with torch.no_grad():
        source.pos_embed[0, 1:] = plane.reshape(100, 1)
        source.pos_embed[0, 0] = -7.0
    path = saved(tmp_path / "w.safetensors", source)
    taken = build_network("test_vit", 5, 80, 0, MEAN, STD, path).network.pos_embed[0]
    assert taken.shape == (26, 64) and bool((taken[0] == -7.0).all())
    grid = taken[1:, 0].reshape(5, 5)
    # The middle of the middle patch of five is the middle of all ten.
    assert grid[2, 2].item() == pytest.approx(plane.mean().item(), rel=1e-3)
    assert bool((grid.diff(dim=1) > 150).all()) and bool((grid.diff(dim=0) > 1).all())


def test_a_deep_stem_in_the_file_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", build_network("test_resnet", 5, 96, 1, MEAN, STD).network)
    network = build_network("test_resnet", 5, 32, 0, MEAN, STD, path).network
    assert isinstance(network.conv1, nn.Sequential) and isinstance(network.maxpool, nn.MaxPool2d)
    path = saved(tmp_path / "s.safetensors", build_network("test_resnet", 5, 32, 1, MEAN, STD).network)
    network = build_network("test_resnet", 5, 96, 0, MEAN, STD, path).network
    assert network.conv1.weight.shape == (32, 3, 3, 3) and isinstance(network.maxpool, nn.Identity)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on a machine without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def publish(hub: Path, repository: str, network: nn.Module, file: str = "model.safetensors") -> None:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("a" * 40)
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    saved(snapshot / file, network)


def published(backbone: str, side: int, classes: int = 5, **settings: Any) -> Normalised:
    return build_network(backbone, classes, side, 0, MEAN, STD, pretrained=True, **settings)


def test_published_weights_are_taken_from_the_cache_without_network(hub: Path) -> None:
    source = build_network("test_resnet", 1000, 160, 1, MEAN, STD).network
    publish(hub, "timm/test_resnet.r160_in1k", source)
    network, other = published("test_resnet", 32), published("test_resnet.r160_in1k", 160)
    given, taken = tensors(source), tensors(network.network)
    assert all(torch.equal(given[name], taken[name]) for name in given if not name.startswith("fc."))
    assert taken["fc.weight"].shape[0] == 5
    # A seeded head, the stem of ImageNet and the scaling of the published weights, whatever the side.
    assert torch.equal(taken["fc.weight"], other.network.fc.weight)
    assert isinstance(network.network.maxpool, nn.MaxPool2d)
    assert network.mean.flatten().tolist() == [0.5, 0.5, 0.5] == network.std.flatten().tolist()
    assert network(images()).shape == (3, 5)


def test_published_heads_of_the_same_classes_stay(hub: Path) -> None:
    source = build_network("test_resnet", 1000, 160, 1, MEAN, STD).network
    publish(hub, "timm/test_resnet.r160_in1k", source)
    assert torch.equal(published("test_resnet", 64, classes=1000).network.fc.weight, source.fc.weight)


def test_a_probe_of_a_published_transformer_at_another_side(hub: Path) -> None:
    source = build_network("test_vit", 1000, 160, 1, MEAN, STD).network
    publish(hub, "timm/test_vit.r160_in1k", source)
    network = published("test_vit", 64, train_layers="head")
    assert network.network.pos_embed.shape == (1, 17, 64)
    assert torch.equal(network.network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == [
        "network.head.weight",
        "network.head.bias",
    ]


def test_published_weights_that_cannot_be_had_are_told(hub: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"backbone test_vit cannot be had from the hub \(timm/test_vit\."
    ) as told:
        published("test_vit", 64)
    assert "why: " in str(told.value) and "set classify.weights to it" in str(told.value)
    publish(hub, "timm/test_vit.r160_in1k", SmallNet(3), "other.safetensors")
    with pytest.raises(EnvironmentFault, match=r"why: it has no model\.safetensors"):
        published("test_vit", 64)
    publish(hub, "timm/test_vit.r160_in1k", SmallNet(3))
    with pytest.raises(EnvironmentFault, match="does not fit backbone test_vit"):
        published("test_vit", 64)
    with pytest.raises(ConfigError, match="no published weights of backbone wrn_28_2"):
        published("wrn_28_2", 32)


def test_a_network_is_restored_from_its_state_alone(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "timm/test_resnet.r160_in1k", build_network("test_resnet", 1000, 160, 1, MEAN, STD).network)
    made = {"test_resnet": published("test_resnet", 32)}
    made.update({backbone: build_network(backbone, 5, 32, 3, MEAN, STD) for backbone in TOYS[:2]})
    # The cache is gone; the stem and the scaling of the published weights are in the state.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub / "none"))
    for backbone, network in made.items():
        network.train()(images())
        again = restore_network(backbone, 5, 32, network.state_dict()).eval()
        assert torch.equal(again(images()), network.eval()(images()))
        assert torch.equal(again.head(again.features(images())), again(images()))
    with pytest.raises(EnvironmentFault, match="not those of a wrn_28_2 of 4 classes for 32 px\nwhy: .*fc"):
        restore_network("wrn_28_2", 4, 32, made["wrn_28_2"].state_dict())
    with pytest.raises(EnvironmentFault, match="not those of a small of 5 classes"):
        restore_network("small", 5, 32, {})
