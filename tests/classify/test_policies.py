"""The policies' numbers against their publications, and what is drawn from them against their probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import mvc.classify.policies as policies
from mvc.classify.operations import GEOMETRIC, OPERATIONS
from mvc.classify.policies import POLICIES, apply_policy, draw, fast_magnitude, policy

from .test_operations import assert_near, pictures, reference


def row(name: str, side: int, index: int) -> list[tuple[str, float, float, bool]]:
    found = policy(name, side)
    parts = (found.names[index], found.probabilities[index], found.magnitudes[index], found.signed[index])
    return list(zip(*(part.tolist() for part in parts), strict=True))


@pytest.mark.parametrize(("side", "published"), [(64, "CIFAR10"), (65, "IMAGENET")])
def test_autoaugment_is_the_published_policy_of_its_size(side: int, published: str) -> None:
    which = v2.AutoAugmentPolicy[published]
    wanted = v2.AutoAugment(which)._get_policies(which)
    found = policy("autoaugment", side)
    assert found.names.tolist() == [[one[0] for one in pair] for pair in wanted]
    assert found.probabilities.tolist() == [[one[1] for one in pair] for pair in wanted]
    assert len(wanted) == 25 and found.times == 1


def test_magnitudes_of_autoaugment() -> None:
    assert row("autoaugment", 32, 1) == [
        ("Rotate", 0.7, pytest.approx(30 * 2 / 9), True),
        ("TranslateX", 0.3, 14.0, True),  # 150 / 331 of 32 px
    ]
    assert row("autoaugment", 32, 14) == [
        ("Solarize", 0.5, pytest.approx(255 * 7 / 9), False),
        ("Invert", 0.0, 0.0, False),
    ]
    assert row("autoaugment", 224, 3) == [("Posterize", 0.6, 5.0, False), ("Posterize", 0.6, 5.0, False)]


def test_magnitudes_of_randaugment() -> None:
    found = policy("randaugment", 32)
    magnitudes = {name: row("randaugment", 32, at)[0][2] for at, name in enumerate(found.names[:, 0])}
    assert found.times == 2 and (found.probabilities == 1).all()
    assert magnitudes == pytest.approx(
        {
            "Identity": 0,
            "ShearX": 0.09,
            "ShearY": 0.09,
            "TranslateX": 4,  # 0.3 of 150 / 331 of 32 px
            "TranslateY": 4,
            "Rotate": 9,
            "Brightness": 0.27,
            "Color": 0.27,
            "Contrast": 0.27,
            "Sharpness": 0.27,
            "Posterize": 7,
            "Solarize": 178.5,
            "AutoContrast": 0,
            "Equalize": 0,
        },
        abs=1e-5,
    )


def test_trivialaugment_knows_every_operation_at_every_magnitude() -> None:
    found = policy("trivialaugment", 48)
    assert found.names.shape == (14 * 31, 1) and found.times == 1
    ranges = {
        name: (found.magnitudes[found.names == name].min(), found.magnitudes[found.names == name].max())
        for name in np.unique(found.names)
    }
    assert ranges["Posterize"] == (2, 8) and ranges["Solarize"] == (0, 255) and ranges["TranslateY"] == (0, 32)
    assert ranges["Rotate"] == (0, 135) and ranges["ShearX"] == pytest.approx((0, 0.99))


@pytest.mark.parametrize(("side", "count", "searched"), [(32, 493, "cifar10"), (96, 498, "imagenet")])
def test_fast_autoaugment_is_all_of_the_published_data(side: int, count: int, searched: str) -> None:
    data = json.loads((Path(policies.__file__).parent / "policies" / f"fast_autoaugment_{searched}.json").read_text())
    assert "kakaobrain" in data["origin"] and "Apache-2.0" in data["licence"] and str(count) in data["what"]
    found = policy("fast_autoaugment", side)
    assert found.names.tolist() == [[one[0] for one in pair] for pair in data["sub_policies"]]
    assert found.names.shape == (count, 2) and set(found.names.ravel()) <= set(OPERATIONS)
    numbers = np.array([[one[1:] for one in pair] for pair in data["sub_policies"]])
    assert numbers.min() >= 0 and numbers.max() < 1
    # Probabilities and levels were searched for on the whole of [0, 1]: a slip of a digit's place would show here.
    assert np.allclose(np.quantile(numbers, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1)
    assert (found.signed == np.isin(found.names, GEOMETRIC)).all()


def test_first_and_last_sub_policy_of_fast_autoaugment() -> None:
    assert row("fast_autoaugment", 32, 0) == [
        ("Contrast", 0.832, pytest.approx(0.1 + 1.8 * 0.4988 - 1), False),
        ("TranslateX", 0.4184, -3.0, True),  # (0.9 * 0.394 - 0.45) * 32 = -3.05
    ]
    assert row("fast_autoaugment", 100, 497) == [
        ("AutoContrast", 0.5404, 0.7472, False),
        ("Equalize", 0.0564, 0.5628, False),
    ]


def test_levels_of_fast_autoaugment_span_their_ranges() -> None:
    ends = {name: (fast_magnitude(name, 0, 40), fast_magnitude(name, 1, 40)) for name in policies.FAST_RANGES}
    assert ends["ShearX"] == (-0.3, 0.3) and ends["TranslateY"] == (-18, 18) and ends["Rotate"] == (-30, 30)
    assert ends["Posterize"] == (4, 8) and ends["Solarize"] == (0, 256) and ends["Cutout"] == (0, 8)
    assert ends["Color"] == pytest.approx((-0.9, 0.9))
    assert fast_magnitude("Posterize", 0.74, 40) == 6  # 6.96 bits are 6


@pytest.mark.parametrize("name", POLICIES)
def test_operations_come_as_often_as_the_policy_says(name: str) -> None:
    count, source = 20_000, policy(name, 32)
    drawn = draw(source, count, 3, "frequencies", 0)
    depth = source.names.shape[1]
    assert drawn.names.shape == (count, depth * source.times)
    for position in range(drawn.names.shape[1]):
        names, chances = source.names[:, position % depth], source.probabilities[:, position % depth]
        for one in set(names) - {"Identity"}:
            expected = chances[names == one].sum() / len(names)
            found = (drawn.names[:, position] == one).mean()
            assert abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9


@pytest.mark.parametrize("name", POLICIES)
def test_half_of_the_signed_magnitudes_are_turned_round(name: str) -> None:
    drawn = draw(policy(name, 32), 20_000, 5, "signs", 0)
    assert (drawn.magnitudes[np.isin(drawn.names, ["Solarize", "Posterize"])] >= 0).all()
    source = policy(name, 32)
    rotations = drawn.magnitudes[drawn.names == "Rotate"]
    assert set(np.abs(rotations)) <= set(np.abs(source.magnitudes[source.names == "Rotate"]))
    rotations = rotations[rotations != 0]
    assert abs((rotations < 0).mean() - 0.5) <= 5 * 0.5 / np.sqrt(len(rotations))


def test_draws_of_a_slot_depend_on_seed_and_step_alone() -> None:
    source = policy("fast_autoaugment", 32)
    few, many = draw(source, 8, 1, "a", 2), draw(source, 64, 1, "a", 2)
    assert (few.names == many.names[:8]).all() and (few.magnitudes == many.magnitudes[:8]).all()
    assert (few.places == many.places[:8]).all()
    for other in (draw(source, 64, 1, "a", 3), draw(source, 64, 2, "a", 2), draw(source, 64, 1, "b", 2)):
        assert not (other.names == many.names).all()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("side", [32, 80])
def test_a_batch_is_what_torchvision_makes_of_each_image(name: str, side: int) -> None:
    images = pictures(64, side)
    drawn = draw(policy(name, side), 64, 9, name, 4)
    found = apply_policy(images, name, 9, 4)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    kept = [slot for slot in range(64) if "Cutout" not in drawn.names[slot]]
    last = drawn.names.shape[1] - 1
    for slot in kept:
        # Differences of a level would grow in a second operation: each is compared by itself.
        before = images[slot : slot + 1]
        for position in range(last + 1):
            operation, magnitude = drawn.names[slot, position], drawn.magnitudes[slot, position]
            after = policies.apply(
                before,
                drawn.names[slot : slot + 1, position],
                np.array([magnitude]),
                drawn.places[slot : slot + 1, position],
            )
            assert_near(operation, after[0], reference(operation, before[0], float(magnitude)))
            before = after
        assert torch.equal(found[slot], before[0])
    assert len(kept) >= 32


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown policy 'augmix'; one of autoaugment, fast_autoaugment"):
        policy("augmix", 32)
