from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file

from mvc.diffusion import ZERO_SNR, end_at_pure_noise, min_snr_weights, signal_to_noise
from mvc.errors import ConfigError
from mvc.storage import read_json_lines
from mvc.train.batches import assemble
from mvc.train.log import LOG, flush_interval
from mvc.train.objective import BINS, bin_sums, sample_losses
from tests.tiny_parts import sd_scheduler
from tests.train.toy import make_batch, materials, sampling, train, wide_unet

STEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def ddpm(prediction_type: str = "epsilon") -> Any:
    kind: Any = DDPMScheduler
    return kind.from_config(sd_scheduler(prediction_type).config)


def test_signal_to_noise_is_diffusers() -> None:
    torch.testing.assert_close(signal_to_noise(ddpm(), STEPS), compute_snr(ddpm(), STEPS), rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_in_both_forms(gamma: float) -> None:
    snr = compute_snr(ddpm(), STEPS)
    least = torch.minimum(snr, torch.tensor(gamma))
    torch.testing.assert_close(min_snr_weights(ddpm(), STEPS, gamma), least / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        min_snr_weights(ddpm("v_prediction"), STEPS, gamma), least / (snr + 1), rtol=1e-4, atol=0
    )
    # Noisy timesteps keep their weight with epsilon, and clear ones lose most of it.
    assert min_snr_weights(ddpm(), STEPS, gamma)[-1] == 1.0 and min_snr_weights(ddpm(), STEPS, gamma)[0] < 0.01


def test_weighted_losses_are_what_is_minimised_and_plain_ones_what_is_logged(tmp_path: Path) -> None:
    train(tmp_path, max_train_steps=1, snr_gamma=5.0, use_ema=False, max_grad_norm=1e9)
    unet, batch = wide_unet().train(), make_batch(range(4))
    losses = sample_losses(unet, sd_scheduler(), batch)
    (losses * min_snr_weights(sd_scheduler(), batch.timesteps, 5.0)).mean().backward()
    [row] = read_json_lines(tmp_path / LOG)
    assert row["loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-6)
    moments = load_file(tmp_path / "checkpoints/step-000001/optimizer.safetensors")
    for name, value in unet.named_parameters():
        torch.testing.assert_close(moments[f"{name}/exp_avg"], 0.1 * value.grad, rtol=1e-4, atol=1e-8, msg=name)


def test_a_schedule_that_ends_at_pure_noise() -> None:
    changed = end_at_pure_noise(ddpm("v_prediction"))
    assert signal_to_noise(changed, STEPS)[-1] < 1e-6 < signal_to_noise(ddpm(), STEPS)[-1]
    assert signal_to_noise(changed, STEPS)[0] == pytest.approx(float(signal_to_noise(ddpm(), STEPS)[0]), rel=1e-3)
    assert {key: changed.config[key] for key in ZERO_SNR} == ZERO_SNR
    with pytest.raises(ConfigError, match="cannot be used with a model that predicts epsilon"):
        end_at_pure_noise(ddpm())


def test_bins_hold_every_loss_once() -> None:
    losses, timesteps = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 99, 100, 999])
    sums, counts = bin_sums(losses, timesteps, 1000)
    assert sums.tolist() == [3.0, 4.0, *[0.0] * (BINS - 3), 8.0]
    assert counts.tolist() == [2.0, 1.0, *[0.0] * (BINS - 3), 1.0]


def test_the_log_keeps_losses_by_timestep(tmp_path: Path) -> None:
    train(tmp_path, max_train_steps=2, gradient_accumulation_steps=2)
    for row in read_json_lines(tmp_path / LOG):
        numbers = range(8 * (row["step"] - 1), 8 * row["step"])
        counts = torch.bincount(make_batch(numbers).timesteps * BINS // 1000, minlength=BINS).tolist()
        means = row["loss_by_timestep"]
        assert [mean is None for mean in means] == [count == 0 for count in counts]
        total = sum(mean * count for mean, count in zip(means, counts, strict=True) if count)
        assert total / 8 == pytest.approx(row["loss"], rel=1e-4)


def test_offset_noise_shifts_whole_channels() -> None:
    plain = assemble(materials(), sampling(), range(200)).noise
    shifted = assemble(materials(), sampling(noise_offset=0.5), range(200)).noise
    shift = shifted - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert float(shift[:, :, 0, 0].std()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(shift[0], shift[1]) and not torch.equal(shift[:, 0], shift[:, 1])


@pytest.mark.parametrize("steps, seconds, interval", [(25, 2.5, 20), (25, 0.01, 25), (1, 30.0, 1), (4, 4.0, 2)])
def test_several_processes_ask_each_other_every_two_seconds(steps: int, seconds: float, interval: int) -> None:
    assert flush_interval(steps, seconds) == interval
