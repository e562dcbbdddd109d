from __future__ import annotations

import pytest
import torch

from mvc.classify.moving_average import MovingAverage
from mvc.randomness import generator


def normal(number: int) -> torch.Tensor:
    return torch.randn(3, 2, generator=generator(number, "average"))


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_closed_form(decay: float) -> None:
    weight = normal(0)
    average = MovingAverage([weight], decay)
    rates = []
    for number in range(1, 6):
        weight.copy_(normal(number))
        average.update()
        rates.append(min(decay, number / (9 + number)))
    # Unrolled: the start counts by the product of all d, value i by (1 - d_i) times the product of later d.
    expected = torch.tensor(rates).prod() * normal(0)
    for number, rate in enumerate(rates):
        expected = expected + (1 - rate) * torch.tensor(rates[number + 1 :]).prod() * normal(number + 1)
    torch.testing.assert_close(average.average[0], expected)


def test_average_of_constant_weights_is_constant() -> None:
    weights = [normal(0), normal(1).requires_grad_()]
    average = MovingAverage(weights, 0.99)
    for _ in range(50):
        average.update()
    assert torch.equal(average.average[0], normal(0)) and torch.equal(average.average[1], normal(1))


def test_weights_and_averages_come_back_from_an_exchange() -> None:
    weight = normal(0).requires_grad_()
    average = MovingAverage([weight], 0.5)
    with torch.no_grad():
        weight.copy_(normal(1))
    with pytest.raises(KeyError), average.in_place():
        assert torch.equal(weight, normal(0)) and weight.requires_grad
        raise KeyError
    assert torch.equal(weight, normal(1)) and torch.equal(average.average[0], normal(0))
    average.leave()
    assert torch.equal(weight, normal(0))
