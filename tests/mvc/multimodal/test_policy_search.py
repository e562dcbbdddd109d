"""Policy search: order, ties, resuming, refusals, and a small real run on printed characters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.picture_policy_search import TRAIN_SEED, VALIDATION_SEED, evaluation, left_colour, scenes
from mvc.errors import ConfigError, DataError, NumericError, Stopped
from mvc.multimodal.policies import DEFAULT_OPERATIONS, Policy, apply_policy
from mvc.multimodal.policy_search import Trial, search_policy
from mvc.multimodal.synchronised import horizontal_flip
from mvc.stopping import flag
from mvc.storage import read_json, write_json

PAGE = Path(__file__).resolve().parents[3] / "docs" / "multimodal" / "policy_search.md"
NO_FLIPS = tuple(name for name in DEFAULT_OPERATIONS if name != "horizontal_flip")


class Asked:
    """A figure by number and magnitude, 0 where none is given, and what was asked for."""

    def __init__(self, **figures: float) -> None:
        self.figures, self.asked = figures, list[tuple[int, int]]()

    def __call__(self, policy: Policy) -> float:
        self.asked.append((policy.num_ops, policy.magnitude))
        return self.figures.get(f"n{policy.num_ops}m{policy.magnitude}", 0.0)


def test_the_default_comes_first_and_the_grid_follows_in_order() -> None:
    evaluate = Asked(n1m5=0.7)
    found = search_policy(evaluate, num_ops=(1, 2), magnitudes=(1, 3, 5))
    assert evaluate.asked == [(2, 3), (1, 1), (1, 3), (1, 5), (2, 1), (2, 5)]
    assert [(one.policy.num_ops, one.policy.magnitude) for one in found.trials] == evaluate.asked
    assert found.best == Trial(Policy(1, 5), 0.7) and found.default == Trial(Policy(2, 3), 0.0)


def test_a_default_outside_the_grid_is_tried_and_gives_its_operations() -> None:
    default = Policy(1, 10, NO_FLIPS)
    found = search_policy(Asked(n1m10=0.9), num_ops=(2,), magnitudes=(1, 4), default=default)
    assert found.best.policy == default and len(found.trials) == 3
    assert all(one.policy.operations == NO_FLIPS for one in found.trials)


def test_no_operations_are_one_policy() -> None:
    evaluate = Asked()
    search_policy(evaluate, num_ops=(0, 1), magnitudes=(1, 3))
    assert evaluate.asked == [(2, 3), (0, 0), (1, 1), (1, 3)]


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ({}, (0, 0)),  # all equal: the mildest
        ({"n2m3": 0.5, "n1m9": 0.5}, (2, 3)),  # 6 against 9
        ({"n2m3": 0.5, "n1m5": 0.5}, (1, 5)),
        ({"n3m1": 0.5, "n1m3": 0.5}, (1, 3)),  # 3 each: fewer operations
        ({"n2m3": 0.5, "n3m9": 0.501}, (3, 9)),
    ],
)
def test_ties_go_to_the_milder_policy(figures: dict[str, float], best: tuple[int, int]) -> None:
    found = search_policy(Asked(**figures), num_ops=(3, 2, 1, 0), magnitudes=(9, 5, 3, 1))
    assert (found.best.policy.num_ops, found.best.policy.magnitude) == best
    assert found.best.figure >= found.default.figure


def test_some_of_the_grid_are_a_seeded_choice_that_grows() -> None:
    chosen: list[list[tuple[int, int]]] = []
    for trials, seed in ((4, 0), (7, 0), (15, 0), (7, 1)):
        evaluate = Asked()
        search_policy(evaluate, trials=trials, seed=seed)
        chosen.append(evaluate.asked)
    few, more, every, other = chosen
    assert few[0] == (2, 3) and len(few) == 4 and len(set(every)) == 15
    assert more[:4] == few and every[:7] == more and set(other) != set(more)


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "search" / "trials.json", Asked(n1m3=0.4, n3m5=0.6)
    wanted = search_policy(whole, trials=8)

    def dies(policy: Policy) -> float:
        if len(first.asked) == 3:
            raise KeyboardInterrupt
        return first(policy)

    first = Asked(**whole.figures)
    with pytest.raises(KeyboardInterrupt):
        search_policy(dies, trials=8, path=path)
    assert len(read_json(path)["trials"]) == 3
    rest = Asked(**whole.figures)
    assert search_policy(rest, trials=8, path=path) == wanted
    assert first.asked + rest.asked == whole.asked
    # A wider search takes what is there, and loses nothing of it.
    more = Asked(**whole.figures)
    assert len(search_policy(more, path=path).trials) == 15 and len(more.asked) == 7
    assert len(read_json(path)["trials"]) == 15
    assert search_policy(Asked(), trials=1, path=path).best.policy == Policy()
    assert len(read_json(path)["trials"]) == 15


def test_a_stop_between_two_trials_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"

    def evaluate(policy: Policy) -> float:
        flag.signal = 15
        return 0.5

    try:
        with pytest.raises(Stopped, match="stopped by signal 15; trials that were finished are kept"):
            search_policy(evaluate, path=path)
    finally:
        flag.signal = None
    assert read_json(path)["trials"] == [{"num_ops": 2, "magnitude": 3, "figure": 0.5}]


def test_trials_of_other_operations_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    search_policy(Asked(), trials=1, path=path)
    with pytest.raises(ConfigError, match="has trials of other operations"):
        search_policy(Asked(), default=Policy(operations=NO_FLIPS), path=path)
    write_json(path, {"operations": list(DEFAULT_OPERATIONS), "trials": [{"num_ops": 1}]})
    with pytest.raises(DataError, match="has no trials of a policy search\nwhy: KeyError"):
        search_policy(Asked(), path=path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        search_policy(Asked(), path=path)


def test_bad_figures_and_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    with pytest.raises(NumericError, match="the validation figure of num_ops 1, magnitude 1 is nan"):
        search_policy(Asked(n1m1=float("nan")), path=path)
    assert len(read_json(path)["trials"]) == 1
    with pytest.raises(ValueError, match="magnitude is 11"):
        search_policy(Asked(), magnitudes=(1, 11))
    for trials in (0, 16):
        with pytest.raises(ValueError, match=f"trials is {trials}; with the default policy there are 15 to try"):
            search_policy(Asked(), trials=trials)


def test_what_is_right_follows_the_mirrored_caption() -> None:
    for sample in scenes(TRAIN_SEED, 20):
        flipped = horizontal_flip(sample)
        colours = [str(label).split()[0] for label in sample.labels]
        assert [left_colour(one.caption) for one in (sample, flipped)] != [left_colour(sample.caption)] * 2
        # The picture agrees: the box that is further left is of the colour that the caption puts there.
        for one in (sample, flipped):
            first = int(one.boxes[:, 0].argmin())
            assert f"{colours[first]} " in str(one.labels[first])
            assert left_colour(one.caption) == left_colour(f"a {colours[first]} 0 left of a red 1")


def test_search_on_real_training_is_never_below_the_default_and_beats_no_augmentation(tmp_path: Path) -> None:
    """A small network on 24 printed scenes names the colour of the left character of 200 others."""
    training, unseen = scenes(TRAIN_SEED, 24), scenes(VALIDATION_SEED, 200)
    evaluate = evaluation(training, unseen, epochs=25, seeds=(0,))
    found = search_policy(evaluate, num_ops=(0, 1, 2), magnitudes=(2, 6), trials=5, path=tmp_path / "trials.json")
    assert len(found.trials) == 5 and found.trials[0].policy == Policy()
    assert found.best.figure == max(one.figure for one in found.trials) >= found.default.figure
    again = evaluate(found.best.policy)
    assert again == found.best.figure
    assert found.best.figure > evaluate(Policy(num_ops=0)) + 0.05
    assert apply_policy(training[0], found.best.policy, 0, 0).size == (32, 64)


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(blocks[0], {})
    changed, best = capsys.readouterr().out.splitlines()
    assert len(blocks) == 1 and changed == "a red field, darker on the right"
    assert best.startswith("Trial(policy=Policy(num_ops=") and best.endswith(" 6")
    assert f"({PAGE.with_suffix('.png').name})" in PAGE.read_text()
    assert 10_000 < PAGE.with_suffix(".png").stat().st_size < 150_000
