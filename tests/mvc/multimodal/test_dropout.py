"""Modality dropout: its law against the closed form and by counting, what takes the place of what is dropped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mvc.multimodal.dropout import ModalityDropout, dropped_sets, dropped_share

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/dropout.md"
THREE = {"image": 0.5, "text": 0.3, "audio": 0.8}


def batch(count: int = 64) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, 5, generator=random) + 3,
        "text": torch.randn(count, 7, 4, generator=random) + 3,
        "audio": torch.randn(count, 6, generator=random) + 3,
    }


def test_the_law_of_two_modalities_in_closed_form() -> None:
    assert dropped_sets({"image": 0.3, "text": 0.2}) == pytest.approx(
        {
            frozenset(): 0.7 * 0.8 / 0.94,
            frozenset({"image"}): 0.3 * 0.8 / 0.94,
            frozenset({"text"}): 0.7 * 0.2 / 0.94,
        }
    )
    share = dropped_share({"image": 0.3, "text": 0.3})
    assert share["image"] == share["text"] == pytest.approx(0.3 * 0.7 / 0.91) == pytest.approx(0.2308, abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5).filter(lambda values: min(values) < 0.999))
def test_the_law_of_any_modalities(values: list[float]) -> None:
    probabilities = {f"modality {number}": value for number, value in enumerate(values)}
    sets, names = dropped_sets(probabilities), set(probabilities)
    assert sum(sets.values()) == pytest.approx(1) and frozenset(names) not in sets
    product = torch.tensor(values, dtype=torch.float64).prod().item()
    for name, share in dropped_share(probabilities).items():
        others = torch.tensor([probabilities[one] for one in names - {name}], dtype=torch.float64).prod().item()
        assert share == pytest.approx(probabilities[name] * (1 - others) / (1 - product), abs=1e-12)


@pytest.mark.parametrize(
    "probabilities", [THREE, {"image": 0.3, "text": 0.2}, {"image": 1.0, "text": 0.4}, {"image": 0.0, "text": 0.6}]
)
def test_counted_draws_follow_the_law(probabilities: dict[str, float]) -> None:
    drop, counts, total = ModalityDropout(probabilities, seed=1), Counter[frozenset[str]](), 40_000
    for step in range(total // 1000):
        kept = drop.kept(1000, step)
        rows = zip(*(kept[name].tolist() for name in kept), strict=True)
        counts.update(frozenset(name for name, own in zip(kept, row, strict=True) if not own) for row in rows)
    assert frozenset(probabilities) not in counts
    for missing, share in dropped_sets(probabilities).items():
        assert abs(counts[missing] / total - share) <= 4 * (share * (1 - share) / total) ** 0.5


def test_dropped_samples_become_zeros_and_others_stay() -> None:
    drop, features = ModalityDropout(THREE, seed=0), batch()
    made, kept = drop(features, 5), drop.kept(64, 5)
    for name, values in features.items():
        own = kept[name]
        assert 0 < int(own.sum()) < 64
        assert torch.equal(made[name][own], values[own]) and not made[name][~own].any()
        assert made[name].shape == values.shape
    assert torch.stack(list(kept.values())).any(0).all()
    assert not list(drop.parameters()) and not drop.state_dict()


def test_a_learned_vector_takes_the_place_and_learns() -> None:
    drop, features = ModalityDropout(THREE, seed=0, widths={"text": 4, "audio": 6}), batch()
    made, kept = drop(features, 5), drop.kept(64, 5)
    gone = ~kept["text"]
    assert torch.equal(made["text"][gone], drop.masks["text"].expand(int(gone.sum()), 7, 4))
    assert torch.equal(made["audio"][~kept["audio"]], drop.masks["audio"].expand(int((~kept["audio"]).sum()), 6))
    assert not made["image"][~kept["image"]].any()
    made["text"].sum().backward()
    # Each dropped sample adds 1 at each of its 7 places.
    assert drop.masks["text"].grad is not None and drop.masks["audio"].grad is None
    torch.testing.assert_close(drop.masks["text"].grad, torch.full((4,), 7.0 * int(gone.sum())))
    begun = torch.cat([mask.detach() for mask in ModalityDropout(THREE, 3, {"text": 4000}).masks.values()])
    assert begun.std().item() == pytest.approx(0.02, rel=0.1) and abs(begun.mean().item()) < 0.002


def test_dropped_values_reach_neither_output_nor_gradient() -> None:
    drop = ModalityDropout({"image": 0.5, "text": 0.5}, seed=0)
    kept = drop.kept(32, 0)["image"]
    image = torch.where(kept[:, None], torch.ones(32, 3), torch.full((32, 3), float("nan"))).requires_grad_()
    made = drop({"image": image, "text": torch.ones(32, 3)}, 0)
    made["image"].sum().backward()
    assert made["image"].isfinite().all() and image.grad is not None
    assert torch.equal(image.grad, kept[:, None].float().expand(32, 3))


def test_evaluation_is_the_identity() -> None:
    drop, features = ModalityDropout(THREE, seed=0, widths={"text": 4}).eval(), batch()
    assert all(drop(features, 5)[name] is values for name, values in features.items())


def test_draws_depend_on_seed_step_and_row_alone() -> None:
    before = torch.get_rng_state()
    one, other = ModalityDropout(THREE, seed=4), ModalityDropout(THREE, seed=4, widths={"text": 4})
    for name, kept in one.kept(64, 9).items():
        assert torch.equal(kept, other.kept(64, 9)[name])
        assert torch.equal(kept[:10], one.kept(10, 9)[name])
        assert not torch.equal(kept, one.kept(64, 10)[name])
        assert not torch.equal(kept, ModalityDropout(THREE, seed=5).kept(64, 9)[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_probability_of_0_drops_nothing() -> None:
    drop, features = ModalityDropout({"image": 0.0, "text": 0.0, "audio": 0.0}, seed=0), batch()
    assert all(torch.equal(drop(features, 0)[name], values) for name, values in features.items())


def test_half_precision_and_a_training_network() -> None:
    drop = ModalityDropout({"image": 0.5, "text": 0.5}, 0, {"image": 3, "text": 3})
    made = drop({"image": torch.ones(8, 3).bfloat16(), "text": torch.ones(8, 3).bfloat16()}, 0)
    assert made["image"].dtype == torch.bfloat16
    network = nn.ModuleDict({"drop": drop, "head": nn.Linear(3, 1)})
    assert {name for name, _ in network.named_parameters()} >= {"drop.masks.image", "drop.masks.text"}


def test_wrong_arguments_are_named() -> None:
    for value in (1.2, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"the probability {value:g} of text is outside \[0, 1\]"):
            ModalityDropout({"image": 0.5, "text": value}, 0)
    with pytest.raises(ValueError, match="of image, text are all 1: nothing would be left"):
        ModalityDropout({"image": 1.0, "text": 1.0}, 0)
    with pytest.raises(ValueError, match=r"needs 2 to 12 modalities, and 1 are named: \['image'\]"):
        ModalityDropout({"image": 0.5}, 0)
    with pytest.raises(ValueError, match="the width 4 of video fits none of image, text, audio"):
        ModalityDropout(THREE, 0, {"video": 4})
    drop, features = ModalityDropout(THREE, 0, {"text": 4}), batch()
    with pytest.raises(ValueError, match="the modalities image, text are not image, text, audio"):
        drop({"image": features["image"], "text": features["text"]}, 0)
    with pytest.raises(ValueError, match=r"of one B, and these are .*'text': \(3, 7, 4\)"):
        drop({**features, "text": features["text"][:3]}, 0)
    with pytest.raises(ValueError, match=r"text is \(64, 7, 3\), and its mask has the width 4"):
        drop({**features, "text": features["text"][..., :3]}, 0)
