"""MixGen of images and texts against computations by hand, in and out of place, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mvc.mixgen import mix_images, mix_texts, mixgen
from mvc.mixgen_plan import VARIANTS, MixGenPlan, plan_mixgen
from mvc.randomness import generator, numpy_generator
from tests.mvc.pictures import picture

TEXTS = [f"{word} of {3 * row} words" for row, word in enumerate("ash box cat dog elm fig gnu hut".split())]


def random_of(step: int = 0) -> np.random.Generator:
    return numpy_generator(5, "mixgen", step)


def floats(rows: int = 8, size: int = 6) -> Tensor:
    """Any range: about -12 to 12."""
    return 3 * torch.randn((rows, 3, size, size), generator=generator(0, "test images", rows))


def by_hand(plan: MixGenPlan, images: Tensor, texts: list[str]) -> tuple[Tensor, list[str]]:
    """Table 6, a pair at a time, in double precision."""
    new_images, new_texts = images.double().clone(), list(texts)
    for row, partner in enumerate(plan.partner.tolist()):
        share, own, other = float(plan.mix[row]), texts[row], texts[partner]
        new_images[row] = share * images[row].double() + (1 - share) * images[partner].double()
        if plan.variant == "c":
            new_images[row] = images[partner if plan.takes_partner[row] else row].double()
        new_texts[row] = f"{own} {other}"
        if plan.variant == "b":
            new_texts[row] = other if plan.takes_partner[row] else own
        if plan.variant in ("d", "e"):
            words, first = own.split() + other.split(), len(own.split())
            new_texts[row] = " ".join(words[at] for at in plan.tokens(row, first, len(words) - first))
    return new_images, new_texts


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_one_by_hand(variant: str, share: float, in_place: bool) -> None:
    images, texts = floats(), list(TEXTS)
    before = images.clone()
    plan = plan_mixgen(8, random_of(), variant, share, 0.3)
    wanted_images, wanted_texts = by_hand(plan, before, TEXTS)
    found_images, found_texts = mixgen(
        images, texts, random_of(), variant=variant, share=share, mix=0.3, in_place=in_place
    )
    torch.testing.assert_close(found_images, wanted_images.float(), rtol=1e-6, atol=1e-6)
    assert found_texts == wanted_texts
    assert torch.equal(found_images[len(plan) :], before[len(plan) :])
    assert (found_images is images) == (found_texts is texts) == in_place
    if not in_place:
        assert torch.equal(images, before) and texts == TEXTS
    assert torch.equal(mix_images(plan, before), found_images) and mix_texts(plan, TEXTS) == found_texts


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_no_row_is_mixed_with_a_row_that_was_mixed(share: float) -> None:
    """As a loop that writes while it goes on would do it: the result differs, so this would be seen."""
    images, texts = floats(), list(TEXTS)
    plan = plan_mixgen(8, random_of(), share=share)
    assert (plan.partner < np.arange(len(plan))).any()
    wrong_images, wrong_texts = images.clone(), list(texts)
    for row, partner in enumerate(plan.partner.tolist()):
        wrong_images[row] = 0.5 * wrong_images[row] + 0.5 * wrong_images[partner]
        wrong_texts[row] = f"{wrong_texts[row]} {wrong_texts[partner]}"
    right_images, right_texts = by_hand(plan, images, texts)
    mixgen(images, texts, random_of(), share=share, in_place=True)
    torch.testing.assert_close(images, right_images.float(), rtol=1e-6, atol=1e-6)
    assert texts == right_texts
    assert (images - wrong_images).abs().max() > 0.5 and texts != wrong_texts
    assert max(len(text.split()) for text in texts) == 8 and max(len(text.split()) for text in wrong_texts) > 8


def test_known_numbers() -> None:
    images = torch.tensor([0.0, 1.0, 10.0, 21.0]).view(4, 1, 1, 1)
    found, texts = mixgen(images, ["a", "b", "c", "d"], random_of(), share=0.5, mix=0.75)
    assert found.flatten().tolist() == [2.5, 6.0, 10.0, 21.0]
    assert texts == ["a c", "b d", "c", "d"]


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_a_lambda_of_one_is_the_own_image_and_of_zero_the_partners(mix: float) -> None:
    for images in (floats(), floats().half(), floats().bfloat16(), (40 * floats() + 128).clamp(0, 255).byte()):
        found, texts = mixgen(images, TEXTS, random_of(), mix=mix)
        assert torch.equal(found[:2], images[:2] if mix else images[2:4]) and torch.equal(found[2:], images[2:])
        assert texts[:2] == [f"{TEXTS[0]} {TEXTS[2]}", f"{TEXTS[1]} {TEXTS[3]}"]


def test_bytes_are_rounded_and_half_floats_are_mixed_in_float32() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    images = torch.stack([levels, levels.flip(0), levels, levels.roll(7)]).view(4, 1, 16, 16)
    found = mix_images(plan_mixgen(4, random_of(), share=0.5, mix=0.3), images)
    exact = 0.3 * images[:2].double() + 0.7 * images[2:].double()
    assert found.dtype == torch.uint8 and torch.equal(found[:2], exact.round().byte())
    assert found[0, 0, 0, 1] == 1 and found[1, 0, 0, 0] == round(0.3 * 255 + 0.7 * 249)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        own = floats().to(dtype)
        mixed = mix_images(plan_mixgen(8, random_of(), "a"), own)
        plan = plan_mixgen(8, random_of(), "a")
        assert mixed.dtype == dtype
        torch.testing.assert_close(mixed, by_hand(plan, own, TEXTS)[0].to(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_are_mixed_as_their_bytes_and_keep_their_mode(mode: str, variant: str) -> None:
    rgb = [picture(number, 9).crop((0, 0, 9, 7)) for number in range(6)]
    images = [image.convert("L").convert("LA") if mode == "LA" else image.convert(mode) for image in rgb]
    plan = plan_mixgen(6, random_of(), variant, 0.7, 0.3)
    found = mix_images(plan, images)
    pixels = torch.from_numpy(np.stack([np.asarray(image).reshape(7, 9, -1) for image in images])).permute(0, 3, 1, 2)
    wanted = mix_images(plan, pixels).permute(0, 2, 3, 1)
    assert [image.mode for image in found] == [mode] * 6 and [image.size for image in found] == [(9, 7)] * 6
    for image, expected in zip(found, wanted, strict=True):
        assert np.array_equal(np.asarray(image).reshape(7, 9, -1), expected.numpy())
    assert found[4] is images[4] and all(one is not other for one, other in zip(found[:4], images, strict=False))
    own = list(images)
    assert mix_images(plan, own, in_place=True) is own and own[4:] == images[4:]
    assert [image.tobytes() for image in own] == [image.tobytes() for image in found]


def test_no_share_changes_nothing() -> None:
    images = floats()
    found, texts = mixgen(images, TEXTS, random_of(), share=0)
    assert torch.equal(found, images) and texts == TEXTS
    pictures = [picture(number, 5) for number in range(3)]
    assert mixgen(pictures, TEXTS[:3], random_of(), share=0)[0] == pictures


@pytest.mark.parametrize("in_place", [False, True])
def test_memory_format_and_gradients(in_place: bool) -> None:
    last = floats().contiguous(memory_format=torch.channels_last)
    found = mixgen(last, list(TEXTS), random_of(), in_place=in_place)[0]
    assert found.is_contiguous(memory_format=torch.channels_last)
    leaf = floats().requires_grad_()
    mixgen(leaf * 1.0, list(TEXTS), random_of(), mix=0.3, in_place=in_place)[0].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, 0, 0, 0], torch.tensor([0.3, 0.3, 1.7, 1.7, 1, 1, 1, 1]))


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(
        st.lists(st.sampled_from("a red fox on 3 icy hills".split()), min_size=1, max_size=9), min_size=2, max_size=12
    ),
    variant=st.sampled_from(VARIANTS),
    share=st.floats(0, 1),
    step=st.integers(0, 1000),
)
def test_new_texts_consist_of_the_words_of_two_texts(
    texts: list[list[str]], variant: str, share: float, step: int
) -> None:
    rows = len(texts)
    marked = [[f"{word}.{row}.{place}" for place, word in enumerate(words)] for row, words in enumerate(texts)]
    images = floats(rows, 2)
    plan = plan_mixgen(rows, random_of(step), variant, share)
    found_images, found = mixgen(
        images, [" ".join(words) for words in marked], random_of(step), variant=variant, share=share
    )
    assert len(found) == rows and torch.equal(found_images[len(plan) :], images[len(plan) :])
    for row, text in enumerate(found):
        if row >= len(plan):
            assert text == " ".join(marked[row])
            continue
        both = marked[row] + marked[int(plan.partner[row])]
        words = text.split()
        places = [both.index(word) for word in words]  # each word of both is another one
        assert words and places == sorted(set(places))
        if variant in ("default", "a", "c"):
            assert words == both
        low, high = (torch.minimum, torch.maximum)
        pair = images[row], images[int(plan.partner[row])]
        assert (found_images[row] >= low(*pair) - 1e-5).all() and (found_images[row] <= high(*pair) + 1e-5).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"images": floats(7)}, "7 images and 8 texts"),
    ({"images": floats(1), "texts": ["a"]}, "a batch of 1 has no partners"),
    ({"texts": [*TEXTS[:6], " \n", "a"]}, r"text 6 is ' \\n': every pair needs a caption of a word at least"),
    ({"texts": [*TEXTS[:3], None, *TEXTS[4:]]}, "text 3 is None"),
    ({"texts": "a string"}, "texts is the one text 'a string'"),
    ({"images": floats()[0], "texts": ["a", "b", "c"]}, r"torch.float32 tensor of shape \(3, 6, 6\)"),
    ({"images": floats().long()}, r"torch.int64 tensor of shape \(8, 3, 6, 6\)"),
    ({"variant": "z"}, "unknown variant 'z'"),
    ({"mix": 1.5}, "mix=1.5"),
    ({"share": 2}, "share=2"),
    ({"texts": tuple(TEXTS), "in_place": True}, "a tuple cannot be mixed in place"),
    ({"images": [picture(0, 6)] * 7 + [picture(0, 5)]}, "image 7 is 5x5 RGB, and image 0 is 6x6 RGB"),
    ({"images": [picture(0, 6).convert("L")] + [picture(0, 6)] * 7}, "image 1 is 6x6 RGB, and image 0 is 6x6 L"),
    ({"images": [Image.new("P", (4, 4))] * 8}, "images of mode P cannot be mixed: convert them to one of L, LA, RGB"),
    ({"images": (picture(0, 6),) * 8, "in_place": True}, "a tuple cannot be mixed in place"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_mixed_is_named_and_nothing_is_written(arguments: dict[str, Any], message: str) -> None:
    images, texts = floats(), list(TEXTS)
    given_: dict[str, Any] = {"images": images, "texts": texts, "in_place": True, **arguments}
    with pytest.raises(ValueError, match=message):
        mixgen(random=random_of(), **given_)
    assert texts == TEXTS and torch.equal(images, floats())


def test_a_plan_of_another_batch_is_refused() -> None:
    plan = plan_mixgen(6, random_of())
    with pytest.raises(ValueError, match="the plan is for a batch of 6 pairs, and there are 8 images"):
        mix_images(plan, floats())
    with pytest.raises(ValueError, match="the plan is for a batch of 6 pairs, and there are 8 texts"):
        mix_texts(plan, TEXTS)
    with pytest.raises(ValueError, match="a batch of 6 pairs, and there are 5 images"):
        mix_images(plan, [picture(0, 4)] * 5)
