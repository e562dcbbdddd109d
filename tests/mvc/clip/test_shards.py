"""Webdataset shards: names and members, the notes that are kept about them, and archives that cannot be used."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from mvc.clip import shards
from mvc.clip.pairs import read_pairs
from mvc.errors import DataError

from .pair_data import examples, write_images, write_shards, write_tar

ONE, TWO, THREE = (one.content for one in examples(3))


def test_members_and_their_captions(tmp_path: Path) -> None:
    members = [
        ("./a/1.txt", b"\xef\xbb\xbfone\r\n\r\n two \n"),
        ("./a/1.JPG", ONE),
        ("./a/1.depth.png", b"not looked at"),
        ("b/1.webp", TWO),
        ("b/1.json", b'{"caption": "three", "url": null}'),
        ("2.jpeg", THREE),
        ("2.json", b'{"captions": ["not", "looked at"]}'),
        ("2.txt", b"four"),
        ("._2.jpeg", b"of a Mac"),
    ]
    write_tar(tmp_path / "x.tar", members)
    pairs = read_pairs(tmp_path, "train")
    assert pairs.ids == ["x.tar/a/1.JPG", "x.tar/b/1.webp", "x.tar/2.jpeg"]
    assert pairs.captions == [["one", "two"], ["three"], ["four"]]
    assert [pairs.content(index) for index in range(3)] == [ONE, TWO, THREE]


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_archives_of_the_tar_command(form: str, tmp_path: Path) -> None:
    """Written by another program, with folders as members, in each of its formats."""
    folder = tmp_path / "files" / ("long" * 20)
    write_images(folder, examples(2))
    for one in examples(2):
        folder.joinpath(one.name).with_suffix(".txt").write_text("\n".join(one.captions))
    command = [
        "tar",
        f"--format={form}",
        "--sort=name",
        "-C",
        str(tmp_path / "files"),
        "-cf",
        str(tmp_path / "x.tar"),
        ".",
    ]
    subprocess.run(command, check=True)
    pairs = read_pairs(tmp_path / "x.tar", "train")
    assert pairs.captions == [one.captions for one in examples(2)]
    assert [pairs.content(index) for index in range(2)] == [ONE, TWO]


def test_the_same_names_in_two_shards_are_two_images(tmp_path: Path) -> None:
    for shard, content in (("0.tar", ONE), ("1.tar", TWO)):
        write_tar(tmp_path / shard, [("a.png", content), ("a.txt", shard.encode())])
    pairs = read_pairs(tmp_path, "train")
    assert pairs.ids == ["0.tar/a.png", "1.tar/a.png"] and pairs.captions == [["0.tar"], ["1.tar"]]
    assert pairs.content(1) == TWO


def test_notes_spare_reading_an_archive_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_shards(tmp_path / "set", "train", examples(4)), tmp_path / "cache"
    first = read_pairs(root, "train", cache)
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read", None)  # nothing may call it
        assert read_pairs(root, "train", cache) == first
    (root / "train-000001.tar").unlink()
    write_tar(root / "train-000001.tar", [("9.png", THREE), ("9.txt", b"another one")])
    assert read_pairs(root, "train", cache).captions == [*first.captions[:2], ["another one"]]


@pytest.mark.parametrize("content", [b"", b"{", b"7", b'[["a", 1]]', b'[["a", 1, 2, ["b"]]', b"\xff"])
def test_spoilt_notes_are_made_again(tmp_path: Path, content: bytes) -> None:
    root, cache = write_shards(tmp_path / "set", "train", examples(1)), tmp_path / "cache"
    first = read_pairs(root, "train", cache)
    (notes,) = cache.iterdir()
    good = notes.read_bytes()
    notes.write_bytes(content)
    assert read_pairs(root, "train", cache) == first and notes.read_bytes() == good


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"")], "x.tar, a has no captions\nwhy: there is neither .txt nor .json"),
        ([("a.png", b""), ("a.txt", b" \n\n")], "x.tar, a has no captions"),
        ([("a.png", b""), ("a.json", b'{"url": "b"}')], "x.tar, a has no captions(.|\n)*there is url"),
        ([("a.png", b""), ("a.json", b'{"captions": ["a", ""]}')], "x.tar, a: caption 2 is empty"),
        ([("a.png", b""), ("a.json", b"{")], "x.tar, a.json is not JSON"),
        ([("a.png", b""), ("a.json", b"[1]")], "x.tar, a.json is no JSON object"),
        ([("a.png", b""), ("a.txt", b"\xff")], "x.tar, a.txt is not UTF-8"),
        ([("a.txt", b"one")], "x.tar, a has no image\nwhy: there is a.txt"),
        (
            [("a_1.5x.png", b""), ("a_1.5x.txt", b"one")],
            "x.tar, a_1 has no image\nwhy: there is a_1.5x.png, a_1.5x.txt",
        ),
        ([("a.png", b""), ("a.jpg", b""), ("a.txt", b"one")], "x.tar, a has several images"),
        ([("a.png", b""), ("a.png", b""), ("a.txt", b"one")], "x.tar, member a.png comes twice"),
        ([("../a.png", b""), ("../a.txt", b"one")], "x.tar, member ../a.png: name ../a.png leads out of the folder"),
        ([("README", b"")], "x.tar, README has no image"),
        ([], "x.tar is empty"),
    ],
)
def test_members_that_cannot_be_used(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path, "train")


def test_links_in_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match="member a.png is no file but a link"):
        read_pairs(tmp_path, "train")


@pytest.mark.parametrize("cut", ["in a header", "between members", "in an image", "at the end mark", "to nothing"])
def test_half_an_archive(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{n}.{kind}", b"a" * 700) for n in range(3) for kind in ("txt", "png")])
    # Each member takes a block of 512 bytes for its header and two for its content.
    size = {"in a header": 4 * 1536 + 99, "between members": 4 * 1536, "in an image": 3 * 1536 + 600}
    size |= {"at the end mark": 6 * 1536 + 100, "to nothing": 0}
    path.write_bytes(path.read_bytes()[: size[cut]])
    with pytest.raises(DataError, match="x.tar cannot be read as a tar archive(.|\n)*fetch or write it again"):
        read_pairs(tmp_path, "train")


def test_spoilt_joined_and_compressed_archives(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{n}.{kind}", b"a" * 700) for n in range(3) for kind in ("txt", "png")])
    good = path.read_bytes()
    compressed = BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz") as archive:
        archive.add(path, "x.tar")
    spoilt = good[: 2 * 1536] + b"\x07" * 512 + good[2 * 1536 + 512 :]
    for content in (spoilt, good + good, compressed.getvalue(), b"no archive" * 200):
        path.write_bytes(content)
        with pytest.raises(DataError, match="x.tar cannot be read as a tar archive"):
            read_pairs(tmp_path, "train")
    path.write_bytes(good)
    assert len(read_pairs(tmp_path, "train")) == 3
