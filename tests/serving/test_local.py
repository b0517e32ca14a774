"""The local term of a bundle, against dense float64 matrices."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.recency import recency_weights
from recbole_onebp.serving import batch
from recbole_onebp.serving.ann import Index
from recbole_onebp.serving.batch import Request, write_lists
from recbole_onebp.serving.bundle import read_bundle
from recbole_onebp.serving.tables import Embeddings, ItemTable, unit_rows
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.oracle import embedding, scores_of

KINDS = [
    {"local": 0.5},
    {"local": 0.5, "bias": True, "score": "cosine", "local_recency": 1.0},
    {"local": 2.0, "score": "cosine", "rule": "mean", "recency": 0.5, "local_recency": 0.5, "dtype": "float16"},
]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def rec(request, tmp_path):
    return Recommender.load(made_bundle(tmp_path / "bundle", **request.param))


def dense(bundle):
    """weight * W, ``(n_items, n_items)``."""
    local, n_items = bundle.local, len(bundle.item_ids)
    matrix = np.zeros((n_items, n_items))
    matrix[np.repeat(np.arange(n_items), np.diff(local.start)), local.item] = local.value
    assert matrix.any()
    assert not np.diag(matrix).any()
    return local.weight * matrix


def weights(history, recency):
    """r_i of each item of a history."""
    if not len(history):
        return np.empty(0)
    age = np.arange(len(history))[::-1]
    made = recency_weights(age, recency)
    return made / made.mean()


def local_scores(rec, history):
    items = [int(item[1:]) for item in history]
    return weights(items, rec.bundle.local.recency) @ dense(rec.bundle)[items]


def all_scores(rec, user):
    return dict(rec.recommend([user], k=100, exclude_seen=False)[0])


@pytest.mark.parametrize(("score", "recency"), [("dot", 0.0), ("cosine", 0.7)])
def test_the_lists_of_20000_users_are_those_of_a_dense_product(tmp_path, score, recency):
    """Histories with repeats, some longer than the 1,000 items that recency counts."""
    rng = np.random.default_rng(5)
    n_users, n_items = 20_000, 60
    length = rng.integers(0, 25, n_users)
    length[:3] = 999, 1000, 1500
    start = np.concatenate(([0], np.cumsum(length)))
    item = rng.integers(0, n_items, start[-1]).astype(np.int32)
    rec = Recommender.load(
        made_bundle(
            tmp_path / "bundle",
            n_users,
            n_items,
            score=score,
            bias=True,
            local=0.3,
            local_recency=recency,
            history_start=start,
            history_item=item,
        )
    )
    answers = rec.recommend(rec.user_ids, k=10, exclude_seen=False)

    user_e, item_e = rec.bundle.user_encodings, rec.bundle.item_encodings
    scored = unit_rows(user_e) if score == "cosine" else user_e
    expected, matrix = scored.astype(np.float64) @ item_e.T.astype(np.float64) + rec.bundle.item_bias, dense(rec.bundle)
    for user in range(n_users):
        history = item[start[user] : start[user + 1]]
        expected[user] += weights(history, recency) @ matrix[history]
    best = np.argsort(-expected, axis=1, kind="stable")[:, :10]
    assert [[name for name, _ in answer] for answer in answers] == [[f"i{place}" for place in row] for row in best]
    found = np.array([[score for _, score in answer] for answer in answers])
    assert found == pytest.approx(np.take_along_axis(expected, best, axis=1), rel=1e-12, abs=1e-12)


def test_scores_are_those_of_the_towers_and_of_the_pairs(rec):
    users = [*rec.user_ids, "new"]
    rec.update([("new", "i3"), ("new", "i4"), ("u1", "i9"), ("u1", "i9")])
    for user in users:
        scores = all_scores(rec, user)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert rec.score([user] * 60, list(scores)).tolist() == list(scores.values())
        assert dict(rec.recommend([user], k=60, allow=rec.item_ids[7:31], exclude_seen=False)[0]) == {
            item: scores[item] for item in rec.item_ids[7:31]
        }
        if user not in ("u1", "new"):
            towers = scores_of(rec, embedding(rec, user))
            expected = towers + local_scores(rec, rec.history(user))
            assert [scores[item] for item in rec.item_ids] == pytest.approx(expected, abs=1e-6)
    many = rec.score(users * 60, [item for item in rec.item_ids for _ in users])
    assert many.tolist() == [all_scores(rec, user)[item] for item in rec.item_ids for user in users]


@pytest.mark.parametrize("rule", ["alike", "trained", "recent"])
def test_a_history_has_the_local_scores_of_its_items(tmp_path, rec, rule):
    """The local term counts items by its own recency, whatever the rule."""
    towers = Recommender.load(without_local(tmp_path, rec))
    histories = [["i5"], ["i9", "i3", "i44", "i3"], list(rec.item_ids)]
    ask = {"k": 60, "rule": rule, "exclude_seen": False}
    pure = towers.recommend_history(histories, **ask)
    for history, before, after in zip(histories, pure, rec.recommend_history(histories, **ask), strict=True):
        added = dict(zip(rec.item_ids, local_scores(rec, history), strict=True))
        assert dict(after) == pytest.approx({item: score + added[item] for item, score in before}, abs=1e-9)
    assert rec.recommend_history([["ghost"]], rule=rule) == [[]]


def without_local(tmp_path, rec):
    """The same bundle without its local term."""
    arrays = ("item_encodings", "item_bias", "user_encodings", "history_start", "history_item")
    same = {name: getattr(rec.bundle, name) for name in arrays if getattr(rec.bundle, name) is not None}
    about = rec.bundle.manifest
    return made_bundle(tmp_path / "towers", score=about["score"], **same, rule=about["aggregation"]["rule"],
                       recency=about["aggregation"]["recency"])  # fmt: skip


def test_an_event_changes_the_local_scores_at_once_and_as_a_recomputation_would(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", rule="mean", recency=0.5, local=1.0, local_recency=1.0))
    matrix, events = dense(rec.bundle), ["i7", "i8", "i7", "i50"]
    for number, item in enumerate(events):
        assert rec.update([("u3", item), ("new", item)]).applied == 2
        parts = {part.item: part.local for part in rec.explain("new", "i20").parts}
        at = weights(events[: number + 1], 1.0)
        added = [r * matrix[int(name[1:]), 20] for r, name in zip(at, events, strict=False)]
        assert sum(parts.values()) == pytest.approx(sum(added), abs=1e-12)
        for user in ("u3", "new"):
            (again,) = rec.recommend_history([rec.history(user)], k=60)
            assert rec.recommend([user], k=60)[0] == again  # to the last bit
    at_once = Recommender.load(rec.bundle.path)
    at_once.update([(user, item) for item in events for user in ("u3", "new")])
    assert at_once.recommend(["u3", "new"], k=60) == rec.recommend(["u3", "new"], k=60)


def test_a_new_item_has_no_local_score_and_adds_none(tmp_path, rec):
    towers = Recommender.load(without_local(tmp_path, rec))
    for either in (rec, towers):
        either.add_items({"fresh": ["u1", "u2"]})
        either.update([("new", "fresh"), ("newer", "i5"), ("newer", "fresh")])
    for user in ("u1", "u4", "new"):
        assert rec.score([user], ["fresh"]).tolist() == towers.score([user], ["fresh"]).tolist()
    assert rec.recommend(["new"], k=100) == towers.recommend(["new"], k=100)
    added = weights([0, 1], rec.bundle.local.recency)[0] * dense(rec.bundle)[5]
    before = all_scores(towers, "newer")
    assert [all_scores(rec, "newer")[item] - before[item] for item in rec.item_ids[:60]] == pytest.approx(
        added, abs=1e-9
    )
    assert rec.recommend(["u2"], k=70, allow=["fresh", "i3"], exclude_seen=False) == [
        [pair for pair in rec.recommend(["u2"], k=70, exclude_seen=False)[0] if pair[0] in ("fresh", "i3")]
    ]
    assert rec.similar_items(["fresh"], by="local") == [[]]


def test_explanations_have_both_parts_of_every_item(rec):
    rec.update([("u3", "i2"), ("u3", "i1"), ("u3", "i2"), ("new", "i8"), ("new", "i7"), ("new", "i8")])
    matrix = dense(rec.bundle)
    for user in ("u2", "u3", "new"):
        history = rec.history(user)
        at, scores = weights(history, rec.bundle.local.recency), all_scores(rec, user)
        for item in rec.item_ids:
            explanation = rec.explain(user, item)
            assert explanation.score == scores[item]
            assert explanation.contributions == [(part.item, part.tower + part.local) for part in explanation.parts]
            total = explanation.bias + explanation.residual + sum(value for _, value in explanation.contributions)
            assert total == pytest.approx(explanation.score, abs=1e-9)
            assert [part.item for part in explanation.parts] == sorted(
                set(history), key=lambda name: -dict(explanation.contributions)[name]
            )
            for part in explanation.parts:
                times = sum(r for r, name in zip(at, history, strict=True) if name == part.item)
                assert part.local == pytest.approx(times * matrix[int(part.item[1:]), int(item[1:])], abs=1e-9)
            if user == "new":
                assert explanation.residual == pytest.approx(0, abs=1e-6)


def test_items_that_are_older_than_recency_counts_are_explained_by_0(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", rule="mean", recency=1.0, local=1.0, local_recency=1.0))
    explanation = rec.explain_history(["i3", *["i4", "i5"] * 500], "i7")
    assert dict(explanation.contributions)["i3"] == 0
    assert explanation.residual == pytest.approx(0, abs=1e-6)


def test_similar_items_by_the_local_term(rec):
    matrix = dense(rec.bundle)
    answers = rec.similar_items(rec.item_ids, k=60, by="local")
    assert any(answers)
    for row, answer in zip(matrix, answers, strict=True):
        order = [place for place in np.argsort(-row, kind="stable") if row[place] > 0]
        assert answer == [(f"i{place}", pytest.approx(row[place], abs=1e-12)) for place in order]
    (item, others), *_ = ((item, dict(answer)) for item, answer in zip(rec.item_ids, answers, strict=True) if answer)
    (best, *_) = others
    assert rec.similar_items([item], by="local", deny=[best])[0] == list(others.items())[1:]
    assert rec.similar_items([item], by="local", allow=[best, item])[0] == [(best, others[best])]
    assert rec.similar_items([item]) == rec.similar_items([item], by="tower")
    with pytest.raises(UserError, match="by: 'both' is not allowed; expected one of tower, local"):
        rec.similar_items([item], by="both")


def test_a_bundle_without_a_local_term(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle"))
    assert rec.bundle.local is None
    assert rec.bundle.manifest["format_version"] == 1
    assert Recommender.load(made_bundle(tmp_path / "other", local=1.0)).bundle.manifest["format_version"] == 2
    assert {part.local for part in rec.explain("u1", "i7").parts} == {0.0}
    with pytest.raises(UserError, match="this bundle has no local term"):
        rec.similar_items(["i1"], by="local")


def test_users_trained_by_gradient_have_local_scores(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", aggregates=False, local=0.5))
    expected = scores_of(rec, embedding(rec, "u1")) + local_scores(rec, rec.history("u1"))
    assert [all_scores(rec, "u1")[item] for item in rec.item_ids] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_lists_for_all_users_have_local_scores(tmp_path, rec, monkeypatch, suffix):
    monkeypatch.setattr(batch, "_PART", 8)
    out = tmp_path / f"lists{suffix}"
    write_lists(rec.bundle.path, None, out, Request(k=5), jobs=2)
    expected = [(item, score) for answer in rec.recommend(rec.user_ids, k=5) for item, score in answer]
    assert len(expected) == 100
    if suffix == ".csv":
        rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
        assert [(item, float(score)) for _, item, _, score in rows] == expected
    else:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [pair for one in lines for pair in zip(one["items"], one["scores"], strict=True)] == expected


def test_the_command_shows_local_scores(rec, capsys):
    assert main(["recommend", str(rec.bundle.path), "--users=u1", "--k=1"]) == 0
    (best,) = rec.recommend(["u1"], k=1)[0]
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == [f"({best[0]})", f"{best[1]:.4f}"]


@pytest.mark.parametrize("kind", KINDS[:2], ids=["dot", "cosine"])
def test_with_an_index_items_of_the_local_term_are_candidates(tmp_path, kind):
    """Here local scores are larger than those of the towers, which the index knows."""
    pytest.importorskip("faiss")
    kind = {**kind, "local": 20.0, "n_items": 2000, "size": 16}
    made = read_bundle(made_bundle(tmp_path / "made", **kind))
    index = Index.build(ItemTable(Embeddings(made.item_encodings), made.item_bias))
    path = made_bundle(tmp_path / "bundle", others={"index.faiss": index.save}, **kind)
    exact, found = Recommender.load(path), Recommender.load(path, index="faiss")
    users = list(exact.user_ids)
    for k in (5, 40):
        wanted, lists = exact.recommend(users, k=k), found.recommend(users, k=k)
        hits = sum(len(set(a) & set(b)) for a, b in zip(wanted, lists, strict=True))
        assert hits >= 0.95 * sum(map(len, wanted))  # pairs: the scores are the same too
        assert [len({item for item, _ in answer}) for answer in lists] == [k] * len(users)
        assert [found.recommend([user], k=k)[0] for user in users] == lists
    touched = [item for item, _ in exact.similar_items(["i5"], k=5, by="local")[0]]
    assert {item for item, _ in found.recommend_history([["i5"]], k=8)[0]} >= set(touched)
