"""Cache of what the VAE says about each training image, so that neither training nor generation needs a VAE encoder.

Kept are the moments of the posterior, not samples of it: training still draws fresh VAE noise for every sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mvc.errors import NumericError
from mvc.images import decode, to_tensor
from mvc.progress import meter, say
from mvc.randomness import generator
from mvc.stopping import flag
from mvc.storage import remove_leftovers, sha256_bytes, sha256_json, write_bytes

FOLDER = "cache/latents"
"""Below the run folder."""

_FORMAT = 1
_SHARD = 256
"""Entries a file: a kill loses at most so many."""


@dataclass(frozen=True)
class SourceImage:
    """An image to encode: its id, its file and the sha256 of the file's bytes."""

    id: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Transform:
    """A square of an upright image, as shares of its size; None is the centre square of `mvc.images.to_tensor`.

    Attributes:
        scale: side of the square as a share of the image's short side.
        left, top: where it lies, as shares of the room there is.
        flip: mirrored left to right.
    """

    scale: float = 1.0
    left: float = 0.5
    top: float = 0.5
    flip: bool = False

    def apply(self, image: Image.Image, size: int) -> Tensor:
        """RGB image to (3, size, size) float32 in [-1, 1]."""
        if self == Transform():
            return to_tensor(image, size)
        side = self.scale * min(image.size)
        left, top = self.left * (image.width - side), self.top * (image.height - side)
        square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        pixels = to_tensor(square, size)
        return pixels.flip(2) if self.flip else pixels


@dataclass(frozen=True)
class Latents:
    """Moments of n images in V variants each; variant 0 is the plain centre square.

    Attributes:
        shards: tensors (k, 2C, h, w) float32, mean and log variance of the posterior along the channels.
        places: for each image and variant, (shard, row).
    """

    shards: list[Tensor]
    places: list[list[tuple[int, int]]]

    @property
    def variants(self) -> int:
        """V, the plain one included."""
        return len(self.places[0])

    def moments(self, images: Sequence[int], variants: Sequence[int] | None = None) -> Tensor:
        """(B, 2C, h, w) of some images, by number, in some variants; the plain ones without `variants`."""
        chosen = variants if variants is not None else [0] * len(images)
        places = [self.places[image][variant] for image, variant in zip(images, chosen, strict=True)]
        return torch.stack([self.shards[shard][row] for shard, row in places])


def sample(moments: Tensor, noise: Tensor) -> Tensor:
    """Sample the posterior: (B, 2C, h, w) moments and (B, C, h, w) standard normal noise => (B, C, h, w), unscaled."""
    mean, log_variance = moments.chunk(2, dim=1)
    # The bounds are AutoencoderKL's own.
    return mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise


def mode(moments: Tensor) -> Tensor:
    """Mode of the posterior, (B, 2C, h, w) => (B, C, h, w), unscaled: what InstructPix2Pix conditions on."""
    return moments.chunk(2, dim=1)[0]


def draw_transforms(seed: int, image: int, variants: int, random_flip: bool, random_crop: float) -> list[Transform]:
    """The transforms of an image: the plain one, then `variants` random ones if anything is random.

    Args:
        seed: run.seed; randomness from (seed, "transform", image, variant).
        image: number of the image among the training images.
        variants: how many random ones.
        random_flip: mirror half of them; which half is a matter of chance.
        random_crop: crop to a uniform scale of at least 1 - random_crop, at a uniform place.
    """
    transforms = [Transform()]
    if not random_flip and random_crop == 0.0:
        return transforms
    first_flip = int(torch.randint(2, (), generator=generator(seed, "transform", image, 0)))
    for variant in range(1, variants + 1):
        scale, left, top = torch.rand(3, generator=generator(seed, "transform", image, variant)).tolist()
        flip = random_flip and (first_flip + variant) % 2 == 0
        if random_crop > 0.0:
            transforms.append(Transform(1.0 - random_crop * scale, left, top, flip))
        else:
            transforms.append(Transform(flip=flip))
    return transforms


