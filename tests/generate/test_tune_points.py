"""The points of `mvc tune`: what they set, in which order, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mvc.config import Experiment
from mvc.errors import ConfigError
from mvc.generate.tune_points import KEYS, points_of, value_text


def experiment(**tune: Any) -> Experiment:
    return Experiment.model_validate(
        {"generate": {"per_real": 7.0, "balance": True, "guidance_scale": 5}, "tune": tune}
    )


def test_a_grid_goes_through_all_combinations_the_last_key_first() -> None:
    grid = {"generate.guidance_scale": [1, [1, 2]], "mixing.coarse": [0, 8], "checkpoint": [100, 200]}
    points = points_of(experiment(grid=grid, per_class=5))
    assert [point.number for point in points] == list(range(1, 9))
    tried = [(p.experiment.generate.guidance_scale, p.experiment.mixing.coarse, p.checkpoint) for p in points]
    assert tried == [(scale, coarse, step) for scale in (1.0, (1.0, 2.0)) for coarse in (0, 8) for step in (100, 200)]
    assert points[6].label == "guidance_scale 1-2, coarse 8, checkpoint 100"
    for point in points:
        generate = point.experiment.generate
        assert (generate.per_class, generate.balance, generate.preview, generate.num_processes) == (5, False, 0, 1)
        assert point.fine_tuned and point.experiment.mixing.fine == Experiment().mixing.fine


def test_listed_points_come_in_place_of_the_grid() -> None:
    shares = {"finetuned": 0.5, "pretrained": 0.5}
    points = points_of(experiment(points=[{}, {"generate.sources": shares}, {"generate.sources": {"pretrained": 1}}]))
    assert [point.label for point in points] == [
        "the experiment as it is",
        "sources finetuned 0.5 + pretrained 0.5",
        "sources pretrained 1",
    ]
    assert points[0].experiment.generate.guidance_scale == 5.0 and points[0].settings == {}
    assert [point.fine_tuned for point in points] == [True, True, False]


def test_every_key_can_be_tuned() -> None:
    values: dict[str, Any] = {
        "mixing.coarse": 1,
        "mixing.fine": 2,
        "mixing.rows": "content",
        "generate.guidance": "dual",
        "generate.guidance_scale": 2,
        "generate.image_guidance_scale": [1, 2],
        "generate.guidance_interval": [0, 0.8],
        "generate.num_inference_steps": 4,
        "generate.scheduler": "ddim",
        "generate.eta": 0.5,
        "generate.sources": {"finetuned": 1},
        "generate.sdedit_strength": 0.3,
        "generate.pretrained_guidance_scale": 2,
        "checkpoint": 50,
    }
    assert set(values) == set(KEYS)
    (point,) = points_of(experiment(points=[values]))
    generate = point.experiment.generate
    assert (generate.scheduler, generate.eta, generate.guidance_interval) == ("ddim", 0.5, (0.0, 0.8))
    assert point.checkpoint == 50 and point.experiment.mixing.rows == "content"


def test_a_folder_follows_from_the_settings_alone() -> None:
    few = points_of(experiment(grid={"generate.guidance_scale": [2]}))
    more = points_of(experiment(grid={"generate.guidance_scale": [1.5, 2.0]}))
    assert few[0].folder == more[1].folder != more[0].folder


def test_values_are_told_as_a_reader_wants_them() -> None:
    assert [value_text(value) for value in (1.5, 2.0, [1.0, 3.5], "ddim", 8)] == ["1.5", "2", "1-3.5", "ddim", "8"]


@pytest.mark.parametrize(
    ("tune", "what", "why", "do"),
    [
        (
            {"grid": {"generate.guidence_scale": [1]}},
            "tune.grid: the key 'generate.guidence_scale' cannot be tuned",
            "allowed are mixing.coarse, mixing.fine, mixing.rows, generate.guidance, generate.guidance_scale,",
            "did you mean 'generate.guidance_scale'?",
        ),
        (
            {"points": [{}, {"steps": 3}]},
            "tune.points, number 2: the key 'steps' cannot be tuned",
            "checkpoint",
            "did you mean 'generate.num_inference_steps'?|leave it out",
        ),
        (
            {"grid": {"generate.batch_size": [1]}},
            "tune.grid: the key 'generate.batch_size' cannot be tuned",
            "allowed are",
            "leave it out|did you mean",
        ),
        (
            {"grid": {"generate.guidance_scale": [1, -1]}},
            "tune.grid: generate.guidance_scale = -1 cannot be used",
            "greater than or equal to 0",
            "allowed: a number >= 0",
        ),
        (
            {"grid": {"mixing.coarse": [True]}},
            "tune.grid: mixing.coarse = True cannot be used",
            "true and false",
            "allowed: a whole number >= 0",
        ),
        (
            {"grid": {"generate.sources": [{"finetuned": 0.5}]}},
            r"tune.grid: generate.sources = {'finetuned': 0.5} cannot be used",
            "the shares add up to 0.5, not 1",
            "allowed: a mapping",
        ),
        (
            {"grid": {"generate.scheduler": ["ddim", "euler"], "generate.eta": [0.5]}},
            "tune.grid: generate.scheduler = 'euler', generate.eta = 0.5 cannot be used together",
            "eta=0.5 needs scheduler=ddim",
            "tune.points lists single points",
        ),
        (
            {"grid": {"checkpoint": [0]}},
            "tune.grid: checkpoint = 0 cannot be used",
            "number of fine-tuning steps",
            "allowed: whole numbers >= 1",
        ),
        (
            {"grid": {"checkpoint": [50], "generate.sources": [{"pretrained": 1}]}},
            "tune.grid: checkpoint 50 plays no part in the point 'checkpoint 50, sources pretrained 1'",
            "no finetuned",
            "leave the checkpoint out there",
        ),
        ({"grid": {"mixing.coarse": []}}, "tune.grid: mixing.coarse has no values", "", "leave the key out"),
        ({"grid": {}}, "tune.grid and tune.points are empty", "", "name what to try"),
        (
            {"points": [{"mixing.coarse": 2}, {"mixing.fine": 3}, {}]},
            "tune.points, number 3: points 1 and 3 are the same",
            "coarse 2; the experiment as it is",
            "leave one out",
        ),
    ],
)
def test_what_cannot_be_tried_is_refused_by_name(tune: dict[str, Any], what: str, why: str, do: str) -> None:
    with pytest.raises(ConfigError) as caught:
        points_of(experiment(**tune))
    assert caught.value.what == what
    assert why in caught.value.why and any(text in caught.value.do for text in do.split("|"))
