"""The best items of a block of users, against torch and numpy."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recbole_onebp.evaluation import topk as ranking
from recbole_onebp.evaluation.topk import BoundedProducts, ProductScores, top_items
from recbole_onebp.util.errors import UserError

# --------------------------------------------------------------------------------------------------------------- top-k

SCORES = st.integers(1, 4).flatmap(
    lambda k: st.integers(64 * k, 64 * k + 300).flatmap(
        lambda n: st.tuples(
            arrays.arrays(
                np.float32,
                (3, n),
                elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0]) | st.floats(-4, 4, width=32),
            ),
            st.just(k),
        )
    )
)


@given(SCORES)
@settings(deadline=None, max_examples=60)
def test_the_best_items_are_the_best(case):
    scores, k = case
    items = top_items(torch.from_numpy(scores), k).numpy()
    assert all(len(set(row)) == k for row in items)
    np.testing.assert_array_equal(np.take_along_axis(scores, items, axis=1), -np.sort(-scores, axis=1)[:, :k])


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with another C++ library there")
@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 20, 32])
@pytest.mark.parametrize("levels", [1, 2, 10, 1000, 10**7])
def test_ties_fall_as_torch_lets_them_fall(k, levels):
    generator = torch.Generator().manual_seed(k * levels)
    for n_items in (64 * k, 64 * k + 1, 5000):
        scores = torch.randint(levels, (7, n_items), generator=generator).float()
        scores[:, torch.randint(n_items, (n_items // 3,), generator=generator)] = -torch.inf
        scores[5, k // 2 :] = -torch.inf  # fewer than k left
        scores[6] = -torch.inf
        assert torch.equal(top_items(scores, k), torch.topk(scores, k)[1])
        assert torch.equal(top_items(scores.double(), k), torch.topk(scores.double(), k)[1])


@pytest.mark.parametrize("scores", [torch.randn(5, 700).T, torch.randn(3, 900)[:, ::3], torch.randn(0, 300)])
def test_scores_of_any_layout(scores):
    assert torch.equal(top_items(scores, 3), torch.topk(scores, 3)[1])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own():
    scores = torch.randn(4, 1000)
    expected = top_items(scores, 5)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(top_items(scores, 5).tolist()))
    child.start()
    answered = receiver.poll(60)
    child.kill()
    assert answered
    assert receiver.recv() == expected.tolist()


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


@pytest.fixture
def narrow(monkeypatch) -> None:
    monkeypatch.setattr(BoundedProducts, "_WIDE", 0)
    monkeypatch.setattr(ranking, "_multiplies_int8", lambda: True)


def bounded(users: torch.Tensor, items: torch.Tensor) -> ProductScores:
    with torch.no_grad(), BoundedProducts():
        first, scores = users @ items, users @ items
    assert type(first) is torch.Tensor
    assert isinstance(scores, ProductScores)
    assert scores.pending is not None
    return scores


def tables(generator: torch.Generator, n_items: int, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Users (9, d) and items (d, n) of few directions, in small integers: products are exact, and full of ties."""
    directions = torch.randint(-1, 2, (3, size), generator=generator).float()
    users = torch.randint(-3, 4, (9, 3), generator=generator).float() @ directions
    items = torch.randint(-3, 4, (n_items, 3), generator=generator).float() @ directions
    return users, (items + torch.randint(-1, 2, (n_items, size), generator=generator)).T


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with another C++ library there")
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 500))
@settings(deadline=None, max_examples=40)
def test_the_best_of_bounded_scores_are_torchs(seed, k, more):
    generator = torch.Generator().manual_seed(seed)
    users, items = tables(generator, 64 * k + more)
    expected = users @ items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedProducts, "_WIDE", 0)
        patch.setattr(ranking, "_multiplies_int8", lambda: True)
        scores = bounded(users, items)
    few = (torch.full((items.shape[1] - k // 2,), 3), torch.arange(k // 2, items.shape[1]))  # fewer than k left
    hidden = (torch.randint(9, (200,), generator=generator), torch.randint(items.shape[1], (200,), generator=generator))
    for tensor in (expected, scores):
        tensor[:, 0] = -np.inf
        tensor[hidden] = -np.inf
        tensor[few] = -np.inf
    assert scores.pending is not None
    assert torch.equal(top_items(scores, k), torch.topk(expected, k)[1])
    assert scores.pending is not None
    assert torch.equal(scores + 0, expected)


@pytest.mark.parametrize("scale", [1e-11, 1.0, 1e11])
@pytest.mark.parametrize("size", [16, 17, 64, 300])
def test_bounds_hold_for_scores_of_any_size(scale, size, narrow):
    users, items = torch.randn(50, size) * scale, torch.randn(size, 2000)
    items[:, :50] = users.T / scale  # users as items: nothing is lost to Cauchy and Schwarz
    scores = bounded(users, items)
    best = (users.double() @ items.double()).topk(10)[1]
    assert torch.equal(top_items(scores, 10).sort()[0], best.sort()[0])
    assert scores.pending is not None


@pytest.mark.parametrize(("users", "items"), [(1e-20, 1.0), (1.0, 1e20), (torch.inf, 1.0)])
def test_vectors_whose_products_vanish_or_overflow_are_not_bounded(users, items, narrow):
    left, right = torch.randn(4, 16) * users, torch.randn(16, 700) * items
    with torch.no_grad(), BoundedProducts():
        _, scores = left @ right, left @ right
    assert type(scores) is torch.Tensor


def test_users_and_items_of_zeros_are_bounded(narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 700)
    users[1], items[:, :350] = 0, 0
    scores = bounded(users, items)
    assert torch.equal(top_items(scores, 5), torch.topk(users @ items, 5)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with another C++ library there")
def test_tiles_are_put_together(narrow, monkeypatch):
    monkeypatch.setattr(ranking._Table, "TILE", 100)
    users, items = torch.randn(5, 16), torch.randn(16, 1234)
    for k in (1, 7, 19):
        assert torch.equal(top_items(bounded(users, items), k), torch.topk(users @ items, k)[1])


def test_views_and_hiding_leave_scores_pending_and_all_else_has_them(narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 300)
    expected = users @ items
    scores = bounded(users, items)
    flat = scores.view(-1)
    assert flat.shape == (1200,)
    assert (scores.dtype, scores.device, scores.ndim, len(scores)) == (torch.float32, torch.device("cpu"), 2, 4)
    again = flat.view(-1, 300)
    again[:, 0] = expected[:, 0] = -np.inf
    assert scores.pending is not None
    torch.testing.assert_close(again * 2, expected * 2)
    assert scores.pending is again.pending is None
    again[1, 2] = 7.0  # all of them are views of the same scores still
    assert scores[1, 2] == flat[302] == 7
    assert torch.equal(top_items(scores, 3), torch.topk(scores + 0, 3)[1])


def test_other_assignments_work_scores_out(narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 300)
    rows, columns = torch.tensor([0, -1]), torch.tensor([3, -2])
    expected, scores = users @ items, bounded(users, items)
    for tensor in (expected, scores):
        tensor[rows, columns] = -np.inf
    assert scores.pending is not None
    assert torch.equal(top_items(scores, 4), torch.topk(expected, 4)[1])
    for tensor in (expected, scores):
        tensor[rows, columns] = torch.tensor([7.0, 8.0])
    assert scores.pending is None
    torch.testing.assert_close(scores + 0, expected)


@pytest.mark.parametrize("change", [torch.sigmoid, torch.exp, lambda s: s + torch.arange(300.0), lambda s: s.mul_(-1)])
def test_what_a_model_does_with_its_scores_is_done_to_the_scores(change, narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 300)
    torch.testing.assert_close(change(bounded(users, items)), change(users @ items))


def test_scores_changed_in_place_are_changed_for_every_view(narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 300)
    scores = bounded(users, items)
    flat = scores.view(-1)
    flat.sigmoid_()
    torch.testing.assert_close(scores.clone(), torch.sigmoid(users @ items))


def test_a_table_is_bounded_when_it_comes_again_unchanged(narrow):
    users, items = torch.randn(4, 16), torch.nn.Parameter(torch.randn(300, 16))
    with torch.no_grad(), BoundedProducts():
        assert not isinstance(users @ items.T, ProductScores)
        assert isinstance(torch.matmul(users, items.transpose(0, 1)), ProductScores)
        assert not isinstance(users @ (items + 0).T, ProductScores)
        assert not isinstance(users @ items.T, ProductScores)
        items += 1
        assert not isinstance(users @ items.T, ProductScores)
        scores = users @ items.T
        assert isinstance(scores, ProductScores)
    torch.testing.assert_close(scores + 0, (users @ items.T).detach())
    with BoundedProducts():
        assert (users @ items.T).requires_grad


def test_where_bounds_spare_little_scores_are_worked_out(narrow):
    users, items = torch.randn(4, 64), torch.randn(64, 1) + 1e-4 * torch.randn(64, 3000)  # all alike
    with torch.no_grad(), BoundedProducts():
        _, scores = users @ items, users @ items
        assert torch.equal(top_items(scores, 5), torch.topk(users @ items, 5)[1])
        assert type(users @ items) is torch.Tensor


def test_narrow_sparse_and_other_products_are_torchs():
    users, items = torch.randn(9, 16), torch.randn(16, 9000)
    with torch.no_grad(), BoundedProducts():
        for left, right in ((users, items[:, :100]), (torch.eye(16).to_sparse(), items), (users[0], items)):
            for _ in range(2):
                assert type(left @ right) is torch.Tensor
        doubles = [users.double() @ items.double() for _ in range(2)]
    assert type(doubles[1]) is torch.Tensor


@pytest.mark.parametrize("where", ["users", "items"])
def test_nan_is_refused_before_scores_are_worked_out(where, narrow):
    users, items = torch.randn(4, 16), torch.randn(16, 700)
    {"users": users, "items": items}[where][2] = torch.nan
    with torch.no_grad(), BoundedProducts():
        _, scores = users @ items, users @ items
        with pytest.raises(UserError, match="not a number"):
            top_items(scores, 3)


def test_assignments_by_index_are_the_assignments():
    rows, columns = torch.tensor([0, 2, 2]), torch.tensor([1, 3, 0])
    numbered = torch.tensor([1.0, 2.0, 3.0])
    cases = [((rows, columns), -np.inf), ((rows, columns), numbered), ((slice(None), columns), 7.0), (rows, 7.0)]
    cases += [((torch.tensor([True, False, True]),), 7.0), ((rows,), 7.0), ((rows, 1), 7.0)]
    for index, value in cases:
        expected, tensor = torch.zeros(3, 4), torch.zeros(3, 4)
        expected[index] = value
        with BoundedProducts():
            tensor[index] = value
        assert torch.equal(tensor, expected)
