"""The Python on MixGen's page runs as it stands and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "multimodal" / "mixgen.md"


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (.*)", blocks[0])
    assert len(blocks) == 2 and promised == printed[:1]
    assert len(printed) == 3  # and two batches
    assert all(
        re.fullmatch(r"torch.Size\(\[8, 3, 64, 64\]\) picture number \d+ picture number \d+", line)
        for line in printed[1:]
    )


def test_the_picture_is_there_and_small() -> None:
    picture = PAGE.with_suffix(".png")
    assert f"({picture.name})" in PAGE.read_text() and 10_000 < picture.stat().st_size < 150_000
