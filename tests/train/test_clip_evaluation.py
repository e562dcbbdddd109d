"""What a CLIP is worth: recalls and accuracy by hand, class folders, and `mvc clip-evaluate` of a saved CLIP."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mvc.cli import app
from mvc.clip.models import save_clip
from mvc.clip.pairs import read_pairs
from mvc.clip.zero_shot import TEMPLATES
from mvc.errors import ConfigError, DataError, EnvironmentFault, Stopped
from mvc.stopping import flag
from mvc.train.clip_evaluation import class_folders, measured, print_evaluation, zero_shot_accuracy
from tests.train.clip_colours import COLOURS, colour_clip, colour_pairs, write_colour
from tests.train.clip_runs import toy_clip, write_model, write_pairs


def test_retrieval_by_hand(tmp_path: Path) -> None:
    # Texts: red, blue + green, blue green, red green, red blue, red. Wrong ones that score as well count as better.
    # Wrong texts before an image's best own one: red 1 (the other "red"), green 0, blue 2 ("blue", "red blue"),
    # yellow 0, magenta 0, white 6. Wrong images before a text's own: 0; 5 and 0; 2 (green, white); 0; 0; 3.
    found = measured(colour_clip(), colour_pairs(tmp_path), 64)
    text, image = {"1": 100 * 3 / 6, "5": 100 * 5 / 6}, {"1": 100 * 4 / 7, "5": 100 * 6 / 7}
    assert (found["images"], found["captions"]) == (6, 7)
    assert found["text_retrieval"] == pytest.approx(text) and found["image_retrieval"] == pytest.approx(image)
    assert found["rsum"] == pytest.approx(sum(text.values()) + sum(image.values()))
    assert measured(colour_clip(), colour_pairs(tmp_path), 2) == found


def test_right_captions_find_and_are_found(tmp_path: Path) -> None:
    right = {"red": ["red"], "green": ["green", "one Green"], "yellow": ["green red"], "white": ["red green blue"]}
    found = measured(colour_clip(), colour_pairs(tmp_path, captions=right), 64)
    # Of four images there is no recall among five or ten.
    assert (found["text_retrieval"], found["image_retrieval"], found["rsum"]) == ({"1": 100.0}, {"1": 100.0}, 200.0)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Test images of red and deep blue, of which some are in between; and training images, all of them wrong."""
    root = tmp_path / "classes"
    for number, blue in enumerate((0, 150, 200, 210)):
        write_colour(root / "test" / "red" / f"{number}.png", (255, 0, blue))
    for number, red in enumerate((0, 250)):
        write_colour(root / "test" / "deep_blue" / f"{number}.png", (red, 0, 200))
    write_colour(root / "train" / "red" / "0.png", COLOURS["blue"])
    write_colour(root / "train" / "deep_blue" / "0.png", COLOURS["red"])
    return root


def test_accuracy_by_hand(classes: Path) -> None:
    folders, clip = class_folders(classes), colour_clip()
    assert folders.words == ["deep blue", "red"] and sorted(label for _, label in folders.images) == [0, 0, 1, 1, 1, 1]
    # Whatever is more red than blue is red, as one blue image is.
    assert zero_shot_accuracy(clip, folders, ["{}"], 64) == 5 / 6
    # "deep blue red" is (1, 0, 1) / sqrt 2, which whatever has more than 0.41 times as much blue as red is nearer to.
    assert zero_shot_accuracy(clip, folders, ["{} red"], 1) == 3 / 6
    # The mean of both is (0.38, 0, 0.92), with a limit of 0.67 times.
    assert zero_shot_accuracy(clip, folders, ["{} red", "{}"], 64) == 4 / 6
    with pytest.raises(ConfigError, match="the template 'red' must have {} exactly once"):
        zero_shot_accuracy(clip, folders, ["red"], 64)


def test_which_images_are_classified(classes: Path, tmp_path: Path) -> None:
    assert {path.parts[-3] for path, _ in class_folders(classes).images} == {"test"}
    plain = tmp_path / "plain"
    (classes / "train").rename(plain)
    assert [(path.parent.name, label) for path, label in class_folders(plain).images] == [("deep_blue", 0), ("red", 1)]
    with pytest.raises(DataError, match="nowhere"):
        class_folders(tmp_path / "nowhere")
    write_colour(plain / "deep-blue" / "0.png", COLOURS["blue"])
    with pytest.raises(
        ConfigError, match=r"classes with the same words: deep-blue, deep_blue -> deep blue(.|\n)*rename the folders"
    ):
        class_folders(plain)


