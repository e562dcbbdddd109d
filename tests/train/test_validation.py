"""Held-out images stay out of training; the validation loss is a plain mean over samples that never change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mvc.diffusion import target_for
from mvc.mixing import apply_plan, draw_plan
from mvc.randomness import derived_seed, generator
from mvc.train.batches import Batch, Materials, assemble
from mvc.train.validation import fixed_batches, hold_out, in_turn, validation_loss, without
from tests.tiny_parts import LATENT_SIZE, sd_scheduler, tiny_unet
from tests.train.toy import LABELS, materials, normal, sampling, wide_unet

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (4, LATENT_SIZE, LATENT_SIZE)


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ((10, 20, 5), 0.1, (1, 2, 0)),
        ((2, 3, 4), 0.5, (0, 1, 2)),
        ((1, 3, 5), 0.99, (0, 1, 3)),
        ((100, 30), 0.29, (29, 8)),
        ((9, 9), 0.0, (0, 0)),
    ],
)
def test_a_share_of_each_class_is_held_out(sizes: Sequence[int], share: float, expected: Sequence[int]) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    held = hold_out(0, labels, share)
    assert held == sorted(set(held))
    counts = Counter(labels[image] for image in held)
    assert tuple(counts[label] for label in range(len(sizes))) == expected
    assert hold_out(0, labels, share) == held


def test_every_image_is_held_out_by_some_seed() -> None:
    labels = [0] * 8 + [1] * 6
    chosen = Counter(image for seed in range(400) for image in hold_out(seed, labels, 0.25))
    # Two of 8 and one of 6; four standard deviations of the counts are about 35.
    assert all(abs(chosen[image] - 100) < 36 for image in range(8))
    assert all(abs(chosen[image] - 400 / 6) < 32 for image in range(8, 14))


def test_a_class_keeps_its_choice_when_others_change() -> None:
    small, large = [0] * 10 + [1] * 4, [0] * 10 + [1] * 400
    assert [image for image in hold_out(3, small, 0.3) if image < 10] == hold_out(3, large, 0.3)[:3]


def sdxl_like() -> Materials:
    """Toy materials with pooled vectors and sizes, as an SDXL has."""
    plain = materials()
    texts = [replace(text, pooled=normal(len(text.embeddings), 5, seed=7)) for text in plain.texts]
    return replace(plain, texts=texts, null_pooled=normal(5, seed=8), time_ids=torch.arange(6.0))


@pytest.mark.parametrize("whole", [materials(variants=2), sdxl_like()], ids=["two variants", "pooled"])
def test_without_leaves_out_images_and_their_captions(whole: Materials) -> None:
    left = without(whole, [5, 0])
    kept = [1, 2, 3, 4, 6]
    assert left.labels == tuple(LABELS[image] for image in kept)
    for variant in range(whole.images.variants):
        variants = [variant] * len(kept)
        assert torch.equal(left.images.moments(range(5), variants), whole.images.moments(kept, variants))
    # Images 0, 2, 4 are of class 0, and 1, 3, 5, 6 of class 1, in the order of their captions.
    for label, rows in enumerate(([1, 2], [0, 1, 3])):
        before, after = whole.texts[label], left.texts[label]
        assert torch.equal(after.embeddings, before.embeddings[rows])
        assert (after.name, after.rows) == (before.name, before.rows)
        if before.pooled is not None:
            assert after.pooled is not None and torch.equal(after.pooled, before.pooled[rows])
    assert left.images.shards[0] is whole.images.shards[0]
    assert without(whole, []) is whole and without(whole, [0]).texts[1] is whole.texts[1]


def test_training_never_sees_a_held_out_image_or_its_caption() -> None:
    whole = materials()
    held = hold_out(0, LABELS, 0.4)
    assert Counter(LABELS[image] for image in held) == {0: 1, 1: 1}
    batch = assemble(without(whole, held), sampling(dropout=0.0, coarse=0, fine=0), range(400))
    means = whole.images.moments(range(7))[:, :4]
    conditions = {next(image for image in range(7) if torch.equal(means[image], one)) for one in batch.image_latents}
    # VAE noise is small beside the distance between two images here: the nearest mean is that of x.
    distances = torch.cdist(batch.latents.flatten(1) / 0.5, means.flatten(1))
    assert conditions == set(range(7)) - set(held)
    assert not set(distances.argmin(1).tolist()) & set(held)
    captions = torch.cat([text.embeddings for text in whole.texts])
    rows = {image: row for row, image in enumerate([0, 2, 4, 1, 3, 5, 6])}
    for image in range(7):
        seen = bool((batch.encoder_hidden_states == captions[rows[image]]).flatten(1).all(1).any())
        assert seen == (image not in held), image


def test_images_take_turns_by_class() -> None:
    labels = [0] * 9 + [1] * 3 + [2] * 6
    turns = in_turn(0, labels, range(18), 40)
    assert all(sorted(labels[image] for image in turns[first : first + 3]) == [0, 1, 2] for first in (0, 3, 6))
    assert sorted(turns[:18]) == list(range(18)) and turns[18:36] == turns[:18]
    assert in_turn(0, labels, range(18), 5) == turns[:5]
    assert set(in_turn(0, labels, [4, 11], 7)) == {4, 11}


@pytest.mark.parametrize("scaled", [False, True])
def test_fixed_samples_are_put_together_from_their_parts(scaled: bool) -> None:
    things, held, count = sdxl_like(), [2, 3, 5], 8
    how = sampling(image_latents_scaled=scaled, dropout=0.3, noise_offset=0.5)
    (batch,) = fixed_batches(things, how, held, count, count)
    seed, means = derived_seed(0, "validation"), things.images.moments(range(7))[:, :4]
    # 8 samples cut 1000 timesteps into parts of 125; each lies in the middle of its part.
    assert batch.timesteps.tolist() == [62, 187, 312, 437, 562, 687, 812, 937]
    for number, image in enumerate(in_turn(seed, LABELS, held, count)):
        assert torch.equal(batch.latents[number], means[image] * 0.5)
        assert torch.equal(batch.noise[number], torch.randn(SHAPE, generator=generator(seed, "noise", number)))
        condition = batch.image_latents[number] / (0.5 if scaled else 1.0)
        partner = next(other for other in range(7) if torch.equal(means[other], condition))
        assert partner != image and LABELS[partner] == LABELS[image]
        text = things.texts[LABELS[image]]
        plan = draw_plan(seed, text.name, [number], len(text.embeddings), 6, 16, 2, 3)
        assert torch.equal(batch.encoder_hidden_states[number], apply_plan(plan, text.embeddings)[0])
        assert text.pooled is not None and batch.text_embeds is not None
        assert torch.equal(batch.text_embeds[number], text.pooled[int(plan.base[0])])
    assert batch.time_ids is not None and torch.equal(batch.time_ids, torch.arange(6.0).expand(count, 6))


def test_all_images_serve_where_none_is_held_out() -> None:
    (batch,) = fixed_batches(materials(), sampling(pairing="self"), [], 14, 99)
    means = materials().images.moments(range(7))[:, :4]
    seen = Counter(next(i for i in range(7) if torch.equal(means[i] * 0.5, one)) for one in batch.latents)
    assert seen == dict.fromkeys(range(7), 2)
    assert torch.equal(batch.latents, batch.image_latents * 0.5)


def test_samples_do_not_depend_on_their_batch_and_differ_from_training() -> None:
    (whole,) = fixed_batches(materials(), sampling(), [2, 3], 10, 10)
    parts = fixed_batches(materials(), sampling(), [2, 3], 10, 4)
    assert [len(part.timesteps) for part in parts] == [4, 4, 2]
    for name, value in vars(whole).items():
        if value is not None:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value), name
    trained = assemble(materials(), sampling(dropout=0.0), range(10))
    for name in ("noise", "encoder_hidden_states"):
        assert not any(torch.equal(a, b) for a in getattr(trained, name) for b in getattr(whole, name)), name


def loss_of(unet: Any, batches: Sequence[Batch]) -> float:
    return validation_loss(unet, sd_scheduler(), batches, Accelerator(cpu=True))


@pytest.fixture(scope="module")
def unet() -> Any:
    made = wide_unet()
    with torch.no_grad():
        made.conv_in.weight[:, 4:] = 0.1 * normal(8, 4, 3, 3)
    return made


def test_the_loss_is_the_mean_over_samples(unet: Any) -> None:
    scheduler, batches = sd_scheduler(), fixed_batches(materials(), sampling(), [2, 3], 10, 4)
    unet.train()
    found = loss_of(unet, batches)
    assert unet.training
    unet.eval()
    alone = []
    for batch in batches:
        for row in range(len(batch.timesteps)):
            one = Batch(*(None if value is None else value[row : row + 1] for value in vars(batch).values()))
            share = scheduler.alphas_cumprod[one.timesteps].view(1, 1, 1, 1)
            noisy = share.sqrt() * one.latents + (1 - share).sqrt() * one.noise  # Eq. (1)
            with torch.no_grad():
                given = torch.cat([noisy, one.image_latents], 1)
                pred = unet(given, one.timesteps, one.encoder_hidden_states).sample
            target = target_for(scheduler, one.latents, one.noise, one.timesteps)
            alone.append(float((pred - target).square().mean()))
    assert found == pytest.approx(sum(alone) / 10, abs=1e-6)
    assert not unet.training and loss_of(unet, batches) == found and not unet.training


def test_the_loss_is_the_same_in_any_batch_size_and_again(unet: Any) -> None:
    losses = [loss_of(unet, fixed_batches(materials(), sampling(), [2, 3], 10, size)) for size in (1, 3, 4, 10, 16)]
    assert losses == pytest.approx([losses[0]] * 5, abs=1e-6)
    again = fixed_batches(materials(), sampling(), [2, 3], 10, 4)
    assert loss_of(unet, again) == losses[2]
    # It can tell samples and weights apart.
    assert loss_of(unet, fixed_batches(materials(), sampling(seed=1), [2, 3], 10, 4)) != losses[2]
    assert abs(loss_of(wide_unet(seed=1), again) - losses[2]) > 1e-3


def test_dropout_layers_rest_meanwhile() -> None:
    batches = fixed_batches(materials(), sampling(), [2], 4, 4)
    unet: Any = tiny_unet(in_channels=8, dropout=0.5).train()
    assert loss_of(unet, batches) == loss_of(unet, batches) == loss_of(tiny_unet(in_channels=8).eval(), batches)


def test_a_model_that_predicts_nothing_loses_the_square_of_the_noise() -> None:
    batches = fixed_batches(materials(), sampling(), [], 64, 16)
    noise = torch.cat([batch.noise for batch in batches])

    class Zero(torch.nn.Module):
        def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            return (torch.zeros_like(sample[:, :4]),)

    assert loss_of(Zero(), batches) == pytest.approx(float(noise.square().mean()), abs=1e-6)


def test_nothing_is_left_behind_on_the_weights(unet: Any) -> None:
    unet.train()
    batches = fixed_batches(materials(), sampling(), [2], 4, 2)
    loss_of(unet, batches)
    assert all(value.grad is None and value.requires_grad for value in unet.parameters())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        loss_of(unet, [replace(batches[0], encoder_hidden_states=torch.zeros(2, 6, 3))])
    assert unet.training


SCRIPT = """
import sys
from accelerate import Accelerator
from mvc.train.validation import fixed_batches, validation_loss
from tests.tiny_parts import sd_scheduler
from tests.train.toy import materials, sampling, wide_unet
accelerator, unet, passes = Accelerator(cpu=True), wide_unet(), []
unet.conv_in.register_forward_hook(lambda *_: passes.append(1))
batches = fixed_batches(materials(), sampling(), [2, 3], 10, 2)
loss = validation_loss(accelerator.prepare(unet), sd_scheduler(), batches, accelerator)
with open(f"{sys.argv[1]}-{accelerator.process_index}", "w") as file:
    file.write(f"{loss!r} {len(passes)}")
accelerator.state.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_the_work(tmp_path: Path) -> None:
    """Five batches on two processes: three passes each, and the value of one process."""
    script, out = tmp_path / "script.py", tmp_path / "loss"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [Path(f"{out}-{process}").read_text() for process in range(2)]
    expected = loss_of(wide_unet(), fixed_batches(materials(), sampling(), [2, 3], 10, 2))
    assert found[0] == found[1]
    value, passes = found[0].split()
    # This process may have other threads than those two.
    assert float(value) == pytest.approx(expected, rel=1e-6) and passes == "3"
