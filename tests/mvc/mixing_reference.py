"""Algorithm 1 row by row, as plain as it can be written: what the batched form must equal exactly."""

from __future__ import annotations

from typing import Any

import torch


def mix_one(recipe: dict[str, Any], embeddings: torch.Tensor) -> torch.Tensor:
    """Apply one recorded recipe; `embeddings` is (k, m, d), positions are 1-based and inclusive."""
    mixed = embeddings[recipe["base"]].clone()
    for partner, r, s in recipe["coarse"]:
        mixed[r - 1 : s, :] = embeddings[partner][r - 1 : s, :]  # line 8
    for partner, w, u, v in recipe["fine"]:
        mixed[w - 1, u - 1 : v] = embeddings[partner][w - 1, u - 1 : v]  # line 14
    return mixed
