"""The back_caption stage: several captions of each training image, with its class in the prompt, and their rewrites.

Back-Modality, Sec. 2.2: F and H of back-captioning. What comes of it is run/back_captions.jsonl; G draws from it as the
source back_captioning of `mvc generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mvc import tiny
from mvc.captions import clean, full_caption
from mvc.config import Experiment
from mvc.dataset import Dataset, ImageRecord, load_index
from mvc.devices import pick_device
from mvc.errors import ConfigError
from mvc.images import decode
from mvc.modality.captioning import captioning_steps
from mvc.modality.methods import rewriting_step, say_estimate
from mvc.modality.nodes import Level, Nodes, Sample
from mvc.modality.steps import Output, Step
from mvc.modality.store import Store
from mvc.progress import meter, say
from mvc.stages import BACK_CAPTIONS
from mvc.storage import read_json_lines, write_json_lines
from mvc.walk import printable

FOLDER = "cache/back_captions"
_CHUNK = 64
"""Images, or captions, whose outputs are in memory together."""
SUGGESTION = "Salesforce/blip-image-captioning-large"

Caption = tuple[str, int]
"""Id of an image and number of the caption."""


def run_back_caption(run: Path, experiment: Experiment) -> None:
    """Write the texts that back-captioning draws from; rows that are there, edited by hand or not, are kept.

    A killed stage goes on where it was: captions and rewrites are kept by content in run/cache/back_captions.

    Args:
        run: the run folder, with the index of the data stage.
        experiment: sections run, data, captions, model and back_captioning are used. Randomness from (run.seed,
            "back-modality back captions" and class, image, 0, caption, 1) and the same of "rewrites".

    Raises:
        ConfigError: no captioner is known, or the rewriter lacks its endpoint or model.
        EnvironmentFault: a model cannot be loaded, or the endpoint does not answer.
        DataError: an image cannot be decoded.
        Stopped: a signal asked for a stop.
    """
    dataset, path = load_index(run), run / BACK_CAPTIONS
    records = dataset.split("train")
    rows = read_json_lines(path) if path.exists() else []
    there = {row.get("id") for row in rows}
    missing = [record for record in records if record.id not in there]
    if rows:
        say(f"back captions: {len(rows)} rows of {path} are kept")
    if missing:
        rows += _made(run, experiment, dataset, missing)
        write_json_lines(path, rows)
        _summarise(rows, dataset)


def _made(run: Path, experiment: Experiment, dataset: Dataset, records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Rows of some images."""
    settings, device = experiment.back_captioning, pick_device(experiment.run.device)
    # Both are made before the first image is captioned: what they lack is said now.
    rewriter = None
    if settings.rewriter != "none":
        rewriter = rewriting_step(
            settings.rewriter,
            settings.eda,
            settings.chat,
            settings.language_model,
            settings.rewrites,
            device,
            experiment.captions.batch_size,
        )
    captioners = _captioners(experiment, dataset, device)
    store = Store(run / FOLDER)
    captions = _captioned(experiment, dataset, records, captioners, store)
    rewritten = _rewritten(experiment, dataset, captions, rewriter, store)
    words = dict(zip(dataset.classes, dataset.words, strict=True))
    classes = {record.id: record.class_name for record in records}
    rows = []
    for (name, number), caption in captions.items():
        own = classes[name]
        for branch, text, facts in rewritten.get((name, number), [([], caption, {})]):
            rows.append(
                {
                    "id": name,
                    "class_name": own,
                    "branch": [number, *branch],
                    "caption": full_caption(experiment.captions.prefix, words[own], caption),
                    "text": full_caption(experiment.captions.prefix, words[own], text),
                    "captioner": captioners[own].name,
                    "rewriter": None if rewriter is None else rewriter.name,
                    "facts": facts,
                }
            )
    return rows


def _captioners(experiment: Experiment, dataset: Dataset, device: torch.device) -> dict[str, Step]:
    """F of each class: one network, with the class in its prompt.

    Raises:
        ConfigError: no captioner is known.
        EnvironmentFault: there is no such model.
    """
    settings, captions = experiment.back_captioning, experiment.captions
    model = settings.captioner or captions.model
    revision = captions.revision if settings.captioner is None else None
    if model is None and experiment.model.base == "tiny":
        model = str(tiny.WEIGHTS / "captioner")
    if model is None:
        raise ConfigError(
            "back_captioning needs a captioner",
            why="only the embedded base brings one of its own",
            do=f"set captions.model={SUGGESTION}, or back_captioning.captioner to an image-to-text model",
        )
    key = "captions.model" if settings.captioner is None else "back_captioning.captioner"
    prompts = [settings.prompt.replace("{class_name}", words) for words in dataset.words]
    steps = captioning_steps(
        model,
        revision,
        prompts,
        device,
        key,
        captions.batch_size,
        settings.temperature,
        settings.top_p,
        settings.max_new_tokens,
    )
    return dict(zip(dataset.classes, steps, strict=True))


