"""Weights of interactions: what they become, where they count, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from conftest import write_inter
from recbole_onebp import Recommender, cooccurrence
from recbole_onebp.cooccurrence import Interactions, ridge_on_neighbors
from recbole_onebp.history import History
from recbole_onebp.local import LocalTerm
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.serving.user_state import fold_in
from recbole_onebp.util.errors import UserError
from recbole_onebp.weights import transformed
from support.bundles import random_local

USER = torch.tensor([1, 2, 1, 1, 2, 1])
ITEM = torch.tensor([5, 3, 2, 4, 1, 6])
TIME = torch.tensor([30.0, 9.0, 10.0, 40.0, 8.0, 20.0])
STRENGTH = torch.tensor([0.5, 2.0, 1.0, 3.0, 4.0, 0.25])
SHARES = torch.arange(14.0).reshape(7, 2)
LOCAL = {"local": "ridge", "local_weight": 0.5, "local_neighbors": 8, "local_reg": 2.0}


def mean_of(items, weights):
    return sum(w * SHARES[i] for i, w in zip(items, weights, strict=True)) / sum(weights)


def history(recency=0.0, earlier=0.0, time=TIME, strength=STRENGTH):
    return History(USER, ITEM, 4, 7, time, recency, earlier, strength)


# ----------------------------------------------------------------------------------------------------- what they become


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("raw", [9, 4, 4, 1]),
        ("sqrt", [3, 2, 2, 1]),
        ("log1p", np.log([10, 5, 5, 2])),
        ("rank", [1, 2 / 3, 2 / 3, 1]),
    ],
)
def test_transforms(by, expected):
    owner = np.array([7, 7, 7, 2])
    np.testing.assert_allclose(transformed(np.array([9.0, 4.0, 4.0, 1.0]), owner, by), expected)


def test_ranks_are_shares_of_the_users_own_weights():
    rng = np.random.default_rng(0)
    owner, weight = rng.integers(0, 30, 500), rng.integers(1, 6, 500).astype(float)
    expected = [(weight[owner == u] <= w).mean() for u, w in zip(owner, weight, strict=True)]
    np.testing.assert_allclose(transformed(weight, owner, "rank"), expected)


@pytest.mark.parametrize("by", ["raw", "log1p", "sqrt", "rank"])
def test_their_mean_is_one_and_users_are_weighted_means(weighted, by):
    run = weighted(epochs=1, weight_transform=by, aggregation_alpha=0.25)
    run.fit()
    model, train = run.model, run.train_data._dataset.inter_feat
    strength = transformed(train["plays"].numpy(), train["user_id"].numpy(), by)
    assert model.history.strength.mean().item() == pytest.approx(1)
    items = torch.nn.functional.normalize(model.item_table.detach(), dim=1) * model.item_weight
    for user in (1, 7, 30):
        rows = (train["user_id"] == user).nonzero().squeeze(1)
        own = torch.from_numpy(strength)[rows].float().unsqueeze(1)
        expected = (own * items[train["item_id"][rows]]).sum(0) / own.sum()
        torch.testing.assert_close(model.user_table[user], expected, rtol=0, atol=1e-6)
    scaled = torch.from_numpy(strength / strength.mean()).float()
    torch.testing.assert_close(model.pair_weight(train["user_id"], train["item_id"]), scaled)


def test_equal_weights_change_nothing_but_rounding(weighted, timed_path, tmp_path):
    plain = weighted(epochs=2, WEIGHT_FIELD=None, output_dir=None)
    header, *rows = (line.split("\t") for line in (Path(timed_path) / "tiny" / "tiny.inter").read_text().splitlines())
    write_inter(tmp_path / "tiny", [(*row[:3], 5) for row in rows], "\t".join(header))
    equal = weighted(epochs=2, data_path=str(tmp_path), output_dir=None)
    assert torch.equal(equal.model.history.strength, torch.ones(len(equal.model.history.item)))
    plain.train()
    equal.train()
    torch.testing.assert_close(equal.model.item_table, plain.model.item_table, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- where they count


def test_in_the_mean_of_a_user_beside_recency():
    assert history().strength.tolist() == [1.0, 0.25, 0.5, 3.0, 4.0, 2.0]
    torch.testing.assert_close(history().mean(SHARES)[1], mean_of([2, 6, 5, 4], [1, 0.25, 0.5, 3]))
    mean = history(recency=1.0).mean(SHARES)
    torch.testing.assert_close(mean[1], mean_of([2, 6, 5, 4], [1 / 4, 0.25 / 3, 0.5 / 2, 3]))


def test_in_the_user_of_a_pair():
    found, user, item = history(), torch.tensor([1, 2]), torch.tensor([5, 3])
    others = found.without(user, item, found.mean(SHARES)[user], SHARES[item])
    torch.testing.assert_close(others, torch.stack([mean_of([2, 6, 4], [1, 0.25, 3]), SHARES[1]]))
    earlier = history(earlier=1.0).earlier(torch.tensor([1, 1]), torch.tensor([4, 2]), SHARES)
    torch.testing.assert_close(earlier, torch.stack([mean_of([2, 6, 5], [1 / 3, 0.25 / 2, 0.5]), torch.zeros(2)]))


def test_an_item_that_is_all_of_its_user_leaves_nothing():
    """The rest would be the difference of two large numbers."""
    strength = STRENGTH.clone()
    strength[0] = 1e9
    found, user, item = history(strength=strength), torch.tensor([1, 1]), torch.tensor([5, 4])
    others = found.without(user, item, found.mean(SHARES)[user], SHARES[item])
    assert not others[0].any()
    torch.testing.assert_close(others[1], SHARES[5], rtol=0, atol=1e-4)


@pytest.mark.parametrize("recency", [0.0, 0.5])
def test_in_the_scores_of_the_local_term(recency):
    rng = np.random.default_rng(0)
    made = random_local(60, rng)
    term = LocalTerm(made["local.indptr"], made["local.indices"], made["local.values"], 2.0, recency, 7, 1.0)
    dense = np.zeros((60, 60))
    dense[np.repeat(np.arange(60), np.diff(term.indptr)), term.indices] = term.values
    items = [rng.integers(1, 60, n) for n in (0, 1, 12)]
    start, strength = np.cumsum([0, *map(len, items)]), rng.random(13).astype(np.float32) + 0.1
    found = torch.zeros(3, 60)
    term.scores(np.arange(3), start, np.concatenate(items), strength).found().add_to(found)
    pairs = term.pairs(np.repeat(np.arange(3), 60), np.tile(np.arange(60), 3), start, np.concatenate(items), strength)
    for user in range(3):
        age = np.arange(len(items[user]))[::-1]
        r = strength[start[user] : start[user + 1]] * (age + 1.0) ** -recency
        expected = term.weight * (r / (r.mean() if len(r) else 1)) @ dense[items[user]]
        np.testing.assert_allclose(found[user], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(pairs[60 * user : 60 * user + 60], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["some targets at a time", "all at once"])
def test_in_the_counts_of_the_local_term(monkeypatch, memory):
    monkeypatch.setattr(cooccurrence, "_LEAST_BYTES", memory)
    rng = np.random.default_rng(0)
    strength = np.where(rng.random((80, 60)) < 0.2, rng.random((80, 60)) * 3 + 0.1, 0)
    strength[:, 0] = 0
    user, item = np.nonzero(strength)
    order = rng.permutation(len(user))
    data = Interactions.of(user[order], item[order], 80, 60, strength[user, item][order])
    found, counts = ridge_on_neighbors(data, np.arange(60), 9, 5.0), strength.T @ strength
    for j in range(1, 60):
        cosine = counts[:, j] / np.sqrt(np.maximum(np.diag(counts), 1e-9))
        cosine[j] = -1
        best = np.sort(np.argsort(-cosine)[:9])
        assert found.item[j].tolist() == best.tolist()
        expected = np.linalg.solve(counts[np.ix_(best, best)] + 5 * np.eye(9), counts[best, j])
        np.testing.assert_allclose(found.weight[j], expected, atol=1e-6)


def test_the_term_of_a_run_is_fitted_to_weights(weighted):
    """To those of all users, divided by their mean."""
    run = weighted(epochs=1, **LOCAL)
    history, seen = run.model.history, run.model._counted()
    dense = np.zeros((31, 41))
    dense[np.repeat(np.arange(31), np.diff(history.start)), history.item] = history.strength
    np.testing.assert_allclose(seen.weight, dense[dense > 0])
    np.testing.assert_allclose(seen.weight_by_item, dense.T[dense.T > 0])
    assert seen.weight.mean() == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"leave_one_out": False}, {"weight_transform": "log1p", **LOCAL}])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_resumed_run_is_the_same_bit_for_bit(weighted, tmp_path, options, engine):
    settings = {**options, "engine": engine, "train_batch_size": 32, "n_shared_negatives": 16, "stopping_step": 9}
    straight = weighted(**settings, epochs=3, output_dir=str(tmp_path / "straight"))
    straight.train()
    weighted(**settings, epochs=2, output_dir=str(tmp_path / "parts")).train()
    resumed = weighted(**settings, epochs=3, output_dir=str(tmp_path / "parts"), resume="auto")
    resumed.train()
    for name, table in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], table)


# ---------------------------------------------------------------------------------------------------------- in a bundle


def exported(weighted, tmp_path, **options):
    run = weighted(epochs=1, **options)
    run.fit()
    return run, export(tmp_path / "run", tmp_path / "bundle"), Recommender.load(tmp_path / "bundle")


def given_of(run, rec, user):
    """The plays of a user's history, in its order."""
    ids, train = run.dataset.token2id, run.train_data._dataset.inter_feat
    items = ids(run.dataset.iid_field, rec.trained_history(user))
    own = train["user_id"] == ids(run.dataset.uid_field, [user])[0]
    return [float(train["plays"][own & (train["item_id"] == item)][0]) for item in items]


