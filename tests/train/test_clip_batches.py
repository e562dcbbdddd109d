"""Batches of pairs: epochs without repetition, samples that depend on seed and number alone, words that stay true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mvc.clip.pairs import Pairs, read_pairs
from mvc.errors import DataError
from mvc.multimodal.mining import hard_batches
from mvc.multimodal.policies import Policy
from mvc.train.clip_batches import Look, batches, rows_of_steps, shown
from tests.train.clip_runs import SIDE, toy_pairs

PLAIN = Look(seed=0, size=SIDE, crop_scale=0.5)
MIRROR = Look(seed=0, size=16, crop_scale=1.0, flip=0.5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return toy_pairs(tmp_path_factory.mktemp("pairs"), 10)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Squares that are red on one side, which their caption names."""
    folder = tmp_path_factory.mktemp("sides") / "train"
    folder.mkdir()
    rows = []
    for number, word in enumerate(("left", "right")):
        pixels = np.zeros((20, 20, 3), np.uint8)
        pixels[:, number * 10 : number * 10 + 10] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"{word}.png")
        rows.append(json.dumps({"file_name": f"{word}.png", "caption": f"red on the {word}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return read_pairs(folder.parent, "train")


def asked(count: int, size: int, steps: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    rows = list(rows_of_steps(count, size, seed, range(steps)))
    return [[(row, step * size + place) for place, row in enumerate(own)] for step, own in enumerate(rows)]


def made(pairs: Pairs, look: Look, wanted: Any, workers: int = 0) -> tuple[Tensor, list[str]]:
    found = list(batches(look, pairs, wanted, workers))
    return torch.cat([images for images, _ in found]), [text for _, texts in found for text in texts]


@settings(deadline=None, max_examples=60)
@given(count=st.integers(2, 40), share=st.floats(0.05, 1), seed=st.integers(0, 9), steps=st.integers(1, 30))
def test_an_image_comes_once_a_batch_and_at_most_once_an_epoch(count: int, share: float, seed: int, steps: int) -> None:
    size = max(1, round(share * count))
    found = list(rows_of_steps(count, size, seed, range(steps)))
    assert [len(set(batch)) for batch in found] == [size] * steps
    whole = count // size
    for start in range(0, steps, whole):
        epoch = [row for batch in found[start : start + whole] for row in batch]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(count))
    # What a training that goes on asks for is what the unbroken one had.
    assert list(rows_of_steps(count, size, seed, range(steps // 2, steps))) == found[steps // 2 :]


def test_epochs_are_drawn_anew_and_leave_no_image_out_for_good() -> None:
    found = list(rows_of_steps(10, 4, 0, range(40)))
    epochs = [sorted(found[start] + found[start + 1]) for start in range(0, 40, 2)]
    assert len({tuple(epoch) for epoch in epochs}) > 5
    assert {row for epoch in epochs for row in epoch} == set(range(10))
    assert found != list(rows_of_steps(10, 4, 1, range(40)))


def test_batches_of_hard_negatives_are_those_of_the_mining() -> None:
    negatives = torch.tensor([[(row + 1) % 9, (row + 4) % 9] for row in range(9)])
    found = list(rows_of_steps(9, 4, 3, range(4), negatives))
    expected = [batch for epoch in range(2) for batch in hard_batches(negatives, 4, 3, epoch)[:2]]
    assert found == expected and all(len(set(batch)) == 4 for batch in found)


def test_a_batch_that_is_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 7 pairs cannot be made of 6 images"):
        next(rows_of_steps(6, 7, 0, range(1)))


def test_a_sample_depends_on_seed_and_number_alone(pairs: Pairs) -> None:
    look = Look(0, 24, 0.3, flip=0.5, degrees=20, policy=Policy(2, 5))
    images, texts = made(pairs, look, asked(10, 4, 5))
    again, same = made(pairs, look, asked(10, 4, 5), workers=2)
    assert torch.equal(images, again) and texts == same
    assert images.shape == (20, 3, 24, 24) and images.dtype == torch.uint8
    # In batches of another size, or alone, the sample of a number is the same one.
    flat = [one for batch in asked(10, 4, 5) for one in batch]
    parts, _ = made(pairs, look, [flat[:3], flat[3:20]])
    assert torch.equal(parts, images)
    alone, caption = shown(look, pairs, *flat[7])
    assert torch.equal(alone, images[7]) and caption == texts[7]
    other, _ = made(pairs, Look(1, 24, 0.3, flip=0.5, degrees=20, policy=Policy(2, 5)), [flat])
    assert not torch.equal(other, images)
    row = flat[0][0]
    assert len({shown(look, pairs, row, number)[0].numpy().tobytes() for number in range(20)}) == 20


def test_nothing_is_drawn_from_global_randomness(pairs: Pairs) -> None:
    before = torch.get_rng_state()
    made(pairs, PLAIN, asked(10, 5, 2))
    made(pairs, PLAIN, asked(10, 5, 2), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_caption_of_an_image_has_its_turn(pairs: Pairs) -> None:
    row = next(row for row, captions in enumerate(pairs.captions) if len(captions) == 2)
    said = [shown(PLAIN, pairs, row, number)[1] for number in range(60)]
    assert set(said) == set(pairs.captions[row])
    assert 15 < said.count(pairs.captions[row][0]) < 45  # of 60 with a chance of 1/2 each: 3.9 deviations


def test_a_whole_crop_shows_the_image_itself(pairs: Pairs) -> None:
    image, _ = shown(Look(0, SIDE, 1.0), pairs, 0, 0)
    assert torch.equal(image, torch.from_numpy(np.array(pairs.image(0))).permute(2, 0, 1))
    crops = [shown(PLAIN, pairs, 0, number)[0] for number in range(10)]
    assert not any(torch.equal(image, crop) for crop in crops) and {crop.shape for crop in crops} == {image.shape}


def test_words_for_left_and_right_follow_a_mirrored_image(sides: Pairs) -> None:
    found = set()
    for number in range(40):
        for row, own in enumerate(("left", "right")):
            image, caption = shown(MIRROR, sides, row, number)
            red = [float(half.float()[0].mean()) for half in image.split(8, dim=2)]
            said = caption.split()[-1]
            assert red[("left", "right").index(said)] > 200 and min(red) < 55, caption
            found.add((own, said))
    assert found == {(own, said) for own in ("left", "right") for said in ("left", "right")}
    assert {shown(Look(0, 16, 1.0), sides, 0, number)[1] for number in range(20)} == {"red on the left"}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named_without_a_traceback(workers: int, tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path, 4)
    (tmp_path / "train" / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"002\.png") as caught:
        made(pairs, PLAIN, [[(0, 0), (1, 1)], [(2, 2), (3, 3)]], workers)
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) <= 3
