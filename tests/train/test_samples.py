"""Sample pictures: what is in them, the same bytes for the same weights, and nothing changed by drawing them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from mvc import images
from mvc.denoise import decode, denoise, make_scheduler
from mvc.diffusion import guidance_terms
from mvc.embeddings import time_ids
from mvc.report.pictures import GAP
from mvc.storage import read_json
from mvc.train.samples import SampleDrawer, SampleInputs, sample_inputs
from tests.tiny_parts import IMAGE_SIZE, WIDTH, WIDTH_2, sd_scheduler, tiny_unet, tiny_vae, tiny_xl_unet
from tests.train.toy import LABELS, materials, normal, sampling, wide_unet

STEPS, TERMS = 3, guidance_terms("paper", 2.0)


def unet_for_drawing(seed: int = 0) -> Any:
    unet = wide_unet(seed)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] = 0.1 * normal(8, 4, 3, 3)
    return unet


def drawer(run: Path, inputs: SampleInputs, loads: list[int] | None = None) -> SampleDrawer:
    def load_vae() -> Any:
        if loads is not None:
            loads.append(1)
        return tiny_vae()

    config = sd_scheduler().config
    return SampleDrawer(run, inputs, "dpmsolver++", config, TERMS, STEPS, load_vae, Accelerator(cpu=True))


def tiles(path: Path, row: int, count: int) -> list[NDArray[np.uint8]]:
    """The first `count` images of a row of a picture."""
    pixels, step = np.asarray(images.decode(path)), IMAGE_SIZE + GAP
    top = row * step
    return [pixels[top : top + IMAGE_SIZE, column * step : column * step + IMAGE_SIZE] for column in range(count)]


def test_inputs_go_through_the_classes_and_do_not_depend_on_how_many() -> None:
    things, how = materials(), sampling(image_latents_scaled=True)
    inputs = sample_inputs(things, how, 6, 4)
    assert sorted(inputs.classes[:2]) == ["cat", "dog"] and inputs.classes[2:4] == inputs.classes[:2]
    assert [len(batch.noise) for batch in inputs.batches] == [4, 2]
    fewer = sample_inputs(things, how, 3, 3)
    assert fewer.classes == inputs.classes[:3]
    means = things.images.moments(range(7))[:, :4]
    for name in ("noise", "encoder_hidden_states", "image_latents", "latents"):
        whole = torch.cat([getattr(batch, name) for batch in inputs.batches])
        assert torch.equal(getattr(fewer.batches[0], name), whole[:3]), name
    for batch in inputs.batches:
        assert torch.equal(batch.image_latents, batch.latents)
    plain = sample_inputs(things, sampling(), 6, 6).batches[0].image_latents
    shown = [next(i for i in range(7) if torch.equal(means[i], one)) for one in plain]
    assert len(set(shown)) == 6 and [("cat", "dog")[LABELS[image]] for image in shown] == inputs.classes
    other = sample_inputs(things, sampling(seed=1), 6, 6).batches[0]
    assert not torch.equal(other.noise, torch.cat([batch.noise for batch in inputs.batches]))


def test_picture_holds_conditions_and_what_was_drawn_with_them(tmp_path: Path) -> None:
    unet, inputs = unet_for_drawing(), sample_inputs(materials(), sampling(), 5, 2)
    drawer(tmp_path, inputs).draw(unet, 250)
    path, vae = tmp_path / "samples/step-000250.png", tiny_vae()
    assert images.decode(path).size == (5 * (IMAGE_SIZE + GAP) - GAP, 2 * IMAGE_SIZE + GAP)
    facts = read_json(tmp_path / "samples/samples.json")
    assert facts == {"side": IMAGE_SIZE, "columns": 5, "classes": inputs.classes}
    number = 0
    for batch in inputs.batches:
        found = denoise(
            unet.eval(),
            make_scheduler("dpmsolver++", sd_scheduler().config),
            batch.noise,
            batch.encoder_hidden_states,
            inputs.null,
            batch.image_latents,
            TERMS,
            STEPS,
        )
        for row in range(len(found)):
            assert np.array_equal(
                tiles(path, 0, 5)[number], images.to_pixels(decode(vae, batch.latents[row : row + 1])[0])
            )
            assert np.array_equal(tiles(path, 1, 5)[number], images.to_pixels(decode(vae, found[row : row + 1])[0]))
            number += 1
    assert number == 5 and len({tile.tobytes() for row in (0, 1) for tile in tiles(path, row, 5)}) == 10


@pytest.mark.parametrize("training", [True, False])
def test_same_weights_same_bytes_and_nothing_changes(tmp_path: Path, training: bool) -> None:
    unet, loads = unet_for_drawing().train(training), list[int]()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    state, draw = torch.get_rng_state(), drawer(tmp_path, sample_inputs(materials(), sampling(), 3, 2), loads)
    draw.draw(unet, 1)
    draw.draw(unet, 2)
    drawer(tmp_path, sample_inputs(materials(), sampling(), 3, 2)).draw(unet, 3)
    files = [(tmp_path / f"samples/step-00000{step}.png").read_bytes() for step in (1, 2, 3)]
    assert files[0] == files[1] == files[2]
    assert loads == [1] and unet.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(value.grad is None for value in unet.parameters())
    draw.draw(unet_for_drawing(seed=1), 4)
    assert (tmp_path / "samples/step-000004.png").read_bytes() != files[0]


def test_diverged_weights_still_give_a_picture(tmp_path: Path) -> None:
    unet = unet_for_drawing()
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    drawer(tmp_path, sample_inputs(materials(), sampling(), 2, 2)).draw(unet, 7)
    path = tmp_path / "samples/step-000007.png"
    assert all((tile == 128).all() for tile in tiles(path, 1, 2))
    assert all(tile.std() > 1 for tile in tiles(path, 0, 2))


def test_dropout_layers_rest_meanwhile(tmp_path: Path) -> None:
    inputs = sample_inputs(materials(), sampling(), 2, 2)
    drawer(tmp_path, inputs).draw(tiny_unet(in_channels=8, dropout=0.5).train(), 1)
    drawer(tmp_path, inputs).draw(tiny_unet(in_channels=8), 2)
    files = [(tmp_path / f"samples/step-00000{step}.png").read_bytes() for step in (1, 2)]
    assert files[0] == files[1]


def test_the_mode_comes_back_after_an_error(tmp_path: Path) -> None:
    unet, inputs = unet_for_drawing().train(), sample_inputs(materials(), sampling(), 2, 2)
    narrow = replace(inputs, null=torch.zeros(6, 3))
    with pytest.raises(RuntimeError):
        drawer(tmp_path, narrow).draw(unet, 1)
    assert unet.training and not (tmp_path / "samples").exists()


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc", "ddim", "euler"])
def test_scheduler_of_training_draws_as_that_of_generation(name: str) -> None:
    """Training holds a DDPMScheduler; generation reads the folder's configuration. Both give the same schedule."""
    config = dict(sd_scheduler().config)
    kind: Any = DDPMScheduler
    ours, theirs = make_scheduler(name, kind.from_config(config).config), make_scheduler(name, config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    noise, prediction = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    for timestep in ours.timesteps:
        steps = [one.step(prediction, timestep, noise, return_dict=False)[0] for one in (ours, theirs)]
        assert torch.equal(*steps)


def test_an_sdxl_gets_pooled_vectors_and_sizes(tmp_path: Path) -> None:
    """Its UNet refuses to run without them, and what is drawn depends on both."""
    plain, unet = materials(), tiny_xl_unet(in_channels=8)
    texts = [replace(text, pooled=normal(len(text.embeddings), WIDTH_2, seed=7)) for text in plain.texts]
    wide = normal(4, 6, WIDTH + WIDTH_2, seed=9)
    texts = [replace(text, embeddings=wide[: len(text.embeddings)]) for text in texts]
    things = replace(
        plain, texts=texts, null=wide[0], null_pooled=normal(WIDTH_2, seed=8), time_ids=time_ids(IMAGE_SIZE)
    )
    inputs = sample_inputs(things, sampling(), 2, 2)
    drawer(tmp_path, inputs).draw(unet, 1)
    changed = [
        replace(inputs, null_pooled=normal(WIDTH_2, seed=10)),
        replace(inputs, batches=[replace(inputs.batches[0], time_ids=torch.full((2, 6), 99.0))]),
        replace(inputs, batches=[replace(inputs.batches[0], text_embeds=normal(2, WIDTH_2, seed=11))]),
    ]
    for step, other in enumerate(changed, start=2):
        drawer(tmp_path, other).draw(unet, step)
    files = {path.read_bytes() for path in (tmp_path / "samples").glob("*.png")}
    assert len(files) == 4
