"""The embedded default: tiny pre-trained models of Stable Diffusion's own classes, and a digits data set."""

from __future__ import annotations

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"
"""Folder of the shipped weights, in the layout of a diffusers StableDiffusionPipeline."""

DIGIT_WORDS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
"""The word of each digit, in the order of the digits."""
