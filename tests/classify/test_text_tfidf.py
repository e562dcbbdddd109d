"""The linear baseline: it learns, chooses its penalty on validation, and draws nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mvc.classify import text_tfidf
from mvc.classify.text_data import Texts
from mvc.classify.text_tfidf import STRENGTHS, predict_tfidf, train_tfidf
from mvc.errors import ConfigError, DataError
from tests.classify.text_toys import moods

NONE = Texts([], [], [])


def accuracy_of(texts: Texts, shares: torch.Tensor) -> float:
    return (shares.argmax(dim=1) == torch.tensor(texts.labels)).double().mean().item()


@pytest.mark.parametrize("pairs", [False, True])
def test_moods_of_sentences_that_were_not_seen_are_learnt(pairs: bool) -> None:
    model, found = train_tfidf(moods(200, 1, pairs), moods(60, 2, pairs), 2)
    test = moods(300, 3, pairs)
    shares = predict_tfidf(model, test.texts)
    assert shares.dtype == torch.float32 and shares.shape == (300, 2)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(300))
    assert accuracy_of(test, shares) > (0.88 if pairs else 0.95)  # chance is 0.5
    assert found.validation_accuracy == accuracy_of(
        moods(60, 2, pairs), predict_tfidf(model, moods(60, 2, pairs).texts)
    )
    labels, train = torch.tensor(moods(200, 1, pairs).labels), predict_tfidf(model, moods(200, 1, pairs).texts)
    assert found.diversity == pytest.approx(-train[range(200), labels].log().double().mean().item(), rel=1e-5)
    assert (found.best_step, found.curve, found.cut) == (0, [], 0)


def test_probabilities_are_scikit_learns() -> None:
    train, test = moods(60, 1), [row[0] for row in moods(40, 3).texts]
    model, found = train_tfidf(train, NONE, 2)
    assert (found.strength, found.validation_accuracy) == (1.0, None)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    linear = LogisticRegression(C=1.0, max_iter=500).fit(
        vectorizer.fit_transform([row[0] for row in train.texts]), train.labels
    )
    expected = linear.predict_proba(vectorizer.transform(test))
    np.testing.assert_allclose(predict_tfidf(model, [(text,) for text in test]).numpy(), expected, atol=1e-5)


def test_the_penalty_is_the_best_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    train, chosen = moods(24, 5), set()
    for seed in range(6):
        # With wrong labels among them, other penalties than the weakest can be best.
        validation = moods(40, 10 + seed)
        noisy = Texts(
            validation.texts,
            [label if row % (2 + seed) else 0 for row, label in enumerate(validation.labels)],
            validation.ids,
        )
        monkeypatch.setattr(text_tfidf, "STRENGTHS", STRENGTHS)
        model, found = train_tfidf(train, noisy, 2)
        scores = []
        for strength in STRENGTHS:
            monkeypatch.setattr(text_tfidf, "STRENGTHS", (strength,))
            shares = predict_tfidf(train_tfidf(train, NONE, 2)[0], noisy.texts)
            likely = shares[range(40), torch.tensor(noisy.labels)].log().mean().item()
            scores.append((accuracy_of(noisy, shares), likely))
        assert found.strength == STRENGTHS[scores.index(max(scores))]
        assert found.validation_accuracy == max(scores)[0]
        chosen.add(found.strength)
    assert len(chosen) > 1


def test_the_first_of_equally_good_penalties_is_taken() -> None:
    train = Texts([("good",), ("bad",)] * 4, [0, 1] * 4, list(range(8)))
    unknown = Texts([("nothing that is known",)] * 2, [0, 1], [0, 1])
    model, found = train_tfidf(train, unknown, 2)
    assert predict_tfidf(model, unknown.texts).tolist() == [[0.5, 0.5]] * 2
    assert (found.strength, found.validation_accuracy) == (STRENGTHS[0], 0.5)


def test_two_runs_are_equal_to_the_bit_and_nothing_is_drawn() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    runs = [train_tfidf(moods(80, 1, True), moods(40, 2, True), 2) for _ in range(2)]
    shares = [predict_tfidf(model, moods(50, 3, True).texts) for model, _ in runs]
    assert torch.equal(shares[0], shares[1]) and runs[0][1] == runs[1][1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), numpy_state, strict=True))


def test_the_two_texts_of_a_pair_have_words_of_their_own() -> None:
    # The same two words in either order: only the place tells the classes apart.
    train = Texts([("film", "music"), ("music", "film")] * 6, [0, 1] * 6, list(range(12)))
    model, _ = train_tfidf(train, NONE, 2)
    assert predict_tfidf(model, [("film", "music"), ("music", "film")]).argmax(dim=1).tolist() == [0, 1]


def test_neighbouring_words_count_as_pairs() -> None:
    train = Texts([("not good but bad",), ("not bad but good",)] * 6, [0, 1] * 6, list(range(12)))
    model, _ = train_tfidf(train, NONE, 2)
    assert predict_tfidf(model, [("but bad",), ("but good",)]).argmax(dim=1).tolist() == [0, 1]


def test_a_class_without_training_texts_has_no_chance() -> None:
    train = Texts([("a good film",), ("a bad film",)], [3, 1], [0, 1])
    shares = predict_tfidf(train_tfidf(train, NONE, 4)[0], [("a good film",), ("nothing known",)])
    assert shares[:, [0, 2]].abs().max() == 0 and shares[0, 3] > shares[0, 1] > 0
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    assert predict_tfidf(train_tfidf(train, NONE, 4)[0], []).shape == (0, 4)


@pytest.mark.parametrize("arm", ["tmix", "ssmix"])
def test_arms_that_mix_within_a_network_are_refused(arm: str) -> None:
    with pytest.raises(ConfigError, match=rf"arm {arm} needs a network, and classify.model is tfidf[\s\S]*name a BERT"):
        train_tfidf(moods(20, 1), NONE, 2, arm)


def test_texts_that_cannot_be_told_apart_are_named() -> None:
    with pytest.raises(DataError, match="all training texts are of one class"):
        train_tfidf(Texts([("a",), ("b",)], [1, 1], [0, 1]), NONE, 2)
    with pytest.raises(DataError, match=r"training texts hold no word[\s\S]*data.text_columns"):
        train_tfidf(Texts([("...",), ("?!",)], [0, 1], [0, 1]), NONE, 2)
