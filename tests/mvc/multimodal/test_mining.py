"""Mining against brute force: negatives with their guards, hard examples, and batches that cover each sample once."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvc.multimodal.mining import NONE, hard_batches, hard_examples, hard_negatives, hardness_weights

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/mining.md"


def features(rows: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and texts of pairs that resemble each other."""
    drawn = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[0] + 0.5 * drawn[1]


def brute_force(
    images: Tensor, texts: Tensor, count: int, same: Sequence[Sequence[object]], margin: float | None
) -> list[list[int]]:
    one, other = (values / values.norm(dim=1, keepdim=True) for values in (images, texts))
    found = []
    for i in range(len(one)):
        own = float(one[i] @ other[i])
        allowed = []
        for j in range(len(other)):
            close = float(one[i] @ other[j])
            if j != i and not any(key[i] == key[j] for key in same) and (margin is None or close <= own - margin):
                allowed.append((-close, j))
        rows = [j for _, j in sorted(allowed)[:count]]
        found.append(rows + [NONE] * (count - len(rows)))
    return found


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 24),
    count=st.integers(1, 6),
    chunk=st.integers(1, 30),
    margin=st.sampled_from([None, 0.0, 0.2]),
    classes=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_negatives_against_brute_force(
    rows: int, count: int, chunk: int, margin: float | None, classes: int, seed: int
) -> None:
    images, texts = features(rows, seed=seed)
    same = [[row % classes for row in range(rows)], [f"caption {row // 3}" for row in range(rows)]]
    found = hard_negatives(images, texts, count, same=same, margin=margin, chunk=chunk)
    assert found.rows.tolist() == brute_force(images, texts, count, same, margin)
    one, other = (values / values.norm(dim=1, keepdim=True) for values in (images, texts))
    known = found.rows != NONE
    torch.testing.assert_close(
        found.similarities[known], (one[:, None] * other[found.rows.clamp_min(0)]).sum(2)[known], rtol=0, atol=1e-5
    )
    assert (found.similarities[~known] == -torch.inf).all() and found.rows.shape == (rows, count)


def test_each_guard_takes_out_what_it_names() -> None:
    """Texts 1 and 2 are closest to image 0 in this order; 1 has its caption, 2 is as true as its own."""
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    texts = torch.tensor([[0.8, 0.6, 0], [1, 0.1, 0], [0.9, 0, 0.3], [0.5, 0, 1]])
    captions, ids = ["a cat", "a cat", "a dog", "a cow"], [4, 5, 6, 4]
    assert hard_negatives(images, texts, 3).rows[0].tolist() == [1, 2, 3]
    assert hard_negatives(images, texts, 3, same=[captions]).rows[0].tolist() == [2, 3, NONE]
    assert hard_negatives(images, texts, 3, same=[captions, ids]).rows[0].tolist() == [2, NONE, NONE]
    assert hard_negatives(images, texts, 3, same=[torch.tensor(ids)]).rows[0].tolist() == [1, 2, NONE]
    assert hard_negatives(images, texts, 3, margin=0.1).rows[0].tolist() == [3, NONE, NONE]
    # A margin above the gap to text 3, 0.8 - 0.4472, leaves nothing.
    assert hard_negatives(images, texts, 3, margin=0.36).rows[0].tolist() == [NONE] * 3
    # The other way round: the images of a text.
    assert hard_negatives(texts, images, 1).rows[0].tolist() == [1]


def test_equal_similarities_keep_the_lower_row_in_chunks_of_any_size() -> None:
    images = torch.ones(9, 4)
    for chunk in (1, 2, 4, 100):
        rows = hard_negatives(images, images, 3, chunk=chunk).rows
        assert rows[0].tolist() == [1, 2, 3] and rows[1].tolist() == [0, 2, 3] and rows[8].tolist() == [0, 1, 2]


def test_no_table_is_larger_than_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, multiply = 0, Tensor.__matmul__

    def watched(one: Tensor, other: Tensor) -> Tensor:
        nonlocal largest
        made = multiply(one, other)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    hard_negatives(*features(200), 5, chunk=32)
    assert largest == 32 * 32


def test_hard_examples_are_the_largest_losses() -> None:
    losses = torch.tensor([0.5, 3.0, 0.1, 3.0, 2.0])
    assert hard_examples(losses, 0.6).tolist() == [1, 3, 4]
    assert hard_examples(losses, 0.01).tolist() == [1] and hard_examples(losses, 1.0).tolist() == [1, 3, 4, 0, 2]
    assert len(hard_examples(torch.arange(30.0), 0.1)) == 3  # 0.1 * 30 is 3.0000000000000004
    drawn = torch.rand(101, generator=torch.Generator().manual_seed(0))
    found = hard_examples(drawn, 0.25)
    assert len(found) == ceil(25.25)
    left = sorted(set(range(101)) - set(found.tolist()))
    assert drawn[found].min() >= drawn[left].max()