def load_or_encode(
    folder: Path,
    images: Sequence[SourceImage],
    transforms: Sequence[Sequence[Transform]],
    image_size: int,
    background: str,
    vae_identity: str,
    load_vae: Callable[[], Any],
) -> Latents:
    """Take the moments from their cache; entries that are stale, damaged or absent are computed, and only those.

    An entry depends on the image's bytes, the transform, the size, the background and the VAE. Each image is
    encoded by itself, because convolutions round differently at other batch sizes.

    Args:
        folder: the cache, run/cache/latents.
        images: n images.
        transforms: of each image, equally many; the first one plain.
        image_size: side in pixels.
        background: colour behind transparent pixels.
        vae_identity: digest of the VAE.
        load_vae: loads the AutoencoderKL on the device to compute on; called only if something is missing.

    Raises:
        DataError: an image cannot be decoded.
        NumericError: a latent is not finite; names the image.
        Stopped: a signal asked for a stop; finished entries are kept.
    """
    common = [_FORMAT, image_size, background, vae_identity]
    keys = [
        [sha256_json([image.sha256, vars(transform), *common]) for transform in chosen]
        for image, chosen in zip(images, transforms, strict=True)
    ]
    wanted = {key for row in keys for key in row}
    stored = _read_shards(folder)
    missing: dict[str, tuple[SourceImage, Transform]] = {}
    for image, chosen, row in zip(images, transforms, keys, strict=True):
        missing.update({key: (image, one) for key, one in zip(row, chosen, strict=True) if key not in stored})
    if missing:
        _encode(folder, missing, image_size, background, load_vae())
        _remove_unwanted(folder, wanted)
        stored = _read_shards(folder)
    shards: list[Tensor] = []
    numbers: dict[Path, int] = {}
    for path, tensor, _ in stored.values():
        if path not in numbers:
            numbers[path] = len(shards)
            shards.append(tensor)
    places = [[(numbers[stored[key][0]], stored[key][2]) for key in row] for row in keys]
    return Latents(shards, places)


def _encode(
    folder: Path, missing: dict[str, tuple[SourceImage, Transform]], image_size: int, background: str, vae: Any
) -> None:
    """Compute entries and write them, a shard at a time."""
    todo = list(missing.items())
    with meter("encoding images", len(todo), "images") as shown:
        for first in range(0, len(todo), _SHARD):
            part = todo[first : first + _SHARD]
            moments = []
            for number, (_, (image, transform)) in enumerate(part):
                pixels = transform.apply(decode(image.path, background), image_size)
                moments.append(encode_image(vae, pixels, str(image.path)))
                shown.advance()
                if flag and number + 1 < len(part):
                    _write_shard(folder, [key for key, _ in part[: number + 1]], torch.stack(moments))
                    flag.check(f"{first + number + 1} of {len(todo)} images are encoded and kept")
            _write_shard(folder, [key for key, _ in part], torch.stack(moments))
            flag.check(f"{first + len(part)} of {len(todo)} images are encoded and kept")


@torch.no_grad()
def encode_image(vae: Any, pixels: Tensor, name: str = "image") -> Tensor:
    """Moments of one image: (3, H, W) float32 in [-1, 1] => (2C, h, w) float32 on the CPU.

    Raises:
        NumericError: they are not finite; names `name`.
    """
    device = next(vae.parameters()).device
    moments: Tensor = vae.encode(pixels[None].to(device)).latent_dist.parameters[0].float().cpu()
    if not bool(moments.isfinite().all()):
        raise NumericError(f"the latents of {name} are not finite", why="the VAE overflows or its weights are damaged")
    return moments


def _write_shard(folder: Path, keys: Sequence[str], moments: Tensor) -> None:
    moments = moments.contiguous()
    facts = {"keys": list(keys), "digest": _digest(moments)}
    # Named by its keys, so that a file that is in use is never overwritten with something else.
    path = folder / f"{sha256_json(list(keys))[:16]}.safetensors"
    write_bytes(path, save({"moments": moments}, {"mvc": json.dumps(facts)}))


def _digest(moments: Tensor) -> str:
    return sha256_bytes(moments.numpy().tobytes())


def _shards(folder: Path) -> Iterator[tuple[Path, Tensor, list[str]]]:
    """The files that are whole, with their keys; a damaged one is reported and removed."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["mvc"])
                moments = file.get_tensor("moments")
            if facts["digest"] != _digest(moments) or len(facts["keys"]) != len(moments):
                raise ValueError("the numbers do not match their digest")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"latents: {path} is damaged ({error}); its images are encoded again")
            path.unlink()
            continue
        yield path, moments, facts["keys"]


def _read_shards(folder: Path) -> dict[str, tuple[Path, Tensor, int]]:
    """Every entry of the cache by key: file, the file's tensor, and row."""
    remove_leftovers(folder)
    entries = {}
    for path, moments, keys in _shards(folder):
        for row, key in enumerate(keys):
            entries[key] = (path, moments, row)
    return entries


def _remove_unwanted(folder: Path, wanted: set[str]) -> None:
    for path, _, keys in list(_shards(folder)):
        if not wanted.intersection(keys):
            path.unlink()