ORDERED = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp", "plays"]},
    "eval_args": {"order": "TO", "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "mode": "full"},
}


@pytest.mark.parametrize("options", [{"local": "none"}, LOCAL, {"weight_transform": "log1p", **LOCAL}, ORDERED | LOCAL])
def test_answers_of_a_bundle_are_those_of_the_model(weighted, tmp_path, options):
    run, manifest, rec = exported(weighted, tmp_path, **options)
    transform = run.model.config.weight_transform
    assert manifest["weights"] == {"transform": transform, "default": 2.0}
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert f"by the weight of the interaction ({transform})" in " ".join(card.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert f"| all | 30 | {result['recall@10']:.4f} | {result['ndcg@10']:.4f} |" in card
    users, ids = list(rec.user_ids), run.dataset.token2id
    with torch.no_grad():
        batch = Interaction({"user_id": torch.as_tensor(ids("user_id", users))})
        scores = run.model.full_sort_predict(batch).view(30, -1)[:, ids("item_id", list(rec.item_ids))].numpy()
    for user, row, answer in zip(users, scores, rec.recommend(users, k=40, exclude_seen=False), strict=True):
        assert dict(answer) == pytest.approx(dict(zip(rec.item_ids, row.tolist(), strict=True)), abs=1e-5)
        explanation = rec.explain(user, "i7")
        assert explanation.score == pytest.approx(dict(answer)["i7"], abs=1e-6)
        assert explanation.residual == pytest.approx(0, abs=1e-5)
    histories, plays = [rec.history(user) for user in users], [given_of(run, rec, user) for user in users]
    folded = rec.recommend_history(histories, k=5, rule="trained", weights=plays)
    for trained, found in zip(rec.recommend(users, k=5), folded, strict=True):
        assert [score for _, score in found] == pytest.approx([score for _, score in trained], abs=1e-5)
    assert folded != rec.recommend_history(histories, k=5, rule="trained")


@pytest.mark.parametrize("options", [LOCAL, {"weight_transform": "log1p", **LOCAL}, ORDERED | LOCAL])
def test_events_with_weights_equal_a_recomputation(weighted, tmp_path, options):
    run, _, rec = exported(weighted, tmp_path, **options)
    rec.update([("u3", "i39", 7), ("new", "i5", 300), ("new", "i9")])
    rec.update([("u3", "i39", 1.5), ("new", "i5", np.float32(2))])
    history, plays = rec.history("u3"), [*given_of(run, rec, "u3"), 7, 1.5]
    assert history[-2:] == ["i39", "i39"]
    assert rec.recommend(["u3"], k=20)[0] == rec.recommend_history([history], 20, rule="trained", weights=[plays])[0]
    new = [["i5", "i9", "i5"]], [[300, 2, 2]]
    assert rec.recommend(["new"], k=20)[0] == rec.recommend_history(new[0], k=20, weights=new[1])[0]
    assert rec.score(["new"], ["i7"])[0] == dict(rec.recommend(["new"], k=40, exclude_seen=False)[0])["i7"]
    for found in (rec.explain("u3", "i7"), rec.explain("new", "i7")):
        assert found.residual == pytest.approx(0, abs=1e-6)
    explained = rec.explain_history(*new[0], "i7", weights=new[1][0])
    assert explained.contributions == rec.explain("new", "i7").contributions
    recent = rec.recommend_history([["i5", "i9"]], rule="recent", weights=[[1, 300]])
    assert recent != rec.recommend_history([["i5", "i9"]], rule="recent", weights=[[300, 1]])


def test_the_weight_of_a_history_decides(weighted, tmp_path):
    _, _, rec = exported(weighted, tmp_path, local="none", weight_transform="raw", score="dot")
    rows = rec._item_tokens.find(["i5", "i9"])[0]
    found = fold_in([rows], rec._items.embeddings, *rec._fold_in_by("alike"), [np.array([1.0, 3.0])])
    expected = rec._items.embeddings.rows(rows).astype(float)
    np.testing.assert_allclose(found[0], expected[0] / 4 + 3 * expected[1] / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda rec: rec.update([("u1", "i1", 0)]), "events: .* 0 is no weight: expected a number from 1e-09 to 1e"),
        (lambda rec: rec.update([("u1", "i1", float("nan"))]), "nan is no weight"),
        (lambda rec: rec.update([("u1", "i1", -1)]), "-1 is no weight"),
        (lambda rec: rec.update([("u1", "i1", "2")]), "'2' is no weight"),
        (lambda rec: rec.update([("u1", "i1", True)]), "True is no weight"),
        (lambda rec: rec.recommend_history([["i1"]], weights=[[1, 2]]), "weights: 2 for a history of 1 items"),
        (lambda rec: rec.recommend_history([["i1"]], weights=[]), "weights: 0 lists for 1 histories"),
        (lambda rec: rec.explain_history(["i1"], "i2", weights=[10**400]), "is no weight"),
    ],
)
def test_bad_weights_of_events_and_histories_are_refused(weighted, tmp_path, ask, said):
    _, _, rec = exported(weighted, tmp_path)
    before = rec.recommend(["u1"])
    with pytest.raises(UserError, match=said):
        ask(rec)
    assert rec.recommend(["u1"]) == before


