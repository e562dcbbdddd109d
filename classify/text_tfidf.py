"""A linear classifier of word counts: the baseline that needs no pretrained model and takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.config_texts import MIXINGS
from mvc.errors import ConfigError, DataError

from .text_data import Texts
from .text_training import TextFit

STRENGTHS = (1.0, 0.1, 10.0, 100.0)
"""Inverse strengths of the penalty on the weights (scikit-learn's C) to choose from; the first of equally good ones."""
_ITERATIONS = 2000
_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Tfidf:
    """A fitted classifier.

    Args:
        vectorizers: one for the first text of a row, and one for the second where there is one.
        linear: the logistic regression on what they make, side by side.
        classes: number of classes.
    """

    vectorizers: list[Any]
    linear: Any
    classes: int


@dataclass(frozen=True)
class TfidfFit(TextFit):
    """What happened in one fit; there are no steps and no curve, and no text is cut.

    Args:
        strength: the chosen C.
    """

    strength: float


def _features(vectorizers: Sequence[Any], texts: Sequence[tuple[str, ...]]) -> Any:
    from scipy.sparse import hstack

    parts = [one.transform([row[place] for row in texts]) for place, one in enumerate(vectorizers)]
    return hstack(parts, format="csr")


def _vectorizer(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Words of one letter count too: in short texts "i" or a digit can be all there is.
    made = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b")
    try:
        return made.fit(texts)
    except ValueError as error:
        raise DataError(
            "the training texts hold no word", why=str(error), do="look at data.text_columns and at the training file"
        ) from error


def predict_tfidf(model: Tfidf, texts: Sequence[tuple[str, ...]]) -> Tensor:
    """What a classifier says of texts.

    Args:
        model: from `train_tfidf`.
        texts: n rows of as many texts as it was trained with.

    Returns:
        (n, classes) float32 on the CPU; rows add up to 1, and a class without training texts has 0.
    """
    found = torch.zeros(len(texts), model.classes)
    if len(texts):
        shares = model.linear.predict_proba(_features(model.vectorizers, texts))
        found[:, model.linear.classes_.tolist()] = torch.from_numpy(shares).float()
    return found


def _judged(model: Tfidf, texts: Texts) -> tuple[float, float]:
    """Accuracy, and mean loss in nats."""
    shares, labels = predict_tfidf(model, texts.texts), torch.tensor(texts.labels)
    accuracy = (shares.argmax(dim=1) == labels).double().mean().item()
    return accuracy, F.nll_loss(shares.clamp_min(_SMALLEST).log(), labels).item()


def train_tfidf(train: Texts, validation: Texts, classes: int, arm: str = "real") -> tuple[Tfidf, TfidfFit]:
    """Fit a logistic regression to the words and pairs of neighbouring words of texts.

    A count c of a word weighs (1 + log c) times its inverse document frequency in the training texts, rows have length
    1. The two texts of a pair have features of their own. C is the one of `STRENGTHS` with the highest validation
    accuracy, then the lowest validation loss, then the first; without validation texts the first. Nothing is drawn.

    Args:
        train: texts to train on, of two classes at least.
        validation: texts to choose C by; may be none.
        classes: number of classes.
        arm: its name.

    Returns:
        The classifier, and its fit: `diversity` is its mean loss on the training texts, in nats.

    Raises:
        ConfigError: the arm mixes texts within a network.
        DataError: the training texts hold no word, or are of one class.
    """
    from sklearn.linear_model import LogisticRegression

    if arm in MIXINGS:
        raise ConfigError(
            f"arm {arm} needs a network, and classify.model is tfidf",
            why="it mixes texts within the network while that is trained",
            do=f"name a BERT or its like in classify.model, or take {arm} out of classify.arms",
        )
    if len(set(train.labels)) < 2:
        raise DataError("all training texts are of one class", do="add texts of the other classes")
    columns = [list(column) for column in zip(*train.texts, strict=True)]
    vectorizers = [_vectorizer(column) for column in columns]
    features = _features(vectorizers, train.texts)
    best: tuple[tuple[float, float], Tfidf, float] | None = None
    for strength in STRENGTHS if len(validation) else STRENGTHS[:1]:
        linear = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(features, train.labels)
        model = Tfidf(vectorizers, linear, classes)
        accuracy, loss = _judged(model, validation) if len(validation) else (0.0, 0.0)
        if best is None or (accuracy, -loss) > best[0]:
            best = ((accuracy, -loss), model, strength)
    assert best is not None
    (accuracy, _), model, strength = best
    known = accuracy if len(validation) else None
    return model, TfidfFit(0, known, [], _judged(model, train)[1], 0, strength)
