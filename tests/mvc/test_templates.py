"""Prompts from templates, and templates that have no place for the name."""

from __future__ import annotations

import pytest

from mvc.templates import fault_of_templates, fill_templates


def test_a_template_takes_the_name_and_nothing_else() -> None:
    assert fill_templates(["a {}.", "{0} and {} {x}"], "cat") == ["a cat.", "{0} and cat {x}"]
    assert fill_templates(["{}"], "a {} b") == ["a {} b"] and fill_templates([], "cat") == []


@pytest.mark.parametrize(
    ("templates", "fault"),
    [
        ([], "there is no template"),
        (["a {}", "photo"], "the template 'photo' must have {} exactly once"),
        (["{} {}"], "the template '{} {}' must have {} exactly once"),
        (["a {0}"], "the template 'a {0}' must have {} exactly once"),
        (["{}", "a {}."], None),
    ],
)
def test_templates_without_one_place_for_the_name_are_named(templates: list[str], fault: str | None) -> None:
    assert fault_of_templates(templates) == fault
