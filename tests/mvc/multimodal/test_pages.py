"""The pages on techniques: their Python runs as it stands and prints what they say, and their pictures are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[3] / "docs" / "multimodal"


@pytest.mark.parametrize("name", ["consistency", "cycle", "dropout", "interpolation", "mining", "mixup", "synthesis"])
def test_a_page_prints_what_it_promises(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (PAGES / f"{name}.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {})
    promised, printed = re.findall(r"print\(.*\)  # (.*)", page), capsys.readouterr().out.splitlines()
    assert promised and len(promised) == len(printed)
    # What follows "and" in a promise is in words.
    assert all(line.startswith(said.split(" and ")[0]) for said, line in zip(promised, printed, strict=True))


def test_every_picture_is_on_its_page_and_small() -> None:
    pictures = sorted(PAGES.glob("*.png"))
    assert len(pictures) == 10
    for picture in pictures:
        assert f"({picture.name})" in picture.with_suffix(".md").read_text()
        assert 10_000 < picture.stat().st_size < 150_000
