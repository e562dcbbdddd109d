"""The table of synonyms: what ships, what a user may give, and how it is made from WordNet's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvc.errors import DataError
from mvc.modality.synonyms import TABLE, main, make_table, read_synonyms

WORDNET = Path("/usr/share/wordnet")


def test_the_shipped_table_holds_common_words_and_its_licence() -> None:
    table = read_synonyms()
    assert len(table) > 9000
    assert table["large"] == ["big"] and "movie" in table["film"] and "rapidly" in table["quickly"]
    assert "have" not in table and "is" not in table  # what they stand for is grammar
    assert all(word not in synonyms for word, synonyms in table.items())
    assert "Princeton" in (TABLE.parent / "LICENSE").read_text()


def test_a_table_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"Glioma": ["tumour", "tumour", "growth"]}))
    assert read_synonyms(path) == {"glioma": ["tumour", "growth"]}
    path = tmp_path / "wrong.json"
    path.write_text('{"large": "big"}')
    with pytest.raises(DataError, match="wrong.json is no table of synonyms(.|\n)*list of words"):
        read_synonyms(path)
    with pytest.raises(DataError, match="none.json is missing"):
        read_synonyms(tmp_path / "none.json")


def write_wordnet(folder: Path) -> None:
    """WordNet's files for four words: "fast" is an adverb more often than an adjective, "quick" has no tagged sense."""
    licence = "  1 This is a line of the licence.\n"
    synsets = {
        "adj": ["00000100 00 s 03 fast 0 quick 0 speedy(a) 0 000 | ...", "00000200 00 a 02 big 0 large 0 000 | ..."],
        "adv": ["00000300 02 r 03 fast 0 tight 0 at_full_speed 0 000 | ..."],
        "noun": [],
        "verb": [],
    }
    indices = {
        "adj": ["fast a 1 0 1 1 00000100", "quick a 1 0 1 0 00000100", "large a 1 0 1 1 00000200"],
        "adv": ["fast r 1 0 1 1 00000300"],
        "noun": [],
        "verb": [],
    }
    for kind, lines in synsets.items():
        (folder / f"data.{kind}").write_text(licence + "".join(f"{line}\n" for line in lines))
        (folder / f"index.{kind}").write_text(licence + "".join(f"{line}\n" for line in indices[kind]))
    (folder / "cntlist.rev").write_text("fast%5:00:00:quick:00 1 2\nfast%4:02:00:: 1 7\nlarge%3:00:00:: 1 20\n")


def test_the_table_takes_the_usual_kind_and_meaning_of_a_word(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    assert make_table(tmp_path) == {"fast": ["tight"], "large": ["big"]}
    main([str(tmp_path), "--out", str(tmp_path / "table.json")])
    assert read_synonyms(tmp_path / "table.json") == {"fast": ["tight"], "large": ["big"]}


@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_shipped_table_is_what_wordnet_gives() -> None:
    assert make_table(WORDNET) == read_synonyms()