def test_weights_by_loss_in_closed_form() -> None:
    losses = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    weights = hardness_weights(losses, 0.5)
    total = 1 + exp(2) + exp(4)
    torch.testing.assert_close(weights, 3 / total * torch.tensor([1, exp(2), exp(4)]))
    assert weights.mean().item() == pytest.approx(1) and not weights.requires_grad
    torch.testing.assert_close(hardness_weights(losses, 1e6), torch.ones(3), rtol=0, atol=1e-5)
    assert hardness_weights(torch.tensor([1000.0, 0.0]), 1.0).tolist() == [2.0, 0.0]


@settings(deadline=None, max_examples=60)
@given(total=st.integers(1, 40), batch_size=st.integers(1, 12), count=st.integers(1, 5), epoch=st.integers(0, 50))
def test_batches_cover_each_sample_once(total: int, batch_size: int, count: int, epoch: int) -> None:
    random = torch.Generator().manual_seed(total)
    negatives = torch.randint(NONE, total, (total, count), generator=random)
    before = torch.get_rng_state()
    batches = hard_batches(negatives, batch_size, 3, epoch)
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(row for batch in batches for row in batch) == list(range(total))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches[-1]) == (total - 1) % batch_size + 1
    assert batches == hard_batches(negatives, batch_size, 3, epoch)


def share_with_its_hardest(batches: list[list[int]], rows: Tensor) -> float:
    place = {row: number for number, batch in enumerate(batches) for row in batch}
    return sum(place[row] == place[int(hardest)] for row, hardest in enumerate(rows[:, 0])) / len(rows)


def test_hard_negatives_meet_in_batches() -> None:
    images, texts = features(400)
    rows = hard_negatives(images, texts, 5).rows
    mined = [share_with_its_hardest(hard_batches(rows, 16, 0, epoch), rows) for epoch in range(3)]
    nothing = torch.full((400, 1), NONE)
    by_chance = [share_with_its_hardest(hard_batches(nothing, 16, 0, epoch), rows) for epoch in range(3)]
    assert min(mined) > 0.35 and max(by_chance) < 0.1  # 15 / 399 = 0.04
    assert hard_batches(rows, 16, 0, 0) != hard_batches(rows, 16, 0, 1)
    assert hard_batches(rows, 16, 0, 0) != hard_batches(rows, 16, 1, 0)


def test_a_batch_is_grown_from_its_first_sample() -> None:
    """Two rings of negatives: whatever comes first, batches are the rings."""
    negatives = torch.tensor([[1], [2], [0], [4], [5], [3]])
    for seed in range(5):
        batches = hard_batches(negatives, 3, seed, 0)
        assert sorted(sorted(batch) for batch in batches) == [[0, 1, 2], [3, 4, 5]]


def test_wrong_arguments_are_named() -> None:
    images, texts = features(6)
    with pytest.raises(ValueError, match=r"features are \(6, 6\) and \(5, 6\), not of one shape"):
        hard_negatives(images, texts[:5], 2)
    with pytest.raises(ValueError, match="count 0 and chunk 1024 have to be 1 or more"):
        hard_negatives(images, texts, 0)
    with pytest.raises(ValueError, match=r"margin -0.1 0 or more"):
        hard_negatives(images, texts, 1, margin=-0.1)
    with pytest.raises(ValueError, match=r"same\[1\] has 2 values for 6 pairs"):
        hard_negatives(images, texts, 1, same=[range(6), "ab"])
    broken = texts.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="the features of row 3 of the texts are not finite"):
        hard_negatives(images, broken, 1)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"share {share:g} is outside \(0, 1\]"):
            hard_examples(torch.ones(3), share)
    with pytest.raises(ValueError, match="the loss of sample 1 is inf"):
        hard_examples(torch.tensor([1.0, float("inf")]), 0.5)
    with pytest.raises(ValueError, match=r"losses are \(2, 2\), not \(N,\)"):
        hardness_weights(torch.ones(2, 2), 1.0)
    with pytest.raises(ValueError, match="temperature 0 is no number above 0"):
        hardness_weights(torch.ones(2), 0.0)
    with pytest.raises(ValueError, match=r"negatives \(2, 1\) with 2 have to be \(N, k\) rows from -1 to N - 1"):
        hard_batches(torch.tensor([[1], [2]]), 2, 0, 0)
    with pytest.raises(ValueError, match="batch_size 0 1 or more"):
        hard_batches(torch.tensor([[1], [0]]), 0, 0, 0)
