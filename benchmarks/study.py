"""How long to fine-tune and how to sample when images are few: a grid on the digits, judged on images that no run uses.

    python -m benchmarks.study --shots 3 --seeds 0 1 2 --out study.jsonl

Of each data seed it fine-tunes once and keeps several checkpoints. Of each checkpoint and way to sample it says how
near the images lie to their training images, and how classifiers do that are trained with them. These read the digits
of the training pool that the few shots leave over: not one is in the training, validation or test split. The test split
is never read here, so that what the grid suggests can be tested on it afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.demo_quality import features, load, nearest, share_read, train_judge
from mvc import embedding_store, latents, models
from mvc.captions import read_captions
from mvc.classify.augment import augmentation
from mvc.classify.batches import batch_maker
from mvc.classify.images import Images, channel_statistics
from mvc.classify.loop import fit, learning_rates
from mvc.classify.networks import build_network
from mvc.classify.strategies import Mix, phase_steps
from mvc.dataset import Dataset, load_index
from mvc.denoise import decode, denoise, make_scheduler
from mvc.diffusion import GuidanceTerm, guidance_terms, text_guidance_terms
from mvc.images import to_pixels
from mvc.mixing import apply_plan, draw_plan
from mvc.randomness import derived_seed, generator
from mvc.synthetic import read_synthetic
from mvc.train.checkpoints import load_weights

SIZE, STEPS, BATCH, RATE, MODEL_SEEDS = 32, 300, 64, 1e-3, (0, 1, 2)


@dataclass(frozen=True)
class Point:
    """A way to make images: fine-tuning steps (0: the untouched base), guidance or its range, P, Q, with x' or not."""

    steps: int
    guidance_scale: float | tuple[float, float]
    coarse: int = 2
    fine: int = 8
    condition: bool = True
    agreeing: bool = False
    """Only images that a classifier of CLIP features, fitted to the few training images, takes for their class."""


@dataclass(frozen=True)
class Study:
    """What is fixed within one data seed."""

    run: Path
    dataset: Dataset
    train: Images
    validation: Images
    unseen: Images
    judge: Any
    per_class: int


def fine_tuned(folder: Path, shots: int, seed: int, steps: Sequence[int], changes: Sequence[str]) -> Path:
    """Fine-tune by the command, keeping every checkpoint; a finished run is not repeated."""
    run = folder / f"shots{shots}-seed{seed}"
    apart = np.gcd.reduce(list(steps))
    command = [
        *("train", "digits", f"data.shots={shots}", f"data.seed={seed}", f"run.dir={run}", *changes),
        *(f"train.max_train_steps={max(steps)}", f"train.checkpointing_steps={apart}"),
        f"train.checkpoints_total_limit={max(steps) // apart + 1}",
    ]
    subprocess.run([sys.executable, "-m", "mvc", *command], check=True)
    return run


def _split(dataset: Dataset, name: str) -> Images:
    records = dataset.split(name)
    return load([dataset.image_path(record) for record in records], [record.label for record in records])


def prepare(run: Path, per_class: int, judge: Any, pool: Images, paths: list[Path]) -> Study:
    """Find the digits of the pool that the run does not use."""
    dataset = load_index(run)
    used = {dataset.image_path(record).name for record in dataset.records}
    unseen = pool.rows([row for row, path in enumerate(paths) if path.name not in used])
    return Study(run, dataset, _split(dataset, "train"), _split(dataset, "validation"), unseen, judge, per_class)


