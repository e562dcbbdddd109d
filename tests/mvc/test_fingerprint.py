from __future__ import annotations

import os
from pathlib import Path

from mvc.fingerprint import place_digest


def test_a_place_is_a_folder_a_file_or_an_id(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    seen = {place_digest(str(tmp_path)), place_digest(str(file)), place_digest("owner/name")}
    assert "owner/name" in seen and len(seen) == 3
    file.write_bytes(b"two")
    os.utime(file, ns=(2, 2))
    assert not {place_digest(str(tmp_path)), place_digest(str(file))} & seen
