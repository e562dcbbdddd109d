"""What generation reads from a run before any UNet is loaded: training images, caption embeddings, how many to make."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mvc import embedding_store, models
from mvc.amounts import needs_back_captions, synthetic_per_class
from mvc.captions import read_captions
from mvc.config import Experiment
from mvc.config_generation import SOURCES
from mvc.dataset import Dataset, load_index
from mvc.devices import pick_device
from mvc.errors import ConfigError, DataError
from mvc.mixing import content_rows
from mvc.progress import say
from mvc.synthetic import Candidate

from .back_captions import BackTable, read_back_captions, require_enough
from .imported import ImportedFiles, find_imported
from .jobs import ClassTable, Job, Scales, Slot, jobs_of, split_by_share
from .source import ClassText

_RENAME = "rename the class and start another run"
_LONGEST_NAME = 255
"""Bytes of a folder's name that file systems take."""


@dataclass(frozen=True)
class Inputs:
    """What the stage read from the run; no model but the text store is loaded yet.

    Attributes:
        run: the run folder.
        experiment: the resolved experiment.
        dataset: the frozen data set.
        texts: training images and caption embeddings by class folder.
        null: (m, d) embedding of the empty text.
        null_pooled: (p,) pooled vector of the empty text; None unless the base is an SDXL.
        base: folder of the base model.
        device: where to compute.
        image_size: side in pixels.
        imported: images of another tool; None without the source import.
        back: texts of back-captioning by class folder; empty without that source.
    """

    run: Path
    experiment: Experiment
    dataset: Dataset
    texts: dict[str, ClassText]
    null: Tensor
    null_pooled: Tensor | None
    base: Path
    device: torch.device
    image_size: int
    imported: ImportedFiles | None
    back: dict[str, BackTable] = field(default_factory=dict)


def read_inputs(run: Path, experiment: Experiment) -> Inputs:
    """Read index and captions, and take or make the embeddings.

    Raises:
        DataError: something that an earlier stage writes is missing or damaged, or a class name leads out of the run.
        ConfigError: data.image_size does not fit the model, or the imported folder is the run's own set.
        EnvironmentFault: a model is missing or damaged.
    """
    dataset = load_index(run)
    records = dataset.split("train")
    if not records:
        raise DataError(f"{run} has no training images", do="run the data stage again with --redo")
    require_folder_names([record.class_name for record in records])
    captions = read_captions(run / "captions.jsonl", {record.id: record.class_name for record in records})
    model = experiment.model
    base = models.resolve_base(model.base, model.revision, model.config)
    device = pick_device(experiment.run.device)
    stored = embedding_store.load_or_encode(
        run / "cache" / "embeddings.safetensors",
        captions,
        models.text_identity(base),
        lambda: models.load_text(base, device),
    )
    texts = {}
    for name in sorted({record.class_name for record in records}):
        ids = [record.id for record in records if record.class_name == name]
        own = stored.of(ids)
        tokens = content_rows(own.ends) if experiment.mixing.rows == "content" else own.embeddings.shape[1]
        texts[name] = ClassText(ids, own.embeddings, tokens, own.pooled)
    size = models.working_size(base, experiment.data.image_size)
    imported, back = _imported(run, experiment, dataset, list(texts)), _back(run, experiment, dataset, texts)
    return Inputs(run, experiment, dataset, texts, stored.null, stored.null_pooled, base, device, size, imported, back)


def _back(run: Path, experiment: Experiment, dataset: Dataset, texts: Mapping[str, ClassText]) -> dict[str, BackTable]:
    if not needs_back_captions(experiment):
        return {}
    found = read_back_captions(run, {record.id: record.class_name for record in dataset.split("train")})
    n = experiment.back_captioning.imaginations
    return {name: BackTable([found[own] for own in text.ids], n) for name, text in texts.items()}


def _imported(run: Path, experiment: Experiment, dataset: Dataset, classes: Sequence[str]) -> ImportedFiles | None:
    path = experiment.generate.import_path
    if path is None or not experiment.generate.sources.get("import", 0.0) > 0:
        return None
    if Path(path).resolve().is_relative_to((run / "synthetic").resolve()):
        raise ConfigError(
            f"generate.import_path {path} is the run's own synthetic set",
            why="what is made would be read as made by another tool",
            do="give a folder outside the run",
        )
    return find_imported(Path(path), classes, dict(zip(dataset.classes, dataset.words, strict=True)))


