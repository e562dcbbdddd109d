"""Hard negatives of a CLIP's own features, by hand and against a plain search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvc.clip.features import image_features, text_features
from mvc.errors import DataError, Stopped
from mvc.stopping import flag
from mvc.train.clip_mining import negatives_of
from tests.train.clip_colours import EXAMPLES, colour_clip, colour_pairs
from tests.train.clip_runs import toy_clip, toy_pairs

# First captions: red, blue, blue green, red green, red blue, red. The last colour is white; of equals the lower row.
BY_HAND = [[3, 4, 1, 2, -1], [2, 3, 0, 4, 5], [1, 4, 0, 3, 5], [0, 5, 2, 4, 1], [0, 1, 5, 2, 3], [2, 3, 4, 1, -1]]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_negatives_by_hand(count: int, tmp_path: Path) -> None:
    found = negatives_of(colour_clip(), colour_pairs(tmp_path), count)
    assert found.dtype == torch.int64 and found.tolist() == [row[:count] for row in BY_HAND]
    assert negatives_of(colour_clip(), colour_pairs(tmp_path), count, batch_size=2).tolist() == found.tolist()


def test_captions_that_differ_in_case_alone_are_no_negatives_and_later_ones_do_not_matter(tmp_path: Path) -> None:
    changed = {**EXAMPLES, "white": ["RED", "green"], "magenta": ["red blue", "red"]}
    assert negatives_of(colour_clip(), colour_pairs(tmp_path, captions=changed), 5).tolist() == BY_HAND


def test_negatives_of_a_real_clip_are_those_of_a_plain_search(tmp_path: Path) -> None:
    pairs, clip = toy_pairs(tmp_path), toy_clip(tmp_path)
    first = [captions[0] for captions in pairs.captions]
    table = image_features(clip, [pairs.image(row) for row in range(12)]) @ text_features(clip, first).T
    found = negatives_of(clip, pairs, 4)
    for row, own in enumerate(found.tolist()):
        others = [other for other in range(12) if first[other] != first[row]]
        assert own == sorted(others, key=lambda other, row=row: -float(table[row, other]))[:4]  # type: ignore[misc]


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    pairs, clip = toy_pairs(tmp_path), toy_clip(tmp_path)
    clip.network.train()
    before, random = {name: value.clone() for name, value in clip.network.state_dict().items()}, torch.get_rng_state()
    found = negatives_of(clip, pairs, 2)
    assert clip.network.training and all(module.training for module in clip.network.modules())
    assert all(torch.equal(value, before[name]) for name, value in clip.network.state_dict().items())
    assert all(value.grad is None for value in clip.network.parameters()) and not found.is_inference()
    assert torch.equal(torch.get_rng_state(), random)
    clip.network.eval()
    assert torch.equal(negatives_of(clip, pairs, 2), found) and not clip.network.training


def test_a_stop_and_a_broken_image_end_the_search(tmp_path: Path) -> None:
    pairs = colour_pairs(tmp_path)
    flag.signal = 15
    try:
        with pytest.raises(Stopped):
            negatives_of(colour_clip(), pairs, 2)
    finally:
        flag.signal = None
    (tmp_path / "test" / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"4\.png"):
        negatives_of(colour_clip(), pairs, 2)
