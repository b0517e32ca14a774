"""The local term against dense formulas, and everywhere a score of the model is made."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from recbole.utils.case_study import full_sort_scores

from recbole_onebp import cooccurrence, local
from recbole_onebp.cooccurrence import Interactions, latest, ridge_on_neighbors
from recbole_onebp.cooccurrence_cuda import ridge_on_neighbors_batched
from recbole_onebp.evaluation import bounded, full_sort
from recbole_onebp.local import LocalTerm
from recbole_onebp.recency import recency_weights
from recbole_onebp.trainer import LOCAL_WEIGHTS
from recbole_onebp.util.errors import UserError

N_USERS, N_ITEMS = 200, 300
ORDER = {"eval_args": {"order": "TO", "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "mode": "full"}}
FORM = {"score": "cosine", "item_bias": True, "negatives": "shared", "n_shared_negatives": 16, "train_batch_size": 32,
        "aggregation": "interval", "aggregation_interval": 3, "beta": 0.0, "local": "ridge", "local_neighbors": 10,
        "local_reg": 2.0, "embedding_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return rng.integers(1, N_USERS, 8000), (rng.random(8000) ** 2 * (N_ITEMS - 1)).astype(int) + 1


@pytest.fixture(scope="module")
def data(pairs):
    return Interactions.of(*pairs, N_USERS, N_ITEMS)


@pytest.fixture(scope="module")
def counts(pairs):
    """How many users each two items have in common, ``(n, n)``."""
    seen = np.zeros((N_USERS, N_ITEMS))
    seen[pairs] = 1
    return seen.T @ seen


@pytest.fixture(scope="module")
def term(data):
    return LocalTerm.fitted(data, recency=0.5, n_neighbors=20, reg=5.0)


# ------------------------------------------------------------------------------------------------------------- fitting


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["some targets at a time", "all at once"])
def test_weights_are_those_of_a_dense_solution(data, counts, monkeypatch, memory):
    monkeypatch.setattr(cooccurrence, "_LEAST_BYTES", memory)
    found = ridge_on_neighbors(data, np.arange(N_ITEMS), 20, 5.0)
    popularity = np.diag(counts)
    for j in range(1, N_ITEMS):
        cosine = counts[:, j] / np.sqrt(np.maximum(popularity, 1))
        cosine[j] = -1
        best = np.lexsort((np.arange(N_ITEMS), -cosine))[:20]
        neighbors = np.sort(best[cosine[best] > 0])
        assert found.item[j][found.item[j] >= 0].tolist() == neighbors.tolist()
        expected = np.linalg.solve(
            counts[np.ix_(neighbors, neighbors)] + 5 * np.eye(len(neighbors)), counts[neighbors, j]
        )
        np.testing.assert_allclose(found.weight[j][: len(neighbors)], expected, atol=1e-5)
    assert not found.weight[0].any(), "the padding item"


def solved_in_batches(data, targets, n_neighbors, device="cpu", **options):
    """As on a GPU, and as on the CPU."""
    found = ridge_on_neighbors_batched(data, targets, n_neighbors, 5.0, torch.device(device), **options)
    return found, ridge_on_neighbors(data, targets, n_neighbors, 5.0)


@pytest.mark.parametrize("at_once", [1, 300, 20_000, 1 << 26], ids="{} numbers at once".format)
@pytest.mark.parametrize("n_neighbors", [1, 20, N_ITEMS])
def test_a_gpu_finds_what_the_cpu_finds(data, at_once, n_neighbors):
    targets = np.arange(3, N_ITEMS, 1 if at_once > 1 else 37, np.int32)
    found, expected = solved_in_batches(data, targets, n_neighbors, at_once=at_once)
    assert found.item.tolist() == expected.item.tolist()
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-6)
    assert (found.weight == 0).tolist() == (expected.weight == 0).tolist()


def test_a_gpu_solves_sparse_data():
    """With items that share no user, and some that nobody has."""
    data = Interactions.of(np.array([1, 2, 2, 3, 3, 3]), np.array([1, 2, 3, 2, 3, 5]), n_users=5, n_items=7)
    found, expected = solved_in_batches(data, np.arange(7), 4)
    assert found.item.tolist() == expected.item.tolist()
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-6)
    empty, _ = solved_in_batches(data, np.arange(0), 4)
    assert empty.item.shape == (0, 4)


def test_a_gpu_is_used_where_interactions_have_no_weights(pairs, monkeypatch):
    asked = []

    def on_gpu(data, targets, n_neighbors, reg, device):
        asked.append(device)
        return ridge_on_neighbors(data, targets, n_neighbors, reg)

    monkeypatch.setattr(local, "ridge_on_neighbors_batched", on_gpu)
    distinct = np.unique(np.stack(pairs), axis=1)
    plain = Interactions.of(*distinct, N_USERS, N_ITEMS)
    weighted = Interactions.of(*distinct, N_USERS, N_ITEMS, np.ones(distinct.shape[1], np.float32))
    found = [
        LocalTerm.fitted(data, 0.5, 4, 5.0, device=device and torch.device(device))
        for data, device in [(plain, "cuda"), (plain, "cpu"), (plain, None), (weighted, "cuda")]
    ]
    assert asked == [torch.device("cuda")]
    for one in found:
        np.testing.assert_allclose(one.values, found[0].values, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_same_bits_twice(data):
    first, expected = solved_in_batches(data, np.arange(N_ITEMS), 20, "cuda")
    second, _ = solved_in_batches(data, np.arange(N_ITEMS), 20, "cuda")
    parts, _ = solved_in_batches(data, np.arange(N_ITEMS), 20, "cuda", at_once=20_000)
    assert first.item.tolist() == second.item.tolist() == parts.item.tolist() == expected.item.tolist()
    assert first.weight.tobytes() == second.weight.tobytes()
    for found in (first, parts):
        np.testing.assert_allclose(found.weight, expected.weight, atol=1e-6)


def test_items_without_interactions_are_explained_by_their_content(pairs, monkeypatch):
    """All others keep their weights, whatever the features."""
    monkeypatch.setattr(local, "_COSINES_AT_ONCE", 1000)
    user, item = pairs
    warm = item % 7 > 0
    data = Interactions.of(user[warm], item[warm], N_USERS, N_ITEMS)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(N_ITEMS, 12)) * (rng.random((N_ITEMS, 12)) < 0.2)
    features[0] = features[14] = 0
    features[:, 11] = 0
    features[[27, 28]] = np.eye(12)[11]  # the only two with this value
    features[[8, 9]] = features[21]  # of two that are equally close the first counts
    found = [LocalTerm.fitted(data, 0.5, 5, 5.0, given) for given in (sp.csr_array(features), None)]
    content, without = (
        sp.csr_array((term.values, term.indices, term.indptr), shape=(N_ITEMS, N_ITEMS)).toarray() for term in found
    )
    has_pairs = np.bincount(item[warm], minlength=N_ITEMS) > 0
    np.testing.assert_array_equal(content[:, has_pairs], without[:, has_pairs])
    assert not without[:, ~has_pairs].any()
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    for j in np.flatnonzero(~has_pairs):
        cosine = np.where(has_pairs, (unit @ unit[j]).round(6), 0)
        best = np.lexsort((np.arange(N_ITEMS), -cosine))[:5]
        expected = np.zeros(N_ITEMS)
        alike = best[cosine[best] > 0]
        expected[alike] = cosine[alike] / cosine[alike].sum() * len(alike) / 5
        np.testing.assert_allclose(content[:, j], expected, atol=1e-5)
    assert not content[:, [0, 14]].any(), "the padding item, and an item without values"
    assert content[8, 21] == pytest.approx(content[9, 21])
    assert content[:, 28].sum() == pytest.approx(0.2), "with one of five neighbours it has a fifth of the weight"


def test_with_all_items_as_neighbors_it_is_a_full_ridge_regression(data, counts):
    """Each item explained by all others, without the constraint of EASE: a column of its own regression."""
    found = ridge_on_neighbors(data, [7], N_ITEMS, 5.0)
    others = found.item[0][found.item[0] >= 0]
    assert set(others) == set(np.flatnonzero(counts[7])) - {7}
    system = counts[np.ix_(others, others)] + 5 * np.eye(len(others))
    np.testing.assert_allclose(system @ found.weight[0][: len(others)], counts[others, 7], rtol=1e-3, atol=1e-3)


def test_weights_do_not_depend_on_the_threads(data):
    found = []
    before = numba.get_num_threads()
    for threads in (1, before):
        numba.set_num_threads(threads)
        found.append(ridge_on_neighbors(data, np.arange(N_ITEMS), 20, 5.0))
    numba.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_an_item_do_not_depend_on_the_other_targets(data):
    alone = ridge_on_neighbors(data, [9], 20, 5.0)
    together = ridge_on_neighbors(data, np.arange(N_ITEMS), 20, 5.0)
    np.testing.assert_array_equal(alone.item[0], together.item[9])
    np.testing.assert_array_equal(alone.weight[0], together.weight[9])


def test_an_interaction_counts_once(pairs, data):
    twice = Interactions.of(*(np.concatenate((part, part[::-1])) for part in pairs), N_USERS, N_ITEMS)
    for one, other in zip(data, twice, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("in_order", [True, False])
def test_long_histories_are_cut(in_order):
    start = np.array([0, 0, 3, 13, 113])
    kept = latest(start, 10, in_order)
    assert kept[:13].all()
    assert kept[13:].sum() == 10
    place = np.flatnonzero(kept[13:])
    assert place.tolist() == ([*range(90, 100)] if in_order else [*range(9, 100, 10)])


def test_the_diagonal_is_empty_and_rows_ascend(term):
    for i in range(N_ITEMS):
        row = term.indices[term.indptr[i] : term.indptr[i + 1]]
        assert i not in row
        assert (np.diff(row) > 0).all()


# ------------------------------------------------------------------------------------------------------------- scoring


def histories(seed=1):
    """Random histories, one of them empty, one with a repeated item, one longer than recency looks back."""
    rng = np.random.default_rng(seed)
    items = [rng.integers(1, N_ITEMS, n) for n in (0, 1, 5, 40, 1100)]
    items[2][3] = items[2][1]
    return items, np.cumsum([0, *map(len, items)]), np.concatenate(items).astype(np.int64)


def dense(term):
    table = np.zeros((N_ITEMS, N_ITEMS))
    row = np.repeat(np.arange(N_ITEMS), np.diff(term.indptr))
    table[row, term.indices] = term.values
    return table


def expected_scores(term, history):
    if not len(history):
        return np.zeros(N_ITEMS)
    weight = recency_weights(np.arange(len(history))[::-1], term.recency)
    return term.weight * (weight / weight.mean()) @ dense(term)[history]


def test_scores_are_weighted_sums(term):
    items, start, item = histories()
    found = term.scores(np.array([3, 0, 4, 2, 1]), start, item).found()
    scores = torch.zeros(5, N_ITEMS)
    found.add_to(scores)
    for row, user in enumerate([3, 0, 4, 2, 1]):
        np.testing.assert_allclose(scores[row], expected_scores(term, items[user]), rtol=1e-4, atol=1e-6)
    assert np.diff(found.start)[1] == 0, "a user without items"


def test_scores_of_pairs_are_the_same(term):
    _, start, item = histories()
    user, target = (part.ravel() for part in np.meshgrid(np.arange(5), np.arange(N_ITEMS), indexing="ij"))
    found = term.pairs(user, target, start, item).reshape(5, N_ITEMS)
    scores = torch.zeros(5, N_ITEMS)
    term.scores(np.arange(5), start, item).found().add_to(scores)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- the model


@pytest.fixture
def trained(tiny, timed):
    def train(ordered=False, **options):
        make = timed if ordered else tiny
        run = make(**FORM, **(ORDER if ordered else {}), learning_rate=0.01, **options)
        run.fit()
        return run

    return train


@pytest.mark.parametrize("ordered", [False, True])
def test_the_model_adds_the_term_everywhere(trained, ordered):
    model = (run := trained(ordered, local_weight=2.0)).model
    assert model.local.weight == 2.0
    assert model.local.recency == (0.5 if ordered else 0)
    users = torch.arange(1, model.n_users)
    interaction = Interaction({model.USER_ID: users})
    with torch.no_grad():
        towers = torch.matmul(
            *(part if n == 0 else part.T for n, part in enumerate(model.ranking_vectors(interaction)))
        )
        scores = model.full_sort_predict(interaction).view(len(users), -1)
    extra = torch.zeros_like(scores)
    model.local_scores(interaction).found().add_to(extra)
    assert extra.abs().max() > 0.1
    torch.testing.assert_close(scores, towers + extra)
    grid = torch.cartesian_prod(users, torch.arange(1, model.n_items))
    with torch.no_grad():
        single = model.predict(Interaction({model.USER_ID: grid[:, 0], model.ITEM_ID: grid[:, 1]}))
    torch.testing.assert_close(single.view(len(users), -1), scores[:, 1:], rtol=1e-4, atol=1e-5)
    stock = full_sort_scores(users.numpy()[:5], model, run.test_data, device=torch.device("cpu"))
    shown = torch.isfinite(stock)
    torch.testing.assert_close(stock[shown], scores[:5][shown])


@pytest.mark.parametrize("multiplies_int8", [True, False])
@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_fast_evaluation_is_exact(trained, monkeypatch, weight, multiplies_int8):
    monkeypatch.setattr(bounded, "multiplies_int8", lambda: multiplies_int8)
    run = trained(local_weight=weight)
    run.trainer.eval_collector.data_collect(run.train_data)
    exact = run.trainer.evaluate(run.test_data, load_best_model=False)
    ranked = []
    insert = bounded.Product.top_items

    def noting(product, *args):
        ranked.append(product.table.uses_bounds)
        return insert(product, *args)

    monkeypatch.setattr(bounded.Product, "top_items", noting)
    monkeypatch.setattr(bounded, "MIN_ITEMS", 1)
    monkeypatch.setattr(bounded, "_MOST_COMPUTED", 1.0)
    assert run.trainer.evaluate(run.test_data, load_best_model=False) == exact
    assert all(ranked)
    assert ranked


def test_the_weight_is_chosen_on_validation(trained):
    run = trained(epochs=2)
    weight = float(run.model.local_weight)
    assert weight in LOCAL_WEIGHTS
    best = max(run.trainer.record.epochs, key=lambda epoch: epoch["valid"][run.trainer.valid_metric])
    assert run.trainer.evaluate(run.valid_data, load_best_model=False) == best["valid"]
    scores = {}
    for other in LOCAL_WEIGHTS:
        run.model.local_weight.fill_(other)
        scores[other] = run.trainer.evaluate(run.valid_data, load_best_model=False)
    metric = run.trainer.valid_metric
    place = LOCAL_WEIGHTS.index(weight)
    near = LOCAL_WEIGHTS[max(place - 1, 0) : place + 2]
    assert max(scores[other][metric] for other in near) == scores[weight][metric]


@pytest.mark.parametrize("is_bounded", [True, False])
@pytest.mark.parametrize("more", [[], ["ItemCoverage"], ["GAUC"]])
def test_weights_validated_together_have_the_metrics_of_each(trained, monkeypatch, is_bounded, more):
    if is_bounded:
        monkeypatch.setattr(bounded, "MIN_ITEMS", 1)
        monkeypatch.setattr(bounded, "multiplies_int8", lambda: True)
        monkeypatch.setattr(bounded, "_MOST_COMPUTED", 1.0)
    run = trained(True, metrics=["Recall", "NDCG", *more], metric_decimal_place=12, eval_memory_mb=7 * 41 * 4 / 2**20)
    alone = []
    for weight in LOCAL_WEIGHTS:
        run.model.local_weight.fill_(weight)
        alone.append(run.trainer.evaluate(run.valid_data, load_best_model=False))
    assert full_sort.evaluate_weights(run.trainer, run.valid_data, LOCAL_WEIGHTS) == alone
    assert len({tuple(result.values()) for result in alone}) > 2
    assert run.trainer.evaluate(run.valid_data, load_best_model=False) in alone, "later evaluations are as before"


@pytest.mark.parametrize("is_bounded", [True, False])
def test_lists_of_several_weights_are_those_of_each(trained, monkeypatch, is_bounded):
    if is_bounded:
        monkeypatch.setattr(bounded, "MIN_ITEMS", 1)
        monkeypatch.setattr(bounded, "multiplies_int8", lambda: True)
    monkeypatch.setattr(bounded, "_TILE", 16)
    model = trained(ordered=True).model.eval()
    interaction = Interaction({model.USER_ID: torch.arange(1, model.n_users)})
    hidden = torch.tensor([0, 0, 3]), torch.tensor([4, 5, 1])

    def product() -> bounded.Product:
        users, items = model.ranking_vectors(interaction)
        local = None if model.local is None else lambda rows: model.local_scores(interaction[rows])
        return bounded.Product(users, bounded.RoundedItems(items), hidden, pool, local)

    with torch.no_grad(), bounded.ranking_threads() as pool:
        model.local_weight.fill_(1.0)
        together = product().top_items(10, LOCAL_WEIGHTS)
        for n, weight in enumerate(LOCAL_WEIGHTS):
            model.local_weight.fill_(1.0)
            scores = product().scores(local_factor=weight)
            model.local_weight.fill_(weight)
            assert torch.equal(product().scores(), scores)
            assert torch.equal(together[:, n], product().top_items(10)[:, 0])
            assert torch.equal(together[:, n], torch.topk(scores, 10)[1])


def test_sums_in_tiles_are_the_sums(term):
    _, start, item = histories()
    scores = term.scores(np.arange(5), start, item)
    expected = torch.zeros(5, N_ITEMS)
    scores.found().add_to(expected)
    for tile in (1, 7, N_ITEMS, 4 * N_ITEMS):
        found = scores.found(tile)
        again = torch.zeros(5, N_ITEMS)
        found.add_to(again)
        assert torch.equal(again, expected)
        for begin, end in pairwise(found.start):
            assert (np.diff(found.item[begin:end] // tile) >= 0).all()


def test_a_given_weight_stays_and_zero_is_the_towers_alone(trained, tiny):
    assert trained(local_weight=0.25, output_dir=None).model.local.weight == 0.25
    off = trained(local_weight=0, output_dir=None)
    assert off.model.local is None
    towers = tiny(**{**FORM, "local": "none"}, learning_rate=0.01, output_dir=None)
    result = towers.fit()
    assert result.local is None
    assert off.trainer.evaluate(off.test_data, load_best_model=False) == result.test


def test_the_result_names_the_term(tiny):
    result = tiny(**FORM, local_weight=1.5).fit()
    assert result.local == {"weight": 1.5, "recency": 0.0, "neighbors": 10, "reg": 2.0}


@pytest.mark.parametrize(
    "options",
    [{"local": "rigde"}, {"local_neighbors": 0}, {"local_reg": 0}, {"local_weight": -1}, {"local_history": 0}],
)
def test_bad_values_are_refused(tiny, options):
    with pytest.raises(UserError, match=next(iter(options))):
        tiny(**options)


def test_recency_needs_times(tiny):
    with pytest.raises(UserError, match=r"local_recency: 0\.5: the interactions have no times"):
        tiny(**FORM, local_recency=0.5)