@torch.no_grad()
def draw(study: Study, point: Point) -> Images:
    """`per_class` images of each class; what is drawn for an index is the same at every point."""
    run, dataset, base = study.run, study.dataset, models.resolve_base("tiny")
    records = dataset.split("train")
    captions = read_captions(run / "captions.jsonl", {record.id: record.class_name for record in records})
    stored = embedding_store.load_or_encode(
        run / "cache" / "embeddings.safetensors",
        captions,
        models.text_identity(base),
        lambda: models.load_text(base, torch.device("cpu")),
    )
    vae = models.load_vae(base)
    unet = models.load_unet(run / "model" if point.steps else base)
    if point.steps:
        unet.load_state_dict(load_weights(run / "checkpoints" / f"step-{point.steps:06d}", averaged=True))
    pixels, labels = [], []
    for label, name in enumerate(dataset.classes):
        own = [record for record in records if record.class_name == name]
        embeddings = stored.of([record.id for record in own]).embeddings
        plan = draw_plan(
            derived_seed(0, "study"),
            name,
            range(study.per_class),
            len(own),
            *embeddings.shape[1:],
            point.coarse,
            point.fine,
        )
        text = apply_plan(plan, embeddings)
        noise, chosen, levels = [], [], []
        for index in range(study.per_class):
            drawn = generator(0, f"study {name}", index)
            noise.append(torch.randn(4, SIZE // 4, SIZE // 4, generator=drawn))
            chosen.append(int(torch.randint(len(own), (), generator=drawn)))
            levels.append(float(torch.rand((), generator=drawn)))
        condition, terms = _condition(study, own, chosen, vae, point, _scales(point, levels))
        drawn_latents = denoise(
            unet,
            make_scheduler("dpmsolver++", models.read_config(base, "scheduler")),
            torch.stack(noise)[:, :, : _side(vae), : _side(vae)],
            text if point.steps else embeddings[torch.tensor(plan.base)],
            stored.null,
            condition,
            terms,
            20,
        )
        pixels += [torch.from_numpy(to_pixels(image)) for image in decode(vae, drawn_latents)]
        labels += [label] * study.per_class
    return Images(torch.stack(pixels), torch.tensor(labels))


def agreeing(study: Study, images: Images, per_class: int) -> Images:
    """The first images of each class that a classifier of tiny-CLIP features, fitted to the real ones, sees in it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    reader.fit(_clip_features(study.train), study.train.labels.numpy())
    said = torch.from_numpy(reader.predict(_clip_features(images)))
    kept = []
    for label in range(len(study.dataset.classes)):
        kept += ((images.labels == label) & (said == label)).nonzero().flatten().tolist()[:per_class]
    return images.rows(kept)


@torch.no_grad()
def _clip_features(images: Images) -> Any:
    from transformers import CLIPModel

    from mvc.tiny import WEIGHTS
    from mvc.tiny.pictures import as_input

    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", use_safetensors=True, dtype=torch.float32)
    pixels = images.pixels.permute(0, 3, 1, 2).contiguous()
    return torch.cat(
        [clip.get_image_features(pixel_values=as_input(part)).pooler_output for part in pixels.split(100)]
    ).numpy()


def _side(vae: Any) -> int:
    return SIZE // 2 ** (len(vae.config.block_out_channels) - 1)


def _scales(point: Point, levels: Sequence[float]) -> float | list[float]:
    if not isinstance(point.guidance_scale, tuple):
        return point.guidance_scale
    low, high = point.guidance_scale
    return [low + (high - low) * level for level in levels]


def _condition(
    study: Study, own: Sequence[Any], chosen: Sequence[int], vae: Any, point: Point, scale: float | list[float]
) -> tuple[Tensor | None, list[GuidanceTerm]]:
    if not point.steps:
        return None, text_guidance_terms(scale)
    if not point.condition:
        return torch.zeros(len(chosen), 4, _side(vae), _side(vae)), text_guidance_terms(scale)
    cached = latents.load_or_encode(
        study.run / "cache" / "study-latents",
        [
            latents.SourceImage(one.id, study.dataset.image_path(one), one.sha256)
            for one in study.dataset.split("train")
        ],
        [[latents.Transform()]] * len(study.dataset.split("train")),
        SIZE,
        "white",
        "study",
        lambda: vae,
    )
    first = study.dataset.split("train").index(own[0])
    moments = cached.moments([first + row for row in chosen])
    return latents.mode(moments), guidance_terms("paper", scale)


def accuracies(study: Study, synthetic: Images | None, strategy: str) -> list[float]:
    """Accuracy on the unseen digits of a classifier a model seed, its step chosen on validation as in a run."""
    found = []
    count = 0 if synthetic is None else len(synthetic)
    shown = None if strategy in ("real", "duplicate") else synthetic
    labels = np.zeros(count, dtype=np.int64) if shown is None else shown.labels.numpy()
    mix = Mix(strategy, STEPS, BATCH, study.train.labels.numpy(), labels)
    classes, device = len(study.dataset.classes), torch.device("cpu")
    peaks = list(zip(phase_steps(strategy, STEPS, 0.3), (RATE, 0.1 * RATE), strict=False))
    for seed in MODEL_SEEDS:
        network = build_network("small", classes, SIZE, seed, *channel_statistics(study.train.pixels))
        bend = augmentation("default", seed, False)
        batch = batch_maker(mix, seed, study.train, shown, range(count), classes, bend, device)
        rates = learning_rates(peaks, 15)
        fit(network, batch, rates, weight_decay=1e-2, evaluation_steps=40, validation=study.validation)
        found.append(round(100 * share_read(network, study.unseen), 2))
    return found


def measured(study: Study, images: Images) -> dict[str, float]:
    """What the judge says of some images."""
    right = share_read(study.judge, images)
    few = features(study.judge, study.train)
    return {
        "read": round(100 * right, 1),
        "nearest": round(nearest(features(study.judge, images), few), 2),
        "nearest_of_unseen": round(nearest(features(study.judge, study.unseen), few), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 100, 150, 200, 300])
    parser.add_argument("--guidance", nargs="+", default=["1", "1.5", "2"], help="numbers, or ranges such as 1-2")
    parser.add_argument(
        "--agreeing", action="store_true", help="draw half as many again, keep what a classifier agrees with"
    )
    parser.add_argument("--alone", action="store_true", help="leave out training with the pre-trained images besides")
    parser.add_argument("--mixing", type=int, nargs=2, action="append", metavar=("P", "Q"))
    parser.add_argument("--without-condition", action="store_true", help="also sample with zeros for x'")
    parser.add_argument("--per-class", type=int, default=24)
    parser.add_argument("--strategies", nargs="+", default=["rsp", "two_phase"])
    parser.add_argument(
        "--runs", type=Path, nargs="+", help="judge the fine-tuned images of these finished runs instead"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("study.jsonl"))
    parser.add_argument("changes", nargs="*", help="of the fine-tuning, such as train.learning_rate=1e-4")
    given = parser.parse_args()
    judge = None
    for seed, finished in enumerate(given.runs) if given.runs else ((seed, None) for seed in given.seeds):
        run = finished or fine_tuned(given.folder, given.shots, seed, given.steps, given.changes)
        dataset = load_index(run)
        root = run / "data" / "digits" / "train"
        found = [
            (path, label) for label, name in enumerate(dataset.classes) for path in sorted((root / name).glob("*"))
        ]
        pool = load([path for path, _ in found], [label for _, label in found])
        judge = judge or train_judge(pool, len(dataset.classes))
        study = prepare(run, given.per_class, judge, pool, [path for path, _ in found])
        if finished is not None:
            _one_run(study, given)
        else:
            _one_seed(study, seed, given)


def _one_run(study: Study, given: argparse.Namespace) -> None:
    """Say how classifiers do with the accepted fine-tuned images of a run; count-matched duplicates beside them."""
    made = [image for image in read_synthetic(study.run) if image.source == "finetuned"]
    images = load([image.path for image in made], [study.dataset.classes.index(image.class_name) for image in made])
    placeholder = Images(study.train.pixels[:1].expand(len(made), -1, -1, -1), study.train.labels[:1].expand(len(made)))
    row: dict[str, Any] = {"run": study.run.name, "number": len(made), **measured(study, images)}
    row["duplicate"] = accuracies(study, placeholder, "duplicate")
    for one in given.strategies:
        row[one] = accuracies(study, images, one)
    with open(given.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def _one_seed(study: Study, seed: int, given: argparse.Namespace) -> None:
    def note(name: str, values: dict[str, Any]) -> None:
        row = {"shots": given.shots, "seed": seed, "images": name, **values}
        with open(given.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    count = len(study.dataset.classes) * given.per_class
    note("real", {"real": accuracies(study, None, "real")})
    placeholder = Images(study.train.pixels[:1].expand(count, -1, -1, -1), study.train.labels[:1].expand(count))
    note("duplicate", {"duplicate": accuracies(study, placeholder, "duplicate")})
    printed = draw(study, Point(0, 3.0))
    note(
        "pretrained", {**measured(study, printed), **{one: accuracies(study, printed, one) for one in given.strategies}}
    )
    for steps in given.steps:
        for text in given.guidance:
            low, _, high = text.partition("-")
            scale = (float(low), float(high)) if high else float(low)
            for coarse, fine in given.mixing or [(2, 8)]:
                for condition in (True, False) if given.without_condition else (True,):
                    point = Point(steps, scale, coarse, fine, condition, given.agreeing)
                    note("finetuned", _one_point(study, point, printed, given))


def _one_point(study: Study, point: Point, printed: Images, given: argparse.Namespace) -> dict[str, Any]:
    if point.agreeing:
        more = replace(study, per_class=study.per_class * 3 // 2)
        made = agreeing(study, draw(more, point), study.per_class)
    else:
        made = draw(study, point)
    both = Images(torch.cat([made.pixels, printed.pixels]), torch.cat([made.labels, printed.labels]))
    values: dict[str, Any] = {**asdict(point), "number": len(made), **measured(study, made)}
    for one in given.strategies:
        values[one] = accuracies(study, made, one)
        if not given.alone:
            values[f"{one}, with pretrained"] = accuracies(study, both, one)
    return values


if __name__ == "__main__":
    main()
