"""Automated policy search: which number and magnitude of operations is best on validation data.

RandAugment's search (Cubuk et al., NeurIPS 2020, Sec. 3) over the policies of `policies.py`: a grid, or some of it. It
sees nothing but the figure that the caller measures on validation data; no test data may go into that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from mvc.errors import ConfigError, DataError, NumericError
from mvc.progress import meter
from mvc.randomness import numpy_generator
from mvc.stopping import flag
from mvc.storage import read_json, write_json

from .policies import Policy

NUM_OPS = (1, 2, 3)
MAGNITUDES = (1, 3, 5, 7, 9)
"""The grid, where none is given: 15 policies, the default one among them."""


@dataclass(frozen=True)
class Trial:
    """A policy and its figure on validation data; the greater the better."""

    policy: Policy
    figure: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the trial of the greatest figure; of equal ones the mildest. Never below the default's figure. Being the
            greatest of several it flatters: measure the policy anew, on test data, before you report anything.
        default: the trial of the policy that one would have taken without a search.
        trials: all, in the order in which they were tried, the default first. Tell their number with the result.
    """

    best: Trial
    default: Trial
    trials: tuple[Trial, ...]


def search_policy(
    evaluate: Callable[[Policy], float],
    *,
    num_ops: Sequence[int] = NUM_OPS,
    magnitudes: Sequence[int] = MAGNITUDES,
    default: Policy | None = None,
    trials: int | None = None,
    seed: int = 0,
    path: Path | None = None,
) -> Found:
    """Try policies of a grid, and choose the best on validation data.

    Args:
        evaluate: trains with a policy and gives its figure on validation data, the greater the better. Give each policy
            the same seeds and steps, and more than one seed where the figures are noisy.
        num_ops, magnitudes: the grid; the last changes first.
        default: always tried, first; the policies of the grid have its operations. `Policy()` when None.
        trials: how many policies to try, the default one included; all of the grid when None.
        seed: where not all are tried, (seed, "policy search") decides which, and their order.
        path: JSON file that keeps each trial as it is finished; those that are there are not repeated. What `evaluate`
            depends on is not in it: another data set or network needs another file.

    Raises:
        ValueError: a number of the grid or of trials is out of range.
        ConfigError: the file has trials of other operations.
        DataError: the file is damaged.
        NumericError: a figure is not finite.
        Stopped: a signal asked for a stop; finished trials are in the file.
    """
    default = default or Policy()
    wanted = _wanted(default, num_ops, magnitudes, trials, seed)
    known = {} if path is None or not path.exists() else _read(path, default)
    done: list[Trial] = []
    with meter("policy search", len(wanted), "trials", done=sum(_key(one) in known for one in wanted)) as shown:
        for policy in wanted:
            if _key(policy) not in known:
                flag.check("trials that were finished are kept" if path else "nothing is kept without a file")
                known[_key(policy)] = _figure(evaluate, policy)
                if path is not None:
                    _write(path, default, known)
                shown.advance(1, note=f"num_ops {policy.num_ops}, magnitude {policy.magnitude}")
            done.append(Trial(policy, known[_key(policy)]))
    return Found(best=max(done, key=_rank), default=done[0], trials=tuple(done))


def _wanted(
    default: Policy, num_ops: Sequence[int], magnitudes: Sequence[int], trials: int | None, seed: int
) -> list[Policy]:
    # Of no operations there is one policy, whatever the magnitude.
    grid = [replace(default, num_ops=n, magnitude=m if n else 0) for n, m in product(num_ops, magnitudes)]
    others = [policy for policy in dict.fromkeys(grid) if policy != default]
    if trials is None:
        return [default, *others]
    if not 1 <= trials <= len(others) + 1:
        raise ValueError(f"trials is {trials}; with the default policy there are {len(others) + 1} to try")
    order = numpy_generator(seed, "policy search").permutation(len(others))
    return [default, *(others[place] for place in order[: trials - 1])]


def _figure(evaluate: Callable[[Policy], float], policy: Policy) -> float:
    figure = float(evaluate(policy))
    if not math.isfinite(figure):
        raise NumericError(
            f"the validation figure of num_ops {policy.num_ops}, magnitude {policy.magnitude} is {figure}",
            do="look at the training of this policy, or leave it out",
        )
    return figure


def _rank(trial: Trial) -> tuple[float, int, int]:
    # Of equal figures the milder policy: less of number times magnitude, then fewer operations.
    policy = trial.policy
    return trial.figure, -policy.num_ops * policy.magnitude, -policy.num_ops


def _key(policy: Policy) -> tuple[int, int]:
    return policy.num_ops, policy.magnitude


def _write(path: Path, default: Policy, known: Mapping[tuple[int, int], float]) -> None:
    rows = [{"num_ops": n, "magnitude": m, "figure": figure} for (n, m), figure in known.items()]
    write_json(path, {"operations": list(default.operations), "trials": rows})


def _read(path: Path, default: Policy) -> dict[tuple[int, int], float]:
    content: Any = read_json(path)
    try:
        operations = tuple(content["operations"])
        known = {(int(row["num_ops"]), int(row["magnitude"])): float(row["figure"]) for row in content["trials"]}
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} has no trials of a policy search", why=repr(error), do="name another file") from error
    if operations != default.operations:
        raise ConfigError(
            f"{path} has trials of other operations",
            why=f"there: {', '.join(operations)}; here: {', '.join(default.operations)}",
            do="name another file",
        )
    return known
