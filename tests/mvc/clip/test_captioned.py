"""What counts as a caption, and which paths stay in their folder."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.clip.captioned import captions_of, inner_path
from mvc.errors import DataError


@pytest.mark.parametrize(
    ("values", "captions"),
    [
        ({"captions": ["a", "b"]}, ["a", "b"]),
        ({"captions": "a"}, ["a"]),
        ({"caption": "  a red\n cat\t. "}, ["a red cat ."]),
        ({"caption": ["a", "a"]}, ["a", "a"]),
        ({"text": "[a]", "file_name": "x"}, ["[a]"]),
        ({"captions": None, "caption": "b", "text": "c"}, ["b"]),
    ],
)
def test_captions_of_a_row(values: dict[str, Any], captions: list[str]) -> None:
    assert captions_of(values, "here") == captions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "here has no captions(.|\n)*captions, caption, text, and there is nothing"),
        ({"title": "a", "n": 1}, "here has no captions(.|\n)*there is title, n"),
        ({"caption": None}, "here has no captions"),
        ({"captions": []}, "here has no captions(.|\n)*captions is an empty list"),
        ({"captions": ["a", " \n"]}, "here: caption 2 is empty"),
        ({"text": ""}, "here: caption 1 is empty"),
        ({"caption": 7}, "here: caption 1 is no text(.|\n)*it is 7"),
        ({"captions": ["a", {"raw": "b"}]}, "here: caption 2 is no text(.|\n)*raw"),
        ({"captions": "['a', 'b']"}, "here: captions is a list written as text(.|\n)*one row a caption"),
        ({"caption": "a \ud83d b"}, "here: caption 1 holds half a character"),
    ],
)
def test_captions_that_cannot_be_used(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        captions_of(values, "here")


@pytest.mark.parametrize(
    ("name", "path"), [("a/b.jpg", "a/b.jpg"), ("./a//b.jpg", "a/b.jpg"), ("a\\b.jpg", "a/b.jpg"), ("..a/b", "..a/b")]
)
def test_paths_inside(name: str, path: str) -> None:
    assert inner_path(name, "image", "here") == path


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "a\\..\\..\\b", "C:\\a", "c:a", "a\0b", ".", "./"]
)
def test_paths_that_lead_out(name: str) -> None:
    with pytest.raises(DataError, match="here: image .* leads out of the folder"):
        inner_path(name, "image", "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "here has no image\n"),
        (3, "here has no usable 3 as image"),
        ("", "no usable '' as image"),
        ("a\ud800", "here: image holds half a character"),
    ],
)
def test_paths_that_are_none(name: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        inner_path(name, "image", "here")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.jpg", "c:", "\\", "~"]), max_size=6).map("/".join))
def test_no_path_ever_leads_out(name: str) -> None:
    try:
        path = PurePosixPath(inner_path(name, "image", "here"))
    except DataError:
        return
    assert not path.is_absolute() and ".." not in path.parts and path.parts
    assert inner_path(path.as_posix(), "image", "here") == path.as_posix()
