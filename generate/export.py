"""`mvc export`: a finished synthetic set as a folder for other tools, or on the Hugging Face hub.

Nothing is ever sent anywhere but by `push_set`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.hub import HUB_ID
from mvc.progress import meter
from mvc.stopping import flag
from mvc.storage import publish_folder, sha256_bytes, write_bytes, write_text
from mvc.synthetic import METADATA, Candidate, SyntheticImage, read_synthetic, synthetic_folder

from .card import CARD

if TYPE_CHECKING:
    from datasets import Features

Format = Literal["imagefolder", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
SHARD_BYTES = 256 * 2**20
"""Most bytes of images in one parquet file; bounds the memory, too."""
_AS_TEXT = ("plan", "scores")
"""Nested values; tables hold them as JSON text, because their keys differ from set to set."""
_COLUMNS = tuple(key for key in (*Candidate.__annotations__, "scores") if key != "label")
_LISTS = {"caption_partners": "string", "guidance_interval": "float64", "branch": "int64"}
_TYPES = {
    **dict.fromkeys(("seed", "index", "attempt", "num_inference_steps", "image_size"), "int64"),
    **dict.fromkeys(("batch_size", "batch_place"), "int64"),
    **dict.fromkeys(("guidance_scale", "image_guidance_scale", "eta", "strength"), "float64"),
    "in_float32": "bool",
}
"""Of the columns that are no text."""


def export_set(run: Path, target: Path, kind: Format = "imagefolder") -> int:
    """Copy the accepted images of a run into a folder that needs nothing else of the run; whole or not at all.

    imagefolder: train/<class>/<id>.png, train/metadata.jsonl and the data card, for torchvision, `datasets` and
    people. parquet: data/train-*.parquet with the files' own bytes, the class as ClassLabel in the order of the real
    data's labels, all that is known of an image, and the data card. Beside them manifest.json with the sha256 of each
    file.

    Args:
        run: the run folder, with a finished set.
        target: a folder that is new or empty.
        kind: the format.

    Returns:
        the number of images.

    Raises:
        ConfigError: the target is not empty, no folder, or lies within the set.
        DataError: there is no finished set, or a file of it is missing or damaged.
        EnvironmentFault: the disk is full or the place cannot be written; nothing of it stays behind.
        Stopped: a signal asked for a stop; nothing of it stays behind.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind} is not known", do=f"give one of {', '.join(FORMATS)}")
    images, card, place = read_synthetic(run), _card(run), Path(os.path.realpath(target))
    _require_empty(place, run)
    try:
        with publish_folder(place, {"kind": "synthetic set", "format": kind, "images": len(images)}) as folder:
            if kind == "imagefolder":
                _write_imagefolder(run, images, folder / "train")
            else:
                _write_parquet(images, load_index(run).classes, folder / "data")
                card = _with_files(card, "data/train-*")
            write_text(folder / CARD, card)
    except EnvironmentFault as error:
        raise EnvironmentFault(f"cannot write {place}", error.why, "free some space or give another --to") from error
    return len(images)


def push_set(run: Path, repo_id: str, private: bool = False) -> str:
    """Send the accepted images, all that is known of them, and the data card to the Hugging Face hub.

    Args:
        run: the run folder, with a finished set.
        repo_id: OWNER/NAME of a data set; made if there is none, replaced if there is one.
        private: only its owner can see it; refused for a data set that is public already.

    Returns:
        its address.

    Raises:
        ConfigError: repo_id is no such name, or the data set is public already and shall be private.
        DataError: there is no finished set, or a file of it is missing or damaged.
        EnvironmentFault: the hub cannot be reached, or refuses.
    """
    if not re.fullmatch(HUB_ID, repo_id) or "/" not in repo_id:
        raise ConfigError(f"--push {repo_id} is no name of a data set on the hub", do="write OWNER/NAME")
    from datasets import Dataset
    from huggingface_hub import HfApi

    images, classes, card = read_synthetic(run), load_index(run).classes, _with_files(_card(run), None)
    for image in images:
        _content(image)  # compared with its digest before anything is sent
    rows = [_row(image, {"bytes": None, "path": str(image.path)}) for image in images]
    dataset = Dataset.from_list(rows, features=_features(classes))
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type="dataset").private:
            why = "--private makes only new data sets private"
            raise ConfigError(f"{repo_id} is public already", why=why, do="give another name, or make it private first")
        # The card first: `datasets` adds to it what the data are like.
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo=CARD, repo_id=repo_id, repo_type="dataset")
        dataset.push_to_hub(repo_id)
    except ConfigError:
        raise
    except Exception as error:  # each cause raises another kind
        raise EnvironmentFault(
            f"the set cannot be sent to {repo_id} on the hub",
            why=" ".join(f"{error} {error.__cause__ or ''}".split())[:200],
            do="check the name, the network and the login (`hf auth login`); the run is unchanged",
        ) from error
    return str(url)


