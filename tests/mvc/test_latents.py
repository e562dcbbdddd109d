from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvc import latents
from mvc.errors import NumericError, Stopped
from mvc.images import decode, to_tensor
from mvc.latents import Latents, SourceImage, Transform, draw_transforms, encode_image, load_or_encode
from mvc.randomness import generator, numpy_generator
from mvc.stopping import flag
from mvc.storage import sha256_file
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, tiny_vae


def write_image(path: Path, number: int) -> SourceImage:
    pixels = numpy_generator(0, "test image", number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return SourceImage(path.name, path, sha256_file(path))


@pytest.fixture
def images(tmp_path: Path) -> list[SourceImage]:
    return [write_image(tmp_path / f"{number}.png", number) for number in range(4)]


class Counted:
    """Loads a VAE and counts the images it encodes."""

    def __init__(self, seed: int = 0) -> None:
        self.vae: Any = tiny_vae(seed)
        self.count = 0
        self.vae.encoder.register_forward_hook(self._note)

    def _note(self, module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.count += len(inputs[0])

    def __call__(self) -> Any:
        return self.vae


def plain(
    folder: Path, images: list[SourceImage], load: Callable[[], Any], size: int = IMAGE_SIZE, vae: str = "vae"
) -> Latents:
    return load_or_encode(folder, images, [[Transform()]] * len(images), size, "white", vae, load)


def refuse() -> Any:
    raise AssertionError("the cache should have answered")


def test_cached_moments_are_the_vaes_own_to_the_bit(tmp_path: Path, images: list[SourceImage]) -> None:
    vae: Any = tiny_vae()
    plain(tmp_path / "cache", images, lambda: vae)
    stored = plain(tmp_path / "cache", images, refuse)
    for number, image in enumerate(images):
        with torch.no_grad():
            posterior = vae.encode(to_tensor(decode(image.path), IMAGE_SIZE)[None]).latent_dist
        assert torch.equal(stored.moments([number]), posterior.parameters)
        assert torch.equal(latents.mode(stored.moments([number])), posterior.mode())
        noise = torch.randn((1, 4, LATENT_SIZE, LATENT_SIZE), generator=generator(0, "test", number))
        expected = posterior.sample(generator=generator(0, "test", number))
        assert torch.equal(latents.sample(stored.moments([number]), noise), expected)
    assert stored.variants == 1 and stored.moments([2, 0, 2]).shape == (3, 8, LATENT_SIZE, LATENT_SIZE)


def test_extreme_log_variances_are_bounded_as_in_diffusers() -> None:
    moments = torch.tensor([0.0, 0.0, 0.0, 100.0, -100.0, 0.0]).reshape(1, 6, 1, 1)
    deviation = latents.sample(moments, torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(deviation, torch.tensor([20.0, -30.0, 0.0]).mul(0.5).exp())


def test_only_what_changed_is_encoded_again(tmp_path: Path, images: list[SourceImage]) -> None:
    load = Counted()
    before = plain(tmp_path / "cache", images, load)
    assert load.count == 4
    images[1] = write_image(images[1].path, 99)
    after = plain(tmp_path / "cache", images, load)
    assert load.count == 5
    changed = [not torch.equal(before.moments([number]), after.moments([number])) for number in range(4)]
    assert changed == [False, True, False, False]
    plain(tmp_path / "cache", [*images, write_image(tmp_path / "more.png", 50)], load)
    assert load.count == 6
    plain(tmp_path / "cache", images[::-1], refuse)


def test_another_size_or_vae_is_encoded_again(tmp_path: Path, images: list[SourceImage]) -> None:
    load, other = Counted(), Counted(seed=1)
    plain(tmp_path / "cache", images, load)
    assert plain(tmp_path / "cache", images, load, size=16).moments([0]).shape == (1, 8, 4, 4)
    assert load.count == 8
    second = plain(tmp_path / "cache", images, other, vae="other vae")
    assert other.count == 4
    assert torch.equal(second.moments([0])[0], encode_image(other.vae, to_tensor(decode(images[0].path), IMAGE_SIZE)))
    # What nobody wants any more is gone.
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, images: list[SourceImage], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Counted()
    before = plain(tmp_path / "cache", images, load).moments(range(4)).clone()
    [path] = (tmp_path / "cache").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.unlink()
    path.write_bytes({"bit": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    assert torch.equal(plain(tmp_path / "cache", images, load).moments(range(4)), before)
    assert load.count == 8 and "is damaged" in capsys.readouterr().err


def test_a_stop_keeps_what_is_encoded(
    tmp_path: Path, images: list[SourceImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Counted()
    monkeypatch.setattr(flag, "signal", None)
    load.vae.encoder.register_forward_hook(lambda *_: setattr(flag, "signal", 15 if load.count == 2 else None))
    with pytest.raises(Stopped, match="2 of 4 images are encoded and kept"):
        plain(tmp_path / "cache", images, load)
    flag.signal = None
    plain(tmp_path / "cache", images, load)
    assert load.count == 4


def test_latents_that_are_not_finite_are_refused(tmp_path: Path, images: list[SourceImage]) -> None:
    load = Counted()
    torch.nn.init.constant_(load.vae.quant_conv.bias, float("nan"))
    with pytest.raises(NumericError, match=r"0\.png are not finite"):
        plain(tmp_path / "cache", images, load)
    assert not list((tmp_path / "cache").glob("*"))


def test_transforms_cut_and_mirror(images: list[SourceImage]) -> None:
    image = decode(images[0].path)  # 50 wide, 40 high
    corner = Transform(0.5, 0.0, 1.0).apply(image, 20)
    assert torch.equal(corner, to_tensor(image.crop((0, 20, 20, 40)), 20))
    flipped = Transform(flip=True).apply(image, 20)
    assert torch.equal(flipped.flip(2), Transform().apply(image, 20))
    assert torch.equal(Transform().apply(image, 20), to_tensor(image, 20))


def test_random_transforms_are_within_bounds_and_half_are_mirrored() -> None:
    assert draw_transforms(0, 5, 4, False, 0.0) == [Transform()]
    drawn = [one for image in range(200) for one in draw_transforms(0, image, 4, True, 0.3)[1:]]
    assert len(drawn) == 800 and sum(one.flip for one in drawn) == 400
    scales = [one.scale for one in drawn]
    assert 0.7 <= min(scales) < 0.71 and 0.99 < max(scales) <= 1.0
    assert 0.0 <= min(one.left for one in drawn) and max(one.top for one in drawn) < 1.0
    assert draw_transforms(0, 7, 4, True, 0.3) == draw_transforms(0, 7, 6, True, 0.3)[:5]
    assert not any(one.flip for one in draw_transforms(0, 7, 9, False, 0.3))
    assert {draw_transforms(0, image, 1, True, 0.0)[1].flip for image in range(20)} == {False, True}


def test_variants_are_kept_apart_and_equal_ones_computed_once(tmp_path: Path, images: list[SourceImage]) -> None:
    load = Counted()
    transforms = [draw_transforms(0, number, 4, True, 0.0) for number in range(4)]
    stored = load_or_encode(tmp_path / "cache", images, transforms, IMAGE_SIZE, "white", "vae", load)
    # Four variants of which two are mirrored: with the plain one there are two different squares of each image.
    assert stored.variants == 5 and load.count == 8
    for variant, transform in enumerate(transforms[1]):
        pixels = transform.apply(decode(images[1].path), IMAGE_SIZE)
        assert torch.equal(stored.moments([1], [variant])[0], encode_image(load.vae, pixels))
    plain(tmp_path / "cache", images, refuse)
