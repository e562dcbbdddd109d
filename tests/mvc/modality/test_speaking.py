"""Text-to-speech models of transformers, real ones at toy width: seeds, speakers, vocoders, and what is missing."""

from __future__ import annotations

import json
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FastSpeech2ConformerWithHifiGan,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5Tokenizer,
    VitsModel,
    VitsTokenizer,
)

from mvc.errors import ConfigError, EnvironmentFault
from mvc.modality import speaking
from mvc.modality.audio import Audio
from mvc.modality.speaking import speaking_step
from mvc.modality.steps import Output, Refused, Result, Step
from mvc.modality.voices import load_fastspeech2, speaker_tensor
from mvc.randomness import derived_seed
from tests.mvc.modality.tiny_voices import save_fastspeech2, save_speaker, save_speecht5, save_vits, save_vocoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("speech models")
    return {
        "vits": save_vits(root / "vits"),
        "speakers": save_vits(root / "speakers", 3),
        "still": save_vits(root / "still", noise_scale=0.0, noise_scale_duration=0.0),
        "speecht5": save_speecht5(root / "speecht5"),
        "vocoder": save_vocoder(root / "vocoder"),
        "speaker": save_speaker(root / "speaker.safetensors"),
        "fastspeech2": save_fastspeech2(root / "fastspeech2"),
    }


def vits(folder: Path, voice: str = "rms", **settings: Any) -> Step:
    return speaking_step(folder, None, voice, None, CPU, settings.get("batch_size", 4), settings.get("most", 100))


def speecht5(models: dict[str, Path], **other: Path) -> Step:
    used = {**models, **other}
    return speaking_step(used["speecht5"], None, str(used["speaker"]), used["vocoder"], CPU, 4, 100)


def sounds(results: list[list[Result]]) -> list[Audio]:
    assert all(isinstance(one, Output) for made in results for one in made), results
    return [one.value for made in results for one in made if isinstance(one, Output)]


@pytest.mark.parametrize("kind", ["vits", "speecht5"])
def test_noise_comes_from_the_seed_of_each_output_alone(models: dict[str, Path], kind: str) -> None:
    step = vits(models["vits"]) if kind == "vits" else speecht5(models)
    assert callable(step.run)  # loaded
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    together = sounds(step.run(["a small dog", "another text"], [[1, 2], [2, 1]]))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    alone = [sounds(step.run([text], [[seed]]))[0] for text, seed in (("another text", 1), ("a small dog", 2))]
    assert alone[0].digest() == together[3].digest() and alone[1].digest() == together[1].digest()
    assert len({one.digest() for one in together}) == 4
    assert step.random and step.name.startswith(f"{kind} (") and (step.takes, step.gives) == ("text", "audio")
    for one in together:
        assert np.abs(one.samples).max() <= 1.0 and one.samples.std() > 0.001 and one.samples.dtype == np.float32
        assert one.rate == (16000 if kind == "vits" else 22050)


def test_vits_equals_the_model_called_by_hand(models: dict[str, Path]) -> None:
    model, tokenizer = (
        VitsModel.from_pretrained(models["speakers"]).eval(),
        VitsTokenizer.from_pretrained(models["speakers"]),
    )
    made = sounds(vits(models["speakers"], "2").run(["A dog 's asleep!"], [[7]]))[0]
    with torch.no_grad():
        torch.manual_seed(derived_seed(7, "speech"))
        wanted = model(**tokenizer("A dog's asleep!", return_tensors="pt"), speaker_id=2).waveform[0].numpy()
    assert made.samples.shape == wanted.shape and np.abs(made.samples - wanted).max() <= 0.6 / 32767
    assert tokenizer.decode(tokenizer("A dog's, asleep!").input_ids) == "a dog's asleep"


def test_speakers_of_vits_differ_and_must_be_numbers(models: dict[str, Path]) -> None:
    steps = [vits(models["speakers"], voice) for voice in ("0", "1")]
    one, other = (sounds(step.run(["a dog"], [[0]]))[0] for step in steps)
    assert one.digest() != other.digest() and steps[0].identity != steps[1].identity
    for voice in ("rms", "3", "-1", ""):
        with pytest.raises(
            ConfigError, match=f"has 3 speakers, and '{voice}' is none.*\ndo: give speech.voice .* 0 to 2"
        ):
            vits(models["speakers"], voice)


