from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mvc import latents
from mvc.embeddings import time_ids
from mvc.mixing import apply_plan, draw_plan
from mvc.pairs import draw_pairs
from mvc.randomness import generator
from mvc.train.batches import Materials, assemble, samples_of
from tests.tiny_parts import LATENT_SIZE
from tests.train.toy import LABELS, materials, normal, sampling

SHAPE = (4, LATENT_SIZE, LATENT_SIZE)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (6, 2), (4, 3), (1, 12)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_layout_of_a_global_batch_has_the_same_samples(
    batch_size: int, accumulation: int, processes: int
) -> None:
    for step in (0, 5):
        every = [samples_of(step, batch_size, accumulation, rank, processes) for rank in range(processes)]
        micro = [sorted(sum((every[rank][number] for rank in range(processes)), [])) for number in range(accumulation)]
        assert sum(micro, []) == list(range(12 * step, 12 * step + 12))
        assert all(len(part) == batch_size for part in micro)


def xl_materials(variants: int = 1) -> Materials:
    """The toy materials with what SDXL has besides: a pooled vector of each caption, and the image size."""
    plain = materials(variants)
    texts = [
        replace(text, pooled=normal(len(text.embeddings), 5, seed=10 + number))
        for number, text in enumerate(plain.texts)
    ]
    return replace(plain, texts=texts, null_pooled=normal(5, seed=20), time_ids=time_ids(32))


@pytest.mark.parametrize("make", [materials, xl_materials])
def test_a_sample_does_not_depend_on_its_batch(make: Callable[[int], Materials]) -> None:
    things, how = make(3), sampling()
    whole = assemble(things, how, range(40))
    for samples in ([0], [39, 5, 17], list(range(10, 30))):
        part = assemble(things, how, samples)
        assert (part.added_cond_kwargs is None) == (make is materials)
        for name, value in vars(part).items():
            assert value is None or torch.equal(value, getattr(whole, name)[samples]), name


def test_the_pooled_vector_is_the_base_captions_and_is_dropped_with_the_text() -> None:
    things, samples = xl_materials(), range(300)
    batch = assemble(things, sampling(dropout=0.2), samples)
    plain = assemble(materials(), sampling(dropout=0.2), samples)
    assert torch.equal(batch.encoder_hidden_states, plain.encoder_hidden_states)
    added = batch.to(torch.device("cpu")).added_cond_kwargs
    assert added is not None and set(added) == {"text_embeds", "time_ids"}
    assert added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 300
    dropped = (batch.encoder_hidden_states == things.null).flatten(1).all(1)
    assert 60 < int(dropped.sum()) < 180
    for number, pair in zip(samples, draw_pairs(0, samples, LABELS, "same_class"), strict=True):
        text = things.texts[LABELS[pair.image]]
        base = int(draw_plan(0, text.name, [number], len(text.embeddings), 6, 16, 2, 3).base[0])
        assert text.pooled is not None
        expected = things.null_pooled if dropped[number] else text.pooled[base]
        assert torch.equal(added["text_embeds"][number], expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_samples_are_put_together_from_their_parts(scaled: bool) -> None:
    things, samples = materials(), range(30)
    batch = assemble(things, sampling(dropout=0.0, image_latents_scaled=scaled), samples)
    pairs = draw_pairs(0, samples, LABELS, "same_class")
    for number, pair in zip(samples, pairs, strict=True):
        moments = things.images.moments([pair.image])
        vae_noise = torch.randn(SHAPE, generator=generator(0, "vae noise", number))
        assert torch.equal(batch.latents[number], latents.sample(moments, vae_noise[None])[0] * 0.5)
        mode = things.images.moments([pair.partner])[0, :4]
        assert torch.equal(batch.image_latents[number], mode * 0.5 if scaled else mode)
        assert torch.equal(batch.noise[number], torch.randn(SHAPE, generator=generator(0, "noise", number)))
        text = things.texts[LABELS[pair.image]]
        plan = draw_plan(0, text.name, [number], len(text.embeddings), 6, 16, 2, 3)
        assert torch.equal(batch.encoder_hidden_states[number], apply_plan(plan, text.embeddings)[0])


def test_the_condition_is_never_the_target() -> None:
    things = materials()
    batch = assemble(things, sampling(dropout=0.0), range(300))
    own = [things.images.moments([pair.image])[0, :4] for pair in draw_pairs(0, range(300), LABELS, "same_class")]
    assert not any(torch.equal(mean, other) for mean, other in zip(own, batch.image_latents, strict=True))
    same = assemble(things, sampling(dropout=0.0, pairing="self"), range(300)).image_latents
    assert all(torch.equal(mean, other) for mean, other in zip(own, same, strict=True))


def test_dropped_conditions_are_null_text_and_zero_latents() -> None:
    things, count = materials(), 1500
    batch = assemble(things, sampling(dropout=0.1), range(count))
    no_text = (batch.encoder_hidden_states == things.null).flatten(1).all(1)
    no_image = (batch.image_latents == 0).flatten(1).all(1)
    for dropped in (no_text & ~no_image, no_text & no_image, ~no_text & no_image):
        assert abs(float(dropped.float().mean()) - 0.1) < 0.039  # five standard deviations
    kept = assemble(things, sampling(dropout=0.0), range(count))
    assert torch.equal(batch.encoder_hidden_states[~no_text], kept.encoder_hidden_states[~no_text])
    assert torch.equal(batch.image_latents[~no_image], kept.image_latents[~no_image])


def test_draws_are_spread_and_independent_of_each_other() -> None:
    batch = assemble(materials(variants=4), sampling(), range(2000))
    assert int(batch.timesteps.min()) < 10 and int(batch.timesteps.max()) > 989
    assert abs(float(batch.timesteps.float().mean()) - 499.5) < 35
    assert abs(float(batch.noise.mean())) < 0.01 and abs(float(batch.noise.std()) - 1) < 0.01
    other = assemble(materials(variants=4), sampling(seed=1), range(2000))
    assert float((batch.timesteps == other.timesteps).float().mean()) < 0.01


def test_random_variants_leave_the_plain_one_to_generation() -> None:
    things = materials(variants=3)
    batch = assemble(things, sampling(dropout=0.0), range(400))
    seen = set()
    for number, pair in enumerate(draw_pairs(0, range(400), LABELS, "same_class")):
        modes = things.images.moments([pair.partner] * 3, [0, 1, 2])[:, :4]
        seen.add([torch.equal(mode, batch.image_latents[number]) for mode in modes].index(True))
    assert seen == {1, 2}


def test_draws_are_cheap() -> None:
    things, how = materials(), sampling()
    assemble(things, how, range(8))
    start = time.perf_counter()
    assemble(things, how, range(8, 264))
    assert (time.perf_counter() - start) / 256 < 0.003
