"""Exact search: equal to a full sort, and independent of batch, blocks and threads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_onebp import Recommender
from recbole_onebp.serving.local_table import LocalTable
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.search import Excluded, best_items
from recbole_onebp.serving.tables import Embeddings, ItemTable
from support.bundles import made_bundle, random_local


@pytest.mark.parametrize("local", [0.0, 0.7])
def test_lists_do_not_depend_on_the_batch_to_the_last_bit(tmp_path, local):
    """With 3,000 items and d = 67 the last bits of the matrix product depend on its shape."""
    path = made_bundle(
        tmp_path / "bundle", n_users=97, n_items=3000, size=67, bias=True, local=local, local_recency=0.5
    )
    rec = Recommender.load(path)
    items = rec.bundle.item_encodings
    alone = np.vstack([row[None] @ items.T for row in rec.bundle.user_encodings])
    assert (alone != rec.bundle.user_encodings @ items.T).any()

    users, histories = list(rec.user_ids), [rec.history(user) for user in rec.user_ids]
    whole, folded = rec.recommend(users, k=50), rec.recommend_history(histories, k=50)
    similar = rec.similar_items(rec.item_ids[:40], k=50)
    for other in (
        Recommender.load(path, memory_mb=0.001, threads=1),
        Recommender.load(path, memory_mb=0.3, threads=3),
    ):
        assert other.recommend(users, k=50) == whole
        assert other.recommend_history(histories, k=50) == folded
    for number, user in enumerate(users):
        assert rec.recommend([user], k=50) == [whole[number]]
        assert rec.recommend_history([histories[number]], k=50) == [folded[number]]
    assert [rec.similar_items([item], k=50)[0] for item in rec.item_ids[:40]] == similar
    assert rec.recommend(users, k=50, allow=rec.item_ids) == whole


@pytest.mark.parametrize("local", [1e-3, 1.0, 1e6])
def test_float32_scores_are_within_the_margin(local):
    rng = np.random.default_rng(2)
    table = ItemTable(Embeddings(rng.normal(size=(3000, 64)).astype("f4")), rng.normal(size=3000).astype("f4"))
    term = LocalTable(*random_local(3000, rng).values(), local, 0.0)
    scorer = Scorer(table, rng.normal(size=(5, 64)).astype("f4"), term, [rng.integers(0, 3000, 900) for _ in range(5)])
    found = np.empty((5, 3000), np.float32)
    scorer.write_all(found)
    exact = scorer.pairs(np.repeat(np.arange(5), 3000), np.tile(np.arange(3000), 5)).reshape(5, 3000)
    error, margin = np.abs(found - exact).max(axis=1), scorer.margin()
    assert (error <= margin).all()
    assert (margin <= 1e3 * error).all()  # a bound that is too large would make everything a candidate


def test_equal_scores_keep_the_order_of_the_bundle(tmp_path):
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(5, 8)).astype(np.float32)
    which = rng.integers(0, 5, 2000)
    path = made_bundle(tmp_path / "bundle", n_items=2000, item_encodings=kinds[which])
    for answer in Recommender.load(path).recommend([f"u{n}" for n in range(20)], k=700, exclude_seen=False):
        score = dict(answer)
        ordered = sorted(score, key=lambda item: (-score[item], int(item[1:])))
        assert [item for item, _ in answer] == ordered
        assert len(set(score.values())) <= 5


def test_all_scores_are_equal(tmp_path):
    """Every item is a candidate, more than one block of candidates."""
    zeros = np.zeros((20, 8), np.float32)
    rec = Recommender.load(made_bundle(tmp_path / "bundle", n_items=90_000, user_encodings=zeros), memory_mb=100)
    answers = rec.recommend([f"u{n}" for n in range(20)], k=4, exclude_seen=False)
    assert answers == [[(f"i{n}", 0.0) for n in range(4)]] * 20


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_best_items_against_a_full_sort(data):
    """Scores with many near and exact ties; the oracle sorts all of them, in float64."""
    n_items, n_users = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([1e-20, 1.0, 1e15]))
    item_e = (rng.integers(-2, 3, (n_items, 3)) * scale * (1 + 1e-7 * rng.integers(0, 2, (n_items, 1)))).astype("f4")
    user_e = rng.integers(-2, 3, (n_users, 3)).astype("f4") * np.float32(1 / 3)
    bias = rng.integers(-1, 2, n_items).astype("f4") if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 320))
    seen = [rng.choice(n_items, rng.integers(0, n_items + 1), replace=False) for _ in range(n_users)]
    for_all = rng.choice(n_items, rng.integers(0, n_items // 3 + 1), replace=False)
    excluded = Excluded.of(seen, for_all)
    local, histories, weights = None, [], np.zeros((n_items, n_items))
    if data.draw(st.booleans()):
        local = LocalTable(*random_local(n_items, rng).values(), scale, 0.0)
        histories = [rng.integers(0, n_items, rng.integers(0, 9)) for _ in range(n_users)]
        weights[np.repeat(np.arange(n_items), np.diff(local.start)), local.item] = local.value
    scorer = Scorer(ItemTable(Embeddings(item_e), bias), user_e, local, histories)
    found = best_items(scorer, k, excluded, memory_mb=0.01, threads=2)
    for row in range(n_users):
        score = (item_e.astype(np.float64) * user_e[row]).sum(axis=1) + (0 if bias is None else bias)
        if local is not None:
            times, added = dict(Counter(histories[row].tolist())), np.zeros(n_items)
            for item, often in times.items():  # in the order of the history, as serving adds
                added += often * weights[item]
            score += local.weight * added
        left = np.setdiff1d(np.arange(n_items), np.concatenate((seen[row], for_all)))
        expected = left[np.argsort(-score[left], kind="stable")][:k]
        part = slice(found.start[row], found.start[row + 1])
        assert found.item[part].tolist() == expected.tolist()
        assert found.score[part].tolist() == score[expected].tolist()
