"""Models on the Hugging Face hub: fetched once, and used from its cache afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from mvc.errors import EnvironmentFault

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def fetch(hub_id: str, revision: str | None, patterns: Sequence[str], key: str = "model.base") -> Path:
    """Fetch some files of a repository; what is in the hub's cache already needs no network.

    Args:
        hub_id: owner/name.
        revision: branch, tag or commit.
        patterns: of the paths to fetch, besides model_index.json; copies in half precision are left out.
        key: which key of the experiment the error is about.

    Returns:
        the folder of that revision in the cache.

    Raises:
        EnvironmentFault: unknown, gated, offline and not in the cache, or timed out.
    """
    try:
        fetched = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["model_index.json", *patterns],
            ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"],
        )
    except Exception as error:  # each cause raises another kind
        raise EnvironmentFault(
            f"{key} {hub_id} is no local folder and cannot be had from the hub"
            + (f" at revision {revision}" if revision else ""),
            why=" ".join(str(error).split())[:200],
            do="check the name and the network, or give the path of a local diffusers folder",
        ) from error
    return Path(fetched)
