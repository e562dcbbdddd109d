"""How good the demo's synthetic digits are, by a judge that the run itself never sees.

    python benchmarks/demo_quality.py runs/digits [runs/other ...]

A judge (the small net) is trained on the whole training pool of real digits. Of each source it says: the share of
images that it reads as their class; the Frechet distance, on its features, to held-out real digits; and the mean
distance, on its features, to the nearest of the few training images, where unseen real digits give the yardstick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mvc.classify.augment import augmentation
from mvc.classify.images import Images, channel_statistics
from mvc.classify.loop import fit, learning_rates, logits_of
from mvc.classify.networks import build_network
from mvc.classify.strategies import shuffled
from mvc.dataset import load_index
from mvc.images import decode, to_uint8
from mvc.synthetic import read_synthetic

SIZE, STEPS, BATCH, SEED = 32, 1500, 64, 12345
Matrix = npt.NDArray[np.float64]


def load(paths: list[Path], labels: list[int]) -> Images:
    """Decode images at the judge's size."""
    return Images(torch.from_numpy(np.stack([to_uint8(decode(path), SIZE) for path in paths])), torch.tensor(labels))


def folder_images(folder: Path, classes: list[str]) -> Images:
    """All images below folder/<class>."""
    found = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*.png"))]
    return load([path for path, _ in found], [label for _, label in found])


def train_judge(pool: Images, classes: int) -> nn.Module:
    """The small net on the whole training pool, the default augmentation, the last weights."""
    mean, std = channel_statistics(pool.pixels)
    network = build_network("small", classes, SIZE, SEED, mean, std)
    bend = augmentation("default", SEED, False)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(shuffled(SEED, "judge", len(pool), step, BATCH))
        return bend(pool.pixels[rows].permute(0, 3, 1, 2), step), one_hot(pool.labels[rows], classes).float()

    rates = learning_rates([(STEPS, 1e-3)], 50)
    fit(network, batch, rates, weight_decay=1e-2, evaluation_steps=STEPS, validation=None)
    return network


def share_read(network: nn.Module, images: Images) -> float:
    """Share of images of which the network names the class."""
    return (logits_of(network, images).argmax(dim=1) == images.labels).double().mean().item()


@torch.inference_mode()
def features(network: nn.Module, images: Images) -> Matrix:
    """(n, 128): what the judge's last layer sees."""
    taken: list[Tensor] = []
    hook = network.network.fc.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))  # type: ignore
    logits_of(network, images)
    hook.remove()
    return torch.cat(taken).double().numpy()


def frechet(one: Matrix, other: Matrix) -> float:
    """Squared Frechet distance of two Gaussians fitted to the features."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and >= 0.
    values = scipy.linalg.eigvals(first @ second).real.clip(min=0)
    gap = one.mean(axis=0) - other.mean(axis=0)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.sqrt(values).sum())


def nearest(one: Matrix, others: Matrix) -> float:
    """Mean Euclidean distance to the nearest of `others`."""
    return float(np.mean([np.linalg.norm(others - row, axis=1).min() for row in one]))


def main() -> None:
    runs = [Path(text) for text in sys.argv[1:]] or [Path("runs/digits")]
    dataset = load_index(runs[0])
    classes = dataset.classes
    root = runs[0] / "data" / "digits"
    pool, held_out = folder_images(root / "train", classes), folder_images(root / "test", classes)
    judge = train_judge(pool, len(classes))
    accuracy = share_read(judge, held_out)
    print(f"judge: trained on {len(pool)} real digits, reads {accuracy:.1%} of {len(held_out)} held-out ones")
    real = features(judge, held_out)
    for run in runs:
        dataset = load_index(run)
        shots = dataset.split("train")
        few = load([dataset.image_path(record) for record in shots], [record.label for record in shots])
        print(
            f"{run}: unseen real digits lie {nearest(real, features(judge, few)):.2f} from the nearest training image"
        )
        made = read_synthetic(run)
        for source in sorted({image.source for image in made}):
            chosen = [image for image in made if image.source == source]
            images = load([image.path for image in chosen], [classes.index(image.class_name) for image in chosen])
            right = share_read(judge, images)
            seen = features(judge, images)
            row = {
                "run": run.name,
                "source": source,
                "images": len(images),
                "read_as_asked": round(right, 4),
                "frechet_distance": round(frechet(seen, real), 3),
                "nearest_training_image": round(nearest(seen, features(judge, few)), 3),
            }
            print(json.dumps(row))


if __name__ == "__main__":
    main()