def _card(run: Path) -> str:
    path = run / "synthetic" / CARD
    if not path.is_file():
        why, do = "the set has lost its data card", f"remove {synthetic_folder(run) / METADATA} and run `mvc filter`"
        raise DataError(f"{path} is missing", why=why, do=do)
    return path.read_text(encoding="utf-8")


def _with_files(card: str, pattern: str | None) -> str:
    """A card that says where the files of the export are; nowhere for None."""
    from huggingface_hub import DatasetCard

    changed = DatasetCard(card)
    if pattern is None:
        changed.data.pop("configs")
    else:
        files = [{"split": "train", "path": pattern}]
        changed.data["configs"] = [{"config_name": "default", "data_files": files}]
    return str(changed)


def _require_empty(place: Path, run: Path) -> None:
    if place.is_relative_to(Path(os.path.realpath(run / "synthetic"))):
        raise ConfigError(f"--to {place} lies within the synthetic set", do="give a folder outside of it")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--to {place} is no folder", do="give a new folder")
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"--to {place} is not empty", why="no file of yours is replaced", do="give a new folder")


def _content(image: SyntheticImage) -> bytes:
    """The bytes of an image's file.

    Raises:
        DataError: they are not what was written, or the row's name leads elsewhere.
    """
    name = image.row["file_name"]
    if name != f"{image.class_name}/{image.row['id']}.png" or ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"{METADATA} has the file name {name!a}", why="it is not <class folder>/<id>.png")
    content = image.path.read_bytes()
    if sha256_bytes(content) != image.row["sha256"]:
        raise DataError(f"{image.path} is damaged", do="delete it and run `mvc generate`: it is made again")
    return content


def _write_imagefolder(run: Path, images: Sequence[SyntheticImage], folder: Path) -> None:
    with meter("exporting", len(images), "images") as shown:
        for image in images:
            write_bytes(folder / image.row["file_name"], _content(image))
            shown.advance()
            flag.check("nothing was exported")
    shutil.copyfile(synthetic_folder(run) / METADATA, folder / METADATA)


def _write_parquet(images: Sequence[SyntheticImage], classes: Sequence[str], folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    folder.mkdir()
    shards = _shards(images)
    with meter("exporting", len(images), "images") as shown:
        for number, shard in enumerate(shards):
            rows = [_row(image, {"bytes": _content(image), "path": f"{image.row['id']}.png"}) for image in shard]
            table = datasets.Dataset.from_list(rows, features=_features(classes))
            table.to_parquet(folder / f"train-{number:05d}-of-{len(shards):05d}.parquet")
            shown.advance(len(shard))
            flag.check("nothing was exported")


def _shards(images: Sequence[SyntheticImage]) -> list[list[SyntheticImage]]:
    """Images in runs of at most SHARD_BYTES, at least one each."""
    shards: list[list[SyntheticImage]] = []
    room = 0
    for image in images:
        size = image.path.stat().st_size
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(image)
        room -= size
    return shards


def _features(classes: Sequence[str]) -> Features:
    """Columns of a table of images; `label` counts as data/classes.json of the run does."""
    from datasets import ClassLabel, Features, Image, List, Value

    kinds: dict[str, Any] = {"image": Image(), "label": ClassLabel(names=list(classes))}
    for key in _COLUMNS:
        if key in _LISTS:
            kinds[key] = List(Value(_LISTS[key]))
        else:
            kinds[key] = Value(_TYPES.get(key, "string"))
    return Features(kinds)


def _row(image: SyntheticImage, picture: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {**image.row}
    for key in _AS_TEXT:
        row[key] = None if row[key] is None else json.dumps(row[key], sort_keys=True)
    return {"image": picture, "label": image.class_name, **{key: row[key] for key in _COLUMNS}}
