from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvc.errors import ConfigError, EnvironmentFault
from mvc.train.lora import add_lora, load_lora, matching_layers, merge_lora, save_lora, trained
from mvc.train.objective import sample_losses
from mvc.train.optimizers import make_optimizer
from tests.tiny_parts import LATENT_SIZE, WIDTH, sd_scheduler, tiny_unet
from tests.train.toy import make_batch, normal, wide_unet

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CPU = torch.device("cpu")


def predict(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        sample = normal(2, 8, LATENT_SIZE, LATENT_SIZE, seed=5)
        output: torch.Tensor = unet(sample, torch.tensor([3, 700]), normal(2, 6, WIDTH, seed=6)).sample
    return output


def lora(targets: list[str] | None = None, rank: int = 4, alpha: float = 8.0, dora: bool = False) -> Any:
    unet = wide_unet()
    add_lora(unet, rank, alpha, targets or ATTENTION, dora, seed=0)
    return unet


def after_steps(unet: Any, steps: int = 3) -> Any:
    parameters = [parameter for _, parameter in trained(unet)]
    optimizer = make_optimizer("adamw", parameters, 1e-2, (0.9, 0.999), 0.0, 1e-8, CPU)
    for number in range(steps):
        sample_losses(unet, sd_scheduler(), make_batch(range(4 * number, 4 * number + 4))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_trained_in_closed_form(dora: bool) -> None:
    """r (n + m) for each layer of n inputs and m outputs, m more with DoRA, and all of conv_in."""
    plain, unet = wide_unet(), lora(["to_q", "ff.net.2"], rank=3, dora=dora)
    layers = [m for n, m in plain.named_modules() if n.endswith((".to_q", ".ff.net.2"))]
    expected = sum(3 * (m.in_features + m.out_features) + dora * m.out_features for m in layers)
    assert len(layers) == 12  # four transformer blocks with two attentions and one feed-forward each
    expected += 8 * 8 * 9 + 8
    assert sum(parameter.numel() for _, parameter in trained(unet)) == expected
    names = [name for name, _ in trained(unet)]
    assert {"conv_in.weight", "conv_in.bias"} <= set(names)
    assert all(".lora_" in name for name in names if not name.startswith("conv_in."))
    assert names == [name for name, _ in unet.named_parameters() if name in set(names)]
    assert len(trained(plain)) == len(list(plain.parameters()))


@pytest.mark.parametrize("dora", [False, True])
def test_it_begins_as_the_base_and_only_chosen_weights_move(dora: bool) -> None:
    base, unet = wide_unet(), lora([*ATTENTION, "conv1"], dora=dora)
    torch.testing.assert_close(predict(unet), predict(base), atol=1e-6, rtol=0)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    after_steps(unet)
    chosen = {name for name, _ in trained(unet)}
    for name, value in unet.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in chosen), name
    # The channels of the condition start at zero; an adapter of attention alone would leave them there.
    assert float(unet.conv_in.weight[:, 4:].detach().abs().min()) > 0
    assert float((predict(unet) - predict(base)).abs().max()) > 1e-2


def test_the_addition_is_alpha_over_rank_times_b_a() -> None:
    base, unet = wide_unet(), after_steps(lora(rank=4, alpha=6.0))
    name = matching_layers(base, ["attn2.to_k"])[1]
    layer, plain = unet.get_submodule(name), base.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = normal(5, WIDTH, seed=8)
    torch.testing.assert_close(layer(x), x @ (plain.weight + 6.0 / 4 * b @ a).T)


def test_dora_scales_each_weight_vector_to_its_learned_length() -> None:
    base, unet = wide_unet(), after_steps(lora(rank=4, alpha=6.0, dora=True))
    name = matching_layers(base, ["attn2.to_k"])[0]
    layer, plain = unet.get_submodule(name), base.get_submodule(name)
    direction = plain.weight + 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    length = layer.lora_magnitude_vector["default"].weight
    x = normal(5, WIDTH, seed=8)
    torch.testing.assert_close(layer(x), x @ (direction * (length / direction.norm(dim=1))[:, None]).T)


def test_initial_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, other, third = lora(), lora(), wide_unet()
    add_lora(third, 4, 8.0, ATTENTION, False, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [[value for name, value in trained(unet) if "lora_A" in name] for unet in (one, other, third)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (ATTENTION, {"to_q", "to_k", "to_v", "to_out.0"}),
        (["attn2.to_v", "to_q"], {"attn2.to_v", "attn1.to_q", "attn2.to_q"}),
        (["down_blocks.0.resnets.0.conv1"], {"down_blocks.0.resnets.0.conv1"}),
        (["proj"], {"ff.net.0.proj"}),
    ],
)
def test_exactly_the_matching_layers_get_an_addition(targets: list[str], expected: set[str]) -> None:
    unet = lora(targets)
    given = {name.removesuffix(".lora_A") for name, _ in unet.named_modules() if name.endswith(".lora_A")}
    assert given == set(matching_layers(wide_unet(), targets))
    assert {end for end in expected for name in given if f".{name}".endswith(f".{end}")} == expected
    assert all(any(f".{name}".endswith(f".{end}") for end in expected) for name in given)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["to_q", "to_k "], r"ends with 'to_k '\nwhy: its layers end with conv, conv1, .*linear_1.*to_out\.0, to_q"),
        (["o_q"], "no layer of the UNet is called or ends with 'o_q'"),
        (["norm1"], "no layer of the UNet is called or ends with 'norm1'"),
        (["conv_in"], "holds conv_in\nwhy: the first convolution is always trained in full"),
        ([], "lora_targets is empty"),
    ],
)
def test_targets_that_fit_nothing_are_refused(targets: list[str], message: str) -> None:
    unet = wide_unet()
    with pytest.raises(ConfigError, match=message):
        add_lora(unet, 4, 4.0, targets, False, 0)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), wide_unet().parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [ATTENTION, ["to_q", "conv1", "time_emb_proj", "proj_in"]])
