"""The data card: what it says of a set, what it leaves out, and that the hub's own reader understands it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from mvc.dataset import load_index
from mvc.generate.card import Origin, card_text, origin_of
from mvc.storage import write_json
from mvc.synthetic import Candidate
from tests.generate.made_up_set import candidate, write_real

ORIGIN = Origin("pets", "CC BY 4.0", "tiny", "", {"base_identity": "0123456789abcdef", "steps": 400})
ROWS = [
    candidate("cat", 0),
    candidate("cat", 1),
    candidate("cat", 0, "pretrained"),
    candidate("big_dog", 0),
    candidate("cat", 1, "pretrained"),
]
SUMMARY: dict[str, Any] = {
    "wanted": 6,
    "drawn": 5,
    "accepted": 4,
    "shortfall": {"big_dog": 2},
    "rejected": {"blank": 1},
    "by_source": {"finetuned": {}, "pretrained": {}},
    "false_rejects": {"blank": 0.0, "repeat": 0.125, "any": 0.125},
    "held_out": 8,
    "thresholds": {"spread": 2, "chroma": None, "copy_bits": 6, "clip_margin": {"cat": 0.25, "big_dog": 0.5}},
    "extractor": "the tiny CLIP",
    "clip": None,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_real(tmp_path)
    return tmp_path


def card(run: Path, origin: Origin = ORIGIN, rows: list[Candidate] = ROWS, **changes: Any) -> str:
    return card_text(origin, load_index(run), rows, rows[:4], {**SUMMARY, **changes})


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_the_hub_reads_its_front_matter(run: Path) -> None:
    data = DatasetCard(card(run)).data.to_dict()
    assert data == {
        "pretty_name": "Synthetic images for pets",
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "diffusion", "data-augmentation"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/**"}]}],
        "license": "other",
        "license_name": "see-licences-below",
        "license_link": "README.md",
    }
    unknown = DatasetCard(card(run, Origin("pets", "", "tiny", "", {}))).data.to_dict()
    assert unknown["license"] == "unknown" and "license_name" not in unknown


def test_counts_by_class_and_source(run: Path) -> None:
    text = section(card(run), "What is here")
    assert r"| big\_dog | big dog | 6 | 1 | 0 | 1 | 2 |" in text
    assert "| cat | cat | 6 | 2 | 1 | 3 | 0 |" in text
    assert "| all |  | 12 | 3 | 1 | 4 | 2 |" in text


def test_filters_thresholds_and_false_rejects(run: Path) -> None:
    text = section(card(run), "Filters")
    assert "6 images were wanted, 5 drawn, 4 accepted. Lacking: 2; nothing was put in their place." in text
    assert "held-out real images" in text and "8 held-out" in text
    assert "| blank | 1 | 0.0% |" in text and "| repeat | 0 | 12.5% |" in text and "| all | 1 | 12.5% |" in text
    assert "differing bits of 64 of the perceptual hashes, at most: 6\n" in text
    assert "below: 0.25 to 0.5, by class\n" in text
    assert "colourfulness" not in text and "surplus" not in text
    more = section(card(run, rejected={"surplus": 3}, shortfall={}), "Filters")
    assert "Lacking" not in more and "surplus: nothing is wrong with these" in more
    assert "| all but surplus | 0 | 12.5% |" in more
    unknown = section(card(run, false_rejects={}, held_out=0), "Filters")
    assert "| reason | images refused |\n" in unknown and "| blank | 1 |\n" in unknown
    assert "| reason" not in section(card(run, false_rejects={}, rejected={}), "Filters")


def test_how_images_were_made_comes_from_their_rows(run: Path) -> None:
    text = section(card(run), "How they were made")
    assert "- base model: tiny, identity 0123456789ab\n" in text and "- fine-tuned for 400 steps" in text
    assert "- seed: 5\n" in text and "mvc regenerate ID" in text
    tuned, pretrained = text.split("### ")[1:]
    for line in (
        "scheduler: ddim",
        "steps: 20",
        "guidance: dual",
        "guidance scale: 1.5 to 2.5, drawn for each image",
        "image guidance scale: 1.25",
        "guidance acts between: 0 and 0.75 of the noise schedule, 0 being clean",
        r"coarse replacements in the caption (P): 2",
        r"fine replacements in the caption (Q): 3",
        "precision: bf16",
    ):
        assert f"- {line}\n" in tuned
    assert "guidance scale: 7.5\n" in pretrained and "(P)" not in pretrained and "image guidance" not in pretrained
    assert f"- model: {ROWS[2]['model'][:12]}\n" in pretrained
    own = candidate("cat", 0, "instruct_pix2pix", instruction="make it another cat", strength=None, eta=0.5)
    made = section(card(run, rows=[own] * 4), "How they were made")
    assert "- instruction: make it another cat\n" in made and "- noise added in each step (eta): 0.5\n" in made


def test_licences_are_as_the_user_gave_them(run: Path) -> None:
    text = section(card(run), "Licences")
    assert "- base model: not stated\n- real images: CC BY 4.0\n\nSynthetic images may fall under both." in text


def test_limits_name_classes_without_an_image(run: Path) -> None:
    assert "No image was accepted" not in section(card(run), "Limits")
    only = [row for row in ROWS if row["class_name"] == "cat"]
    text = section(card_text(ORIGIN, load_index(run), ROWS, only, SUMMARY), "Limits")
    assert r"No image was accepted for big\_dog;" in text and "Don't release the set without a look" in text


def test_it_names_no_place_of_this_machine(run: Path) -> None:
    (run / "secret" / "my model").mkdir(parents=True)
    write_json(run / "model" / "mvc.json", {"steps": 7})
    origin = origin_of(run, str(run / "secret" / "pets"), "", str(run / "secret" / "my model"), "")
    assert origin == Origin("pets", "", "my model", "", {"steps": 7})
    assert origin_of(run / "other", "digits", "a", "owner/name", "b") == Origin("digits", "a", "owner/name", "b", {})
    assert str(run) not in card(run, origin)


def test_names_cannot_break_the_page(run: Path) -> None:
    origin = Origin("a|b\n# <script>", "*any*", "---", "`x`", {})
    text = card(run, origin)
    assert DatasetCard(text).data.pretty_name == r"Synthetic images for a|b\n# <script>"
    assert "<script>" not in text.split("---\n", 2)[2] and r"a\|b" in text
    assert r"- base model: \`x\`" in text and r"- real images: \*any\*" in text
    assert card(run, origin) == text
