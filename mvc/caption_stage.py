"""The caption stage: every training image gets a caption in run/captions.jsonl; rows that are there are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvc import models, tiny
from mvc.captions import (
    KEYS,
    METADATA,
    Captioner,
    full_caption,
    load_captioner,
    metadata_descriptions,
    read_caption_rows,
)
from mvc.config import CaptionsSection, Experiment
from mvc.dataset import Dataset, ImageRecord, load_index
from mvc.devices import pick_device
from mvc.errors import ConfigError, DataError
from mvc.images import decode
from mvc.mixing import mixing_limits
from mvc.progress import meter, say
from mvc.stopping import flag
from mvc.storage import (
    append_json_lines,
    read_json_lines,
    sha256_json,
    write_json,
    write_json_lines,
)
from mvc.walk import printable

CAPTIONS, SUMMARY, PARTIAL = "captions.jsonl", "caption_summary.json", "cache/captions.partial.jsonl"
SUGGESTION = "Salesforce/blip-image-captioning-large"
EXAMPLES = 3

Row = dict[str, str]


def run_caption(run: Path, experiment: Experiment) -> None:
    """Caption the training images, and count what is wrong with the captions.

    Rows of an existing captions.jsonl, edited by hand or not, are kept; images without a row are captioned.
    A killed captioning goes on where it was. Nothing here is random.

    Args:
        run: the run folder, with the index of the data stage.
        experiment: sections captions, model, data.background and run.device are used.

    Raises:
        ConfigError: the captioner lacks its model.
        DataError: captions.jsonl or metadata.jsonl cannot be used, or `file` finds no caption for an image.
        EnvironmentFault: the captioning model cannot be loaded.
        Stopped: a signal asked for a stop.
    """
    dataset = load_index(run)
    records = dataset.split("train")
    path = run / CAPTIONS
    rows: dict[str, Row] = {}
    if path.exists():
        rows = read_caption_rows(path, {record.id: record.class_name for record in records})
        say(f"captions: {len(rows)} rows of {path} are kept")
    missing = [record for record in records if record.id not in rows]
    if missing:
        rows.update(_caption(run, experiment, dataset, missing))
        write_json_lines(path, (rows[name] for name in sorted(rows)))
    (run / PARTIAL).unlink(missing_ok=True)
    _summarise(run, experiment, [rows[record.id] for record in records], dataset)


def _caption(run: Path, experiment: Experiment, dataset: Dataset, records: Sequence[ImageRecord]) -> dict[str, Row]:
    """Caption some images: from the data's metadata where asked for and there, else by model or template."""
    settings = experiment.captions
    found = metadata_descriptions(dataset.root) if settings.captioner in ("auto", "file") else {}
    described = [record for record in records if record.path in found]
    left = [record for record in records if record.path not in found]
    if described:
        say(f"captions: {len(described)} of {len(records)} images have one in {METADATA}")
    if left and settings.captioner == "file":
        raise DataError(
            f"{len(left)} of {len(records)} training images have no caption, such as {left[0].id}",
            why=f"there is none in {METADATA} of {dataset.root} or of its train folder, nor in {run / CAPTIONS}",
            do='add rows like {"file_name": "...", "text": "..."}, or set captions.captioner=auto',
        )
    rows = _rows(dataset, settings.prefix, "file", described, [found[record.path] for record in described])
    if not left:
        return rows
    model = _model_of(experiment)
    if model is None:
        return {**rows, **_rows(dataset, settings.prefix, "template", left, [""] * len(left))}
    return {**rows, **_describe(run, experiment, dataset, left, model)}


def _rows(
    dataset: Dataset, prefix: str, captioner: str, records: Sequence[ImageRecord], descriptions: Sequence[str]
) -> dict[str, Row]:
    """Rows of the caption file for some images and what was said about them."""
    return {
        record.id: {
            "id": record.id,
            "class_name": record.class_name,
            "caption": full_caption(prefix, dataset.words[record.label], description),
            "captioner": captioner,
        }
        for record, description in zip(records, descriptions, strict=True)
    }


def _model_of(experiment: Experiment) -> str | None:
    """The captioning model to use, or None for captions by template.

    Raises:
        ConfigError: `blip` was asked for, and no model is known.
    """
    settings = experiment.captions
    model = settings.model or (str(tiny.WEIGHTS / "captioner") if experiment.model.base == "tiny" else None)
    if settings.captioner == "blip" and model is None:
        raise ConfigError(
            "captions.captioner=blip needs a model",
            why="only the embedded base brings a captioner of its own",
            do=f"set captions.model={SUGGESTION}, or the path of an image-to-text model",
        )
    if settings.captioner == "template":
        return None
    if model is None:
        say(
            "captions: no captioner is known, so all images of a class get the same caption and mixing changes "
            f"nothing; captions.model={SUGGESTION} would describe each image"
        )
    return model