def test_save_and_load_give_the_same_prediction(tmp_path: Path, dora: bool, targets: list[str]) -> None:
    unet = after_steps(lora(targets, dora=dora))
    save_lora(tmp_path, unet)
    again = wide_unet()
    load_lora(tmp_path, again)
    assert torch.equal(predict(again), predict(unet))
    assert [name for name, _ in trained(again)] == [name for name, _ in trained(unet)]

    theirs = wide_unet()
    theirs.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
    theirs.conv_in.load_state_dict(load_file(tmp_path / "conv_in.safetensors"))
    assert torch.equal(predict(theirs), predict(unet))

    (tmp_path / "twice").mkdir()
    save_lora(tmp_path / "twice", again)
    for name in ("pytorch_lora_weights.safetensors", "conv_in.safetensors", "lora.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [ATTENTION, ["to_q", "conv1", "time_emb_proj", "proj_in"]])
def test_merged_weights_are_those_of_a_plain_unet(tmp_path: Path, dora: bool, targets: list[str]) -> None:
    unet = after_steps(lora(targets, dora=dora))
    expected = predict(unet)
    merge_lora(unet)
    assert list(unet.state_dict()) == list(wide_unet().state_dict())
    assert all(parameter.requires_grad for parameter in unet.parameters())
    torch.testing.assert_close(predict(unet), expected, atol=1e-5, rtol=0)
    unet.save_pretrained(tmp_path)
    plain = tiny_unet(in_channels=8)
    plain.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert torch.equal(predict(plain), predict(unet))
    merge_lora(plain)
    assert torch.equal(predict(plain), predict(unet))


def test_a_rank_larger_than_a_layer_and_odd_alphas_survive(tmp_path: Path) -> None:
    unet = after_steps(lora(rank=24, alpha=math.pi))
    save_lora(tmp_path, unet)
    again = wide_unet()
    load_lora(tmp_path, again)
    assert torch.equal(predict(again), predict(unet))


def _damage(folder: Path, kind: str) -> None:
    weights, conv_in, facts = (
        folder / name for name in ("pytorch_lora_weights.safetensors", "conv_in.safetensors", "lora.json")
    )
    additions, first = load_file(weights), load_file(conv_in)
    name = sorted(additions)[0]
    if kind == "gone":
        conv_in.unlink()
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif kind == "missing":
        del additions[name]
    elif kind == "unknown":
        additions["mid_block.extra.lora_A.weight"] = torch.zeros(4, 4)
    elif kind == "shape":
        additions[name] = torch.zeros(3, 3)
    elif kind == "finite":
        additions[name][0, 0] = float("nan")
    elif kind == "narrow":
        first["weight"] = first["weight"][:, :4].clone()
    if kind in ("missing", "unknown", "shape", "finite"):
        save_file(additions, weights)
    if kind == "narrow":
        save_file(first, conv_in)
    if kind in ("layers", "key"):
        content = json.loads(facts.read_text())
        content["layers"] = ["mid_block.nothing"]
        facts.write_text(json.dumps(content if kind == "layers" else {"rank": 4}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gone", "No such file"),
        ("cut", "is no LoRA for this UNet"),
        ("missing", "lora_A.weight is missing"),
        ("unknown", "mid_block.extra.lora_A.weight is unknown"),
        ("shape", r"has the shape \(3, 3\), the UNet \(4, "),
        ("finite", "is not finite"),
        ("narrow", r"conv_in.weight has the shape \(8, 4, 3, 3\), the UNet \(8, 8, 3, 3\)"),
        ("layers", "the UNet has no layer mid_block.nothing"),
        ("key", "alpha"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_unet_stays(tmp_path: Path, kind: str, message: str) -> None:
    save_lora(tmp_path, lora())
    _damage(tmp_path, kind)
    unet = wide_unet()
    with pytest.raises(EnvironmentFault, match=message):
        load_lora(tmp_path, unet)
    assert list(unet.state_dict()) == list(wide_unet().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), wide_unet().parameters(), strict=True))
    assert len(trained(unet)) == len(list(unet.parameters()))
