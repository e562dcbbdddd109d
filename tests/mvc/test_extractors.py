from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from mvc.errors import ConfigError, EnvironmentFault, NumericError
from mvc.extractors import FORMS, Extractor, find_extractor
from mvc.randomness import numpy_generator, seeded_global
from mvc.tiny import DIGIT_WORDS, WEIGHTS
from mvc.tiny.evaluate import clip_features, enlarged_digits

CPU = torch.device("cpu")
TOY = "mvc-test-toy"


def picture(number: int, side: int = 40) -> NDArray[np.uint8]:
    return numpy_generator(0, "test picture", number).integers(0, 256, (side, side + 4, 3)).astype(np.uint8)


@pytest.fixture
def tiny() -> Extractor:
    return find_extractor("tiny").load(CPU)


@pytest.fixture
def toy_open_clip(tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{TOY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{TOY}.json")
    with seeded_global(0, "test open_clip"):
        model: Any = open_clip.create_model(TOY)
    path = tmp_path / "toy.safetensors"
    save_file(model.state_dict(), path)
    yield model.eval(), path
    open_clip.factory._MODEL_CONFIGS.pop(TOY)


@pytest.fixture
def toy_timm(tmp_path: Path) -> tuple[Any, Path]:
    with seeded_global(0, "test timm"):
        model: Any = timm.create_model("test_vit", pretrained=False)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    return model.eval(), tmp_path / "vit.safetensors"


def test_the_tiny_clip_says_what_its_own_measurement_says(tiny: Extractor) -> None:
    clip: Any = CLIPModel.from_pretrained(WEIGHTS / "clip", use_safetensors=True, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    pictures, _ = enlarged_digits()
    texts = [f"This is an image of {word}." for word in DIGIT_WORDS[:3]]
    images, words = clip_features(clip, tokenizer, pictures[:4], texts)
    ours = np.stack([tiny.encode(one.permute(1, 2, 0).numpy()) for one in pictures[:4]])
    torch.testing.assert_close(torch.nn.functional.normalize(torch.from_numpy(ours)), images, atol=1e-5, rtol=0)
    said = torch.nn.functional.normalize(torch.from_numpy(tiny.encode_texts(texts)))
    torch.testing.assert_close(said, words, atol=1e-5, rtol=0)
    assert ours.dtype == np.float32 and ours.shape == (4, tiny.width) and tiny.width == 128


def test_auto_is_tiny_and_unicode_texts_of_any_length_are_encoded(tiny: Extractor) -> None:
    assert find_extractor("auto").identity == find_extractor("tiny").identity == tiny.identity
    texts = ["", "Katze 🐈", "猫", "a " * 500]
    features = tiny.encode_texts(texts)
    assert features.shape == (4, 128) and bool(np.isfinite(features).all())
    assert np.array_equal(features[2], tiny.encode_texts([texts[2]])[0])
    assert tiny.encode_texts([]).shape == (0, 128)


def test_a_folder_is_known_by_its_content(tmp_path: Path, tiny: Extractor) -> None:
    folder = tmp_path / "my clip"
    shutil.copytree(WEIGHTS / "clip", folder)
    same = find_extractor(str(folder))
    assert same.identity == tiny.identity and same.name == "the CLIP in my clip" and same.has_text
    assert np.array_equal(same.load(CPU).encode(picture(0)), tiny.encode(picture(0)))
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] * 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    other = find_extractor(str(folder))
    assert other.identity != same.identity
    np.testing.assert_allclose(other.load(CPU).encode(picture(0)), 2 * tiny.encode(picture(0)), rtol=1e-4, atol=1e-5)


def test_open_clip_answers_as_the_library_does(toy_open_clip: tuple[Any, Path]) -> None:
    model, path = toy_open_clip
    found = find_extractor(f"open_clip:{TOY}:{path}")
    extractor = found.load(CPU)
    assert extractor.width == 24 and found.has_text and found.identity == extractor.identity
    transform = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        expected = model.encode_image(transform(Image.fromarray(picture(1)))[None])[0]
        texts = model.encode_text(open_clip.get_tokenizer(TOY)(["a cat", "größe 猫"]))
    np.testing.assert_allclose(extractor.encode(picture(1)), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(extractor.encode_texts(["a cat", "größe 猫"]), texts.numpy(), atol=1e-5)


def test_open_clip_takes_the_scaling_that_lies_beside_the_file(toy_open_clip: tuple[Any, Path]) -> None:
    model, path = toy_open_clip
    before = find_extractor(f"open_clip:{TOY}:{path}")
    scaling = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    (path.parent / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": scaling}))
    found = find_extractor(f"open_clip:{TOY}:{path}")
    assert found.identity != before.identity
    transform = open_clip.image_transform(
        32, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"
    )
    with torch.no_grad():
        expected = model.encode_image(transform(Image.fromarray(picture(1)))[None])[0]
    np.testing.assert_allclose(found.load(CPU).encode(picture(1)), expected.numpy(), atol=1e-6)


def test_timm_answers_as_the_library_does_before_its_head(toy_timm: tuple[Any, Path]) -> None:
    model, path = toy_timm
    found = find_extractor(f"timm:test_vit:{path}")
    extractor = found.load(CPU)
    data: Any = timm.data
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        pixels = transform(Image.fromarray(picture(2, 180)))[None]
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)[0]
    np.testing.assert_allclose(extractor.encode(picture(2, 180)), expected.numpy(), atol=1e-6)
    assert extractor.width == len(expected) and not found.has_text
    with pytest.raises(ConfigError, match="knows images only"):
        extractor.encode_texts(["a cat"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("clip", r"quality\.extractor: 'clip' is no extractor"),
        ("openclip:ViT-B-32:x", "no such folder either"),
        ("timm:resnet18", "lacks a part\ndo: write timm:MODEL:FILE.safetensors"),
        ("timm::x.safetensors", "lacks a part"),
        ("open_clip:ViT-B-32:nowhere.safetensors", "nowhere.safetensors is no file"),
        ("timm:no_such_net:{file}", "timm has no model 'no_such_net'"),
        ("timm:hf-hub:timm/resnet18:{file}", "is no file"),
        ("open_clip:no such:{file}", "open_clip has no model 'no such'"),
    ],
)
def test_what_is_no_extractor_is_refused_with_the_forms(spec: str, said: str, toy_timm: tuple[Any, Path]) -> None:
    with pytest.raises(ConfigError, match=said):
        find_extractor(spec.format(file=toy_timm[1]), "quality.extractor")


def test_the_forms_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        find_extractor("clip")
    assert FORMS in str(caught.value)


@pytest.mark.parametrize("kind", ["timm:test_vit", f"open_clip:{TOY}"])
def test_pickled_weights_are_refused(kind: str, tmp_path: Path) -> None:
    for name in ("net.pth", "net.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(EnvironmentFault, match="is a pickled file"):
            find_extractor(f"{kind}:{tmp_path / name}")


def test_a_folder_without_clip_or_with_pickles_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="holds no CLIPModel\nwhy: it has no config.json"):
        find_extractor(str(tmp_path))
    with pytest.raises(EnvironmentFault, match="its config.json says clip_text_model"):
        find_extractor(str(WEIGHTS / "text_encoder"))
    shutil.copytree(WEIGHTS / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").rename(tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(EnvironmentFault, match="only pytorch_model.bin"):
        find_extractor(str(tmp_path / "clip")).load(CPU)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "missing: blocks.0.attn.proj.weight"),
        ("unknown", "unknown: extra"),
        ("shape", "of another shape: blocks.0.attn.proj.weight"),
        ("nan", "not finite: blocks.0.attn.proj.weight"),
    ],
)
def test_timm_weights_that_do_not_fit_are_refused(fault: str, said: str, toy_timm: tuple[Any, Path]) -> None:
    weights, name = load_file(toy_timm[1]), "blocks.0.attn.proj.weight"
    changes = {
        "missing": {key: value for key, value in weights.items() if key != name},
        "unknown": {**weights, "extra": torch.zeros(1)},
        "shape": {**weights, name: weights[name][:1].clone()},
        "nan": {**weights, name: weights[name] * float("nan")},
    }
    save_file(changes[fault], toy_timm[1])
    with pytest.raises(EnvironmentFault, match=said):
        find_extractor(f"timm:test_vit:{toy_timm[1]}").load(CPU)


def test_files_of_another_model_or_cut_short_are_refused(
    toy_timm: tuple[Any, Path], toy_open_clip: tuple[Any, Path]
) -> None:
    with pytest.raises(EnvironmentFault, match=f"cannot be loaded as open_clip's {TOY}"):
        find_extractor(f"open_clip:{TOY}:{toy_timm[1]}").load(CPU)
    toy_timm[1].write_bytes(toy_timm[1].read_bytes()[:-100])
    with pytest.raises(EnvironmentFault, match="cannot be loaded as timm's test_vit"):
        find_extractor(f"timm:test_vit:{toy_timm[1]}").load(CPU)


def test_features_that_are_not_finite_are_an_error() -> None:
    broken = Extractor("a net", "id", 2, lambda image: torch.tensor([1.0, float("inf")]))
    with pytest.raises(NumericError, match="a net: the features of an image are not finite"):
        broken.encode(picture(0))
