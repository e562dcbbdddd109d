"""A written page, read back: its tags, its text, the rows of its tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mvc.config import Experiment
from mvc.report.page import write_report


class Page(HTMLParser):
    """Start tags with their attributes, and all text outside <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path, experiment: Experiment | None = None) -> Page:
    path = write_report(run, experiment or Experiment())
    assert path == run / "report" / "index.html"
    return Page(path)


def table_rows(page: Page) -> list[str]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page.source, flags=re.DOTALL)
    return ["|".join(re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)) for row in rows]
