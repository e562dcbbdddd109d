from __future__ import annotations

import pytest
import torch

from mvc.moving_average import MovingAverage
from tests.train.toy import normal


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_average_closed_form(decay: float) -> None:
    values = [normal(3, 2, seed=number) for number in range(12)]
    weight = values[0].clone()
    average = MovingAverage([("w", weight)], decay)
    rates = []
    for number, value in enumerate(values[1:]):
        weight.copy_(value)
        average.update([("w", weight)])
        rates.append(min(decay, (1 + number) / (10 + number)))
    # Unrolled: the start counts by the product of all d, value i by (1 - d_i) times the product of later d.
    expected = torch.tensor(rates).prod() * values[0]
    for number, value in enumerate(values[1:]):
        expected = expected + (1 - rates[number]) * torch.tensor(rates[number + 1 :]).prod() * value
    torch.testing.assert_close(average.average["w"], expected)
    assert average.updates == 11


def test_warm_up() -> None:
    average = MovingAverage([("w", torch.zeros(1))], 0.99)
    assert [average.decay_at(update) for update in (0, 8, 10_000)] == [0.1, 0.5, 0.99]


def test_weights_are_copied_in_and_out() -> None:
    weight = normal(4)
    average = MovingAverage([("w", weight)], 0.9)
    weight.zero_()
    assert torch.equal(average.average["w"], normal(4))
    average.copy_to([("w", weight)])
    assert torch.equal(weight, normal(4))
    other = MovingAverage([("w", torch.zeros(4))], 0.9)
    other.load(average.average, 7)
    assert torch.equal(other.average["w"], normal(4)) and other.updates == 7
