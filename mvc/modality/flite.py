"""Text to speech by flite, a small synthesiser of English that Debian ships; it says the same every time."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from mvc.errors import DataError, EnvironmentFault
from mvc.storage import sha256_json

from .audio import Audio, read_audio
from .steps import Item, Refused, Result, Run, Step, one_each, within
from .words import attached

_GET = "install it: apt-get install flite (Debian, Ubuntu), brew install flite (macOS)"
_SECONDS, _SECONDS_A_CHARACTER = 60.0, 0.1
"""flite was measured at 1 ms a character: whoever waits a hundred times as long waits for nothing."""
_ALIKE = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "⁄": "/"}
    | {"Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Ø": "O", "ø": "o", "Ł": "L", "ł": "l", "ß": "ss"}
    | {"Đ": "D", "đ": "d", "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "ı": "i"}
)
"""Signs and letters that Unicode does not decompose into plain ones."""


def flite_step(voice: str, max_characters: int) -> Step:
    """A step that speaks texts with flite, one process a text; no randomness.

    Its sounds have the voice's own rate, 16 kHz but for kal (8 kHz). Accents are left out, as English readers do;
    signs that flite cannot say are left out too. Texts that it would leave out in whole or in part are refused.

    Args:
        voice: such as "rms", of those that `flite -lv` lists.
        max_characters: longer texts are refused.

    Its `run` raises:
        EnvironmentFault: flite is missing, has no such voice, or fails.
    """
    program = shutil.which("flite")
    version = _version(program) if program else "missing"

    def load() -> Run:
        require_flite(voice)

        def speak(texts: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            with tempfile.TemporaryDirectory(prefix="mvc-flite-") as folder:
                return within(
                    texts,
                    lambda text: why_not(text, max_characters),
                    lambda batch: [_spoken(plain(attached(text)), voice, Path(folder)) for text in batch],
                )

        return one_each(speak)

    return Step(f"flite ({voice})", "text", "audio", load, sha256_json(["flite", 2, version, voice]), random=False)


def require_flite(voice: str) -> None:
    """Check that flite is there and has a voice; it would take another one without a word.

    Raises:
        EnvironmentFault: it isn't, or hasn't.
    """
    program = shutil.which("flite")
    if program is None:
        raise EnvironmentFault("the program flite is missing", why="it is not on the PATH", do=_GET)
    known = _asked(program, "-lv").rpartition(":")[2].split()
    if voice not in known:
        raise EnvironmentFault(
            f"flite has no voice {voice!r}", why=f"it has {', '.join(known)}", do="name one of these in speech.voice"
        )


def plain(text: str) -> str:
    """A text in ASCII for an English reader: accents left out, signs beyond ASCII as spaces.

    Letters that have no plain form stay as they are; `foreign_letter` finds them.
    """
    parts = unicodedata.normalize("NFKD", text.translate(_ALIKE)).translate(_ALIKE)
    kept = (one for one in parts if not unicodedata.combining(one))
    return "".join(one if one.isalnum() or " " <= one <= "~" else " " for one in kept)


def foreign_letter(text: str) -> str | None:
    """The first letter or digit of a text that is none of English even without accents; None if there is none."""
    return next((one for one in plain(text) if one.isalnum() and not one.isascii()), None)


def why_not(text: str, max_characters: int, unknown: Callable[[str], str | None] = foreign_letter) -> str | None:
    """Why a voice cannot say a text, in words; None if it can.

    Args:
        text: any.
        max_characters: longer texts are refused.
        unknown: gives the first letter or digit of a text that the voice would leave out without a word.
    """
    if len(text) > max_characters:
        return f"it has {len(text)} characters, more than {max_characters}"
    if not any(one.isalnum() for one in text):
        return "it has no word to speak" if text.strip() else "it is empty"
    letter = unknown(text)
    return None if letter is None else f"it holds letters that the voice cannot speak, such as {letter!r}"


def _spoken(text: str, voice: str, folder: Path) -> Audio | Refused:
    """The sound of a text. A file holds it, so that neither its length nor a dash at its beginning matter."""
    source, target = folder / "text.txt", folder / "speech.wav"
    source.write_text(text, encoding="ascii")
    target.unlink(missing_ok=True)
    limit = _SECONDS + _SECONDS_A_CHARACTER * len(text)
    command = ["flite", "-voice", voice, "-f", str(source), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit)
    except subprocess.TimeoutExpired:
        return Refused(f"flite did not finish it within {limit:.0f} seconds")
    except OSError as error:
        raise EnvironmentFault("flite cannot be started", why=str(error), do=_GET) from error
    try:
        return read_audio(target)
    except DataError as error:
        why = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}, and {error.what}"
        raise EnvironmentFault("flite made no sound file", why=why, do="check the space below TMPDIR") from error


def _version(program: str) -> str:
    """flite's version, such as "flite-2.2-current Sep 2018"."""
    found = re.search(r"version: ([^(\n]*)", _asked(program, "--version"))
    return found[1].strip() if found else "unknown"


def _asked(program: str, option: str) -> str:
    """What flite answers; its exit code says nothing, --version ends with 1."""
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{program} cannot be run", why=str(error), do=_GET) from error
    return done.stdout + done.stderr
