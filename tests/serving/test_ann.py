"""Approximate search and the ONNX scorer, against the exact lists."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.serving.ann import Index
from recbole_onebp.serving.bundle import read_bundle
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.serving.export.onnx_scorer import write_onnx
from recbole_onebp.serving.tables import Embeddings, ItemTable
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle

SCORES = [{"score": "dot"}, {"score": "dot", "bias": True}, {"score": "cosine", "bias": True}]


def table_of(bundle):
    return ItemTable(Embeddings(bundle.item_encodings), bundle.item_bias)


@pytest.fixture(params=SCORES, ids=str)
def pair(request, tmp_path):
    """The same bundle with exact and with approximate search."""
    score = request.param
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    item_e = rng.normal(size=(2000, 16)) * rng.uniform(0.1, 3, size=(2000, 1))  # long ones and short ones
    if score["score"] == "cosine":
        item_e /= np.linalg.norm(item_e, axis=1, keepdims=True)
    made = made_bundle(tmp_path / "made", n_items=2000, size=16, item_encodings=item_e.astype("f4"), **score)
    index = Index.build(table_of(read_bundle(made)))
    path = made_bundle(
        tmp_path / "bundle", n_items=2000, size=16, item_encodings=item_e.astype("f4"),
        others={"index.faiss": index.save}, **score,
    )  # fmt: skip
    return Recommender.load(path), Recommender.load(path, index="faiss")


def test_recall_against_exact_search(pair):
    exact, approximate = pair
    users = list(exact.user_ids)
    for expected, found in (
        (exact.recommend(users, k=20), approximate.recommend(users, k=20)),
        (exact.recommend_history([["i1", "i2"]], k=20), approximate.recommend_history([["i1", "i2"]], k=20)),
    ):
        hits = sum(len(set(a) & set(b)) for a, b in zip(expected, found, strict=True))
        assert hits >= 0.95 * sum(map(len, expected))  # pairs: the scores are the same too
        assert [len(answer) for answer in found] == [len(answer) for answer in expected]


def test_a_list_does_not_depend_on_the_batch(pair):
    _, rec = pair
    users = list(rec.user_ids)
    answers = rec.recommend(users, k=10, deny=["i3", "i4"])
    assert [rec.recommend([user], k=10, deny=["i3", "i4"])[0] for user in users] == answers


def test_filters_and_new_items(pair):
    exact, rec = pair
    assert rec.recommend(["u1"], allow=["i5", "i6"]) == exact.recommend(["u1"], allow=["i5", "i6"])
    answer = dict(rec.recommend(["u1"], k=50, deny=[item for item, _ in exact.recommend(["u1"], k=5)[0]])[0])
    assert not set(answer) & set(rec.history("u1"))
    assert not set(answer) & {item for item, _ in exact.recommend(["u1"], k=5)[0]}
    for either in pair:
        either.add_items({"fresh": ["u1", "u2"]})
    assert ("fresh" in dict(rec.recommend(["u2"], k=100, exclude_seen=False)[0])) == (
        "fresh" in dict(exact.recommend(["u2"], k=100, exclude_seen=False)[0])
    )
    assert len(rec.recommend(["u3"], k=5000)[0]) > 1900


def test_missing_and_damaged_indexes(tmp_path):
    path = made_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match="has no index of faiss; export it with --ann=faiss"):
        Recommender.load(path, index="faiss")
    with pytest.raises(UserError, match="index: 'annoy' is not allowed; expected faiss"):
        Recommender.load(path, index="annoy")
    pytest.importorskip("faiss")
    (path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(UserError, match=r"index\.faiss: damaged"):
        Index.load(path / "index.faiss", 8, 60)


def indexed(path, seed, others=None, **values):
    pytest.importorskip("faiss")
    table = table_of(read_bundle(made_bundle(path.with_name(f"{path.name}-plain"), n_items=500, seed=seed, **values)))
    return made_bundle(
        path, n_items=500, seed=seed, others={"index.faiss": others or Index.build(table).save}, **values
    )


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_a10_the_index_of_another_bundle_is_refused(tmp_path, score):
    mine, other = indexed(tmp_path / "mine", 0, **score), indexed(tmp_path / "other", 1, **score)
    assert len(Recommender.load(mine, index="faiss").recommend(["u1"])[0]) == 10
    swapped = indexed(tmp_path / "swapped", 0, lambda path: shutil.copyfile(other / "index.faiss", path), **score)
    with pytest.raises(UserError, match=r"index\.faiss: is the index of other items"):
        Recommender.load(swapped, index="faiss")


def test_a10_a_damaged_index_never_reaches_the_library(tmp_path):
    """Every change of a byte outside the unused ones is refused, or leaves an index that can be searched."""
    path = indexed(tmp_path / "bundle", 0) / "index.faiss"
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    rec, expected = Recommender.load(path.parent), read_bundle(path.parent)
    for _ in range(300):
        changed = bytearray(content)
        place = int(rng.integers(0, rng.choice([200, 4000, len(content)])))
        changed[place : place + int(rng.choice([1, 4, 8]))] = rng.bytes(int(rng.choice([1, 4, 8])))
        path.write_bytes(bytes(changed[: rng.integers(1, len(content))] if rng.random() < 0.1 else changed))
        try:
            index = Index.load(path, 8, 500, table_of(expected))
        except UserError:
            refused += 1
        else:
            index.nearest(expected.user_encodings, 20)
    assert refused > 100
    assert rec.n_items == 500


def test_a_bundle_with_an_hnswlib_index_is_searched_exactly(tmp_path):
    """Earlier versions wrote such bundles."""
    old = made_bundle(tmp_path / "old", others={"index.hnswlib": lambda path: path.write_bytes(b"a graph")})
    for index in ("faiss", "hnswlib"):
        with pytest.raises(UserError, match="hnswlib, which is no longer supported; export it again with --ann=faiss"):
            Recommender.load(old, index=index)
    plain = Recommender.load(made_bundle(tmp_path / "plain"))
    assert Recommender.load(old).recommend(plain.user_ids) == plain.recommend(plain.user_ids)


def test_export_reports_the_index(tiny, tmp_path, capsys):
    tiny(epochs=1).fit()
    assert main(["export", str(tmp_path / "run"), "bundle", "--ann=faiss", "--onnx"]) == 0
    report = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["ann"]
    assert (report["kind"], report["k"]) == ("faiss", 20)
    assert report["recall"] > 0.9
    assert f"recall@20 {report['recall']:.4f}" in capsys.readouterr().out
    assert len(Recommender.load("bundle", index="faiss").recommend(["u1"], k=5)[0]) == 5
    assert (tmp_path / "bundle" / "scorer.onnx").is_file()
    export(tmp_path / "run", "bundle", force=True)
    assert not list((tmp_path / "bundle").glob("*.[fo]*"))


@pytest.mark.parametrize("score", [*SCORES, {"score": "cosine", "dtype": "float16"}], ids=str)
def test_onnx(tmp_path, score):
    import onnxruntime

    rec = Recommender.load(made_bundle(tmp_path / "bundle", **score))
    bundle = rec.bundle
    write_onnx(tmp_path / "scorer.onnx", table_of(bundle), score["score"] == "cosine", bundle.user_encodings)
    session = onnxruntime.InferenceSession(str(tmp_path / "scorer.onnx"), providers=["CPUExecutionProvider"])
    users = bundle.user_encodings.astype(np.float32)
    found, item = session.run(["score", "item"], {"user": users, "k": np.array([7])})
    for answer, scores, items in zip(rec.recommend(rec.user_ids, 7, exclude_seen=False), found, item, strict=True):
        assert [(f"i{n}", pytest.approx(s, abs=1e-5)) for n, s in zip(items, scores, strict=True)] == answer
