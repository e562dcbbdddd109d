"""Which device is computed on, and what is said where it is not there."""

from __future__ import annotations

import pytest
import torch

from mvc.devices import pick_device
from mvc.errors import EnvironmentFault


def test_the_device_asked_for_or_an_error() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(EnvironmentFault, match=f"there is no device {missing} here"):
        pick_device(missing)
