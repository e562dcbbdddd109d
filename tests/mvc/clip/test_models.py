"""CLIPs by name, file and folder against open_clip's own, strict loading, and images as open_clip takes them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file

from mvc.clip.configurations import CONFIG, WEIGHTS, find_clip
from mvc.clip.inputs import network_input, normalized
from mvc.clip.models import Clip, identity_of, load_clip, load_weights, save_clip
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.storage import read_json, verified_manifest
from tests.mvc.clip.clip_toys import (
    LENGTH,
    SIDE,
    json_file,
    photo,
    pictures,
    resnet_config,
    texts,
    timm_config,
    toy_clip,
    vit_config,
)

CONFIGS = {"vit": vit_config, "resnet": resnet_config, "timm": timm_config}


def features(clip: Clip, network: Any = None) -> torch.Tensor:
    network = clip.network if network is None else network
    with torch.no_grad():
        return torch.cat(
            [network.encode_image(pictures(2, clip.image_size)), network.encode_text(clip.tokenize(texts(2)))]
        )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_clip(toy_clip(tmp_path), tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_clip_comes_back_to_the_bit_and_open_clip_opens_it(kind: str, tmp_path: Path) -> None:
    clip = toy_clip(tmp_path, CONFIGS[kind]())
    assert save_clip(clip, tmp_path / "saved") == clip.identity
    again = load_clip(tmp_path / "saved")
    assert again.identity == clip.identity and again.config == clip.config
    for name, value in clip.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    torch.testing.assert_close(features(clip), features(clip, theirs.eval()), rtol=0, atol=0)
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")(texts(3))
    assert torch.equal(clip.tokenize(texts(3)), ids) and ids.dtype == torch.int64
    image = Image.fromarray(photo(50, 70))
    torch.testing.assert_close(network_input([image], clip)[0], transform(image), rtol=0, atol=0)
    assert not clip.network.training and clip.image_size == (160 if kind == "timm" else SIDE)
    assert {value.dtype for value in clip.network.parameters()} == {torch.float32}


def test_an_architecture_by_name_is_open_clips_own(tmp_path: Path) -> None:
    clip = load_clip("ViT-S-32-alt", seed=1)
    theirs = open_clip.create_model("ViT-S-32-alt")
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in clip.network.state_dict().items()} == shapes
    theirs.load_state_dict(clip.network.state_dict())
    torch.testing.assert_close(features(clip), features(clip, theirs.eval()), rtol=0, atol=0)
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN and clip.std == open_clip.OPENAI_DATASET_STD
    assert clip.tokenize(["a dog"]).shape == (1, 77)
    # The temperature that training begins with, 0.07.
    assert float(clip.network.state_dict()["logit_scale"].exp()) == pytest.approx(1 / 0.07)


def test_random_weights_depend_on_seed_and_configuration_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = toy_clip(tmp_path)
    before = torch.random.get_rng_state()
    torch.rand(3)
    second, other = toy_clip(tmp_path), toy_clip(tmp_path, seed=1)
    assert first.identity == second.identity != other.identity
    torch.manual_seed(5)
    assert torch.equal(before, torch.random.get_rng_state())  # building draws nothing from it
    values = first.network.state_dict()
    matrices = {name: value for name, value in other.network.state_dict().items() if value.ndim > 1}
    assert matrices and not any(torch.equal(value, values[name]) for name, value in matrices.items())
    assert toy_clip(tmp_path, vit_config(layers=2)).identity != first.identity


def test_the_identity_is_that_of_the_weights_as_they_are(tmp_path: Path) -> None:
    clip = toy_clip(tmp_path)
    with torch.no_grad():
        clip.network.state_dict()["logit_scale"].add_(0.5)
    assert identity_of(clip.network, clip.config) != clip.identity
    identity = save_clip(clip, tmp_path / "saved")
    assert load_clip(tmp_path / "saved").identity == identity != clip.identity
    manifest = verified_manifest(tmp_path / "saved")
    assert manifest is not None and manifest["identity"] == identity
    assert save_clip(toy_clip(tmp_path, seed=2), tmp_path / "saved") == load_clip(tmp_path / "saved").identity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "toy.json"]  # nothing half written


def test_weights_of_a_file_are_put_into_any_form_of_model(saved: Path, tmp_path: Path) -> None:
    scaling = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "interpolation": "bilinear", "resize_mode": "squash"}
    (saved / CONFIG).write_text(json.dumps({"model_cfg": vit_config(), "preprocess_cfg": scaling}))
    clip = load_clip(json_file(tmp_path, vit_config()), saved / WEIGHTS, seed=7)
    assert torch.equal(clip.network.state_dict()["visual.proj"], load_file(saved / WEIGHTS)["visual.proj"])
    # What lies beside the file says how images are scaled.
    assert clip.mean == (0.5, 0.4, 0.3) and clip.config["preprocess_cfg"] == scaling
    assert clip.identity == load_clip(saved).identity
    shutil.copy(saved / WEIGHTS, tmp_path / "alone.safetensors")
    alone = load_clip(json_file(tmp_path, vit_config()), tmp_path / "alone.safetensors")
    assert alone.mean == open_clip.OPENAI_DATASET_MEAN
    whole = load_clip(json_file(tmp_path, read_json(saved / CONFIG)))  # the other form of a JSON file
    assert whole.std == (0.2, 0.2, 0.1)
    halves = {name: value.half() for name, value in load_file(saved / WEIGHTS).items()}
    save_file(halves, tmp_path / "half.safetensors")
    half = load_clip(saved, tmp_path / "half.safetensors").network.state_dict()["visual.proj"]
    assert half.dtype == torch.float32 and torch.equal(half, halves["visual.proj"].float())


@pytest.mark.parametrize(
    "fault, said",
    [
        ("missing", "missing: visual.proj"),
        ("unknown", "unknown: visual.other"),
        ("shape", r"of another shape: visual.proj \(16x16, float32\)"),
        ("kind", r"of another shape: visual.proj \(32x16, int8\)"),
        ("nan", "not finite: visual.proj"),
    ],
)
def test_weights_that_do_not_fit_are_named(fault: str, said: str, saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    changed = {
        "missing": None,
        "unknown": weights["visual.proj"],
        "shape": weights["visual.proj"][:16].clone(),
        "kind": torch.ones(32, 16, dtype=torch.int8),
        "nan": weights["visual.proj"].fill_(torch.nan),
    }[fault]
    if changed is None:
        del weights["visual.proj"]
    else:
        weights["visual.other" if fault == "unknown" else "visual.proj"] = changed
    if fault == "unknown":
        weights["visual.proj"] = torch.ones(32, 16)
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    with pytest.raises(EnvironmentFault, match=said) as caught:
        load_clip(saved, path)
    assert str(path) in str(caught.value) and "another one without an error" in caught.value.why


def test_loading_refuses_pickles_and_broken_files(saved: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pickled.safetensors")
    with pytest.raises(EnvironmentFault, match="pickled.safetensors is a pickled file"):
        load_clip(saved, tmp_path / "pickled.safetensors")
    with pytest.raises(EnvironmentFault, match="absent.safetensors is no file"):
        load_clip(saved, tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((saved / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(EnvironmentFault, match=r"cut.safetensors cannot be read"):
        load_weights(load_clip(saved).network, tmp_path / "cut.safetensors")
    (saved / WEIGHTS).rename(saved / "open_clip_pytorch_model.bin")
    with pytest.raises(EnvironmentFault, match=r"no open_clip_model.safetensors, only open_clip_pytorch_model.bin"):
        load_clip(saved)
    (saved / CONFIG).unlink()
    with pytest.raises(EnvironmentFault, match="has no open_clip_config.json"):
        load_clip(saved)


def test_wrong_names_are_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no CLIP 'vit-b32'; nearest: ViT-B-32, "):
        load_clip("vit-b32")
    with pytest.raises(ConfigError, match=r"there is no file .*absent.json"):
        load_clip(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken.json is not JSON"):
        load_clip(tmp_path / "broken.json")
    with pytest.raises(ConfigError, match="it lacks vision_cfg or text_cfg"):
        load_clip(json_file(tmp_path, {"embed_dim": 3}))


def test_the_hub_gives_json_and_safetensors_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(hub_id: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((hub_id, revision, allow_patterns))
        if hub_id != "someone/toy":
            raise OSError("offline")
        return str(saved)

    monkeypatch.setattr("mvc.hub.snapshot_download", snapshot)
    assert load_clip("someone/toy", revision="v2").identity == load_clip(saved).identity
    assert asked == [("someone/toy", "v2", ["model_index.json", CONFIG, WEIGHTS])]
    with pytest.raises(EnvironmentFault, match="CLIP someone/else is no local folder .* at revision 3") as caught:
        load_clip("someone/else", revision="3")
    assert caught.value.why == "offline"


@pytest.mark.parametrize(
    "name, said",
    [
        ("coca_ViT-B-32", "it is a CoCa"),
        ("roberta-ViT-B-32", "text encoder roberta-base is built from files of the hub"),
        ("ViT-B-16-SigLIP", "tokenizer timm/ViT-B-16-SigLIP is built from files of the hub"),
    ],
)
def test_models_that_need_the_hub_are_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)) as caught:
        find_clip(name)
    assert said in caught.value.why


@pytest.mark.parametrize(
    "part, changes, said",
    [
        ("text_cfg", {"vocab_size": 100}, "vocab_size of 100"),
        ("text_cfg", {"tokenizer_kwargs": {"reduction_mask": "random"}}, "tokenizer_kwargs set reduction_mask"),
        ("vision_cfg", {"image_size": [32, 48]}, "takes images of 32 x 48"),
        ("vision_cfg", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("vision_cfg", {"head_width": 0}, "cannot build the CLIP"),
        ("vision_cfg", {"timm_model_name": "hf-hub:someone/net"}, "which names a place"),
        ("vision_cfg", {"timm_model_name": "no_such_net"}, "no_such_net"),
    ],
)
def test_configurations_that_make_no_clip_are_refused(
    part: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = vit_config()
    config[part] = {**config[part], **changes}
    with pytest.raises(ConfigError) as caught:
        load_clip(json_file(tmp_path, config))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "scaling, said", [({"mean": [1, 2]}, "mean is"), ({"std": "a"}, "std is a"), ({"resize_mode": "x"}, "mode is x")]
)
def test_scalings_that_make_no_sense_are_refused(scaling: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_clip(json_file(tmp_path, {"model_cfg": vit_config(), "preprocess_cfg": scaling}))


@pytest.mark.parametrize("height, width", [(32, 32), (40, 64), (90, 33), (20, 25)])
def test_images_are_resized_cropped_and_scaled_by_hand(height: int, width: int, tmp_path: Path) -> None:
    clip, pixels = toy_clip(tmp_path), photo(height, width)
    found = network_input([pixels], clip)
    size = (int(SIDE * width / min(height, width)), int(SIDE * height / min(height, width)))
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    square = torch.tensor(list(resized.crop((left, top, left + SIDE, top + SIDE)).tobytes()), dtype=torch.float64)
    expected = square.view(SIDE, SIDE, 3) / 255
    expected = (expected - torch.tensor(clip.mean)) / torch.tensor(clip.std)
    torch.testing.assert_close(found[0].double(), expected.permute(2, 0, 1), rtol=0, atol=1e-5)
    theirs = image_transform(SIDE, is_train=False)(Image.fromarray(pixels))
    assert torch.equal(found[0], theirs) and found.dtype == torch.float32


def test_kinds_of_images_give_the_same_input(tmp_path: Path) -> None:
    clip, pixels = toy_clip(tmp_path), photo(40, 50)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    found = network_input([Image.fromarray(pixels), pixels, tensor], clip)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.equal(network_input(tensor[None], clip)[0], found[0])
    grey = Image.fromarray(pixels[..., 0])
    assert torch.equal(network_input([grey], clip), network_input([pixels[..., :1].repeat(3, axis=2)], clip))
    assert network_input([], clip).shape == (0, 3, SIDE, SIDE)
    for wrong in (tensor.float(), tensor[:2], pixels[..., 0]):
        with pytest.raises(ValueError, match=re.escape(f"{tuple(wrong.shape)} and type {wrong.dtype}")):
            network_input([wrong], clip)


def test_squares_are_scaled_as_the_transform_scales_them(tmp_path: Path) -> None:
    clip, pixels = toy_clip(tmp_path), torch.from_numpy(photo(SIDE, SIDE)).permute(2, 0, 1)[None]
    expected = network_input(pixels, clip)
    torch.testing.assert_close(normalized(pixels, clip), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalized(pixels.float() / 255, clip), expected, rtol=0, atol=1e-6)
    doubles = (pixels.double() / 255).requires_grad_()
    normalized(doubles, clip).sum().backward()
    assert doubles.grad is not None
    assert doubles.grad[0, :, 0, 0].tolist() == pytest.approx([1 / value for value in clip.std])


def test_long_texts_are_cut_at_the_last_token(tmp_path: Path) -> None:
    ids = toy_clip(tmp_path).tokenize(["a " * 50, "a"])
    assert ids.shape == (2, LENGTH) and ids[0, -1] == 49407 and ids[1].tolist() == [49406, 320, 49407] + [0] * 9
