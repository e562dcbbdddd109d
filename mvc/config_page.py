"""The pages of all keys, made from the schemas: `python -m mvc.config_page`, and with `texts` or `clip` behind it."""

from __future__ import annotations

import sys

from mvc.config import Experiment
from mvc.config_clip import ClipExperiment
from mvc.config_file import to_yaml
from mvc.config_schema import ANY, allowed_values, section_of
from mvc.config_texts import TextExperiment
from mvc.config_types import Section

HEAD = """# Every key of an experiment

Made from the schema by `python -m mvc.config_page > docs/configuration.md`. A file holds only what differs
from these defaults;
`section.key=value` on the command line wins over the file. Unknown keys and wrong values are refused.
"""
TEXTS_HEAD = """# Every key of an experiment with texts

Made from the schema by `python -m mvc.config_page texts > docs/text_configuration.md`. The keys of `mvc texts`; those
of `augmentations.NAME` are also those of `mvc augment`, without the first two parts: `speech.voice=slt`.
"""
CLIP_HEAD = """# Every key of an experiment with a CLIP

Made from the schema by `python -m mvc.config_page clip > docs/clip_configuration.md`. The keys of `mvc clip`.
"""
NAME = "NAME"
"""What the pages write for a name that the user chooses."""


def _rows(schema: type[Section], name: str, section: type[Section]) -> list[str]:
    """A row for each key of a section, and of the sections in it."""
    rows = []
    for key, field in section.model_fields.items():
        below, named = section_of(field)
        if below is not None:
            rows += _rows(schema, f"{name}.{key}.{NAME}" if named else f"{name}.{key}", below)
            continue
        words = allowed_values(f"{name}.{key}".replace(f".{NAME}", f".{ANY}"), schema).replace("|", "\\|")
        rows.append(f"| `{name}.{key}` | {words} | {' '.join((field.description or '').split())} |")
    return rows


def page(schema: type[Section] = Experiment, head: str = HEAD) -> str:
    """A page as Markdown.

    Args:
        schema: whose keys.
        head: its first lines.
    """
    parts = [head]
    for name, field in schema.model_fields.items():
        section, named = section_of(field)
        assert section is not None, "every key lies in a section"
        doc = " ".join((section.__doc__ or "").split())
        rows = _rows(schema, f"{name}.{NAME}" if named else name, section)
        parts.append(f"## {name}\n\n{doc}\n\n| key | allowed | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    parts.append(f"## All defaults as a file\n\n```yaml\n{to_yaml(schema())}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    pages: dict[str, tuple[type[Section], str]] = {
        "texts": (TextExperiment, TEXTS_HEAD),
        "clip": (ClipExperiment, CLIP_HEAD),
    }
    print(page(*pages[sys.argv[1]]) if len(sys.argv) > 1 else page(), end="")
