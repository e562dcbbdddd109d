"""The list of stages fits together: what one reads an earlier one makes, and every key and function is there."""

from __future__ import annotations

from importlib import import_module

import pytest

from mvc.config import Experiment
from mvc.stages import SHOWN_RESULTS, STAGES, Stage

BESIDE = {*SHOWN_RESULTS, "synthetic/summary.json"}
"""Files that a stage writes beside its result and a later one reads."""


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_inputs_are_results_of_earlier_stages(stage: Stage) -> None:
    earlier = {one.result for one in STAGES[: STAGES.index(stage)]}
    assert set(stage.inputs) <= earlier | BESIDE
    # What follows notices a change by the file that a stage writes last.
    assert stage.result not in earlier


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_redo_removes_the_result_and_nothing_of_another_stage(stage: Stage) -> None:
    def removes(one: Stage, path: str) -> bool:
        return any(path == output or path.startswith(f"{output}/") for output in one.outputs)

    assert removes(stage, stage.result)
    before = STAGES[: STAGES.index(stage)]
    assert not [one.name for one in before if removes(stage, one.result)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_key_and_function_is_there(stage: Stage) -> None:
    content = Experiment().model_dump()
    for key in (*stage.settings, *stage.free):
        section, _, name = key.partition(".")
        assert section in content and (not name or name in content[section]), key
    for path in filter(None, (stage.function, stage.whole)):
        module, _, name = path.partition(":")
        assert callable(getattr(import_module(module), name))


def test_free_keys_belong_to_what_the_stage_depends_on() -> None:
    for stage in STAGES:
        covered = {key for key in stage.free if key in stage.settings or key.partition(".")[0] in stage.settings}
        assert covered == set(stage.free), stage.name


def test_amounts_and_filters_change_without_making_the_set_again() -> None:
    generate = next(stage for stage in STAGES if stage.name == "generate")
    assert {f"generate.{key}" for key in ("per_real", "per_class", "balance", "preview", "batch_size")} <= set(
        generate.free
    )
    assert {f"filter.{key}" for key in Experiment().filter.model_dump()} <= set(generate.free)
    drawn = {"generate.sources", "generate.scheduler", "generate.guidance_scale", "generate.sdedit_strength"}
    assert not drawn & set(generate.free)
