"""The data card beside the synthetic set: what it is, how it was made, what was refused, whose terms it may fall under.

It is a function of the set alone: no date, no version, no path of this machine; it is also a dataset card for the
Hugging Face hub.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.config_generation import SOURCES
from mvc.dataset import Dataset
from mvc.models import FACTS
from mvc.storage import read_json
from mvc.synthetic import Candidate
from mvc.walk import printable

from .verdicts import REASONS, SURPLUS

CARD = "README.md"
FILES = "train/**"
"""Where the images are, for those who open the folder with `datasets`."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SHORT = 12
"""Digits shown of a digest; metadata.jsonl has all of them."""
_KINDS = {
    "finetuned": "the fine-tuned model, given a real image and a mixture of captions of the class",
    "pretrained": "the base model, given the caption of a real image",
    "sdedit": "the base model, begun from a real image to which noise was added, and its caption",
    "instruct_pix2pix": "an editing model, given a real image and an instruction",
    "back_captioning": "a text-to-image model, given a rewritten caption of a real image",
    "import": "another tool; brought to the same size",
}
_THRESHOLDS = {
    "spread": "blank: levels of 255 between the darkest and the brightest, at most",
    "chroma": "grey: colourfulness in levels of 255, below",
    "copy_bits": "copy and repeat: differing bits of 64 of the perceptual hashes, at most",
    "copy_similarity": "copy and repeat: cosine similarity of centred features, at least",
    "clip_margin": "other class (clip): similarity to the class minus that to any other, below",
    "class_probability": "other class (classifier): probability of the class, below",
}
"""What `Judge.thresholds` are, in words."""


@dataclass(frozen=True)
class Origin:
    """What a set was made from.

    Attributes:
        data: the user's name for the real images, or the name of their folder.
        data_licence: its terms in the user's words; empty if not stated.
        base: name of the base model; no path.
        base_licence: its terms in the user's words; empty if not stated.
        model: what the fine-tuned model says of itself (its mvc.json); empty without one.
    """

    data: str
    data_licence: str
    base: str
    base_licence: str
    model: Mapping[str, Any]


def origin_of(run: Path, data: str, data_licence: str, base: str, base_licence: str) -> Origin:
    """What the set of a run was made from; local folders and files are called by their names without their places.

    Args:
        run: the run folder.
        data: data.path.
        data_licence: data.licence.
        base: model.base.
        base_licence: model.licence.
    """
    facts = run / "model" / FACTS
    name = base if not Path(base).exists() else Path(base).name
    return Origin(Path(data).name, data_licence, name, base_licence, read_json(facts) if facts.exists() else {})


def card_text(
    origin: Origin,
    dataset: Dataset,
    rows: Sequence[Candidate],
    accepted: Sequence[Candidate],
    summary: Mapping[str, Any],
) -> str:
    """The card as Markdown behind YAML.

    Args:
        origin: what the set was made from.
        dataset: the real images.
        rows: all candidates that were drawn, at least one.
        accepted: those of the set.
        summary: what the filters say in all, as `filter_stage.summarise` makes it.
    """
    sections = (
        _opening(origin, dataset, accepted),
        _contents(dataset, accepted, summary),
        _filters(summary),
        _making(origin, rows),
        _licences(origin),
        _limits(dataset, accepted),
    )
    title = f"Synthetic images for {origin.data or 'image classification'}"
    return f"---\n{front_matter(title, len(accepted), origin)}\n---\n\n# {_plain(title)}\n\n" + "\n".join(sections)


def front_matter(title: str, images: int, origin: Origin) -> str:
    """The YAML block of a dataset card, without its fences."""
    # Imported here: it takes a while, and few commands write a card.
    from huggingface_hub import DatasetCardData

    size = next((name for limit, name in _SIZES if images < limit), "n>1M")
    terms: dict[str, Any] = {"license": "unknown"}
    if origin.data_licence or origin.base_licence:
        terms = {"license": "other", "license_name": "see-licences-below", "license_link": CARD}
    facts = DatasetCardData(
        pretty_name=printable(title),
        task_categories=["image-classification"],
        tags=["synthetic", "diffusion", "data-augmentation"],
        size_categories=[size],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": FILES}]}],
        **terms,
    )
    return str(facts.to_yaml())


