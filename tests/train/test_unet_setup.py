from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from mvc.compiling import compiled, require_compiler
from mvc.errors import EnvironmentFault
from mvc.train.lora import add_lora, trained
from mvc.train.objective import sample_losses
from mvc.train.unet_setup import prepare_unet, require_attention
from tests.tiny_parts import sd_scheduler
from tests.train.toy import make_batch, normal, wide_unet

METHODS = ("full", "lora", "dora")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def unet_for(method: str = "full", **how: bool) -> Any:
    unet = wide_unet().train()
    if method != "full":
        add_lora(unet, 4, 4.0, ["to_q", "to_k", "to_v", "to_out.0", "conv1"], method == "dora", 0)
        # B starts at zero, and with it the gradient of A.
        for number, (name, parameter) in enumerate(trained(unet)):
            if "lora_B" in name:
                parameter.data.copy_(0.1 * normal(*parameter.shape, seed=number))
    prepare_unet(unet, "sdpa", how.get("gradient_checkpointing", False), how.get("channels_last", False))
    return unet


def loss_and_gradients(unet: Any, model: Any = None, bf16: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    batch = make_batch(range(4))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = sample_losses(unet if model is None else model, sd_scheduler(), batch).mean()
    loss.backward()
    gradients = {}
    for name, parameter in trained(unet):
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return loss.item(), gradients


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_equal_gradients_for_two_forward_passes(method: str) -> None:
    calls = {False: 0, True: 0}
    results = {}
    for checkpointing in calls:
        unet = unet_for(method, gradient_checkpointing=checkpointing)

        def count(*_: Any, checkpointing: bool = checkpointing) -> None:
            calls[checkpointing] += 1

        unet.down_blocks[0].resnets[0].register_forward_pre_hook(count)
        results[checkpointing] = loss_and_gradients(unet)
    assert calls == {False: 1, True: 2}
    assert results[False][0] == results[True][0]
    for name, gradient in results[False][1].items():
        torch.testing.assert_close(results[True][1][name], gradient, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_changes_the_layout_and_no_more(method: str) -> None:
    plain, other = unet_for(method), unet_for(method, channels_last=True)
    assert other.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert not other.conv_out.weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    expected, gradients = loss_and_gradients(plain)
    loss, found = loss_and_gradients(other)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_stays_near_float32(method: str) -> None:
    """Eight bits of mantissa: the loss within 1 %, the whole gradient's direction within a cosine of 0.999."""
    unet, half = unet_for(method), unet_for(method)
    expected, gradients = loss_and_gradients(unet)
    loss, found = loss_and_gradients(half, bf16=True)
    assert loss == pytest.approx(expected, rel=1e-2)
    assert loss != expected
    flat = [torch.cat([value.flatten() for value in values.values()]) for values in (gradients, found)]
    assert cosine(*flat) > 0.999
    assert all(value.dtype == torch.float32 for value in found.values())


@no_cuda
def test_xformers_says_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    both = (
        r"cannot be used here\nwhy: there is no CUDA device, and its package is missing \(pip install 'mvc\[xformers\]'"
    )
    with pytest.raises(EnvironmentFault, match=both):
        require_attention("xformers")
    package = ModuleType("xformers")
    package.__spec__ = ModuleSpec("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    with pytest.raises(EnvironmentFault, match=r"why: there is no CUDA device\ndo: set train.attention=sdpa"):
        prepare_unet(wide_unet(), "xformers", False, False)
    require_attention("sdpa")


def test_a_missing_compiler_is_found_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    with pytest.raises(EnvironmentFault, match=r"train.compile=true needs a C\+\+ compiler(.|\n)*train.compile=false"):
        require_compiler("train.compile")


@pytest.mark.slow
@pytest.mark.timeout(900)  # compilers of a busy machine
@pytest.mark.parametrize("method", METHODS)
def test_compiled_loss_and_gradients_equal_eager(method: str) -> None:
    eager, other = unet_for(method), unet_for(method)
    expected, gradients = loss_and_gradients(eager)
    loss, found = loss_and_gradients(other, compiled(other, "train.compile"))
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        if float(gradient.norm()) > 1e-9:
            assert cosine(found[name], gradient) >= 0.999, name
        else:
            assert float(found[name].norm()) < 1e-8, name
