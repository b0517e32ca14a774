from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_onebp.functional import bilateral_softmax, fold_in, info_nce, moving_aggregate_, popularity_weights, spread

RULES = ["sequential", "last", "mean"]


def aggregate_in_a_loop(table, user, item_e, beta, duplicates):
    """The rules as documented, one pair at a time."""
    table = table.clone()
    for u in user.unique():
        items = item_e[user == u]
        if duplicates == "last":
            items = items[-1:]
        elif duplicates == "mean":
            items = items.mean(dim=0, keepdim=True)
        for e in items:
            table[u] = beta * table[u] + (1 - beta) * e
    return table


@given(
    user=st.lists(st.integers(0, 6), min_size=0, max_size=40),
    size=st.integers(1, 5),
    beta=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    duplicates=st.sampled_from(RULES),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_aggregation_equals_a_loop(user, size, beta, duplicates, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(7, size, generator=generator, dtype=torch.float64)
    item_e = torch.randn(len(user), size, generator=generator, dtype=torch.float64)
    user = torch.tensor(user, dtype=torch.long)
    expected = aggregate_in_a_loop(table, user, item_e, beta, duplicates)
    moving_aggregate_(table, user, item_e, beta, duplicates)
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("duplicates", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_aggregation_of_a_view_changes_only_its_users(duplicates, dtype):
    table = torch.randn(10, 8, dtype=dtype)[:, ::2]  # not contiguous
    item_e = torch.randn(8, 6, dtype=dtype).T[:, ::2]
    before = table.clone()
    user = torch.tensor([3, 1, 3, 3, 1, 7])
    moving_aggregate_(table, user, item_e, 0.9, duplicates)
    torch.testing.assert_close(table, aggregate_in_a_loop(before, user, item_e, 0.9, duplicates))
    untouched = [0, 2, 4, 5, 6, 8, 9]
    assert torch.equal(table[untouched], before[untouched])


@pytest.mark.parametrize("duplicates", RULES)
def test_aggregation_is_deterministic_over_threads(duplicates):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 64, generator=generator)
    user = torch.randint(50, (5000,), generator=generator)
    item_e = torch.randn(5000, 64, generator=generator)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            table = start.clone()
            moving_aggregate_(table, user, item_e, 0.99, duplicates)
            results.append(table)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.5}, "beta must lie in"),
        ({"duplicates": "first"}, "sequential, last or mean"),
        ({"item_e": torch.zeros(3, 2)}, "expected item_e"),
    ],
)
def test_aggregation_refuses(arguments, message):
    valid = {"user": torch.tensor([1, 1]), "item_e": torch.zeros(2, 2), "beta": 0.5, "duplicates": "last"}
    with pytest.raises(ValueError, match=message):
        moving_aggregate_(torch.zeros(3, 2), **{**valid, **arguments})


def test_info_nce_is_the_papers_loss():
    pos, neg = torch.randn(7, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    for t in (0.1, 1.0, 3.0):
        e_pos, e_neg = (pos / t).exp(), (neg / t).exp()
        expected = -(e_pos / (e_pos + e_neg.sum(dim=1))).log().mean()
        torch.testing.assert_close(info_nce(pos, neg, t), expected)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e6])
def test_info_nce_is_stable_at_any_temperature(temperature):
    pos = torch.tensor([50.0, -50.0], requires_grad=True)
    loss = info_nce(pos, torch.tensor([[-50.0, 0.0], [50.0, 0.0]]), temperature)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(pos.grad).all()


def test_info_nce_refuses():
    with pytest.raises(ValueError, match="temperature"):
        info_nce(torch.zeros(2), torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        info_nce(torch.zeros(2), torch.zeros(3, 3))


@pytest.mark.parametrize("loss", [info_nce, partial(bilateral_softmax, negative_weight=1.25)])
def test_weights_of_pairs(loss):
    generator = torch.Generator().manual_seed(3)
    pos, neg = torch.randn(3, generator=generator), torch.randn(3, 4, generator=generator)
    each = torch.stack([loss(pos[b : b + 1], neg[b : b + 1], temperature=0.5) for b in range(3)])
    weight = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(loss(pos, neg, temperature=0.5, pair_weight=weight), (weight * each).mean())


def test_fold_in_is_the_fixed_point_of_the_aggregation():
    items = torch.randn(4, 6, dtype=torch.float64)
    user = fold_in(items)
    table = user.clone().unsqueeze(0)
    moving_aggregate_(table, torch.zeros(4, dtype=torch.long), items, 0.9, "mean")
    torch.testing.assert_close(table[0], user)
    torch.testing.assert_close(fold_in(items, torch.tensor([0.0, 3.0, 0.0, 1.0])), (3 * items[1] + items[3]) / 4)


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_fold_in_refuses_weights(weights):
    with pytest.raises(ValueError, match="non-negative weights"):
        fold_in(torch.zeros(2, 3), torch.tensor(weights))


def test_fold_in_refuses_nothing():
    with pytest.raises(ValueError, match="n >= 1"):
        fold_in(torch.zeros(0, 3))


def test_rare_items_weigh_more():
    weights = popularity_weights(torch.tensor([0, 1, 2, 9, 0]), 0.5)
    torch.testing.assert_close(weights, torch.tensor([2.0, 2.0, 2**0.5, 2 / 3, 2.0]))
    assert torch.equal(popularity_weights(torch.tensor([3, 0, 5]), 0.0), torch.ones(3))


def test_spread_detects_collapse():
    assert spread(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.eye(4)) == pytest.approx(0.75)
    assert spread(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(1)