def _describe(
    run: Path,
    experiment: Experiment,
    dataset: Dataset,
    records: Sequence[ImageRecord],
    model: str,
) -> dict[str, Row]:
    """Caption images with a model, batch by batch; each finished batch is safe on disk."""
    settings = experiment.captions
    key = _settings_key(settings, model)
    rows = _finished(run / PARTIAL, key, records)
    left = [record for record in records if record.id not in rows]
    if not left:
        return rows
    device = pick_device(experiment.run.device)
    describe = load_captioner(model, settings.revision, device, settings.max_new_tokens, settings.num_beams)
    with meter("captioning", len(records), "images", done=len(rows)) as shown:
        for batch, texts in _batches(describe, dataset, left, settings.batch_size, experiment.data.background):
            made = _rows(dataset, settings.prefix, "blip", batch, texts)
            marked = [{**made[record.id], "settings": key, "image": record.sha256} for record in batch]
            append_json_lines(run / PARTIAL, marked)
            rows.update(made)
            shown.advance(len(batch))
            flag.check(f"{len(rows)} of {len(records)} captions are kept")
    return rows


def _batches(
    describe: Captioner, dataset: Dataset, records: Sequence[ImageRecord], batch_size: int, background: str
) -> Iterator[tuple[Sequence[ImageRecord], list[str]]]:
    for first in range(0, len(records), batch_size):
        batch = records[first : first + batch_size]
        yield batch, describe([decode(dataset.image_path(record), background) for record in batch])


def _settings_key(settings: CaptionsSection, model: str) -> str:
    """Digest of what a description depends on; a partial file made with other settings is not used."""
    return sha256_json([model, settings.revision, settings.prefix, settings.max_new_tokens, settings.num_beams])


def _finished(path: Path, settings: str, records: Sequence[ImageRecord]) -> dict[str, Row]:
    """Rows that an interrupted captioning left behind, for the same settings and the same image files."""
    images = {record.id: record for record in records}
    rows: dict[str, Row] = {}
    for row in read_json_lines(path, torn_tail=True):
        record = images.get(str(row.get("id")))
        if record is not None and row.get("settings") == settings and row.get("image") == record.sha256:
            rows[record.id] = {key: str(row[key]) for key in KEYS}
    return rows


def _summarise(run: Path, experiment: Experiment, rows: Sequence[Row], dataset: Dataset) -> None:
    """Count empty, repeated and over-long captions, and classes that cannot be mixed; write and say so."""
    model = experiment.model
    tokenizer = models.load_tokenizer(models.resolve_base(model.base, model.revision, model.config))
    words = dict(zip(dataset.classes, dataset.words, strict=True))
    summary = summarise(rows, experiment.captions.prefix, words, tokenizer)
    write_json(run / SUMMARY, summary)
    for line in summary_lines(summary):
        say(f"captions: {line}")


def summarise(rows: Sequence[Row], prefix: str, words: Mapping[str, str], tokenizer: Any) -> dict[str, Any]:
    """Count what makes captions less useful.

    Args:
        rows: rows of the caption file.
        prefix: text with {class_name} in it.
        words: words of each class folder.
        tokenizer: the base model's; a caption with more tokens than its `model_max_length` is cut at its end.

    Returns:
        JSON: "captions", "captioners" (count by name), "empty" (nothing behind the prefix), "repeated" (another
        caption of the class reads the same) and "over_long", each with "count" and the first "examples"; the
        classes with a single caption and those whose captions are all the same.
    """
    empty = [row for row in rows if row["caption"] == full_caption(prefix, words[row["class_name"]], "")]
    texts = Counter((row["class_name"], row["caption"]) for row in rows)
    repeated = [row for row in rows if texts[row["class_name"], row["caption"]] > 1]
    limit = tokenizer.model_max_length
    tokens = tokenizer([row["caption"] for row in rows], truncation=False, verbose=False)["input_ids"] if rows else []
    over_long = [row for row, ids in zip(rows, tokens, strict=True) if len(ids) > limit]
    classes: dict[str, list[str]] = {}
    for row in rows:
        classes.setdefault(row["class_name"], []).append(row["caption"])
    single, same = mixing_limits(classes)
    return {
        "captions": len(rows),
        "captioners": dict(Counter(row["captioner"] for row in rows)),
        "empty": _counted(empty),
        "repeated": {**_counted(repeated), "share": len(repeated) / max(len(rows), 1)},
        "over_long": {**_counted(over_long), "limit": limit},
        "single_caption_classes": single,
        "same_caption_classes": same,
    }


def _counted(rows: Sequence[Row]) -> dict[str, Any]:
    return {"count": len(rows), "examples": [{"id": row["id"], "caption": row["caption"]} for row in rows[:EXAMPLES]]}


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a user should know about the captions, one line a matter; nothing for what is in order."""
    by = ", ".join(f"{count} by {name}" for name, count in sorted(summary["captioners"].items()))
    lines = [f"{summary['captions']} captions ({by})"]
    repeated = summary["repeated"]
    matters = {
        "empty": "say nothing behind the prefix",
        "repeated": f"({repeated['share']:.0%}) read the same as another of their class",
        "over_long": f"have more than {summary['over_long']['limit']} tokens and lose their end, never their prefix",
    }
    for key, what in matters.items():
        if summary[key]["count"]:
            examples = "".join(
                f"\n  {printable(row['id'] + ': ' + row['caption'])}" for row in summary[key]["examples"]
            )
            lines.append(f"{summary[key]['count']} {what}, such as{examples}")
    if summary["single_caption_classes"]:
        lines.append(f"one caption only, so nothing to mix with: {', '.join(summary['single_caption_classes'])}")
    if summary["same_caption_classes"]:
        lines.append(f"all captions the same, so mixing changes nothing: {', '.join(summary['same_caption_classes'])}")
    return lines