def _captioned(
    experiment: Experiment,
    dataset: Dataset,
    records: Sequence[ImageRecord],
    captioners: Mapping[str, Step],
    store: Store,
) -> dict[Caption, str]:
    """l captions of each image; an empty one where the captioner says nothing."""
    count, background = experiment.back_captioning.captions, experiment.data.background
    captions: dict[Caption, str] = {}
    with meter("back captions", len(records), "images") as shown:
        for name, chunk in _chunks_of_classes(dataset, records):
            nodes = Nodes([Level(captioners[name], count)], experiment.run.seed, store)
            samples = [
                Sample(number, decode(dataset.image_path(record), background), f"back captions {name}")
                for number, record in chunk
            ]
            nodes.fill([(sample, (place,)) for sample in samples for place in range(count)])
            for (_, record), sample in zip(chunk, samples, strict=True):
                for place in range(count):
                    node = nodes.of(sample, (place,))
                    captions[record.id, place] = clean(node.value) if isinstance(node, Output) else ""
            shown.advance(len(chunk))
    return captions


def _chunks_of_classes(
    dataset: Dataset, records: Sequence[ImageRecord]
) -> Iterator[tuple[str, list[tuple[int, ImageRecord]]]]:
    """Class by class some images at a time, each with its number among all training images of the class."""
    wanted = {record.id for record in records}
    for name in dataset.classes:
        own = [record for record in dataset.split("train") if record.class_name == name]
        due = [(number, record) for number, record in enumerate(own) if record.id in wanted]
        for start in range(0, len(due), _CHUNK):
            yield name, due[start : start + _CHUNK]


def _rewritten(
    experiment: Experiment,
    dataset: Dataset,
    captions: Mapping[Caption, str],
    rewriter: Step | None,
    store: Store,
) -> dict[Caption, list[tuple[list[int], str, dict[str, Any]]]]:
    """m rewrites of each caption, with branch and facts; the caption itself where it cannot be rewritten."""
    settings, seed = experiment.back_captioning, experiment.run.seed
    if rewriter is None:
        return {}
    named = [(caption, text) for caption, text in captions.items() if text]
    say_estimate(settings.rewriter, settings.chat, [text for _, text in named], settings.rewrites)
    places = {record.id: place for place, record in enumerate(dataset.split("train"))}
    found: dict[Caption, list[tuple[list[int], str, dict[str, Any]]]] = {}
    with meter("rewriting", len(named), "captions") as shown:
        for start in range(0, len(named), _CHUNK):
            chunk = named[start : start + _CHUNK]
            nodes = Nodes([Level(rewriter, settings.rewrites)], seed, store)
            samples = [
                Sample(places[name] * settings.captions + number, text, "rewrites") for (name, number), text in chunk
            ]
            nodes.fill([(sample, (place,)) for sample in samples for place in range(settings.rewrites)])
            for (caption, text), sample in zip(chunk, samples, strict=True):
                own = found.setdefault(caption, [])
                for place in range(settings.rewrites):
                    node = nodes.of(sample, (place,))
                    if isinstance(node, Output):
                        own.append(([place], clean(node.value), dict(node.facts)))
                    else:
                        own.append(([place], text, {"not rewritten": node.why}))
            shown.advance(len(chunk))
    return found


def _summarise(rows: Sequence[Mapping[str, Any]], dataset: Dataset) -> None:
    """Say how many texts there are, how many could not be rewritten, and show one of each kind."""
    kept = [row for row in rows if "not rewritten" in row.get("facts", {})]
    bare = [row for row in rows if row.get("caption") and row["text"] == row["caption"] and row.get("rewriter")]
    say(f"back captions: {len(rows)} texts of {len({row['id'] for row in rows})} images")
    if kept:
        why = kept[0]["facts"]["not rewritten"]
        say(f"back captions: {len(kept)} could not be rewritten and stay as they are, such as one of which {why}")
    elif bare:
        say(f"back captions: {len(bare)} read as before they were rewritten")
    changed = next((row for row in rows if row.get("caption") != row["text"]), None)
    if changed is not None:
        say(f"back captions: such as {printable(changed['caption'])}\n  rewritten to {printable(changed['text'])}")
