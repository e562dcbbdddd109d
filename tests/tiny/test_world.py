"""The printed world: the same draw for the same number, and captions that are true of it."""

from __future__ import annotations

import re

import numpy as np
import torch

from mvc.tiny import DIGIT_WORDS
from mvc.tiny.evaluate import read_attributes
from mvc.tiny.pictures import as_input, disturbed, draw_many, printed, texture
from mvc.tiny.tokens import MAX_LENGTH, captioner_tokenizer, clip_tokenizer, world_words
from mvc.tiny.world import BACKGROUNDS, COLOURS, SIZES, caption, describe, draw_character, render

NUMBERS = range(300)


def test_a_character_depends_on_seed_and_number_alone() -> None:
    assert [draw_character(3, index) for index in (5, 9)] == [draw_character(3, index) for index in (5, 9)]
    assert draw_character(3, 5) != draw_character(4, 5)
    assert np.array_equal(printed(3, 5), printed(3, 5))
    assert np.array_equal(texture(3, 5), texture(3, 5))
    assert not np.array_equal(texture(3, 5), texture(3, 6))


def test_drawing_in_processes_equals_drawing_one_by_one() -> None:
    pictures = draw_many("printed", 3, 6)
    for index in range(6):
        assert np.array_equal(pictures[index].permute(1, 2, 0).numpy(), printed(3, index))


def test_pictures_show_the_colours_and_the_size_that_are_said() -> None:
    for index in NUMBERS:
        character = draw_character(1, index)
        picture = render(character).astype(int)
        corner = picture[0, 0]
        assert np.abs(corner - BACKGROUNDS[character.background]).max() <= 5
        strongest = picture.reshape(-1, 3)[np.abs(picture - corner).sum(axis=2).argmax()]
        inks = {
            name: np.abs(strongest - value).sum() for name, value in COLOURS.items() if name != character.background
        }
        # Thin strokes at small sizes are blends, so their colour is only told where a stroke fills a pixel.
        if character.size != "small" and "bold" in character.style:
            assert min(inks, key=lambda name: inks[name]) == character.colour
        marked = np.flatnonzero((np.abs(picture - corner).sum(axis=2) > 40).any(axis=1))
        height = marked[-1] - marked[0] + 1
        low, high = SIZES[character.size]
        assert low * 0.85 - 2 <= height <= high * 1.15 + 2


def test_about_a_third_is_white_on_black_and_digits_are_even() -> None:
    characters = [draw_character(0, index) for index in range(3000)]
    share = sum((c.colour, c.background) == ("white", "black") for c in characters) / 3000
    assert 0.35 < share < 0.45
    counts = np.bincount([c.digit for c in characters], minlength=10)
    assert counts.min() > 230 and counts.max() < 370


def test_captions_are_true_and_sometimes_partial() -> None:
    partial = 0
    for index in NUMBERS:
        character = draw_character(2, index)
        text = caption(character, 2, index)
        assert text == caption(character, 2, index)
        first, _, second = text.partition(". ")
        assert first.rstrip(".") == f"This is an image of {character.word}"
        words = re.findall(r"[a-z]+", second)
        described = describe(character).split()
        assert set(words) <= {*described, "a", "an", "digit", "number", "character"}
        partial += len(words) < len(described)
    assert 90 < partial < 210


def test_the_full_description_reads_back_to_its_attributes() -> None:
    for index in NUMBERS:
        character = draw_character(2, index)
        said = read_attributes(describe(character))
        assert said.pop("digit") == character.word
        assert said == {name: getattr(character, name) for name in said}
    assert set(read_attributes("nothing of the kind").values()) == {""}


def test_disturbed_pictures_stay_in_range_and_repeat() -> None:
    drawn = np.stack([printed(3, index) for index in range(24)])
    images = as_input(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    first, second = disturbed(images, 0, "test", 1), disturbed(images, 0, "test", 1)
    assert first.equal(second)
    assert first.shape == images.shape and float(first.abs().max()) <= 1
    assert not first.equal(disturbed(images, 0, "test", 2))
    # Enough of the picture survives: most stay nearer to their own picture than to any of the 23 others.
    distances = (first[:, None] - images[None]).square().mean(dim=(2, 3, 4))
    assert sum(place == own for own, place in enumerate(distances.argmin(dim=1).tolist())) >= 16


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer, blip = clip_tokenizer(), captioner_tokenizer()
    for word in world_words():
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
        assert blip.tokenize(word) == [word]


def test_other_words_fall_into_pieces_and_come_back() -> None:
    tokenizer = clip_tokenizer()
    text = "a pituitary tumour beside zebra crossings, quickly jumping foxes"
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text
    blip = captioner_tokenizer()
    assert blip.unk_token_id not in blip(text).input_ids
    assert blip.decode(blip(text).input_ids, skip_special_tokens=True) == text


def test_tokens_are_cut_and_padded_at_77() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer.model_max_length == MAX_LENGTH == 77
    long = tokenizer("pituitary " * 60, padding="max_length", truncation=True).input_ids
    assert len(long) == 77 and long[0] == tokenizer.bos_token_id and long[-1] == tokenizer.eos_token_id
    short = tokenizer("three", padding="max_length", truncation=True).input_ids
    assert len(short) == 77 and short[2:] == [tokenizer.eos_token_id] * 75
    assert all(len(tokenizer(caption(draw_character(0, i), 0, i)).input_ids) <= 40 for i in NUMBERS)
    assert len({tokenizer(word).input_ids[1] for word in DIGIT_WORDS}) == 10
