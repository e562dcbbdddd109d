"""One digest of all that lies below a folder, to see that nothing changed."""

from __future__ import annotations

from pathlib import Path

from mvc.storage import files_below, sha256_file, sha256_json


def sha256_folder(folder: Path) -> str:
    """sha256 over the names and contents of all files below a folder."""
    return sha256_json([[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files_below(folder)])