def require_folder_names(names: Sequence[str]) -> None:
    """Refuse class names that cannot be folders beside each other, such as an index edited by hand may hold.

    The data stage gives none of these. Names that differ only in case or Unicode form are refused because they are
    one folder on some disks, where the images of one class would replace those of the other.

    Raises:
        DataError: names the first one.
    """
    why = "synthetic images of a class are kept in a folder of its name"
    twins: dict[str, str] = {}
    for name in sorted(set(names)):
        if not _is_folder_name(name):
            raise DataError(f"the class name {name!a} is no folder name", why=why, do=_RENAME)
        twin = twins.setdefault(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()), name)
        if twin != name:
            what = f"the class names {twin!a} and {name!a} differ only in case or Unicode form"
            raise DataError(what, why=why, do=_RENAME)


def _is_folder_name(name: str) -> bool:
    # Hidden folders are no classes, and names that begin with a dot are those of unfinished files.
    if not name or name.startswith(".") or any(sign in name for sign in ("/", "\\", "\0")):
        return False
    try:
        return len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def wanted_slots(inputs: Inputs) -> list[Slot]:
    """Every image that is wanted, in the order in which filters look at them: source, index, class.

    Raises:
        ConfigError: the amounts round to no image at all.
    """
    generate = inputs.experiment.generate
    shares: dict[str, float] = {source: share for source in SOURCES if (share := generate.sources.get(source, 0.0)) > 0}
    real = {name: len(text.ids) for name, text in inputs.texts.items()}
    totals = synthetic_per_class(real, generate.per_real, generate.per_class, generate.balance)
    if not sum(totals.values()):
        raise ConfigError(
            f"generate.per_real={generate.per_real:g} rounds to no image in every class", do="set a larger one"
        )
    empty = [name for name, total in totals.items() if not total]
    if empty:
        say(f"generate: no image is wanted for {', '.join(empty)}")
    split = {name: split_by_share(total, shares) for name, total in totals.items()}
    require_enough(inputs.back, {name: split[name].get("back_captioning", 0) for name in inputs.back})
    slots = [
        (source, name, index) for name, counts in split.items() for source in shares for index in range(counts[source])
    ]
    return sorted(slots, key=slot_order)


def slot_order(slot: Slot) -> tuple[int, int, str]:
    """Sorting key of slots."""
    source, name, index = slot
    return SOURCES.index(source), index, name


def jobs_for(inputs: Inputs, slots: Sequence[Slot], attempt: int, rows: Iterable[Candidate] = ()) -> list[Job]:
    """The jobs of some slots at one attempt; fewer where an imported folder has no more files.

    Args:
        inputs: what they depend on.
        slots: which; all that are due at this attempt, as later attempts at imported files count along them.
        attempt: from 1.
        rows: of the pool; imported files that earlier attempts took are not taken again.
    """
    indices: dict[tuple[str, str], list[int]] = {}
    for source, name, index in slots:
        indices.setdefault((source, name), []).append(index)
    taken = {(row["class_name"], row["imported_file"]) for row in rows if row["attempt"] < attempt}
    jobs: list[Job] = []
    for (source, name), own in indices.items():
        seed, table = inputs.experiment.run.seed, _table(inputs, name, taken)
        jobs += jobs_of(seed, source, name, own, attempt, table, scales(inputs.experiment, source))
    return jobs


def _table(inputs: Inputs, name: str, taken: Container[tuple[str, str | None]]) -> ClassTable:
    text, mixing = inputs.texts[name], inputs.experiment.mixing
    files = inputs.imported.files.get(name, []) if inputs.imported else []
    left = [file for file in files if (name, file) not in taken]
    width, back = inputs.null.shape[1], inputs.back.get(name)
    return ClassTable(len(text.ids), text.tokens, width, mixing.coarse, mixing.fine, left, back)


def scales(experiment: Experiment, source: str) -> Scales:
    """Guidance scales of a source."""
    generate = experiment.generate
    if source == "finetuned":
        return Scales(generate.guidance_scale, generate.image_guidance_scale if generate.guidance == "dual" else None)
    if source == "instruct_pix2pix":
        return Scales(generate.pretrained_guidance_scale, generate.image_guidance_scale)
    return Scales(None if source == "import" else generate.pretrained_guidance_scale, None)
