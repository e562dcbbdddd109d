"""The grammar of arms: read, written back, and refused with the part that is wrong."""

from __future__ import annotations

from typing import get_args

import pytest

from mvc.arms import AUGMENTATIONS, NEEDS_SYNTHETIC, STRATEGIES, USES_SYNTHETIC, Arm, Augmentation, parse_arm


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("real", Arm("real")),
        ("real+autoaugment", Arm("real", augmentation="autoaugment")),
        ("rsp@finetuned", Arm("rsp", "finetuned")),
        ("combined:0.5", Arm("combined", ratio=0.5)),
        ("two_phase@import:2+mixup", Arm("two_phase", "import", 2.0, "mixup")),
    ],
)
def test_every_form_is_read_and_written_back(text: str, arm: Arm) -> None:
    assert parse_arm(text) == arm and arm.name == text
    assert not set("@:+") & set(arm.file_stem)


def test_other_spellings_have_one_name() -> None:
    assert parse_arm("rsp:2.0").name == parse_arm("rsp:2").name == "rsp:2"


def test_file_stems_differ() -> None:
    texts = ["rsp", "rsp@finetuned", "rsp:2", "rsp+mixup", "rsp@finetuned:2+mixup", "two_phase"]
    assert len({parse_arm(text).file_stem for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rps", "unknown strategy 'rps' in arm 'rps'; one of real, duplicate"),
        ("rsp@tuned", "unknown source 'tuned' in arm 'rsp@tuned'; one of finetuned"),
        ("rsp+cutmx", r"unknown augmentation 'cutmx' in arm 'rsp\+cutmx'; one of none, default"),
        ("rsp:0", "arm 'rsp:0': the ratio '0' is not a number above 0"),
        ("rsp:1.2.3", "the ratio '1.2.3' is not a number above 0"),
        ("real:2", "arm 'real:2': real takes no source and no ratio"),
        ("rsp finetuned", "'rsp finetuned' is not an arm: write STRATEGY"),
        ("", "'' is not an arm"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_arm(text)


def test_the_lists_agree() -> None:
    assert set(USES_SYNTHETIC) < set(NEEDS_SYNTHETIC) < set(STRATEGIES) and get_args(Augmentation) == AUGMENTATIONS
    assert [name for name in STRATEGIES if not Arm(name).uses_synthetic] == ["real", "duplicate"]
