"""The arms of a comparison by name: strategy, source of the synthetic images, their ratio, augmentation.

real    two_phase    rsp@finetuned    combined:0.5    two_phase@finetuned:2+randaugment    real+autoaugment
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from mvc.config_generation import SOURCES

STRATEGIES = ("real", "duplicate", "synthetic_only", "combined", "rsp", "two_phase", "weighted")
NEEDS_SYNTHETIC = STRATEGIES[1:]
"""Strategies that are undefined without synthetic images; `duplicate` needs their number only."""
USES_SYNTHETIC = STRATEGIES[2:]
"""Strategies that show synthetic images to the classifier."""
Augmentation = Literal[
    "none",
    "default",
    "autoaugment",
    "fast_autoaugment",
    "randaugment",
    "trivialaugment",
    "random_erasing",
    "mixup",
    "cutmix",
    "alignmixup",
    "puzzlemix",
    "mixgen",
]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
_PATTERN = re.compile(
    r"^(?P<strategy>[a-z_]+)(@(?P<source>[a-z0-9_]+))?(:(?P<ratio>[0-9.]+))?(\+(?P<augmentation>\w+))?$"
)


@dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Args:
        strategy: one of STRATEGIES.
        source: synthetic images of this source alone; None for all.
        ratio: synthetic images for each real one, above 0; None for classify.ratio, or for all there are.
        augmentation: one of AUGMENTATIONS; None for classify.augmentation.
    """

    strategy: str
    source: str | None = None
    ratio: float | None = None
    augmentation: str | None = None

    @property
    def name(self) -> str:
        """The text that `parse_arm` reads back."""
        source = "" if self.source is None else f"@{self.source}"
        ratio = "" if self.ratio is None else f":{self.ratio:g}"
        return f"{self.strategy}{source}{ratio}{'' if self.augmentation is None else f'+{self.augmentation}'}"

    @property
    def uses_synthetic(self) -> bool:
        """Whether it shows synthetic images to the classifier."""
        return self.strategy in USES_SYNTHETIC

    @property
    def file_stem(self) -> str:
        """Its name as part of a file name, where "@", ":" and "+" would be awkward."""
        return self.name.replace("@", "-at-").replace(":", "-ratio-").replace("+", "-and-")


def parse_arm(text: str) -> Arm:
    """Read STRATEGY[@SOURCE][:RATIO][+AUGMENTATION].

    Raises:
        ValueError: a part is unknown, or does not go with the strategy; the text names it.
    """
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(f"'{text}' is not an arm: write STRATEGY[@SOURCE][:RATIO][+AUGMENTATION], as rsp@finetuned:2")
    parts = match.groupdict()
    for part, known in (("strategy", STRATEGIES), ("source", SOURCES), ("augmentation", AUGMENTATIONS)):
        if parts[part] is not None and parts[part] not in known:
            raise ValueError(f"unknown {part} '{parts[part]}' in arm '{text}'; one of {', '.join(known)}")
    ratio = None if parts["ratio"] is None else _ratio(parts["ratio"], text)
    arm = Arm(parts["strategy"], parts["source"], ratio, parts["augmentation"])
    if arm.strategy == "real" and (arm.source, arm.ratio) != (None, None):
        raise ValueError(f"arm '{text}': real takes no source and no ratio")
    return arm


def _ratio(text: str, arm: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if ratio <= 0:
        raise ValueError(f"arm '{arm}': the ratio '{text}' is not a number above 0")
    return ratio
