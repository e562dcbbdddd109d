"""Back-speech as a whole: sentences there and back for real, what is kept, recorded voices, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.config_augment import SpeechSection
from mvc.errors import ConfigError, EnvironmentFault
from mvc.modality.audio import read_audio
from mvc.modality.back_speech import back_speech_levels
from mvc.modality.chain import Augmented, Chain
from mvc.modality.edit_distance import edit_distance, normal_words, same_words
from mvc.modality.nodes import Level, Sample
from mvc.modality.sphinx import sphinx_step
from mvc.modality.steps import Item, Output, Result, Run, Step
from mvc.modality.store import ROWS, Store
from tests.real_data import real_data

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the program flite is not installed")
SENTENCES = [
    "A small brown dog is sitting on the green grass.",
    "A dog leaps to catch a ball in a field.",
    "A wet black dog is carrying a green toy through the grass.",
]


def levels(**changes: Any) -> list[Level]:
    """The levels of the section's defaults, with changes."""
    settings = {**SpeechSection().model_dump(), **changes}
    return back_speech_levels(**settings, device=torch.device("cpu"), batch_size=16, max_characters=1000)


def counted(made: list[Level], counts: dict[str, int]) -> list[Level]:
    """The same levels, whose steps count what they are asked for."""

    def load(step: Step) -> Run:
        def run(items: Any, seeds: Any) -> list[list[Result]]:
            counts[step.name] = counts.get(step.name, 0) + sum(map(len, seeds))
            return step.run(items, seeds)

        return run

    wrapped = []
    for level in made:
        step = Step(**{**level.step.__dict__, "load": lambda step=level.step: load(step)})
        wrapped.append(Level(step, level.count, level.filters, level.attempts))
    return wrapped


def texts(found: list[Augmented]) -> list[list[Item]]:
    return [[leaf.value for leaf in one.leaves] for one in found]


@needs_flite
def test_sentences_come_back_with_most_of_their_words_and_are_made_once(tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    chain = Chain(counted(levels(variants=3), counts), 2, same_words)
    samples = [Sample(number, text) for number, text in enumerate(SENTENCES)]
    found = chain.augment(samples, 0, Store(tmp_path))
    assert counts["flite (rms)"] == 3 and 6 <= counts["pitch and tempo"] == counts["pocketsphinx"] <= 9
    assert sum(len(one.leaves) for one in found) >= 2
    for one in found:
        assert one.refusal is None and one.looked_at <= 3
        for leaf in one.leaves:
            speech, changed, heard = leaf.trail
            assert 0.0 < heard.facts["edit_distance"] <= 0.2
            assert heard.facts["edit_distance"] == round(edit_distance(one.sample.item, leaf.value), 4)
            kept = set(normal_words(one.sample.item).split()) & set(leaf.value.split())
            assert len(kept) >= len(set(normal_words(one.sample.item).split())) / 2
            assert changed.value.seconds == pytest.approx(speech.value.seconds / changed.facts["tempo"], rel=0.01)
            assert -2 <= changed.facts["semitones"] <= 2 and 0.85 <= changed.facts["tempo"] <= 1.15
            assert (tmp_path / speech.facts["file"]).is_file()

    before = dict(counts)
    again = Chain(counted(levels(variants=3), counts), 2, same_words).augment(samples, 0, Store(tmp_path))
    assert texts(again) == texts(found)
    assert counts == {**before, "pitch and tempo": 2 * before["pitch and tempo"]}  # cheap, and not kept
    kinds = {json.loads(row)["step"] for row in (tmp_path / ROWS).read_text().splitlines()}
    assert kinds == {"flite (rms)", "pocketsphinx"}


@needs_flite
def test_texts_that_cannot_be_spoken_cost_only_themselves() -> None:
    samples = [Sample(number, text) for number, text in enumerate(["собака", SENTENCES[0], "", "x" * 10_000, "狗"])]
    found = Chain(levels(pitch=None, stretch=None, edit_distance=None)).augment(samples, 0, Store(None))
    assert [one.refusal for one in found] == [
        "it holds letters that the voice cannot speak, such as 'с'",
        None,
        "it is empty",
        "it has 10000 characters, more than 1000",
        "it holds letters that the voice cannot speak, such as '狗'",
    ]
    assert texts(found)[1] == ["a small brown dog is sitting on the green grass"]


def test_recorded_voices_are_heard() -> None:
    """Digits at 8 kHz with no sentence around them, 20 by three men: 5 were recognised when this was written."""
    digits = real_data("speech_digits")
    with open(digits / "transcripts.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    sounds = [read_audio(digits / row["file"]) for row in rows]
    assert len(sounds) == 20 and {sound.rate for sound in sounds} == {8000}
    heard = [made[0] for made in sphinx_step().run(sounds, [[0]] * len(sounds))]
    said = [one.value if isinstance(one, Output) else "" for one in heard]
    right = [row["transcript"] == text for row, text in zip(rows, said, strict=True)]
    print(
        f"recognised {sum(right)} of {len(right)}: {list(zip([row['transcript'] for row in rows], said, strict=True))}"
    )
    assert sum(right) >= 4 and sum(bool(text) for text in said) >= 15


def test_levels_are_those_of_the_settings() -> None:
    made = levels(spoken=1, variants=8)
    assert [(level.step.name, level.count) for level in made] == [
        ("flite (rms)", 1),
        ("pitch and tempo", 8),
        ("pocketsphinx", 1),
    ]
    assert [one.name for one in made[-1].filters] == ["edit distance over 20 %"]
    assert not made[0].filters and not made[1].filters
    short = levels(pitch=None, stretch=None, edit_distance=None)
    assert [level.step.name for level in short] == ["flite (rms)", "pocketsphinx"] and not short[-1].filters
    assert [len(levels(pitch=None)), len(levels(stretch=None))] == [3, 3]
    Chain(made)


def test_a_speaker_that_says_the_same_is_not_asked_twice() -> None:
    with pytest.raises(ConfigError, match=r"flite .rms. makes the same of an item every time, and 2 outputs"):
        Chain(levels(spoken=2))


def test_models_are_looked_for_by_their_key(tmp_path: Path) -> None:
    for key in ("speaker", "listener"):
        with pytest.raises(EnvironmentFault, match=f"nowhere\n.*\ndo: give speech.{key} a folder or hub id"):
            levels(**{key: str(tmp_path / "nowhere")})


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "soundfile", None)
        with pytest.raises(
            EnvironmentFault, match=r"speech needs the package soundfile\n.*\ndo: pip install 'mvc\[speech\]'"
        ):
            levels()
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(EnvironmentFault, match="needs the package rapidfuzz"):
        levels()
    assert len(levels(edit_distance=None)) == 3
