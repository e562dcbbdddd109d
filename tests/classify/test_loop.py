"""One fit: learning rates, loss, optimizers, the choice of weights, reproducibility, and no way to the test split."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.classify.augment import to_float
from mvc.classify.images import Images, channel_statistics
from mvc.classify.loop import Fit, Objective, fit, learning_rates, logits_of, probabilities
from mvc.classify.networks import build_network
from mvc.errors import NumericError
from mvc.randomness import generator

RATES = learning_rates([(12, 3e-3)], 3)


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


TRAIN = bars(60, 1)


def labelled(step: int) -> tuple[Tensor, Tensor]:
    """32 of the training images and their labels."""
    rows = torch.randint(0, 60, (32,), generator=generator(0, "rows", step))
    return to_float(TRAIN.pixels[rows].permute(0, 3, 1, 2)), TRAIN.labels[rows]


def batch(step: int) -> tuple[Tensor, Tensor]:
    images, labels = labelled(step)
    return images, F.one_hot(labels, 3).float()


def small(seed: int = 0) -> nn.Module:
    network: nn.Module = build_network("small", 3, 16, seed, *channel_statistics(TRAIN.pixels), None)
    return network


def fitted(steps: int = 60, validation: Images | None = None, **options: Any) -> tuple[nn.Module, Fit]:
    network, rates = small(), learning_rates([(steps, 3e-3)], 3)
    return network, fit(network, batch, rates, weight_decay=1e-2, evaluation_steps=20, validation=validation, **options)


def accuracy_of(network: nn.Module, images: Images) -> float:
    return (logits_of(network, images).argmax(1) == images.labels).double().mean().item()


def require_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, value), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, wanted), name


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
    assert accuracy_of(network, bars(300, 3)) > 0.95
    again, found_again = fitted(validation=validation)
    assert found == found_again
    require_equal(network, again)


def test_best_weights_are_the_ones_left_in_the_network() -> None:
    validation = bars(60, 2, noise=100)
    network, found = fitted(validation=validation)
    assert [step for step, _, _ in found.curve] == [20, 40, 60]
    accuracies = {step: (accuracy, -loss) for step, accuracy, loss in found.curve}
    assert found.best_step == max(accuracies, key=lambda step: accuracies[step])
    assert accuracy_of(network, validation) == found.validation_accuracy
    loss = F.cross_entropy(logits_of(network, validation), validation.labels).item()
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


def play(script: list[float], evaluation_steps: int = 1, validation: Images | None = None, **options: Any) -> Fit:
    """Fit a scripted network to images of class 0."""

    def constant(step: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0.0], [1.0, 0.0]])

    network, rates = Scripted(script), [0.0] * len(script)
    found = fit(
        network, constant, rates, weight_decay=0.0, evaluation_steps=evaluation_steps, validation=validation, **options
    )
    assert int(network.step) == found.best_step
    return found


def test_ties_in_accuracy_go_to_the_lower_validation_loss_and_then_to_the_earlier_step() -> None:
    # All images are of class 0: a logit above 0 is right, a larger one has the lower loss.
    validation = Images(torch.zeros(4, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    found = play([-1.0, 1.0, 3.0, 3.0, 2.0], validation=validation)
    assert found.best_step == 3 and found.validation_accuracy == 1.0
    assert [accuracy for _, accuracy, _ in found.curve] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_without_validation_the_last_weights_stay() -> None:
    found = play([1.0, 2.0, 3.0])
    assert (found.best_step, found.validation_accuracy, found.curve) == (3, None, [])


@pytest.mark.parametrize(("steps", "tail"), [(3, 1), (25, 2), (40, 4)])
def test_training_loss_is_the_mean_of_the_last_tenth_of_the_steps(steps: int, tail: int) -> None:
    script = [0.1 * step for step in range(steps)]
    losses = [math.log1p(math.exp(-logit)) for logit in script]
    assert play(script, evaluation_steps=7).training_loss == pytest.approx(sum(losses[-tail:]) / tail, rel=1e-6)


def test_each_step_is_reported_once() -> None:
    seen: list[int] = []
    play([1.0] * 7, 3, on_step=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_fit() -> None:
    with pytest.raises(NumericError, match="not finite by step 2"):
        play([1.0, math.nan, 1.0, 1.0], 2)
    with pytest.raises(NumericError, match="not finite by step 4"):  # the steps after it were finite
        play([1.0, math.nan, 1.0, 1.0], 4)


def test_loss_is_that_of_weighted_soft_rows() -> None:
    network, images = small().eval(), batch(0)[0]
    targets = torch.rand(32, 3, generator=generator(0, "soft"))
    expected = -(targets * network(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Objective(network, None, "no")(images, targets, 0), expected)
    targets[5:] = 0.0  # of weight nothing
    loss = Objective(network, None, "no")(images, targets, 0)
    torch.testing.assert_close(loss, Objective(network, None, "no")(images[:5], targets[:5], 0) * 5 / 32)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_a_plain_loop_with_labels_to_the_bit(name: str) -> None:
    network, expected = small(), small()
    fit(network, batch, RATES, optimizer=name, weight_decay=0.1, evaluation_steps=99, validation=None)
    weights = expected.parameters()
    solver: torch.optim.Optimizer = torch.optim.AdamW(weights, weight_decay=0.1, fused=True)
    if name == "sgd":
        solver = torch.optim.SGD(expected.parameters(), momentum=0.9, nesterov=True, weight_decay=0.1, fused=True)
    expected.train()
    for step, rate in enumerate(RATES):
        solver.param_groups[0]["lr"] = rate
        images, labels = labelled(step)
        solver.zero_grad()
        torch.autograd.backward(F.cross_entropy(expected(images), labels))
        solver.step()
    require_equal(network, expected)


def test_parameters_without_gradient_stay() -> None:
    network = small()
    frozen = [value for value in network.parameters() if value.ndim == 4]
    for value in frozen:
        value.requires_grad_(False)
    before = copy.deepcopy(network)
    fit(network, batch, RATES, weight_decay=0.5, evaluation_steps=99, validation=None, ema_decay=0.9)
    changed = [not torch.equal(new, old) for new, old in zip(network.parameters(), before.parameters(), strict=True)]
    assert changed == [value.requires_grad for value in network.parameters()] and not all(changed)


def test_a_mixer_makes_forward_pass_and_targets() -> None:
    steps = []

    def mixer(network: nn.Module, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        assert network.training and torch.is_autocast_enabled("cpu")
        steps.append(step)
        return network(images.flip(0)), targets.flip(0)

    def flipped(step: int) -> tuple[Tensor, Tensor]:
        images, targets = batch(step)
        return images.flip(0), targets.flip(0)

    mixed, plain = small(), small()
    options: dict[str, Any] = {
        "weight_decay": 0.0,
        "evaluation_steps": 5,
        "validation": None,
        "mixed_precision": "bf16",
    }
    found = fit(mixed, batch, RATES, mixer=mixer, **options)
    assert found == fit(plain, flipped, RATES, **options)
    require_equal(mixed, plain)
    assert steps == list(range(12))


def test_bf16_has_nearly_the_gradient_of_float32() -> None:
    gradients = []
    for precision in ("no", "bf16"):
        network = small().train()
        loss = Objective(network, None, precision)(*batch(0), 0)
        torch.autograd.backward(loss)
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]))
    full, reduced = gradients
    assert reduced.dtype == torch.float32 and not torch.equal(full, reduced)
    assert F.cosine_similarity(full, reduced, dim=0).item() >= 0.99


def test_bf16_learns_and_is_validated_in_float32() -> None:
    validation = bars(60, 2)
    network, found = fitted(validation=validation, mixed_precision="bf16")
    assert all(value.dtype == torch.float32 for value in network.parameters())
    assert accuracy_of(network, validation) == found.validation_accuracy
    assert accuracy_of(network, bars(300, 3)) > 0.95


def test_average_of_weights_that_rest_is_these_weights() -> None:
    network = small()
    fit(network, batch, [0.0] * 5, weight_decay=0.1, evaluation_steps=2, validation=None, ema_decay=0.99)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), small().parameters(), strict=True))


@pytest.mark.parametrize("validated", [True, False])
def test_average_is_what_is_validated_and_kept(validated: bool) -> None:
    decay, network, followed = 0.6, small(), small()
    averages, states, expected = [value.detach().clone() for value in followed.parameters()], {}, []
    validation = bars(45, 2, noise=100) if validated else None

    # The same steps once more, with the average kept by hand and validated in a copy.
    def follow(done: int) -> None:
        d = min(decay, done / (9 + done))
        for average, value in zip(averages, followed.parameters(), strict=True):
            average.copy_(d * average + (1 - d) * value.detach())
        if done % 4 == 0:
            copied = copy.deepcopy(followed)
            for value, average in zip(copied.parameters(), averages, strict=True):
                value.detach().copy_(average)
            states[done] = copied
            if validation is not None:
                logits = logits_of(copied, validation)
                expected.append(F.cross_entropy(logits, validation.labels).item())

    options: dict[str, Any] = {"weight_decay": 0.0, "evaluation_steps": 4}
    fit(followed, batch, RATES, validation=None, on_step=follow, **options)
    found = fit(network, batch, RATES, validation=validation, ema_decay=decay, **options)
    assert [loss for _, _, loss in found.curve] == pytest.approx(expected, rel=1e-4)
    best = max(found.curve, key=lambda point: (point[1], -point[2]))[0] if validated else 12
    assert found.best_step == best
    # Running statistics too: they are those of the network at that step.
    for (name, value), wanted in zip(network.state_dict().items(), states[best].state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    network, images = small().train(), bars(30, 4)
    shares = probabilities(network, images, batch_size=7)
    assert shares.shape == (30, 3) and shares.dtype == torch.float32 and not network.training
    torch.testing.assert_close(shares, logits_of(network, images).exp() / logits_of(network, images).exp().sum(1, True))
    torch.testing.assert_close(shares.sum(1), torch.ones(30))


def test_evaluation_uses_running_statistics() -> None:
    network, _ = fitted(steps=20)
    images = bars(30, 4)
    whole = logits_of(network, images, batch_size=30)
    assert torch.allclose(whole, logits_of(network, images, batch_size=7), atol=1e-5)


def test_fit_cannot_see_the_test_split() -> None:
    """Of images, batches to train on and the validation split alone go into fit."""
    names = set(inspect.signature(fit).parameters)
    settings = {"rates", "optimizer", "weight_decay", "evaluation_steps", "mixer", "mixed_precision", "ema_decay"}
    assert names == {"network", "batch", "validation", "on_step"} | settings
