"""A comparison of classifiers with wanted confusion matrices, concluded and written as the classify stage does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mvc.arms import parse_arm
from mvc.classify.conclude import Outcome, conclude
from mvc.classify.metrics import measure
from mvc.classify.table import write_table
from mvc.storage import write_json

Matrix = Sequence[Sequence[int]]


def write_comparison(
    folder: Path,
    arms: Mapping[str, Sequence[Matrix]],
    classes: Sequence[str],
    units: Sequence[tuple[int, int]] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write verdict.json, table.csv and a result file for each arm and seed.

    Args:
        folder: of the results.
        arms: name -> a confusion matrix for each classifier: rows true classes, columns predicted ones.
        classes: names, in the order of the labels.
        units: (data seed, model seed) of each classifier; model seeds from 0 when absent.
        warnings: reasons to doubt the verdict.
    """
    outcomes = []
    for place, (name, matrices) in enumerate(arms.items()):
        rows = [_row(folder, name, seed, matrix, classes) for seed, matrix in enumerate(matrices)]
        outcomes.append(
            Outcome(
                arm=parse_arm(name),
                units=list(units) or [(0, seed) for seed in range(len(matrices))],
                # The last arm is the best one on validation.
                validation=[0.5 + 0.05 * place] * len(matrices),
                test=[measured for measured, _, _ in rows],
                correct=[right for _, right, _ in rows],
                ratio=0.0 if name.startswith("real") else 2.0,
                diversity=0.25 * place,
                labels=[labels for _, _, labels in rows],
            )
        )
    images = sum(map(sum, next(iter(arms.values()))[0]))
    found = conclude(outcomes, classes, 400, images, "default", warnings)
    write_table(folder / "table.csv", found.summaries)
    write_json(folder / "verdict.json", asdict(found.verdict))


def _row(
    folder: Path, arm: str, seed: int, matrix: Matrix, classes: Sequence[str]
) -> tuple[dict[str, object], np.ndarray[tuple[int], np.dtype[np.bool_]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    counts = np.array(matrix)
    labels = np.repeat(np.arange(len(classes)), counts.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(len(classes)), row) for row in counts])
    shares = torch.full((len(labels), len(classes)), 0.1 / (len(classes) - 1))
    shares[torch.arange(len(labels)), torch.from_numpy(predicted)] = 0.9
    measured = measure(shares, torch.from_numpy(labels), classes)
    assert measured["confusion"] == counts.tolist()
    write_json(folder / f"{parse_arm(arm).file_stem}-seed{seed}.json", {"arm": arm, "seed": seed, "test": measured})
    return measured, labels == predicted, labels
