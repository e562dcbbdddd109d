"""MixGen in a DataLoader: equal batches with any number of workers, kinds of batches, and refusals."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, default_collate

from mvc.mixgen import mixgen
from mvc.mixgen_collate import MixGenCollate, NumberedSamples
from mvc.mixgen_plan import VARIANTS
from mvc.randomness import generator, numpy_generator
from tests.mvc.pictures import picture

TOKENIZER = SimpleTokenizer(context_length=24)


class Pairs:
    """Small images with captions of their own."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image = torch.randn((3, 4, 4), generator=generator(0, "test pairs", index))
        return image, f"number {index} of all the pairs {'and so on ' * (index % 3)}"


def as_dict(samples: list[Any]) -> dict[str, Any]:
    images, texts = default_collate(samples)
    return {"pixels": images, "ids": TOKENIZER(list(texts)), "texts": list(texts), "length": len(samples)}


def as_pictures(samples: list[Any]) -> tuple[list[Image.Image], list[str]]:
    return [picture(place, 4) for place in range(len(samples))], [text for _, text in samples]


def as_three(samples: list[Any]) -> tuple[int, int, int]:
    return 1, 2, 3


def batches(collate: MixGenCollate, workers: int, epochs: int = 2) -> list[Any]:
    """Of a shuffled loader, over some epochs."""
    data = NumberedSamples(Pairs())
    loader = DataLoader(
        data,
        batch_size=8,
        # With `shuffle` workers that stay would change the order of the second epoch.
        sampler=RandomSampler(data, generator=generator(0, "test order")),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    return [batch for _ in range(epochs) for batch in loader]


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(equal(one, other) for one, other in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("collate", [default_collate, as_dict])
def test_batches_do_not_depend_on_the_workers(collate: Any) -> None:
    mixing = MixGenCollate(0, collate, "e", share=0.75, image_key="pixels", text_key="ids")
    none, two = batches(mixing, 0), batches(mixing, 2)
    assert len(none) == 8 and equal(none, two)
    assert not equal(none, batches(MixGenCollate(1, collate, "e", 0.75, 0.5, "pixels", "ids"), 0))
    assert not equal(none[:4], none[4:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_mixed_by_the_seed_and_the_numbers_of_its_samples(variant: str) -> None:
    numbers = [3, 9, 1, 25, 8, 7]
    data = NumberedSamples(Pairs())
    images, texts = default_collate([data[number][1] for number in numbers])
    wanted = mixgen(images, texts, numpy_generator(4, "mixgen", *numbers), variant=variant, share=0.5, mix=0.2)
    found = MixGenCollate(4, variant=variant, share=0.5, mix=0.2)([data[number] for number in numbers])
    assert equal(found, wanted) and isinstance(found[1], list)
    other = MixGenCollate(4, variant="a")([data[number] for number in reversed(numbers)])
    assert not equal(other, MixGenCollate(4, variant="a")([data[number] for number in numbers]))


def test_it_survives_pickling() -> None:
    mixing = MixGenCollate(7, as_dict, "d", 0.5, 0.5, "pixels", "texts")
    samples = [NumberedSamples(Pairs())[index] for index in range(6)]
    assert pickle.loads(pickle.dumps(mixing)) == mixing
    assert equal(pickle.loads(pickle.dumps(mixing))(samples), mixing(samples))


def test_a_dict_keeps_its_other_entries_and_its_source() -> None:
    samples = [NumberedSamples(Pairs())[index] for index in range(8)]
    before = as_dict([sample for _, sample in samples])
    of_ids = MixGenCollate(0, as_dict, image_key="pixels", text_key="ids")(samples)
    of_texts = MixGenCollate(0, as_dict, image_key="pixels", text_key="texts")(samples)
    assert of_ids["texts"] == before["texts"] and of_ids["length"] == 8 and equal(of_texts["ids"], before["ids"])
    assert equal(of_ids["pixels"], of_texts["pixels"]) and not equal(of_ids["pixels"], before["pixels"])
    assert torch.equal(of_ids["ids"], TOKENIZER(of_texts["texts"]))


def test_numbers_of_numpy_and_pictures_go_through() -> None:
    samples = [(np.int64(index), ("unused", f"text {index}")) for index in range(4)]
    images, texts = MixGenCollate(0, as_pictures)(samples)  # type: ignore[arg-type]
    assert texts == ["text 0 text 1", "text 1", "text 2", "text 3"]
    wanted = (np.asarray(picture(0, 4), np.float32) + np.asarray(picture(1, 4))) / 2
    assert np.array_equal(np.asarray(images[0]), np.rint(wanted))


def test_wrong_settings_are_told_at_once() -> None:
    for settings, message in (
        ({"variant": "x"}, "unknown variant 'x'"),
        ({"share": -1.0}, "share=-1.0"),
        ({"mix": 3.0}, "mix=3.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MixGenCollate(0, **settings)


def test_wrong_batches_are_named() -> None:
    numbered = [NumberedSamples(Pairs())[index] for index in range(4)]
    for mixing, samples, message in (
        (MixGenCollate(0), [Pairs()[0]], "a sample is a tuple and not \\(number, sample\\): wrap the data set"),
        (MixGenCollate(0), [{"image": 0}], "a sample is a dict and not"),
        (MixGenCollate(0), numbered[:1], "a batch of 1 has no partners to mix: .*drop_last=True"),
        (MixGenCollate(0, as_dict), numbered, "a batch has no 'image', but 'pixels', 'ids', 'texts', 'length'"),
        (MixGenCollate(0, as_three), numbered, "a batch is a tuple of 3 entries: give \\(images, texts\\) or a dict"),
        (MixGenCollate(0, len), numbered, "a batch is a int: give"),
    ):
        with pytest.raises(ValueError, match=message):
            mixing(samples)  # type: ignore[arg-type]


def test_a_worker_passes_the_message_on() -> None:
    loader = DataLoader(NumberedSamples(Pairs()), 25, num_workers=1, collate_fn=MixGenCollate(0))
    with pytest.raises(ValueError, match="a batch of 1 has no partners"):
        list(loader)
