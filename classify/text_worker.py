"""One of several processes that train classifiers of texts: `python -m mvc.classify.text_worker N`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from .worker import serve


def main() -> None:
    """Train classifiers that nobody has claimed, until none is left, a signal comes, or the parent is gone."""
    serve(_work)


def _work(order: Any, number: int) -> None:
    # Only now, so that a parent that ends meanwhile is noticed.
    from mvc.config_texts import TextExperiment
    from mvc.progress import Meter

    from .text_stage import data_seeds_of, prepare, train_unclaimed
    from .text_tasks import tasks_of

    experiment = TextExperiment.model_validate(order["experiment"])
    # The parent has made all augmentations; here they are read.
    comparison = prepare(Path(order["run"]), experiment)
    silent = Meter("", 0, "steps", stream=io.StringIO())
    train_unclaimed(tasks_of(comparison, data_seeds_of(experiment)), silent)


if __name__ == "__main__":
    main()
