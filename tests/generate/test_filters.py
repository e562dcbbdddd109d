"""Each filter by itself, on vectors whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mvc.errors import ConfigError
from mvc.extractors import Extractor, find_extractor
from mvc.features import Seen
from mvc.generate.agreement import ClipAgreement, clip_agreement, margin_limits, margins
from mvc.generate.appearance import GREY_LEVELS, chroma_limits, is_blank, is_grey
from mvc.generate.copies import (
    TRIALS,
    Pictures,
    Rule,
    find_centre,
    find_nearest,
    fit_likeness,
    prepare,
    trial_rows,
)
from mvc.generate.cross_fitted import fit_classifiers, own_probability
from mvc.generate.repeats import pick
from mvc.randomness import numpy_generator


def seen(features: NDArray[np.float64], hashes: list[int] | None = None, **levels: list[float]) -> Seen:
    count = len(features)
    return Seen(
        np.asarray(features, dtype=np.float32),
        np.array(hashes or [0] * count, dtype=np.uint64),
        np.array(levels.get("spread", [255.0] * count), dtype=np.float32),
        np.array(levels.get("chroma", [50.0] * count), dtype=np.float32),
    )


def random(purpose: str, *shape: int) -> NDArray[np.float64]:
    return numpy_generator(0, f"test {purpose}").standard_normal(shape)


def on_circle(*degrees: float) -> NDArray[np.float64]:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


# Appearance


def test_plain_colours_are_blank() -> None:
    assert is_blank(seen(np.zeros((4, 2)), spread=[0, 2, 3, 255])).tolist() == [True, True, False, False]


def test_grey_is_only_wrong_where_the_class_is_coloured() -> None:
    chroma = [0.0, 40, 40, 40, *[14.0] * 4, *[100.0] * 4]
    classes = ["some grey"] * 4 + ["pale"] * 4 + ["gaudy"] * 4
    limits = chroma_limits(
        seen(np.zeros((12, 2)), chroma=chroma), classes, ["some grey", "pale", "gaudy", "none"], 0.05
    )
    assert limits == {"pale": GREY_LEVELS, "gaudy": GREY_LEVELS}
    told = is_grey(np.array([0, 5.9, 6.0, 0], np.float32), ["gaudy", "pale", "pale", "some grey"], limits)
    assert told.tolist() == [True, True, False, False]


def test_the_palest_images_are_left_out_by_the_rate() -> None:
    image = seen(np.zeros((40, 2)), chroma=[0.0] * 2 + [80.0] * 38)
    assert chroma_limits(image, ["a"] * 40, ["a"], 0.04) == {}
    assert chroma_limits(image, ["a"] * 40, ["a"], 0.06) == {"a": GREY_LEVELS}


# Copies


def test_nearest_is_what_plain_loops_find() -> None:
    features, others = random("pictures", 300, 8), random("others", 70, 8)
    bits = numpy_generator(0, "test bits")
    hashes, other_hashes = (bits.integers(0, 2**64, count, dtype=np.uint64) for count in (300, 70))
    centre = features.mean(axis=0).astype(np.float32)
    first = prepare(Seen(features.astype(np.float32), hashes, np.ones(300), np.ones(300)), centre)
    second = prepare(Seen(others.astype(np.float32), other_hashes, np.ones(70), np.ones(70)), centre)
    found = find_nearest(first, second, [Rule(28, 0.5)])
    for row in range(300):
        cosine = [
            float(np.dot(features[row] - centre, one - centre))
            / float(np.linalg.norm(features[row] - centre) * np.linalg.norm(one - centre))
            for one in others
        ]
        differing = [(int(hashes[row]) ^ int(one)).bit_count() for one in other_hashes]
        copies = [number for number in range(70) if differing[number] <= 28 and cosine[number] >= 0.5]
        best = max(copies or range(70), key=lambda number: cosine[number])
        assert found.row[row] == best and found.copy[row] == bool(copies) and found.bits[row] == differing[best]
        assert found.similarity[row] == pytest.approx(cosine[best], abs=2e-6)
    assert 20 < found.copy.sum() < 280


def test_a_copy_needs_both_the_hash_and_the_features() -> None:
    reference = prepare(seen(on_circle(0, 90), [0, 0b1111]), np.zeros(2, np.float32))
    images = prepare(seen(on_circle(1, 1, 60, 90), [0b11, 0b111, 0, 0b1111]), np.zeros(2, np.float32))
    found = find_nearest(images, reference, [Rule(2, 0.99)])
    assert found.copy.tolist() == [True, False, False, True]
    assert found.row.tolist() == [0, 0, 1, 1] and found.bits.tolist() == [2, 3, 4, 0]
    assert find_nearest(images, reference, [Rule(0, 1.0), Rule(3, 0.99)]).copy.tolist() == [True, True, False, True]


def test_a_copy_is_named_before_a_more_similar_picture() -> None:
    reference = prepare(seen(on_circle(0, 8), [2**60 - 1, 0]), np.zeros(2, np.float32))
    found = find_nearest(prepare(seen(on_circle(2)), np.zeros(2, np.float32)), reference, [Rule(4, 0.9)])
    assert found.row.tolist() == [1] and found.similarity[0] == pytest.approx(np.cos(np.radians(6)), abs=1e-6)


def test_nothing_to_compare_with() -> None:
    images, nothing = Pictures(np.eye(2, dtype=np.float32), np.zeros(2, np.uint64)), seen(np.empty((0, 0)))
    found = find_nearest(images, prepare(nothing, np.zeros(2, np.float32)), [Rule(4, 0.9)])
    assert found.row.tolist() == [-1, -1] and not found.copy.any()
    alone = find_nearest(images, images.take([0]), [Rule(64, -1.0)], exclude=np.array([0, -1]))
    assert alone.row.tolist() == [-1, 0] and alone.copy.tolist() == [False, True]


def test_what_is_said_of_a_picture_does_not_change_when_more_follow() -> None:
    features = random("stable", 700, 33).astype(np.float32)
    others = prepare(seen(random("stable others", 90, 33)), np.zeros(33, np.float32))
    whole = find_nearest(prepare(seen(features), np.zeros(33, np.float32)), others, [Rule(64, 0.4)])
    for count in (1, 255, 256, 257, 300):
        part = find_nearest(prepare(seen(features[:count]), np.zeros(33, np.float32)), others, [Rule(64, 0.4)])
        assert np.array_equal(part.similarity, whole.similarity[:count]) and np.array_equal(part.row, whole.row[:count])


def test_centre() -> None:
    assert find_centre(seen(on_circle(0, 90))).tolist() == [0.5, 0.5]
    assert find_centre(seen(np.ones((3, 2)))).tolist() == [0.0, 0.0]
    # The only image, and copies of it, still have a direction.
    only = seen(np.ones((1, 2)))
    assert find_nearest(*[prepare(only, find_centre(only))] * 2, [Rule(4, 0.99)]).copy.tolist() == [True]


def test_trials_are_spread_evenly() -> None:
    assert trial_rows(3) == [0, 1, 2] and trial_rows(1) == [0]
    rows = trial_rows(1000)
    assert len(rows) == TRIALS and (rows[0], rows[-1]) == (0, 999) and max(np.diff(rows)) == 6


def in_pairs(angle: float, bits: int) -> tuple[Seen, tuple[Seen, Seen]]:
    """Pairs of images `angle` apart in planes of their own, hashes `bits` apart; copies 10 and 30 degrees away."""
    pairs = 12
    features = np.zeros((3, 2 * pairs, 2 * pairs))
    hashes = []
    for pair in range(pairs):
        plane = slice(2 * pair, 2 * pair + 2)
        features[0, plane, plane] = on_circle(0, angle)
        features[1, plane, plane] = on_circle(10, angle + 10)
        features[2, plane, plane] = on_circle(30, angle + 30)
        base = int(numpy_generator(0, "test hash", pair).integers(0, 2**63))
        hashes += [base, base ^ (2**bits - 1)]
    light, strong = (seen(features[place], hashes) for place in (1, 2))
    return seen(features[0], hashes), (light, strong)


@pytest.mark.parametrize(
    ("angle", "bits", "expected"),
    [
        (90.0, 2, 30.0),  # real images are far apart: strongly changed copies are to be found
        (20.0, 2, 20.0),  # some are nearer than those: the threshold lies where they are
        (20.0, 9, 30.0),  # but their hashes tell them apart
        (1.0, 2, 30.0),  # images that the data set holds twice say nothing
    ],
)
def test_the_threshold_lies_between_copies_and_other_real_images(angle: float, bits: int, expected: float) -> None:
    train, trials = in_pairs(angle, bits)
    likeness = fit_likeness(train, trials, 4, None)
    # The centre moves the angles a little.
    assert likeness.rule.similarity == pytest.approx(np.cos(np.radians(expected)), abs=0.02)
    assert likeness.certain.similarity == pytest.approx(np.cos(np.radians(10)), abs=0.02)
    assert likeness.rule.bits == 4 and fit_likeness(train, trials, 7, 0.5).rule == Rule(7, 0.5)


def test_where_real_images_are_as_near_as_copies_light_changes_are_still_found() -> None:
    train, trials = in_pairs(11.0, 2)
    likeness = fit_likeness(train, trials, 4, None)
    assert likeness.rule.similarity <= likeness.certain.similarity
    pictures = prepare(train, likeness.centre)
    found = find_nearest(prepare(trials[0], likeness.centre), pictures, [likeness.rule])
    assert found.copy.all()


# Repeats


def line(*degrees: float) -> Pictures:
    return prepare(seen(on_circle(*degrees)), np.zeros(2, np.float32))


def test_the_earlier_of_two_equal_pictures_stays() -> None:
    rule = Rule(4, float(np.cos(np.radians(10))))
    picked = pick(line(0, 5, 90, 14, 95), ["a", "b", "c", "d", "e"], rule)
    # 14 degrees are near 5, which was refused, and not near 0.
    assert picked.reasons == [None, "repeat", None, None, "repeat"]
    assert picked.nearest[0] is None and picked.nearest[3] == pytest.approx(np.cos(np.radians(14)), abs=1e-6)


def test_one_image_a_slot() -> None:
    picked = pick(line(0, 40, 80, 1, 120), ["a", "a", "b", "c", "c"], Rule(4, 0.99))
    assert picked.reasons == [None, "surplus", None, "repeat", None]
    assert pick(line(0, 0, 0, 1), ["a", "a", "b", "c"], None).reasons == [None, "surplus", None, None]


def test_equal_pictures_far_apart_in_the_order_are_found_too() -> None:
    features = random("repeats", 600, 20)
    features[599] = features[3]
    features[300] = features[299]
    picked = pick(prepare(seen(features), np.zeros(20, np.float32)), list(range(600)), Rule(4, 0.999))
    assert [row for row, reason in enumerate(picked.reasons) if reason] == [300, 599]
    assert pick(
        prepare(seen(np.ones((600, 2))), np.zeros(2, np.float32)), list(range(600)), Rule(4, 0.999)
    ).reasons == [
        None,
        *["repeat"] * 599,
    ]


# Agreement by CLIP


def agreement(
    train: Seen, negative: NDArray[np.float64] | None = None, threshold: float | None = None
) -> ClipAgreement:
    none = np.empty((0, 2), np.float32)
    texts = on_circle(0, 90).astype(np.float32) * 7
    return ClipAgreement(train, texts, none if negative is None else negative.astype(np.float32), threshold)


def test_margins_are_differences_of_cosines() -> None:
    images, labels = seen(on_circle(0, 30, 30, 90) * 5), np.array([0, 0, 1, 0])
    half, root = 0.5, np.sqrt(0.75)
    found = margins(agreement(images), images, labels)
    np.testing.assert_allclose(found, [1.0, root - half, half - root, -1.0], atol=1e-7)
    found = margins(agreement(images, on_circle(30, 180)), images, labels)
    np.testing.assert_allclose(found, [1 - root, root - 1, half - 1, -1.0], atol=1e-7)


def test_a_class_that_the_clip_finds_harder_has_a_lower_limit() -> None:
    easy, hard = on_circle(*np.linspace(0, 20, 30)), on_circle(*np.linspace(30, 50, 30))
    train, labels = seen(np.concatenate([easy, hard])), np.array([0] * 30 + [1] * 30)
    limits = margin_limits(agreement(train), labels, 2, 0.05)
    found = margins(agreement(train), train, labels)
    assert limits[1] < 0 < limits[0]
    for label in (0, 1):
        assert 0 <= np.mean(found[labels == label] < limits[label]) <= 0.1
    assert margin_limits(agreement(train, threshold=0.25), labels, 2, 0.05).tolist() == [0.25, 0.25]


def test_limits_of_classes_with_one_image() -> None:
    train = seen(on_circle(0, 10, 20, 60))
    limits = margin_limits(agreement(train), np.array([0, 0, 0, 1]), 2, 0.0)
    found = margins(agreement(train), train, np.array([0, 0, 0, 1]))
    allowance = found[2] - np.median(found[:2])
    np.testing.assert_allclose(limits, [found[1] + allowance, found[3] + allowance])
    alone = seen(on_circle(0, 60))
    limits = margin_limits(agreement(alone), np.array([0, 1]), 2, 0.05)
    np.testing.assert_allclose(limits, [margins(agreement(alone), alone, np.array([0, 1])).min()] * 2)


def test_one_class_without_negative_prompts_is_judged_by_the_cosine() -> None:
    texts = on_circle(0).astype(np.float32)
    alone = ClipAgreement(seen(on_circle(60)), texts, np.empty((0, 2), np.float32), None)
    assert margins(alone, seen(on_circle(60)), np.array([0])) == pytest.approx(0.5)


def test_prompts_are_made_of_words_in_any_script(tmp_path: Path) -> None:
    tiny = find_extractor("tiny").load(torch.device("cpu"))
    words = {"猫": "猫", "犬": "犬", "a/b": "{class_name}", "🐈": "chat d'été"}
    made = clip_agreement(tiny, seen(np.empty((0, 128))), words, ["a blurry picture"], 0.1, "A {class_name}!")
    assert made.class_texts.shape == (4, 128) and made.negative_texts.shape == (1, 128)
    assert np.array_equal(made.class_texts[3], tiny.encode_texts(["A chat d'été!"])[0])
    # The tiny tokenizer knows neither: the classes cannot be told apart, and no image is refused for it.
    image = seen(random("image", 1, 128))
    assert margins(made, image, np.array([0])) <= 0
    blind = Extractor("blind", "id", 2, lambda image: torch.zeros(2))
    with pytest.raises(ConfigError, match="blind knows images only"):
        clip_agreement(blind, image, words, [], None)


# Agreement by classifier


def clusters(each: int, classes: int = 3, spread: float = 0.3) -> tuple[Seen, list[str], NDArray[np.int64]]:
    labels = np.arange(classes).repeat(each)
    features = np.eye(classes)[labels] * 3 + spread * random("clusters", each * classes, classes)
    return seen(features), [f"image {row}" for row in range(len(labels))], labels


def test_each_model_is_the_one_scikit_learn_fits_without_its_part() -> None:
    train, ids, labels = clusters(7)
    fitted = fit_classifiers(train, ids, labels, ["a", "b", "c"], 0)
    assert len(fitted.models) == 5 and sorted(fitted.part_of) == sorted(ids)
    for part in range(5):
        own = np.array([fitted.part_of[name] == part for name in ids])
        assert {labels[own].tolist().count(label) for label in range(3)} <= {1, 2}
        scaler = StandardScaler().fit(train.features[~own].astype(float))
        plain = LogisticRegression(C=0.1, max_iter=5000)
        plain.fit(scaler.transform(train.features[~own].astype(float)), labels[~own])
        expected = plain.predict_proba(scaler.transform(train.features[own].astype(float)))
        np.testing.assert_allclose(fitted.own[own], expected[np.arange(own.sum()), labels[own]], atol=1e-6)


def test_an_image_is_judged_by_models_that_know_fewest_of_its_parents() -> None:
    train, ids, labels = clusters(6)
    fitted = fit_classifiers(train, ids, labels, ["a", "b", "c"], 0)
    image = seen(random("child", 1, 3))
    by_model = [float(model.predict_proba(image.features.astype(float))[0, 1]) for model in fitted.models]
    parts = {part: [name for name in ids if fitted.part_of[name] == part] for part in range(5)}

    def probability(*parents: str) -> float:
        return float(own_probability(fitted, image, np.array([1]), [frozenset(parents)])[0])

    everyone = float(np.mean(by_model))
    assert probability() == pytest.approx(everyone) and probability("unknown") == pytest.approx(everyone)
    assert probability(parts[2][0], "unknown") == pytest.approx(by_model[2])
    assert probability(parts[1][0], parts[3][0]) == pytest.approx((by_model[1] + by_model[3]) / 2)
    assert probability(parts[1][0], parts[3][0], parts[3][1]) == pytest.approx(by_model[3])
    assert probability(*(parts[part][0] for part in range(5))) == pytest.approx(everyone)


@pytest.mark.parametrize(("each", "models"), [(2, 2), (3, 3), (40, 5)])
def test_few_images_a_class_mean_few_parts(each: int, models: int) -> None:
    train, ids, labels = clusters(each)
    fitted = fit_classifiers(train, ids, labels, ["a", "b", "c"], 0)
    assert len(fitted.models) == models and fitted.own.min() > 1 / 3
    again = fit_classifiers(train, ids, labels, ["a", "b", "c"], 0)
    assert again.part_of == fitted.part_of and np.array_equal(again.own, fitted.own)
    if each > 3:
        assert fit_classifiers(train, ids, labels, ["a", "b", "c"], 1).part_of != fitted.part_of


def test_two_classes_are_enough() -> None:
    train, ids, labels = clusters(4, 2)
    fitted = fit_classifiers(train, ids, labels, ["a", "b"], 0)
    right = own_probability(fitted, train, labels, [frozenset()] * 8)
    np.testing.assert_allclose(right + own_probability(fitted, train, 1 - labels, [frozenset()] * 8), np.ones(8))
    assert right.min() > 0.5


def test_too_few_images_or_classes_are_an_error() -> None:
    train, ids, labels = clusters(1)
    with pytest.raises(ConfigError, match="class '猫' has fewer than two training images, and 2 more"):
        fit_classifiers(train, ids, labels, ["猫", "b", "c"], 0)
    with pytest.raises(ConfigError, match="needs at least two classes"):
        fit_classifiers(*clusters(3, 1), ["a"], 0)