def _plain(text: str) -> str:
    """A name as Markdown shows it, whatever signs it holds."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", printable(text))


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {_plain(name)}" for name, count in counts.items())


def _opening(origin: Origin, dataset: Dataset, accepted: Sequence[Candidate]) -> str:
    size, real = accepted[0]["image_size"], len(dataset.split("train"))
    named = f" of {_plain(origin.data)}" if origin.data else ""
    return (
        f"{len(accepted)} synthetic images of {size} x {size} pixels, made with mvc (Mixing Visual Concepts) to be "
        f"trained on together with the {real} real training images{named}.\n\n"
        "None of them is a photograph or a measurement. Their labels are what was asked for; no person checked them. "
        "Don't measure a classifier on them.\n"
    )


def _contents(dataset: Dataset, accepted: Sequence[Candidate], summary: Mapping[str, Any]) -> str:
    counts = Counter((row["class_name"], row["source"]) for row in accepted)
    real = Counter(record.class_name for record in dataset.split("train"))
    sources = list(summary["by_source"])
    rows = []
    for name, words in zip(dataset.classes, dataset.words, strict=True):
        own = [counts[name, source] for source in sources]
        lacking = summary["shortfall"].get(name, 0)
        rows.append([_plain(name), _plain(words), real[name], *own, sum(own), lacking])
    total = [sum(column) for column in zip(*(row[2:] for row in rows), strict=True)]
    head = ["class", "in words", "real training images", *sources, "synthetic", "lacking"]
    return (
        "## What is here\n\n"
        "A folder of images, `train/<class>/<id>.png`, with a row an image in `train/metadata.jsonl`; or the same as a "
        "table in parquet. A row names the real image and captions that the image was made from, every setting and "
        "seed, the identity of the model, and what the filters measured.\n\n"
        + _table(head, [*rows, ["all", "", *total]])
    )


def _filters(summary: Mapping[str, Any]) -> str:
    short = sum(summary["shortfall"].values())
    lacking = f" Lacking: {short}; nothing was put in their place." if short else ""
    agreement = f", agreement with the class by {_plain(summary['clip'])}" if summary["clip"] else ""
    limits = [
        f"- {words}: {_limit(summary['thresholds'][name])}\n"
        for name, words in _THRESHOLDS.items()
        if summary["thresholds"].get(name) not in (None, {})
    ]
    return (
        "## Filters\n\n"
        f"{summary['wanted']} images were wanted, {summary['drawn']} drawn, {summary['accepted']} accepted.{lacking} "
        f"Likeness was judged by the features of {_plain(summary['extractor'])}{agreement}.\n"
        + _refusals(summary)
        + ("\nThresholds:\n\n" + "".join(limits) if limits else "")
    )


def _refusals(summary: Mapping[str, Any]) -> str:
    """How many images each filter refused, and how many real ones it would; an image counts under its first reason."""
    refused, shares = summary["rejected"], summary["false_rejects"]
    rows: list[list[object]] = [[name, refused.get(name, 0)] for name in REASONS if name in refused or name in shares]
    if not rows:
        return ""
    all_of_them = "all but surplus" if SURPLUS in refused else "all"
    rows.append([all_of_them, sum(count for name, count in refused.items() if name != SURPLUS)])
    head = ["reason", "images refused"]
    if shares:
        head.append(f"share of {summary['held_out']} held-out real images that it would refuse")
        of_real = [shares.get(str(name)) for name, _ in rows[:-1]] + [shares.get("any")]
        rows = [[*row, "" if share is None else f"{share:.1%}"] for row, share in zip(rows, of_real, strict=True)]
    text = f"\n{_table(head, rows)}"
    if SURPLUS in refused:
        text += f"\n{SURPLUS}: nothing is wrong with these, but an earlier draw filled their place.\n"
    return text


def _limit(value: float | Mapping[str, float]) -> str:
    """A threshold, or the range of those of the classes."""
    if not isinstance(value, Mapping):
        return f"{value:.4g}"
    low, high = min(value.values(), default=0.0), max(value.values(), default=0.0)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, by class"


def _making(origin: Origin, rows: Sequence[Candidate]) -> str:
    text = f"## How they were made\n\n- base model: {_plain(origin.base)}"
    if identity := origin.model.get("base_identity"):
        text += f", identity {identity[:_SHORT]}"
    text += "\n"
    steps = origin.model.get("steps")
    if steps and any(row["source"] == "finetuned" for row in rows):
        text += f"- fine-tuned for {steps} steps on pairs of real images of a class\n"
    text += f"- seed: {rows[0]['seed']}\n\n"
    for source in SOURCES:
        own = [row for row in rows if row["source"] == source]
        if own:
            text += f"### {source}\n\nMade by {_KINDS[source]}.\n\n" + _settings(own) + "\n"
    return (
        text
        + "Identities are the first digits of the sha256 over a model's configuration and weights. With the run that "
        "made the set, `mvc regenerate ID` makes an image again from its row.\n"
    )


def _settings(rows: Sequence[Candidate]) -> str:
    """What the rows of a source have in common, one setting a line; what none of them has is left out."""
    first = rows[0]
    plan = first["plan"]
    found: dict[str, Any] = {
        "model": first["model"][:_SHORT] if first["source"] != "import" else None,
        "scheduler": first["scheduler"],
        "steps": first["num_inference_steps"],
        "noise added in each step (eta)": first["eta"] or None,
        "guidance": first["guidance"],
        "guidance scale": _range([row["guidance_scale"] for row in rows]),
        "image guidance scale": _range([row["image_guidance_scale"] for row in rows]),
        "guidance acts between": _between(first["guidance_interval"]),
        "strength": first["strength"],
        "coarse replacements in the caption (P)": None if plan is None else len(plan["coarse"]),
        "fine replacements in the caption (Q)": None if plan is None else len(plan["fine"]),
        "instruction": _instructions(rows),
        "precision": {"no": "float32", None: None}.get(first["mixed_precision"], first["mixed_precision"]),
    }
    return "".join(f"- {name}: {_plain(str(value))}\n" for name, value in found.items() if value is not None)


def _range(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, drawn for each image"


def _between(interval: Sequence[float] | None) -> str | None:
    if interval is None or tuple(interval) == (0.0, 1.0):
        return None
    return f"{interval[0]:g} and {interval[1]:g} of the noise schedule, 0 being clean"


def _instructions(rows: Sequence[Candidate]) -> str | None:
    said = sorted({row["instruction"] for row in rows if row["instruction"] is not None})
    return "; ".join(said[:3]) + ("; ..." if len(said) > 3 else "") if said else None


def _licences(origin: Origin) -> str:
    return (
        "## Licences\n\n"
        f"- base model: {_plain(origin.base_licence) or 'not stated'}\n"
        f"- real images: {_plain(origin.data_licence) or 'not stated'}\n\n"
        "Synthetic images may fall under both.\n"
    )


def _limits(dataset: Dataset, accepted: Sequence[Candidate]) -> str:
    there = {row["class_name"] for row in accepted}
    empty = [name for name in dataset.classes if name not in there]
    text = (
        "## Limits\n\n"
        "- Images are conditioned on real pictures and captions, which may be private, and a model that is fine-tuned "
        "on a few images can repeat them. Filters find near copies, not every likeness. `scores` in metadata.jsonl "
        "says how near the nearest training image is, and which one it is. Don't release the set without a look.\n"
        "- metadata.jsonl names real images by their paths in the data folder.\n"
        "- Images carry what the base model and the few real images lack or overdo; an image can show another class "
        "than its label, or a thing that does not exist.\n"
    )
    if empty:
        text += (
            f"- No image was accepted for {', '.join(_plain(name) for name in empty)}; readers that number the folders "
            "that they find give the other classes other numbers than the real data has.\n"
        )
    return text