def test_the_digest_sees_changed_images_and_words(classes: Path) -> None:
    first = class_folders(classes).digest
    assert class_folders(classes).digest == first
    path = next((classes / "test" / "red").iterdir())
    os.utime(path, ns=(10**18, 10**18))
    touched = class_folders(classes).digest
    path.unlink()
    fewer = class_folders(classes).digest
    for split in ("train", "test"):
        (classes / split / "red").rename(classes / split / "crimson")
    assert len({first, touched, fewer, class_folders(classes).digest}) == 4


def test_a_stop_ends_a_measurement(tmp_path: Path) -> None:
    pairs = colour_pairs(tmp_path)
    flag.signal = 15
    try:
        with pytest.raises(Stopped):
            measured(colour_clip(), pairs, 2)
    finally:
        flag.signal = None


def test_an_image_that_cannot_be_decoded_is_named(classes: Path, tmp_path: Path) -> None:
    pairs = colour_pairs(tmp_path)
    (tmp_path / "test" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        measured(colour_clip(), pairs, 64)
    (classes / "test" / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"red/0\.png"):
        zero_shot_accuracy(colour_clip(), class_folders(classes), ["{}"], 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP at toy width as `mvc clip` leaves one."""
    folder = tmp_path_factory.mktemp("saved")
    save_clip(toy_clip(folder), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["clip-evaluate", *map(str, arguments), "--device", "cpu"])


def test_the_command_prints_what_is_measured(saved: Path, data: Path, classes: Path) -> None:
    done = evaluate(saved, "--data", data, "--classes", classes, "--batch-size", 3)
    assert done.exit_code == 0, done.output
    clip = toy_clip(saved.parent)
    found = measured(clip, read_pairs(data, "test"), 64)
    accuracy = zero_shot_accuracy(clip, class_folders(classes), TEMPLATES, 64)
    recalls = [", ".join(f"R@{k} {v:.1f}" for k, v in found[f"{kind}_retrieval"].items()) for kind in ("text", "image")]
    assert done.stdout.splitlines() == [
        "6 images, 8 captions of test",
        f"text retrieval: {recalls[0]}",
        f"image retrieval: {recalls[1]}",
        f"RSUM: {found['rsum']:.1f}",
        f"zero-shot: {100 * accuracy:.1f} per cent of 6 images, 2 classes",
    ]


def test_the_command_measures_one_or_the_other_of_any_split(saved: Path, data: Path, classes: Path) -> None:
    done = evaluate(saved, "--data", data, "--split", "validation")
    assert done.exit_code == 0 and "4 images, 6 captions of validation" in done.stdout and "zero" not in done.stdout
    done = evaluate(saved, "--classes", classes, "--template", "a {}", "--template", "one {}.")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 1
    accuracy = zero_shot_accuracy(toy_clip(saved.parent), class_folders(classes), ["a {}", "one {}."], 64)
    assert done.stdout.startswith(f"zero-shot: {100 * accuracy:.1f} per cent of 6 images")


def test_an_architecture_with_weights_is_the_model(saved: Path, data: Path, tmp_path: Path) -> None:
    one = evaluate(saved, "--data", data)
    other = evaluate(write_model(tmp_path), "--weights", saved / "open_clip_model.safetensors", "--data", data)
    assert one.exit_code == other.exit_code == 0 and one.stdout == other.stdout


def test_what_cannot_be_measured_is_said(saved: Path, data: Path, classes: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.safetensors"
    for arguments, error, message in (
        ((saved,), ConfigError, "nothing says what to measure(.|\n)*--data PAIRS, --classes FOLDER, or both"),
        ((write_model(tmp_path), "--data", data), ConfigError, "an architecture without weights(.|\n)*--weights FILE"),
        ((write_model(tmp_path), "--data", data, "--weights", none), EnvironmentFault, "none.safetensors"),
        ((saved, "--data", tmp_path / "nowhere"), DataError, "nowhere"),
        ((saved, "--data", data, "--split", "holdout"), ConfigError, "holdout"),
        ((saved, "--data", data / "train", "--split", "test"), DataError, "test"),
        ((saved, "--classes", classes, "--template", "red"), ConfigError, "the template 'red'"),
        ((tmp_path / "VIT-B", "--data", data), ConfigError, "VIT-B"),
    ):
        done = evaluate(*arguments)
        assert isinstance(done.exception, error), (arguments, done.exception)
        with pytest.raises(error, match=message):
            raise done.exception
    assert evaluate(saved, "--data", data, "--batch-size", 0).exit_code == 2
    with pytest.raises(EnvironmentFault, match="tpu"):
        print_evaluation(str(saved), None, str(data), "test", None, None, 64, "tpu")