def test_a_vits_without_noise_is_not_random(models: dict[str, Path]) -> None:
    step = vits(models["still"])
    assert not step.random
    one, other = sounds(step.run(["a dog"], [[1, 2]]))
    assert one.digest() == other.digest()


def test_speecht5_equals_the_model_called_by_hand(models: dict[str, Path]) -> None:
    """With numbers in words, and at most as long as its positions reach: 20 frames a letter would be too many."""
    made = sounds(speecht5(models).run(["it has 3 dogs"], [[7]]))[0]
    model = SpeechT5ForTextToSpeech.from_pretrained(models["speecht5"]).eval()
    gan = SpeechT5HifiGan.from_pretrained(models["vocoder"]).eval()
    tokenizer = SpeechT5Tokenizer.from_pretrained(models["speecht5"])
    ids = tokenizer("it has three dogs", return_tensors="pt").input_ids
    speaker = torch.linspace(-1.0, 1.0, 512)[None]
    torch.manual_seed(derived_seed(7, "speech"))
    wanted = model.generate_speech(ids, speaker, vocoder=gan, maxlenratio=200 / ids.shape[1]).detach().numpy()
    assert made.samples.shape == wanted.shape == (2 * 100 * 16,)
    assert np.abs(made.samples - wanted).max() <= 0.6 / 32767


def test_speecht5_with_another_speaker_or_vocoder_is_another_step(models: dict[str, Path], tmp_path: Path) -> None:
    other = save_speaker(tmp_path / "other.safetensors", any_name=torch.linspace(1.0, -1.0, 512)[None])
    steps = [speecht5(models), speecht5(models, speaker=other)]
    one, another = (sounds(step.run(["a dog"], [[0]]))[0] for step in steps)
    assert one.digest() != another.digest() and steps[0].identity != steps[1].identity
    (tmp_path / "speecht5").mkdir()
    for path in models["speecht5"].iterdir():
        (tmp_path / "speecht5" / path.name).write_bytes(path.read_bytes() + (b" " if path.suffix == ".model" else b""))
    assert speecht5(models, speecht5=tmp_path / "speecht5").identity != steps[0].identity


def test_speecht5_says_what_is_lacking(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a vocoder, and speech.vocoder names none\ndo: .*HiFi-GAN"):
        speaking_step(models["speecht5"], None, str(models["speaker"]), None, CPU, 4, 100)
    with pytest.raises(ConfigError, match="needs the tensor of a speaker, and rms is no file\ndo: give speech.voice"):
        speaking_step(models["speecht5"], None, "rms", models["vocoder"], CPU, 4, 100)
    with pytest.raises(EnvironmentFault, match="cannot load the HiFi-GAN .*\n.*\ndo: give speech.vocoder"):
        speecht5(models, vocoder=models["speecht5"]).run(["a"], [[0]])
    wide = save_vocoder(tmp_path / "wide", bands=9)
    with pytest.raises(EnvironmentFault, match="HiFi-GAN .*\nwhy: it takes 9 bands, and the model gives 8"):
        speecht5(models, vocoder=wide).run(["a"], [[0]])


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"a": torch.zeros(511)}, r"it holds \[\[511\]\]"),
        ({"a": torch.zeros(512), "b": torch.zeros(512)}, r"it holds \[\[512\], \[512\]\]"),
        ({"a": torch.full((512,), float("nan"))}, "its numbers are not finite"),
    ],
)
def test_a_speaker_is_one_tensor_of_512_numbers(tmp_path: Path, tensors: dict[str, torch.Tensor], why: str) -> None:
    path = save_speaker(tmp_path / "speaker.safetensors", **tensors)
    with pytest.raises(
        EnvironmentFault, match=rf"cannot use the speaker .*\nwhy: {why}\ndo: give speech.voice .*\(512,\)"
    ):
        speaker_tensor(path, 512)
    (tmp_path / "speaker.safetensors").write_bytes(b"pickled, or what not")
    with pytest.raises(EnvironmentFault, match="cannot use the speaker"):
        speaker_tensor(path, 512)


