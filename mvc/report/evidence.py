"""What lies beside a comparison: ratios that were tried, what the test split went through, the classifier to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mvc.storage import read_json, read_json_lines

from .sections import percent, reading

RATIOS, LEAKS = "ratios.json", "leaks.json"
OPENINGS = "test_openings.jsonl"
CLASSIFIER = "classifier"
MOST_IDS = 10
"""Names of left out images that are shown of each kind."""


@dataclass(frozen=True)
class Sweep:
    """The ratios that were tried with one arm.

    Attributes:
        arm: its name.
        ratios: as asked for, ascending.
        accuracies: on the validation images, of each ratio one a seed, in [0, 1].
        chosen: the ratio that was used.
        notes: ratios that came out otherwise.
    """

    arm: str
    ratios: list[float]
    accuracies: list[list[float]]
    chosen: float
    notes: list[str]


@dataclass(frozen=True)
class TestSplit:
    """What should be known of the test split.

    Attributes:
        left_out: (among which images they are too, how many, the first names).
        openings: the arms at each opening; empty where it was opened once, or that is not known.
    """

    __test__ = False

    left_out: list[tuple[str, int, list[str]]]
    openings: list[str]


@dataclass(frozen=True)
class Published:
    """The classifier to use.

    Attributes:
        sentence: what it is.
        code: lines of Python that load it.
    """

    sentence: str
    code: str


def read_sweeps(folder: Path) -> list[Sweep]:
    """The arms whose ratio was found by trying; none where no ratios were tried.

    Raises:
        DataError: the file cannot be used.
    """
    path = folder / RATIOS
    if not path.exists():
        return []
    found = read_json(path)
    with reading(path):
        sweeps = []
        for arm, said in found.items():
            tried = sorted(said["tried"], key=lambda one: float(one["ratio"]))
            notes = [
                f"{arm} {one['effective']:.3g} instead of {one['ratio']:g}"
                for one in tried
                # Whole images of each class: a ratio is seldom met exactly.
                if abs(one["effective"] - one["ratio"]) > 0.05 * one["ratio"]
            ]
            accuracies = [[float(value) for value in one["accuracies"]] for one in tried]
            ratios = [float(one["ratio"]) for one in tried]
            if float(said["chosen"]) not in ratios:
                raise ValueError(f"{arm}: the ratio {said['chosen']} was not tried")
            sweeps.append(Sweep(str(arm), ratios, accuracies, float(said["chosen"]), notes))
        return sweeps


def read_test_split(run: Path) -> TestSplit:
    """Test images that did not count, and how often the split was opened.

    Raises:
        DataError: a file cannot be used.
    """
    leaks, openings = run / "results" / LEAKS, run / OPENINGS
    left_out = []
    if leaks.exists():
        found = read_json(leaks)
        with reading(leaks):
            left_out = [(str(name), len(ids), [str(one) for one in ids[:MOST_IDS]]) for name, ids in found.items()]
    rows = read_json_lines(openings, torn_tail=True)
    with reading(openings):
        opened = [", ".join(map(str, row["arms"])) for row in rows]
    return TestSplit(left_out, opened if len(opened) > 1 else [])


def read_published(run: Path, folder: Path) -> Published | None:
    """What the classifier to use is and how to load it; None where there is none.

    Args:
        run: the run folder.
        folder: results/ of the run, or a folder in it.

    Raises:
        DataError: its description cannot be used.
    """
    path = folder / CLASSIFIER / "classifier.json"
    if not path.exists():
        return None
    facts = read_json(path)
    with reading(path):
        side, accuracy = int(facts["image_size"]), facts["validation_accuracy"]
        judged = "" if accuracy is None else f" ({percent(float(accuracy))} % on the validation images)"
        place = path.parent.relative_to(run).as_posix()
        which = f"Network {facts['backbone']}, trained as {facts['arm']} with seed {facts['seed']}{judged}"
        return Published(
            sentence=f"{which}. It lies in {place} of the run folder.",
            code="\n".join(
                (
                    "from pathlib import Path",
                    "from mvc.classify.classifier import load_classifier",
                    f'network, facts = load_classifier(Path("{place}"))',
                    f'# (B, 3, {side}, {side}) images in [0, 1] to probabilities of facts["classes"]:',
                    "# network(images).softmax(dim=1)",
                )
            ),
        )
