"""The only source of randomness: a generator made afresh from (seed, purpose, index).

Nothing has to be saved to resume, and no draw depends on batch size, worker count, number of
processes or on what was drawn before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *index: int) -> int:
    """Hash (seed, purpose, index) to an integer in [0, 2**63).

    Args:
        seed: the user's seed.
        purpose: what the draw is for, such as "noise"; different purposes are independent.
        *index: global numbers of the draw, such as epoch and sample.
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(number)) for number in index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Make a fresh CPU generator whose state depends on (seed, purpose, index) alone."""
    return torch.Generator("cpu").manual_seed(derived_seed(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Make a fresh numpy generator, for the places where many integers are drawn at once."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, purpose, *index)))


@contextmanager
def seeded_global(seed: int, purpose: str, *index: int) -> Iterator[None]:
    """Seed torch's global CPU randomness inside the block and restore it afterwards.

    For library code that takes no generator: the initial weights of a module, dropout,
    torchvision's random transforms.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reach for accelerators; the default generator alone is meant here.
        torch.default_generator.manual_seed(derived_seed(seed, purpose, *index))
        yield
