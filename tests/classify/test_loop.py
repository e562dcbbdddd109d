"""One fit: learning rates, the choice of weights, reproducibility, and the separation of the test split."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mvc.classify import loop
from mvc.classify.augment import augmentation
from mvc.classify.images import Images, channel_statistics, take
from mvc.classify.loop import Fit, final_evaluation, fit, learning_rates, logits_of
from mvc.classify.networks import build_network
from mvc.classify.strategies import batch
from mvc.errors import NumericError
from mvc.randomness import generator


def bars(count: int, seed: int, noise: int = 60) -> Images:
    """Three classes of 16 px images: a bright bar across, down, or none."""
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, noise, (count, 16, 16, 3), dtype=torch.uint8, generator=generator(seed, "bars"))
    places = torch.randint(3, 13, (count,), generator=generator(seed, "places"))
    for row, (label, place) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        if label == 0:
            pixels[row, place] += 150
        if label == 1:
            pixels[row, :, place] += 150
    return Images(pixels, labels)


def fitted(seed: int = 0, steps: int = 60, validation: Images | None = None) -> tuple[nn.Module, Fit]:
    train = bars(60, 1)
    network = build_network("small", 3, 16, seed, *channel_statistics(train.pixels))
    augment = augmentation("default", seed, False)

    def batch_of(step: int) -> tuple[Tensor, Tensor]:
        pixels, labels = take(train, None, batch("real", seed, step, steps, 32, 60, 0).indices)
        return augment(pixels, step), labels

    return network, fit(network, batch_of, learning_rates([(steps, 3e-3)], 3), 1e-2, 20, validation)


def test_learning_rates_of_two_phases() -> None:
    rates = learning_rates([(10, 1.0), (4, 0.1)], warmup=2)
    assert len(rates) == 14
    assert rates[0] == pytest.approx(0.5) and rates[5] == pytest.approx(0.5)
    assert rates[1] == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)))
    assert rates[10] == pytest.approx(0.1) and rates[12] == pytest.approx(0.05)
    assert learning_rates([(3, 1.0)], warmup=0)[0] == 1.0


def test_separable_classes_are_learnt_and_the_fit_is_reproducible_to_the_bit() -> None:
    validation = bars(60, 2)
    network, found = fitted(validation=validation)
    accuracy, per_class = final_evaluation(network, bars(300, 3), ["across", "down", "none"])
    assert accuracy > 0.95 and min(per_class.values()) > 0.9
    again, found_again = fitted(validation=validation)
    assert found == found_again
    pairs = zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_best_weights_are_the_ones_left_in_the_network() -> None:
    validation = bars(60, 2, noise=100)
    network, found = fitted(validation=validation)
    assert [step for step, _, _ in found.curve] == [20, 40, 60]
    accuracies = {step: (accuracy, -loss) for step, accuracy, loss in found.curve}
    assert found.best_step == max(accuracies, key=lambda step: accuracies[step])
    logits = logits_of(network, validation)
    assert (logits.argmax(1) == validation.labels).double().mean().item() == found.validation_accuracy
    loss = nn.functional.cross_entropy(logits, validation.labels).item()
    assert loss == dict((step, value) for step, _, value in found.curve)[found.best_step]


class Scripted(nn.Module):
    """Logits that depend on the number of training steps alone, by a list."""

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.script = script

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.step += 1
        first = torch.full((len(images),), self.script[int(self.step) - 1]) + 0 * self.weight
        return torch.stack([first, torch.zeros(len(images))], dim=1)


def constant_batch(step: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)


def test_ties_in_accuracy_go_to_the_lower_validation_loss_and_then_to_the_earlier_step() -> None:
    # All images are of class 0: a logit above 0 is right, a larger one has the lower loss.
    validation = Images(torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    network = Scripted([-1.0, 1.0, 3.0, 3.0, 2.0])
    found = fit(network, constant_batch, [0.0] * 5, 0.0, 1, validation)
    assert found.best_step == 3 and found.validation_accuracy == 1.0 and int(network.step) == 3
    assert [accuracy for _, accuracy, _ in found.curve] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_without_validation_the_last_weights_stay() -> None:
    network = Scripted([1.0, 2.0, 3.0])
    assert fit(network, constant_batch, [0.0] * 3, 0.0, 1, None) == Fit(3, None, [])
    assert int(network.step) == 3


def test_each_step_is_reported_once() -> None:
    seen: list[int] = []
    fit(Scripted([1.0] * 7), constant_batch, [0.0] * 7, 0.0, 3, None, seen.append)
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_fit() -> None:
    with pytest.raises(NumericError, match="not finite by step 2"):
        fit(Scripted([1.0, float("nan"), 1.0, 1.0]), constant_batch, [0.0] * 4, 0.0, 2, None)


def test_evaluation_uses_running_statistics() -> None:
    network, _ = fitted(steps=20)
    images = bars(30, 4)
    whole = logits_of(network, images, batch_size=30)
    assert torch.allclose(whole, logits_of(network, images, batch_size=7), atol=1e-5)


def test_fit_cannot_see_the_test_split() -> None:
    """Nothing named or typed for test images goes into fit, and it calls nothing that reads them."""
    names = set(inspect.signature(fit).parameters)
    assert names == {"network", "batch", "rates", "weight_decay", "evaluation_steps", "validation", "on_step"}
    called: Callable[..., object] = loop.fit
    assert "final_evaluation" not in called.__code__.co_names


def test_classes_without_test_images_are_left_out() -> None:
    test = Images(torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 0, 1, 0]))
    accuracy, per_class = final_evaluation(Scripted([1.0]), test, ["a", "b", "c"])
    assert accuracy == 0.75 and per_class == {"a": 1.0, "b": 0.0}


def test_gathered_batches_hold_the_indexed_images() -> None:
    real, synthetic = bars(5, 1), bars(6, 2)
    indices = np.array([4, 5, 0, 10, 6], dtype=np.int64)
    pixels, labels = take(real, synthetic, indices)
    joined = torch.cat([real.pixels, synthetic.pixels])[torch.from_numpy(indices)]
    assert torch.equal(pixels.permute(0, 2, 3, 1), joined)
    assert torch.equal(labels, torch.cat([real.labels, synthetic.labels])[torch.from_numpy(indices)])
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(take(real, None, indices[[0, 2]])[0].permute(0, 2, 3, 1), real.pixels[[4, 0]])


def test_channel_statistics_equal_those_of_the_pixels() -> None:
    pixels = bars(20, 1).pixels
    pixels[..., 2] = 7
    mean, std = channel_statistics(pixels)
    values = pixels.double() / 255
    assert torch.allclose(mean.double(), values.mean(dim=(0, 1, 2)), atol=1e-7)
    assert torch.allclose(std[:2].double(), values.std(dim=(0, 1, 2), correction=0)[:2], atol=1e-7)
    assert std[2].item() == pytest.approx(1 / 255)
