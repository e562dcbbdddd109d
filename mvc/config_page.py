"""The page docs/configuration.md, made from the schema: `python -m mvc.config_page`."""

from __future__ import annotations

from mvc.config import Experiment
from mvc.config_file import allowed_values, to_yaml
from mvc.config_types import Section

HEAD = """# Every key of an experiment

Made from the schema by `python -m mvc.config_page > docs/configuration.md`. A file holds only what differs
from these defaults;
`section.key=value` on the command line wins over the file. Unknown keys and wrong values are refused.
"""


def _rows(name: str, section: type[Section]) -> list[str]:
    rows = []
    for key, field in section.model_fields.items():
        words = allowed_values(f"{name}.{key}").replace("|", "\\|")
        rows.append(f"| `{name}.{key}` | {words} | {' '.join((field.description or '').split())} |")
    return rows


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for name, field in Experiment.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        doc = " ".join((section.__doc__ or "").split())
        parts.append(
            f"## {name}\n\n{doc}\n\n| key | allowed | |\n|---|---|---|\n" + "\n".join(_rows(name, section)) + "\n"
        )
    parts.append(f"## All defaults as a file\n\n```yaml\n{to_yaml(Experiment())}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