def test_a_bundle_without_weights_takes_none(timed, tmp_path):
    _, manifest, rec = exported(timed, tmp_path)
    assert "weights" not in manifest
    for ask in (lambda: rec.update([("u1", "i1", 2)]), lambda: rec.recommend_history([["i1"]], weights=[[1]])):
        with pytest.raises(UserError, match="trained without weights of interactions; leave them out"):
            ask()


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "line 4: plays is 0, no weight"), (-2, "line 4: plays is -2"), ("", "line 4: plays is nan"),
     ("inf", "line 4: plays is inf"), ("1e300", "line 4: plays is 1e\\+300"), ("many", "plays is 'many'")],
)  # fmt: skip
@pytest.mark.parametrize("header", ["plays:float", "plays:float\tnote:token_seq"])
def test_bad_weights_of_files_are_one_line(weighted, tmp_path, value, said, header):
    """Also where RecBole reads the file itself, which fills in means for missing values."""
    more = header.count("\t") * ("a b",)
    rows = [(f"u{u}", f"i{i}", value if (u, i) == (0, 2) else 3, *more) for u in range(9) for i in range(u % 3, 12)]
    write_inter(tmp_path / "tiny", rows, f"user_id:token\titem_id:token\t{header}")
    columns = ["user_id", "item_id", *(title.partition(":")[0] for title in header.split("\t"))]
    with pytest.raises(UserError, match=said):
        weighted(data_path=str(tmp_path), load_col={"inter": columns})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"WEIGHT_FIELD": "listens"}, "WEIGHT_FIELD: listens: no such column of numbers is loaded, but plays; load it"),
        ({"WEIGHT_FIELD": "item_id"}, "WEIGHT_FIELD: item_id: no such column of numbers"),
        ({"normalize_field": ["plays"]}, "changed by normalize_field"),
        ({"aggregation": "step"}, "WEIGHT_FIELD: plays with aggregation: step"),
        ({"backprop": "two"}, "WEIGHT_FIELD: plays with aggregation: step"),
        ({"weight_transform": "log"}, "weight_transform: 'log' is not allowed"),
        ({"WEIGHT_FIELD": 3}, "WEIGHT_FIELD"),
    ],
)
def test_what_does_not_go_together_is_one_line(weighted, options, said):
    with pytest.raises(UserError, match=said):
        weighted(**options)


def test_a_pair_with_two_weights_is_refused(weighted, tmp_path):
    rows = [(f"u{u}", f"i{i}", 3) for u in range(9) for i in range(u % 3, 12)]
    write_inter(tmp_path / "tiny", [*rows, *rows[7:8] * 3], "user_id:token\titem_id:token\tplays:float")
    with pytest.raises(UserError, match="user u0 has several rows of item i7; add up their weights"):
        weighted(data_path=str(tmp_path), eval_args={"split": {"RS": [1.0, 0.0, 0.0]}})
    assert isinstance(weighted(data_path=str(tmp_path), rm_dup_inter="first").model.history, History)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columnar_files_name_the_row(weighted, tmp_path, suffix):
    pytest.importorskip("pyarrow")
    rows = [(f"u{u}", f"i{i}", 0 if (u, i) == (0, 2) else 3) for u in range(9) for i in range(u % 3, 12)]
    (tmp_path / "tiny").mkdir()
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "plays"])
    path = tmp_path / "tiny" / f"tiny.inter.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    with pytest.raises(UserError, match="row 3: plays is 0, no weight"):
        weighted(data_path=str(tmp_path))
