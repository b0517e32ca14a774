"""The best items of a block of users, against torch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_onebp.evaluation import bounded
from recbole_onebp.evaluation.bounded import Product, RoundedItems, ranking_threads
from recbole_onebp.evaluation.topk import top_items
from recbole_onebp.util.errors import UserError

# -------------------------------------------------------------------------------------------------- a matrix of scores


@pytest.mark.parametrize("scores", [torch.randn(5, 700).T, torch.randn(3, 900)[:, ::3], torch.randn(0, 300)])
def test_scores_of_any_layout(scores):
    assert torch.equal(top_items(scores, 3), torch.topk(scores, 3)[1])


@pytest.mark.parametrize("n_items", [5, 1000])
def test_k_close_to_all_items_and_other_types(n_items):
    scores = torch.randn(4, n_items)
    for other in (scores, scores.half(), scores.bfloat16()):
        best = other.gather(1, top_items(other, n_items - 1))
        assert torch.equal(best, other.sort(dim=1, descending=True)[0][:, :-1])


@pytest.mark.parametrize("where", [0, 3, 7, 300, 999])
@pytest.mark.parametrize("k", [5, 900])
def test_nan_is_refused(where, k):
    scores = torch.randn(4, 1000)
    scores[2, where] = torch.nan
    with pytest.raises(UserError, match="1 of 4 users have scores that are not a number"):
        top_items(scores, k)


# ------------------------------------------------------------------------------------------------------ bounded scores

NOTHING = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ranking_threads() as threads:
        yield threads


@pytest.fixture(scope="module", autouse=True, params=[True, False], ids=["int8", "float32"])
def multiplies_int8(request) -> Iterator[bool]:
    """Narrow tables are bounded, as on either kind of processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "MIN_ITEMS", 0)
        patch.setattr(bounded, "multiplies_int8", lambda: request.param)
        yield request.param


def expected_scores(users: torch.Tensor, items: torch.Tensor, hidden=NOTHING) -> torch.Tensor:
    scores = users @ items.T
    scores[:, 0] = -torch.inf
    scores[hidden] = -torch.inf
    return scores


def tables(generator: torch.Generator, n_items: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (9, d) and items (n, d) of few directions, in small integers: products are exact, with many ties."""
    directions = torch.randint(-1, 2, (3, size), generator=generator).float()
    users = torch.randint(-3, 4, (9, 3), generator=generator).float() @ directions
    items = torch.randint(-3, 4, (n_items, 3), generator=generator).float() @ directions
    return users, items + torch.randint(-1, 2, (n_items, size), generator=generator)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 500))
@settings(deadline=None, max_examples=40)
def test_bounded_scores_give_the_items_of_torch_topk(pool, seed, k, more):
    generator = torch.Generator().manual_seed(seed)
    users, items = tables(generator, 64 * k + more)
    few = (torch.full((len(items) - k // 2,), 3), torch.arange(k // 2, len(items)))  # fewer than k left
    some = (torch.randint(9, (200,), generator=generator), torch.randint(len(items), (200,), generator=generator))
    hidden = tuple(torch.cat(columns) for columns in zip(few, some, strict=True))
    product = Product(users, RoundedItems(items), hidden, pool)
    assert product.table.uses_bounds
    expected = expected_scores(users, items, hidden)
    assert torch.equal(product.top_items(k)[:, 0], torch.topk(expected, k)[1])
    assert torch.equal(product.scores(), expected)


@pytest.mark.parametrize("scale", [1e-11, 1.0, 1e11])
@pytest.mark.parametrize("size", [16, 17, 64, 300])
def test_bounds_hold_for_scores_of_any_size(scale, size, pool):
    users, items = torch.randn(50, size) * scale, torch.randn(2000, size)
    items[:50] = users / scale  # users as items: the Cauchy-Schwarz inequality is tight
    best = expected_scores(users.double(), items.double()).topk(10)[1]
    product = Product(users, RoundedItems(items), NOTHING, pool)
    assert product.table.uses_bounds
    assert torch.equal(product.top_items(10)[:, 0].sort()[0], best.sort()[0])


@pytest.mark.parametrize(("users", "items"), [(1e-20, 1.0), (1.0, 1e20), (torch.inf, 1.0)])
def test_bounds_are_not_used_if_products_underflow_or_overflow(users, items, pool, monkeypatch):
    monkeypatch.setattr(Product, "_scan", None)
    left, right = torch.rand(4, 16) * users, torch.rand(700, 16) * items
    left[:, 1:] = 0  # a sum of infinities of both signs would be NaN
    product = Product(left.nan_to_num(nan=1.0, posinf=torch.inf), RoundedItems(right), NOTHING, pool)
    assert torch.equal(product.top_items(5)[:, 0], torch.topk(product.scores(), 5)[1])


def test_bounds_hold_for_zero_vectors(pool):
    users, items = torch.randn(4, 16), torch.randn(700, 16)
    users[1], items[:350] = 0, 0
    product = Product(users, RoundedItems(items), NOTHING, pool)
    assert product.table.uses_bounds
    assert torch.equal(product.top_items(5)[:, 0], torch.topk(expected_scores(users, items), 5)[1])


def test_several_tiles(pool, monkeypatch):
    monkeypatch.setattr(bounded, "_TILE", 100)
    users, items = torch.randn(5, 16), torch.randn(1234, 16)
    for k in (1, 7, 19):
        product = Product(users, RoundedItems(items), NOTHING, pool)
        assert torch.equal(product.top_items(k)[:, 0], torch.topk(expected_scores(users, items), k)[1])


def test_bounds_are_not_used_again_if_they_save_little(pool, multiplies_int8):
    torch.manual_seed(0)
    users, items = torch.randn(4, 64), torch.randn(1, 64) + 1e-2 * torch.randn(3000, 64)  # all similar
    product = Product(users, RoundedItems(items), NOTHING, pool)
    assert torch.equal(product.top_items(5)[:, 0], torch.topk(expected_scores(users, items), 5)[1])
    assert product.table.uses_bounds is not multiplies_int8  # without rounding, bounds are close
    assert torch.equal(product.top_items(5)[:, 0], torch.topk(expected_scores(users, items), 5)[1])


def test_bounds_are_not_used_for_few_items_or_short_vectors(monkeypatch):
    assert not RoundedItems(torch.randn(300, 15)).uses_bounds
    monkeypatch.setattr(bounded, "MIN_ITEMS", 301)
    assert not RoundedItems(torch.randn(300, 16)).uses_bounds


@pytest.mark.parametrize("where", ["users", "items"])
def test_nan_is_refused_with_bounded_scores_too(where, pool):
    users, items = torch.randn(4, 16), torch.randn(700, 16)
    {"users": users, "items": items}[where][2] = torch.nan
    with pytest.raises(UserError, match="not a number"):
        Product(users, RoundedItems(items), NOTHING, pool).top_items(3)
