"""Names of backbones, sides that they take, stems, what their features look like."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from mvc.classify.backbones import bare_network, check_backbone, feature_layout, head_names, known_name
from mvc.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("small", "small"),
        ("WRN-28-10", "wrn_28_10"),
        ("ResNet18", "resnet18"),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("ViT_Base_Patch16_224.AugReg2_in21k_ft_in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    ],
)
def test_names_are_taken_in_capitals_and_with_tags(written: str, name: str) -> None:
    assert known_name(written) == name


def test_an_unknown_name_is_told_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"no backbone 'resnet81'; nearest: resnet\w+, resnet\w+, resnet\w+\n"):
        check_backbone("resnet81", 64)
    with pytest.raises(ConfigError, match=r"no backbone 'wrn_28_8'; nearest: wrn_28_2, wrn_28_10, "):
        check_backbone("wrn_28_8", 64)
    with pytest.raises(ConfigError, match=r"no weights of the tag 'a9_in1k'; nearest: resnet50\.\w+, "):
        check_backbone("resnet50.a9_in1k", 64)


def test_a_name_never_reaches_for_files_or_the_network() -> None:
    for name in ("hf-hub:timm/resnet18.a1_in1k", "local-dir:models/mine", "timm/resnet18"):
        with pytest.raises(ConfigError, match="no backbone"):
            known_name(name)


PARAMETERS = {
    "wrn_28_2": 1_595_320,
    "wrn_28_10": 37_113_784,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b3": 12_233_232,
    "mobilenetv3_large_100": 5_483_032,
    "vit_base_patch16_224": 86_567_656,
}
"""With 1000 classes, of the published networks; the wide ResNets' have 990 rows more in the head."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_backbones_of_the_papers_have_their_number_of_parameters(name: str) -> None:
    check_backbone(name, 224)
    with torch.device("meta"):
        network = bare_network(name, 1000, 224, small_stem=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_large_100", "wrn_28_2", "small"])
def test_usual_backbones_take_small_images(name: str) -> None:
    check_backbone(name, 8)
    check_backbone(name, 32)


def test_a_side_that_is_too_small_is_told_with_one_that_works() -> None:
    with pytest.raises(ConfigError, match="densenet121 cannot take images of 16 px\nwhy: .*too small") as told:
        check_backbone("densenet121", 16)
    assert "set classify.image_size to 32, or" in str(told.value)
    check_backbone("densenet121", 32)
    with pytest.raises(ConfigError, match="why: .*Kernel size can't be greater.*\ndo: set classify.image_size to 96,"):
        check_backbone("inception_v3", 32)


def test_patches_have_to_divide_the_side() -> None:
    check_backbone("vit_base_patch16_224", 96)
    with pytest.raises(ConfigError, match="100 px\nwhy: its patches of 16 px .*\ndo: set .*image_size to 96 or 112"):
        check_backbone("vit_base_patch16_224", 100)
    with pytest.raises(ConfigError, match="image_size to 16$"):
        check_backbone("vit_base_patch16_224", 9)


def test_a_network_of_one_side_only_names_it() -> None:
    with pytest.raises(ConfigError, match="cannot take images of 256 px\nwhy: .*\ndo: set classify.image_size to 224,"):
        check_backbone("efficientformer_l1", 256)
    check_backbone("efficientformer_l1", 224)


def test_what_gives_no_classes_is_no_classifier() -> None:
    with pytest.raises(ConfigError, match="qwen3_vit_88m_enc is no classifier\nwhy: .*classification"):
        check_backbone("qwen3_vit_88m_enc", 64)


def test_absent_published_weights_are_told_early() -> None:
    check_backbone("resnet18", 32, pretrained=True)
    for name in ("small", "gcvit_base"):
        check_backbone(name, 224)
        with pytest.raises(ConfigError, match=f"no published weights of backbone {name} on the hub"):
            check_backbone(name, 224, pretrained=True)


def test_a_check_of_a_big_network_is_quick_and_draws_nothing() -> None:
    known_name("resnet18")  # timm's import is not measured
    before, start = torch.get_rng_state(), time.process_time()
    check_backbone("vit_huge_patch14_224", 224)
    assert time.process_time() - start < 2.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("small", "maps"),
        ("wrn_28_10", "maps"),
        ("test_resnet", "maps"),
        ("test_vit", "tokens"),
        ("swin_tiny_patch4_window7_224", "maps_last"),
        ("crossvit_tiny_240", "none"),
    ],
)
def test_layout_of_the_features(name: str, layout: str) -> None:
    assert feature_layout(name, 240 if name == "crossvit_tiny_240" else 32) == layout


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 64), ("resnet26d", 64), ("wide_resnet50_2", 64), ("test_resnet", 32)]
)
def test_every_resnet_has_a_small_stem_on_small_images(name: str, channels: int) -> None:
    with torch.device("meta"):
        network: Any = bare_network(name, 5, 32, small_stem=True)
        assert isinstance(network.maxpool, nn.Identity) and isinstance(network.conv1, nn.Conv2d)
        assert network.conv1.weight.shape == (channels, 3, 3, 3)
        assert network.forward_features(torch.empty(1, 3, 32, 32)).shape[2:] == (4, 4)


def test_last_layers_have_one_row_a_class() -> None:
    for name in ("small", "wrn_28_2", "resnet18", "efficientnet_b0", "vit_base_patch16_224", "convnext_tiny"):
        with torch.device("meta"):
            network = bare_network(name, 7, 32, small_stem=False)
        assert [network.get_submodule(head).weight.shape[0] for head in head_names(network)] == [7]