def test_fastspeech2_speaks_ids_the_same_every_time(models: dict[str, Path]) -> None:
    """The model for real; its ids come from letters here and not from the tokenizer, which needs data of NLTK."""

    def ids(text: str) -> torch.Tensor:
        return torch.tensor([[2 + string.ascii_lowercase.find(letter) for letter in text]])

    speaker = load_fastspeech2(models["fastspeech2"], CPU, ids)
    run = speaking._run(speaker, CPU, 100)
    one, other, another = sounds(run(["aword", "anotherword"], [[1, 2], [1]]))
    assert one.digest() == other.digest() != another.digest()
    assert one.rate == 22050 and len(one.samples) > 16 * 5 and one.samples.std() > 0
    model = FastSpeech2ConformerWithHifiGan.from_pretrained(models["fastspeech2"]).eval()
    with torch.no_grad():
        wanted = model(ids("aword")).waveform[0].numpy()
    assert np.abs(one.samples - wanted).max() <= 0.6 / 32767
    assert run(["слово"], [[0]]) == [[Refused("it holds letters that the voice cannot speak, such as 'с'")]]


def test_fastspeech2_step_says_what_its_tokenizer_lacks(models: dict[str, Path]) -> None:
    step = speaking_step(models["fastspeech2"], None, "rms", None, CPU, 4, 100)
    assert not step.random
    if find_spec("g2p_en") is None:
        with pytest.raises(EnvironmentFault, match="needs the package g2p_en\ndo: pip install g2p-en"):
            step.run(["a word"], [[0]])
        return
    try:
        made = step.run(["a word"], [[0]])
    except EnvironmentFault as error:
        assert "g2p-en needs data of NLTK" in str(error) and "nltk.downloader cmudict" in str(error)
    else:
        assert sounds(made)[0].rate == 22050


@pytest.mark.parametrize("kind", ["vits", "speecht5"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        (" . ", "it has no word to speak"),
        ("x" * 10_000, "it has 10000 characters, more than 100"),
        ("собака", "it holds letters that the voice cannot speak, such as 'с'"),
        ("a dog, 狗", "it holds letters that the voice cannot speak, such as '狗'"),
        ("a café", "it holds letters that the voice cannot speak, such as 'é'"),
    ],
)
def test_what_a_voice_would_leave_out_is_refused(models: dict[str, Path], kind: str, text: str, why: str) -> None:
    step = vits(models["vits"]) if kind == "vits" else speecht5(models)
    made = step.run([text, "a dog"], [[0], [0]])
    assert made[0] == [Refused(why)] and isinstance(made[1][0], Output)


def test_digits_are_spoken_in_words_or_not_at_all(models: dict[str, Path]) -> None:
    why = Refused("it holds letters that the voice cannot speak, such as '3'")
    assert vits(models["vits"]).run(["3 dogs"], [[0]]) == [[why]]
    long = "number " * 5 + "777777"  # 41 letters, and more than 60 in words
    tokenizer = SpeechT5Tokenizer.from_pretrained(models["speecht5"])
    count = len(tokenizer(tokenizer.normalizer(long)).input_ids)
    assert count > 60
    assert speecht5(models).run([long], [[0]]) == [
        [Refused(f"it has {count} letters in words, and the voice takes 60")]
    ]


def test_signs_that_speecht5_does_not_know_are_passed_over(models: dict[str, Path]) -> None:
    one, other = sounds(speecht5(models).run(["a dog ~ a cat", "a dog   a cat"], [[3], [3]]))
    assert one.digest() == other.digest()


def test_a_vits_that_needs_another_package_names_it(models: dict[str, Path], tmp_path: Path) -> None:
    for setting, package in (("phonemize", "phonemizer"), ("is_uroman", "uroman")):
        if find_spec(package) is not None:
            continue
        folder = tmp_path / setting
        folder.mkdir()
        for path in models["vits"].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        facts = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**facts, setting: True}))
        with pytest.raises(EnvironmentFault, match=f"needs the package {package}\ndo: pip install {package}"):
            vits(folder).run(["a dog"], [[0]])


def test_other_models_and_damaged_ones_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match="it is a speecht5_hifigan; known are vits, speecht5, fastspeech2.*\n.*speaker"
    ):
        vits(models["vocoder"])
    with pytest.raises(
        EnvironmentFault, match="cannot load the text-to-speech model .*nowhere.*\n.*\ndo: give speech.speaker"
    ):
        vits(tmp_path / "nowhere")
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in models["vits"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EnvironmentFault, match="cannot load the text-to-speech model .*damaged"):
        vits(folder).run(["a dog"], [[0]])
    (folder / "model.safetensors").write_bytes(weights)
    assert sounds(vits(folder).run(["a dog"], [[0]]))
