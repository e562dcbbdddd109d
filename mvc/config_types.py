"""What the sections of the experiment share: their base class and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mvc.templates import fault_of_templates

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
_Guidance = Annotated[float, Field(ge=0.0)]
Scale = _Guidance | tuple[_Guidance, _Guidance]
"""A guidance scale, or a range that one is drawn from for each image."""


def _different_seeds(value: int | list[int]) -> int | list[int]:
    seeds = seed_list(value)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError("seeds must be a positive number of seeds or a list of different numbers >= 0")
    return value


def seed_list(seeds: int | list[int]) -> list[int]:
    """Seeds as a list: so many, counted from 0, or those named."""
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds)


Seeds = Annotated[int | list[int], AfterValidator(_different_seeds)]
"""How many seeds, or which."""


def _with_a_place_for_the_name(value: list[str]) -> list[str]:
    fault = fault_of_templates(value)
    if fault is not None:
        raise ValueError(fault)
    return value


Templates = Annotated[list[str], AfterValidator(_with_a_place_for_the_name)]
"""Prompts in which {} stands for the name of a class."""


def middle(scale: float | tuple[float, float]) -> float:
    """A guidance scale as one number: itself, or the middle of its range."""
    return sum(scale) / 2 if isinstance(scale, tuple) else scale


class Section(BaseModel):
    """Base of all sections: values cannot change, unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True, use_attribute_docstrings=True
    )
