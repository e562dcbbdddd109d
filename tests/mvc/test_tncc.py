"""TNCC from files in the published formats: the pairs, their labels, balance, splits and bytes."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mvc.errors import ConfigError, DataError
from mvc.storage import verified_manifest
from mvc.tables import read_rows
from mvc.tncc import COLUMNS, SPLITS, Built, build, label_of, linked_groups, main, read_captions, read_scores
from mvc.tncc_files import Caption, Pair
from tests.real_data import real_data


def write_scores(path: Path, pairs: Iterable[Pair]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["caption1", "caption2", "agg_score", "sampling_method"])
        for pair in pairs:
            ids = [f"COCO_val2014:sentid:{number}" for number in (pair.caption1, pair.caption2)]
            writer.writerow([*ids, pair.score, pair.sampling_method])
    return path


def write_captions(path: Path, captions: dict[int, Caption]) -> Path:
    entries = [{"image_id": caption.image, "id": key, "caption": caption.text} for key, caption in captions.items()]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": [], "annotations": entries}))
    return path


def rows_of(folder: Path, names: Sequence[str] = SPLITS) -> dict[str, list[dict[str, Any]]]:
    return {name: [row.values for row in read_rows(folder / f"{name}.tsv", "tsv")] for name in names}


def made_up(positive: int, negative: int, linked: float = 0.0, images: int = 1_000_000) -> tuple[list[Pair], Any]:
    """Pairs of two captions of one image, some of two images, all with texts."""
    chance = random.Random(1)
    pairs, captions = [], {}
    for number in range(positive + negative):
        one = number if images == 1_000_000 else chance.randrange(images)
        other = chance.randrange(images) if number >= positive and chance.random() < linked else one
        score = 4.01 + chance.random() * 0.9 if number < positive else chance.random() * 0.99
        pairs.append(Pair(2 * number, 2 * number + 1, round(score, 2), "c2c_cocaption" if one == other else "c2c_isim"))
        captions |= {2 * number: Caption(one, f"text {number}"), 2 * number + 1: Caption(other, f"other {number}")}
    return pairs, captions


def all_rows(built: Built) -> list[dict[str, Any]]:
    return [row for rows in built.splits.values() for row in rows]


def images_of(rows: Iterable[dict[str, Any]]) -> set[int]:
    return {int(row[column]) for row in rows for column in ("image1_id", "image2_id")}


def assert_no_image_is_in_two_splits(splits: dict[str, list[dict[str, Any]]]) -> None:
    seen = [images_of(rows) for rows in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.parametrize(
    ("score", "label"), [(5.0, 1), (4.01, 1), (4.0, None), (3.99, None), (1.01, None), (1.0, None), (0.99, 0), (0.0, 0)]
)
def test_the_thresholds_themselves_are_dropped(score: float, label: int | None) -> None:
    assert label_of(score) == label
    pairs, captions = made_up(3, 3)
    captions |= {100: Caption(100, "a"), 101: Caption(100, "b")}
    built = build([*pairs, Pair(100, 101, score, "x"), Pair(101, 102, 0.5, "x")], captions, 0, (2, 2, 2))
    assert built.counts["between"] == (label is None) and built.counts["without text"] == 1
    assert built.counts["balanced away"] == (label is not None)


def test_all_of_the_rarer_label_and_as_many_of_the_other() -> None:
    pairs, captions = made_up(30, 80)
    built = build(pairs, captions, 0, None)
    rows = all_rows(built)
    assert {row["caption1_id"] for row in rows if row["label"] == 1} == {pair.caption1 for pair in pairs[:30]}
    assert sum(row["label"] == 0 for row in rows) == 30
    assert [len(built.splits[name]) for name in SPLITS] == [34, 11, 15]  # 60 by 3600 : 1200 : 1560
    assert all(abs(sum(2 * row["label"] - 1 for row in rows)) <= 1 for rows in built.splits.values())
    expected = {"read": 110, "between": 0, "repeated": 0, "without text": 0, "balanced away": 50, "not needed": 0}
    assert built.counts == expected and not built.exact


def test_a_row_has_texts_ids_and_images_of_its_pair() -> None:
    pairs, captions = made_up(20, 20, linked=1.0)
    by_id = {pair.caption1: pair for pair in pairs}
    for row in all_rows(build(pairs, captions, 0, None)):
        pair = by_id[row["caption1_id"]]
        one, other = captions[pair.caption1], captions[pair.caption2]
        assert list(row) == list(COLUMNS)
        assert list(row.values()) == [
            one.text,
            other.text,
            int(pair.score > 4),
            pair.score,
            pair.sampling_method,
            pair.caption1,
            pair.caption2,
            one.image,
            other.image,
        ]


def test_the_papers_sizes_come_out_of_as_many_pairs_as_cxc_has() -> None:
    # 3,180 and 7,921 pairs, as CxC val has, with links among images that make groups of up to hundreds of pairs.
    pairs, captions = made_up(3180, 7921, linked=0.66, images=5000)
    for sizes in ((3600, 1200, 1560), None):
        built = build(pairs, captions, 0, sizes)
        assert [len(built.splits[name]) for name in SPLITS] == [3600, 1200, 1560]
        assert_no_image_is_in_two_splits(built.splits)
        assert sum(row["label"] for row in all_rows(built)) == 3180
    assert built.counts["balanced away"] == 7921 - 3180


def test_smaller_sizes_are_exact_and_balanced() -> None:
    pairs, captions = made_up(300, 400, linked=0.3, images=2000)
    built = build(pairs, captions, 0, (101, 30, 50))
    assert built.exact and [len(built.splits[name]) for name in SPLITS] == [101, 30, 50]
    assert Counter(row["label"] for row in all_rows(built)) == {0: 91, 1: 90}
    assert built.counts["not needed"] == 600 - 181
    assert_no_image_is_in_two_splits(built.splits)


def test_sizes_above_what_there_is_are_proportions() -> None:
    pairs, captions = made_up(30, 40)
    built = build(pairs, captions, 0, (50, 30, 20))
    assert not built.exact and [len(built.splits[name]) for name in SPLITS] == [30, 18, 12]


def test_the_seed_alone_decides() -> None:
    pairs, captions = made_up(30, 80, linked=0.5, images=300)
    built = build(pairs, captions, 3, None)
    turned = dict(reversed(captions.items()))
    assert build(pairs[::-1], turned, 3, None) == built
    other = build(pairs, captions, 4, None)
    assert {row["caption1_id"] for row in all_rows(other)} != {row["caption1_id"] for row in all_rows(built)}
    assert images_of(other.splits["test"]) != images_of(built.splits["test"])


def test_a_pair_counts_once() -> None:
    pairs, captions = made_up(6, 6)
    again = [Pair(pairs[0].caption2, pairs[0].caption1, 0.1, "x"), pairs[7]]
    built = build([*pairs, *again], captions, 0, None)
    assert built.counts["repeated"] == 2 and built.counts["read"] == 14
    assert len(all_rows(built)) == 12


def test_what_cannot_be_built_says_why() -> None:
    pairs, captions = made_up(10, 10)
    with pytest.raises(ConfigError, match="--sizes 5 0 5: a size is below 1\ndo: give three whole numbers"):
        build(pairs, captions, 0, (5, 0, 5))
    with pytest.raises(
        DataError,
        match=r"no pair is left with label 0 \(not entailment\)\nwhy: of 10 pairs, 0 have .*\ndo: .*val2014.json",
    ):
        build(pairs[:10], captions, 0, None)
    with pytest.raises(
        DataError, match=r"no pair is left with label 1 .*\nwhy: of 20 pairs, .* captions of 20 others are in"
    ):
        build(pairs, {}, 0, None)
    with pytest.raises(DataError, match="no pair is left with label 1"):
        build([], captions, 0, None)
    with pytest.raises(DataError, match="a split would be empty\nwhy: images link the 2 pairs to 2 groups of 1 to 1"):
        build(pairs[9:11], captions, 0, None)
    linked = {key: Caption(key % 2, caption.text) for key, caption in captions.items()}
    with pytest.raises(
        DataError, match="a split would be empty\nwhy: images link the 20 pairs to 1 group of .* 20, and a"
    ):
        build(pairs, linked, 0, None)
    with pytest.raises(DataError, match="a split would be empty"):
        build(pairs, linked, 0, (10, 5, 5))


def test_sizes_that_links_do_not_allow_are_refused() -> None:
    pairs, captions = made_up(20, 20)
    couples = {key: Caption(key // 4, caption.text) for key, caption in captions.items()}  # groups of two pairs
    built = build(pairs, couples, 0, (20, 10, 10))
    assert [len(built.splits[name]) for name in SPLITS] == [20, 10, 10]
    with pytest.raises(
        DataError,
        match=r"--sizes 21 9 10 cannot be met; the nearest is \d+ \d+ \d+\nwhy: images link .*\ndo: give smaller",
    ):
        build(pairs, couples, 0, (21, 9, 10))
    near = build(pairs, couples, 0, (42, 18, 20))  # more than there is: the same proportions, as near as they come
    assert sorted(abs(len(near.splits[name]) - size) for name, size in zip(SPLITS, (21, 9, 10), strict=True)) == [
        0,
        1,
        1,
    ]


def run(tmp_path: Path, *more: str, out: str = "out") -> int:
    files = ["--scores", str(tmp_path / "sts_val.csv"), "--captions", str(tmp_path / "captions.json")]
    return main([*files, "--out", str(tmp_path / out), *more])


def made_up_files(tmp_path: Path) -> None:
    pairs, captions = made_up(30, 50)
    captions[0] = Caption(0, ' a "red"\tcat\r\n sleeps ')
    between = [Pair(0, 3, 4.0, "x"), Pair(0, 5, 1.0, "x")]
    missing = [Pair(0, 999_999, 0.2, "x"), Pair(999_998, 1, 4.5, "x"), Pair(0, 999_997, 2.0, "x")]
    write_scores(tmp_path / "sts_val.csv", [*pairs, *between, *missing])
    write_captions(tmp_path / "captions.json", captions)


def test_the_command_writes_the_splits_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up_files(tmp_path)
    assert run(tmp_path, "--sizes", "20", "10", "10") == 0
    assert capsys.readouterr().out.splitlines() == [
        "85 pairs read",
        "3 dropped: score from 1 to 4",
        "0 dropped: the same two captions again",
        "2 dropped: a caption is in no file",
        "20 dropped: more than the rarer label has",
        "20 dropped: more than --sizes asks for",
        "40 pairs kept",
        "  train: 20, entailment 10, not entailment 10",
        "  validation: 10, entailment 5, not entailment 5",
        "  test: 10, entailment 5, not entailment 5",
    ]
    manifest = verified_manifest(tmp_path / "out")
    assert manifest is not None and set(manifest["files"]) == {f"{name}.tsv" for name in SPLITS}
    assert manifest["seed"] == 0 and manifest["sizes"] == [20, 10, 10] and manifest["counts"]["without text"] == 2
    assert run(tmp_path, out="all") == 0
    rows = [row for split in rows_of(tmp_path / "all").values() for row in split]
    assert [row["sentence1"] for row in rows if row["caption1_id"] == "0"] == ['a "red" cat sleeps']
    capsys.readouterr()
    assert run(tmp_path, "--sizes", "2000", "1000", "1000", out="more") == 0
    assert "fewer pairs than --sizes asks for (4,000): its proportions were kept" in capsys.readouterr().out


def test_equal_bytes_of_equal_seeds_and_other_rows_of_another(tmp_path: Path) -> None:
    made_up_files(tmp_path)
    for out, seed in (("one", "7"), ("two", "7"), ("three", "8")):
        assert run(tmp_path, "--seed", seed, out=out) == 0
    for name in ("train.tsv", "validation.tsv", "test.tsv", "manifest.json"):
        one, two, three = ((tmp_path / out / name).read_bytes() for out in ("one", "two", "three"))
        assert one == two != three


def test_the_command_ends_with_the_code_of_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 3
    assert "error: " in (shown := capsys.readouterr().err) and "sts_val.csv is missing" in shown
    made_up_files(tmp_path)
    (tmp_path / "out").mkdir()
    assert run(tmp_path) == 0  # an empty folder is as good as none
    assert run(tmp_path) == 2
    assert "out exists\nwhy: it would be replaced\ndo: give another --out" in capsys.readouterr().err
    assert run(tmp_path, "--sizes", "1", "0", "1", out="b") == 2 and not (tmp_path / "b").exists()
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--sizes", "1", "2", out="b")
    assert ended.value.code == 2 and "expected 3 arguments" in capsys.readouterr().err


def test_the_command_by_its_name(tmp_path: Path) -> None:
    made_up_files(tmp_path)
    command = [
        sys.executable,
        "-m",
        "mvc.tncc",
        "--scores",
        "sts_val.csv",
        "--captions",
        "captions.json",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "60 pairs kept" in done.stdout
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: out exists\n")


def real_files(tmp_path: Path) -> list[dict[str, Any]]:
    """Files in the published formats that hold the pairs of the cut, and others that must be dropped."""
    rows = [row for split in rows_of(real_data("tncc"), ("train", "dev", "test")).values() for row in split]
    pairs, captions = [], {}
    for row in rows:
        one, other = int(row["caption1_id"]), int(row["caption2_id"])
        pairs.append(Pair(one, other, float(row["score"]), row["sampling_method"]))
        # Line breaks, tabs and spaces at the end, as published captions have them now and then.
        captions[one] = Caption(int(row["image1_id"]), row["sentence1"].replace(" ", "\n", 1) + " ")
        captions[other] = Caption(int(row["image2_id"]), row["sentence2"].replace(" ", " \t", 1))
    chance, ids = random.Random(0), list(captions)
    for score in (4.0, 1.0, 3.99, 1.01, 2.5):
        pairs.append(Pair(chance.choice(ids), chance.choice(ids), score, "c2c_isim"))
    pairs += [Pair(ids[0], 9_000_001, 4.5, "c2c_isim"), Pair(9_000_002, 9_000_003, 0.5, "c2c_isim")]
    chance.shuffle(pairs)
    half = len(ids) // 2
    write_scores(tmp_path / "sts_val.csv", pairs)
    write_captions(tmp_path / "captions.json", {key: captions[key] for key in ids[: half + 100]})
    write_captions(tmp_path / "more.json", {key: captions[key] for key in ids[half:]})
    return rows


def test_the_cut_comes_back_from_its_own_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = real_files(tmp_path)
    assert run(tmp_path, "--captions", str(tmp_path / "more.json")) == 0
    splits = rows_of(tmp_path / "out")
    built = [row for split in splits.values() for row in split]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(" ".join(row[column].split()) for column in COLUMNS)

    assert sorted(map(key, built)) == sorted(map(key, rows))
    assert Counter(row["label"] for row in built) == {"1": 559, "0": 559}
    assert_no_image_is_in_two_splits(splits)
    assert [len(splits[name]) for name in SPLITS] == [633, 211, 274]  # 1118 by 3600 : 1200 : 1560
    shares = [sum(row["label"] == "1" for row in splits[name]) / len(splits[name]) for name in SPLITS]
    assert all(abs(share - 0.5) < 0.02 for share in shares)
    shown = capsys.readouterr().out
    assert "1,125 pairs read\n5 dropped: score from 1 to 4\n" in shown and "2 dropped: a caption is in no file" in shown


def test_the_cut_itself_parts_no_image(tmp_path: Path) -> None:
    real_files(tmp_path)
    captions = read_captions([tmp_path / "captions.json", tmp_path / "more.json"])
    pairs = [
        pair for pair in read_scores(tmp_path / "sts_val.csv") if {pair.caption1, pair.caption2} <= captions.keys()
    ]
    pairs = [pair for pair in pairs if label_of(pair.score) is not None]
    groups = linked_groups([(captions[pair.caption1].image, captions[pair.caption2].image) for pair in pairs])
    cut = rows_of(real_data("tncc"), ("train", "dev", "test"))
    of_caption = {int(row["caption1_id"]): name for name, rows in cut.items() for row in rows}
    assert all(len({of_caption[pairs[place].caption1] for place in group}) == 1 for group in groups)
    assert (len(groups), max(map(len, groups))) == (395, 81)
    assert_no_image_is_in_two_splits(cut)


def test_real_rows_have_equal_bytes_for_equal_seeds(tmp_path: Path) -> None:
    real_files(tmp_path)
    more = ("--captions", str(tmp_path / "more.json"), "--sizes", "500", "150", "200", "--seed")
    for out, seed in (("one", "1"), ("two", "1"), ("three", "2")):
        assert run(tmp_path, *more, seed, out=out) == 0
    for name in SPLITS:
        one, two, three = ((tmp_path / out / f"{name}.tsv").read_bytes() for out in ("one", "two", "three"))
        assert one == two != three
    assert [len(rows) for rows in rows_of(tmp_path / "three").values()] == [500, 150, 200]
