"""The validation loss: Eq. (4) on a fixed set of samples, of images that fine-tuning never sees where there are enough.

Everything is drawn once from a seed of its own, so two values differ by the weights alone. Only training images
are used: the validation and test splits belong to the classifiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc import latents
from mvc.latents import Latents
from mvc.pairs import class_members, draw_partner
from mvc.randomness import derived_seed, generator

from .batches import Batch, ClassText, Materials, Sampling, mixed_texts
from .objective import sample_losses

KEPT = 2
"""Images of a class that are always left to train on: x and x'."""


def hold_out(seed: int, labels: Sequence[int], share: float) -> list[int]:
    """Numbers of the images that are kept from fine-tuning, ascending: int(share k) of a class of k, if 2 are left.

    Args:
        seed: run.seed; which ones is drawn from (seed, "held out", class).
        labels: class of each training image.
        share: of each class, in [0, 1).
    """
    chosen: list[int] = []
    for label, members in class_members(tuple(labels)).items():
        # A share such as 0.29 of 100 is a little less than 29 in binary.
        count = max(0, min(int(share * len(members) + 1e-9), len(members) - KEPT))
        order = torch.randperm(len(members), generator=generator(seed, "held out", label)).tolist()
        chosen += [members[place] for place in order[:count]]
    return sorted(chosen)


def without(materials: Materials, images: Collection[int]) -> Materials:
    """The same materials less some images and their captions; nothing is copied but the rows of captions.

    Args:
        materials: of all training images; the captions of a class lie in the order of its images.
        images: numbers of the images to leave out.
    """
    if not images:
        return materials
    left_out = set(images)
    kept = [number for number in range(len(materials.labels)) if number not in left_out]
    members = class_members(materials.labels)
    texts = []
    for label, text in enumerate(materials.texts):
        rows = [row for row, image in enumerate(members.get(label, ())) if image not in left_out]
        texts.append(text if len(rows) == len(members.get(label, ())) else _rows_of(text, rows))
    return replace(
        materials,
        labels=tuple(materials.labels[number] for number in kept),
        images=Latents(materials.images.shards, [materials.images.places[number] for number in kept]),
        texts=texts,
    )


def _rows_of(text: ClassText, rows: Sequence[int]) -> ClassText:
    chosen = list(rows)
    return replace(
        text, embeddings=text.embeddings[chosen], pooled=None if text.pooled is None else text.pooled[chosen]
    )


def in_turn(seed: int, labels: Sequence[int], images: Sequence[int], count: int) -> list[int]:
    """`count` of some images, one class after the other and all over again once every one was taken.

    Args:
        seed: randomness of the order within a class and of the classes, from (seed, "in turn").
        labels: class of each training image.
        images: numbers of the images to take, at least one.
        count: how many; equal for all that come before it.
    """
    order = torch.randperm(len(images), generator=generator(seed, "in turn")).tolist()
    seen: Counter[int] = Counter()
    ranked = []
    for place in order:
        label = labels[images[place]]
        ranked.append((seen[label], images[place]))
        seen[label] += 1
    ranked.sort(key=lambda entry: entry[0])
    return [ranked[number % len(ranked)][1] for number in range(count)]


def fixed_batches(
    materials: Materials, sampling: Sampling, images: Sequence[int], count: int, batch_size: int
) -> list[Batch]:
    """The samples of the validation loss, on the CPU; the same for equal arguments, however they are batched.

    x goes through `images`, x' is another image of its class, and the timesteps lie evenly on the schedule. Both
    images are plain and the modes of their posteriors; nothing is dropped, and the noise has no offset.

    Args:
        materials: of all training images, held-out ones included.
        sampling: as in training; randomness from (sampling.seed, "validation") and the sample's number.
        images: numbers of the images to denoise; all of them where it is empty.
        count: samples in all.
        batch_size: samples a batch; the last one may be smaller.
    """
    fixed = replace(sampling, seed=derived_seed(sampling.seed, "validation"))
    chosen = in_turn(fixed.seed, materials.labels, images or range(len(materials.labels)), count)
    partners = _partners(materials, fixed, chosen)
    timesteps = [(2 * number + 1) * sampling.timesteps // (2 * count) for number in range(count)]
    return [
        plain_batch(materials, fixed, range(count)[part], chosen[part], partners[part], timesteps[part])
        for part in (slice(first, first + batch_size) for first in range(0, count, batch_size))
    ]


def _partners(materials: Materials, fixed: Sampling, images: Sequence[int]) -> list[int]:
    if fixed.pairing == "self":
        return list(images)
    members = class_members(materials.labels)
    return [
        draw_partner(fixed.seed, number, image, members[materials.labels[image]]) for number, image in enumerate(images)
    ]


def plain_batch(
    materials: Materials,
    fixed: Sampling,
    numbers: Sequence[int],
    images: Sequence[int],
    partners: Sequence[int],
    timesteps: Sequence[int],
) -> Batch:
    """Samples of given images and timesteps, without dropout, transforms, VAE noise and noise offset.

    Args:
        materials: what they are made from.
        fixed: how texts are mixed and x' is scaled; randomness from (fixed.seed, purpose, number).
        numbers: B numbers for the draws of noise and mixing.
        images: numbers of x.
        partners: numbers of x'.
        timesteps: of each.
    """
    clean = latents.mode(materials.images.moments(images)) * materials.scaling_factor
    image_latents = latents.mode(materials.images.moments(partners))
    if fixed.image_latents_scaled:
        image_latents = image_latents * materials.scaling_factor
    noise = [torch.randn(clean.shape[1:], generator=generator(fixed.seed, "noise", number)) for number in numbers]
    text, pooled = mixed_texts(materials, fixed, numbers, [materials.labels[image] for image in images])
    return Batch(
        latents=clean,
        noise=torch.stack(noise),
        timesteps=torch.tensor(timesteps),
        encoder_hidden_states=text,
        image_latents=image_latents,
        text_embeds=pooled,
        time_ids=None if materials.time_ids is None else materials.time_ids.repeat(len(numbers), 1),
    )


@torch.no_grad()
def validation_loss(model: Any, noise_scheduler: Any, batches: Sequence[Batch], accelerator: Accelerator) -> float:
    """Mean loss over all samples, unweighted; the model is left in the mode it was in.

    Every process has to call it. Each takes every so many-th batch, and all make equally many forward passes,
    because sharded weights are gathered by all processes together.

    Args:
        model: the UNet, wrapped for several processes or not, on the accelerator's device.
        noise_scheduler: DDPMScheduler.
        batches: at least one, equal on all processes.
        accelerator: precision and processes.

    Returns:
        the mean on all processes, which may be not finite.
    """
    processes, process = accelerator.num_processes, accelerator.process_index
    sizes = [len(batch.timesteps) for batch in batches]
    # Each loss has its own place, so that the order of adding up is the same for any number of processes.
    losses = torch.zeros(sum(sizes), device=accelerator.device)
    training = model.training
    model.eval()
    try:
        for first in range(0, len(batches), processes):
            place = min(first + process, len(batches) - 1)
            batch = batches[place].to(accelerator.device)
            with accelerator.autocast():
                found = sample_losses(model, noise_scheduler, batch)
            if first + process < len(batches):
                start = sum(sizes[:place])
                losses[start : start + sizes[place]] = found
    finally:
        model.train(training)
    summed: Tensor = accelerator.reduce(losses, "sum")
    return float(summed.cpu().double().mean())
