"""The picture of docs/multimodal/policy_search.md: accuracy on validation over number and magnitude of operations.

    python -m benchmarks.picture_policy_search [--out docs/multimodal/policy_search.png]

A small network learns to name the colour of the left one of two printed characters. What is right comes from the
caption, after it was changed together with the image: "a red 3 left of a blue 7", "a red 3 right of a blue 7".
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from mvc.multimodal.paired import PairedSample
from mvc.multimodal.policies import Policy, apply_policy
from mvc.multimodal.policy_search import Found, search_policy
from mvc.multimodal.synchronised import horizontal_flip
from mvc.randomness import generator, seeded_global
from mvc.storage import write_bytes

from .picture_synchronised import INKS, scene

PLACE = Path(__file__).resolve().parents[1] / "docs" / "multimodal" / "policy_search.png"
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 11, 12, 13
"""Of the scenes; those of the test are looked at after the search alone."""
TRAIN, UNSEEN, EPOCHS, BATCH, SEEDS = 48, 400, 40, 16, (0, 1, 2)
NUM_OPS, MAGNITUDES = (0, 1, 2, 3), (1, 3, 5, 7, 9)
_MIDDLE = len(MAGNITUDES) // 2
_CAPTION = re.compile(r"an? (\w+) \d (left|right) of an? (\w+) \d")


def left_colour(caption: str) -> int:
    """The number of the left one's colour among `INKS`, as a caption says it."""
    match = _CAPTION.fullmatch(caption)
    assert match is not None, caption
    return INKS.index(match[1] if match[2] == "left" else match[3])


def scenes(seed: int, count: int) -> list[PairedSample]:
    """Scenes of a seed, in their order."""
    return [scene(seed, index) for index in range(count)]


def batch_of(samples: Sequence[PairedSample]) -> tuple[Tensor, Tensor]:
    """(B, 3, 32, 64) float32 in [-1, 1], and (B,) int64 of what their captions say."""
    images = torch.stack([functional.pil_to_tensor(sample.image) for sample in samples]).float() / 127.5 - 1
    return images, torch.tensor([left_colour(sample.caption) for sample in samples])


def new_network(seed: int) -> nn.Module:
    """Three convolutions and a linear layer."""
    with seeded_global(seed, "policy picture network"):
        return nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 8, len(INKS))),
        )


def train(network: nn.Module, samples: Sequence[PairedSample], policy: Policy, seed: int, epochs: int) -> None:
    """Train in place; each sample is changed anew each time that it is seen."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    for epoch in range(epochs):
        order = torch.randperm(len(samples), generator=generator(seed, "policy picture order", epoch)).tolist()
        for start in range(0, len(order), BATCH):
            turns = [(epoch * len(samples) + place, samples[place]) for place in order[start : start + BATCH]]
            images, labels = batch_of([apply_policy(sample, policy, seed, turn) for turn, sample in turns])
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def evaluation(
    training: Sequence[PairedSample], unseen: Sequence[PairedSample], epochs: int, seeds: Sequence[int]
) -> Callable[[Policy], float]:
    """From a policy to the accuracy on unseen scenes, the mean over the seeds."""
    images, labels = batch_of(unseen)

    def evaluate(policy: Policy) -> float:
        right = []
        for seed in seeds:
            network = new_network(seed)
            train(network, training, policy, seed, epochs)
            with torch.no_grad():
                right.append((network(images).argmax(dim=1) == labels).float().mean().item())
        return float(np.mean(right))

    return evaluate


def picture(found: Found) -> bytes:
    """The PNG's bytes: a square for each trial, the best and the default one marked; the same each time."""
    figures = {(trial.policy.num_ops, trial.policy.magnitude): trial.figure for trial in found.trials}
    table = np.array([[figures[(n, m if n else 0)] for m in MAGNITUDES] for n in NUM_OPS])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shown = axes.imshow(table, cmap="cividis", aspect="auto")
        _write_figures(axes, table)
        _mark(axes, "best", found.best.policy, "#D55E00", inset=0.03, above=0.3)
        _mark(axes, "default", found.default.policy, "#000000", inset=0.08, above=-0.3)
        axes.set_xticks(range(len(MAGNITUDES)), map(str, MAGNITUDES))
        axes.set_yticks(range(len(NUM_OPS)), map(str, NUM_OPS))
        axes.set_xlabel("magnitude M")
        axes.set_ylabel("number of operations N (0: none)")
        figure.colorbar(shown, label="accuracy on validation").ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    return content.getvalue()


def _write_figures(axes: Axes, table: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(table):
        if NUM_OPS[row] or column == _MIDDLE:  # without operations there is one trial
            colour = "white" if value < (table.min() + table.max()) / 2 else "black"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour)


def _mark(axes: Axes, name: str, policy: Policy, colour: str, inset: float, above: float) -> None:
    row = NUM_OPS.index(policy.num_ops)
    column = MAGNITUDES.index(policy.magnitude) if policy.num_ops else _MIDDLE
    corner, side = (column - 0.5 + inset, row - 0.5 + inset), 1 - 2 * inset
    axes.add_patch(Rectangle(corner, side, side, fill=False, color=colour, linewidth=2.5))
    outline = [withStroke(linewidth=2.5, foreground="white")]
    axes.text(column, row - above, name, ha="center", va="center", color=colour, path_effects=outline)


def flips(training: Sequence[PairedSample], unseen: Sequence[PairedSample]) -> dict[str, float]:
    """Accuracy without flips, with synchronised ones, and with those of the image alone."""
    pairs = [(sample, horizontal_flip(sample)) for sample in training]
    sets = {
        "no flips": training,
        "synchronised flips": [one for pair in pairs for one in pair],
        "flips of the image alone": [one for old, new in pairs for one in (old, replace(new, caption=old.caption))],
    }
    # As many steps for each.
    epochs = {name: EPOCHS * len(training) // len(samples) for name, samples in sets.items()}
    return {name: evaluation(own, unseen, epochs[name], SEEDS)(Policy(num_ops=0)) for name, own in sets.items()}


def main(arguments: list[str] | None = None) -> None:
    """Search, print as Markdown, and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_policy_search", description=__doc__)
    parser.add_argument("--out", type=Path, default=PLACE)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    training = scenes(TRAIN_SEED, TRAIN)
    evaluate = evaluation(training, scenes(VALIDATION_SEED, UNSEEN), EPOCHS, SEEDS)
    found = search_policy(evaluate, num_ops=NUM_OPS, magnitudes=MAGNITUDES)
    write_bytes(given.out, picture(found))
    test = scenes(TEST_SEED, UNSEEN)
    final = evaluation(training, test, EPOCHS, SEEDS)
    none = next(trial for trial in found.trials if trial.policy.num_ops == 0)
    print(f"| policy, of {len(found.trials)} trials | N | M | validation | test |\n|---|---|---|---|---|")
    for name, trial in (("none", none), ("default", found.default), ("best", found.best)):
        policy = trial.policy
        cells = [name, policy.num_ops, policy.magnitude, f"{100 * trial.figure:.1f}", f"{100 * final(policy):.1f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\n| | test |\n|---|---|")
    for name, accuracy in flips(training, test).items():
        print(f"| {name} | {100 * accuracy:.1f} |")


if __name__ == "__main__":
    main()
