"""Templates of prompts: texts in which {} stands for the name of a class; other braces are left as they are."""

from __future__ import annotations

from collections.abc import Sequence


def fault_of_templates(templates: Sequence[str]) -> str | None:
    """What is wrong with them, in words: there is none, or one has not exactly one {}. None where nothing is."""
    if not templates:
        return "there is no template"
    wrong = next((template for template in templates if template.count("{}") != 1), None)
    return None if wrong is None else f"the template '{wrong}' must have {{}} exactly once"


def fill_templates(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of one class, in the templates' order."""
    return [template.replace("{}", name) for template in templates]
