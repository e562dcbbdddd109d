"""Text -> image -> text on the embedded models' own little world: what is drawn, what is thrown away, what survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvc.config_augment import AugmentSection
from mvc.errors import ConfigError
from mvc.images import GREY_LEVELS, chroma
from mvc.modality.chain import Chain
from mvc.modality.imagination import colour_filter, imagination_step
from mvc.modality.methods import text_chain
from mvc.modality.nodes import Level, Sample
from mvc.modality.steps import Output, Refused
from mvc.modality.store import Store
from mvc.tiny.evaluate import full_caption, read_attributes
from mvc.tiny.world import draw_character
from tests.other_pipelines import SIDE, write_sd3

CPU = torch.device("cpu")


def settings(**changes: object) -> AugmentSection:
    own = {"guidance_scale": 3.0, "num_inference_steps": 10, "images": 2, "captions": 2, **changes}
    return AugmentSection.model_validate(
        {"method": "back_imagination", "augmentations_per_sample": 2, "imagination": own}
    )


def samples(count: int, coloured: bool = True) -> list[Sample]:
    """Captions of characters in colour, or white on black."""
    white = [(index, draw_character(1000, index)) for index in range(40 * count)]
    own = [(index, c) for index, c in white if (c.colour == "white" and c.background == "black") != coloured]
    return [Sample(index, full_caption(character)) for index, character in own[:count]]


def test_captions_come_back_about_the_same_character(tmp_path: Path) -> None:
    wanted = samples(12)
    found = text_chain(settings(), CPU).augment(wanted, 0, Store(tmp_path))
    leaves = [(one.sample, leaf) for one in found for leaf in one.leaves]
    assert len(leaves) >= 18
    digits = [draw_character(1000, sample.index).word for sample, _ in leaves]
    kept = sum(read_attributes(leaf.value)["digit"] == word for (_, leaf), word in zip(leaves, digits, strict=True))
    assert kept / len(leaves) > 0.7  # 0.1 by chance
    for _, leaf in leaves:
        picture, caption = leaf.trail
        assert picture.facts["chroma"] >= GREY_LEVELS and (tmp_path / picture.facts["file"]).is_file()
        assert caption.value == leaf.value != ""
    again = text_chain(settings(), CPU).augment(wanted, 0, Store(tmp_path))
    assert [[leaf.value for leaf in one.leaves] for one in again] == [
        [leaf.value for leaf in one.leaves] for one in found
    ]


def test_black_and_white_images_are_thrown_away_and_drawn_again() -> None:
    grey = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2))
    red = Image.fromarray(np.full((8, 8, 3), (200, 20, 20), dtype=np.uint8))
    assert colour_filter.judge("", grey) == (False, {"chroma": 0.0})
    assert colour_filter.judge("", red) == (True, {"chroma": 180.0})
    found = text_chain(settings(attempts=3), CPU).augment(samples(6, coloured=False), 0, Store(None))
    dropped = sum(one.dropped["black and white"] for one in found)
    assert dropped >= 8  # of at most 24: captions of white on black are drawn so
    free = text_chain(settings(colour=False), CPU).augment(samples(6, coloured=False), 0, Store(None))
    assert not any(one.dropped["black and white"] for one in free)


def test_no_multi_imagination_and_no_multi_captioning_are_switches() -> None:
    whole, no_images, no_captions = (
        text_chain(settings(**changes), CPU).levels for changes in ({}, {"images": 1}, {"captions": 1})
    )
    assert [level.count for level in whole] == [2, 2]
    assert [level.count for level in no_images] == [1, 2] and [level.count for level in no_captions] == [2, 1]


def test_another_text_to_image_model_of_diffusers(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "sd3")
    step = imagination_step(folder, 2, 3.0, None, CPU, 4, 100)
    ((first, second), (refused,), (long,)) = step.run(["a red cat", " ", "x" * 101], [[1, 2], [3], [4]])
    assert isinstance(first, Output) and isinstance(second, Output) and first.value.size == (SIDE, SIDE)
    assert chroma(np.asarray(first.value)) >= 0 and np.asarray(first.value).dtype == np.uint8
    assert not np.array_equal(np.asarray(first.value), np.asarray(second.value))
    assert isinstance(refused, Refused) and refused.why == "the text is empty"
    assert isinstance(long, Refused) and long.why == "the text has 101 characters, more than 100"
    ((again,),) = step.run(["a red cat"], [[1]])
    assert isinstance(again, Output)
    assert np.abs(np.asarray(again.value).astype(int) - np.asarray(first.value)).max() <= 1  # rounding of batches
    with pytest.raises(ConfigError, match="back_imagination needs a captioner(.|\n)*imagination.captioner"):
        text_chain(settings(model=str(folder)), CPU)
    with pytest.raises(ConfigError, match="takes text, and text-to-image model sd3 before it gives image"):
        Chain([Level(step), Level(step)])
