"""Copies of test images among others are found, however they were stored; other images are not."""

from __future__ import annotations

import torch

from mvc.classify.images import Images
from mvc.classify.leaks import SAME, leaked, nearest
from mvc.randomness import generator


def images(count: int, index: int) -> Images:
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=generator(0, "leaks", index), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2)


def test_nearest_is_that_of_all_pairs() -> None:
    one, two = images(300, 0), images(70, 1)
    distance, row = nearest(one.pixels, two.pixels)
    difference = one.pixels[:, None].float() - two.pixels[None].float()
    every = difference.square().mean(dim=(2, 3, 4)).sqrt()
    assert torch.equal(row, every.argmin(dim=1)) and torch.allclose(distance, every.min(dim=1).values, atol=1e-4)


def test_copies_are_found_in_spite_of_small_changes_and_strangers_are_not() -> None:
    test, train, synthetic = images(40, 0), images(60, 1), images(50, 2)
    assert leaked(test, {"training": train, "synthetic": synthetic}) == {}
    train.pixels[7] = test.pixels[3]
    synthetic.pixels[1] = (test.pixels[9].int() + 3).clamp(0, 255).to(torch.uint8)
    synthetic.pixels[2] = (test.pixels[11].int() // 2).to(torch.uint8)  # darker by half: another picture
    found = leaked(test, {"training": train, "synthetic": synthetic, "validation": images(0, 3)})
    assert {name: rows.tolist() for name, rows in found.items()} == {"training": [3], "synthetic": [9]}
    assert nearest(test.pixels[9:10], synthetic.pixels)[0].item() <= 3.0 < SAME
