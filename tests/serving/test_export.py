"""Export of a run to a bundle."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.local import LocalTerm
from recbole_onebp.model import OneBP
from recbole_onebp.run.checkpoint.store import read_tensors, write_tensors
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.serving.export.trained_run import read_results, read_settings
from recbole_onebp.serving.user_state import fold_in
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle, random_local
from support.hostile import PATH_KEYS, little_time, plant_pickles, replace_file


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Where the run is that :func:`one_run` copies."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def one_run(tiny, trained_once, tmp_path):
    """The folder of a run of one epoch, for a test to change."""
    if not trained_once.exists():
        tiny(epochs=1, output_dir=str(trained_once)).fit()
    return shutil.copytree(trained_once, tmp_path / "run")


@pytest.fixture
def fitted(tiny, tmp_path):
    """Trains on the tiny data set and exports: ``fitted(score="cosine")`` returns the run and its bundle's folder."""

    def fit(dtype="float32", **overrides):
        run = tiny(**overrides)
        run.fit()
        export(tmp_path / "run", tmp_path / "bundle", dtype)
        return run, tmp_path / "bundle"

    return fit


def without_tables(run):
    path = run / "model.safetensors"
    write_tensors(path, {}, read_tensors(path)[1])


def internal(run, kind, ids):
    return run.dataset.token2id(getattr(run.dataset, f"{kind}_field"), ids)


RECIPE = {
    "score": "cosine", "temperature": 0.2, "item_bias": True, "negatives": "shared", "n_shared_negatives": 8,
    "aggregation": "interval", "aggregation_interval": 3, "aggregation_alpha": 0.5, "beta": 0.0, "leave_one_out": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score": "cosine", "temperature": 0.2, "item_bias": True},
        {"item_bias": True, "temperature": 0.5, "aggregation": "epoch", "beta": 0.5},
        {"backprop": "two"},
        {"user_encoding": "fresh"},
        {"aggregation_alpha": 0.5},
        RECIPE,
    ],
    ids=["dot", "cosine with bias", "dot with bias", "two backpropagations", "fresh users", "weights", "one left out"],
)
def test_scores_equal_those_of_the_model(fitted, settings):
    run, path = fitted(**settings)
    rec = Recommender.load(path)
    users, items = list(rec.user_ids), list(rec.item_ids)
    assert (len(users), len(items)) == (30, 40)
    answers = rec.recommend(users, k=40, exclude_seen=False)
    batch = {run.dataset.uid_field: torch.as_tensor(internal(run, "uid", users))}
    with torch.no_grad():
        scores = run.model.full_sort_predict(batch).view(30, -1)[:, internal(run, "iid", items)].numpy()
    for row, answer in zip(scores, answers, strict=True):
        expected = dict(zip(items, row.tolist(), strict=True))
        assert {item: pytest.approx(expected[item], abs=1e-6) for item, _ in answer} == dict(answer)
        assert [score for _, score in answer] == sorted((score for _, score in answer), reverse=True)


@pytest.mark.parametrize(
    "settings",
    [RECIPE, {**RECIPE, "score": "dot", "aggregation": "epoch"}, {"user_encoding": "fresh", "aggregation_alpha": 0.3}],
    ids=["interval", "epoch", "fresh"],
)
def test_folding_in_reproduces_users_that_are_means(fitted, tiny_path, tmp_path, settings):
    """With the weights of training, also for users with repeated interactions."""
    data = shutil.copytree(tiny_path, tmp_path / "data")
    with open(data / "tiny" / "tiny.inter", "a") as file:
        file.write("".join((data / "tiny" / "tiny.inter").read_text().splitlines(keepends=True)[1::3]))
    run, path = fitted(**settings, data_path=str(data))
    rec = Recommender.load(path)
    users, histories = list(rec.user_ids), [rec.history(user) for user in rec.user_ids]
    assert sum(map(len, histories)) == len(run.train_data.dataset)
    assert any(len(set(items)) < len(items) for items in histories)
    expected = run.model.scored_users().numpy()[internal(run, "uid", users)]
    rows = [rec._item_tokens.find(items)[0] for items in histories]
    folded = fold_in(rows, rec._items.embeddings, *rec._fold_in_by("trained"))
    assert folded == pytest.approx(expected, abs=1e-6)
    folded = rec.recommend_history(histories, k=5, rule="trained")
    for trained, found in zip(rec.recommend(users, k=5), folded, strict=True):
        assert [score for _, score in found] == pytest.approx([score for _, score in trained], abs=1e-5)
    for user in users:
        assert rec.explain(user, "i7").residual == pytest.approx(0, abs=1e-5)
    rec.update([(f"new {user}", item) for user, items in zip(users, histories, strict=True) for item in items])
    assert rec.recommend([f"new {user}" for user in users], k=5) == rec.recommend_history(histories, k=5)


def test_an_update_in_order_equals_a_recomputation(timed, tmp_path):
    """With recency the latest items count most: in the bundle, after events, in folding in and in explanations."""
    run = timed(epochs=1, recency=1.5)
    run.fit()
    path = tmp_path / "in order"
    manifest = export(tmp_path / "run", path)
    assert manifest["aggregation"]["recency"] == 1.5
    rec = Recommender.load(path)
    train = run.train_data._dataset
    of_user = train.inter_feat[train.inter_feat[train.uid_field] == internal(run, "uid", ["u3"])[0]]
    in_order = of_user[train.iid_field][of_user[train.time_field].argsort()]
    assert rec.history("u3") == list(run.dataset.id2token(train.iid_field, in_order))
    batch = {run.dataset.uid_field: torch.as_tensor(internal(run, "uid", ["u3"]))}
    scores = run.model.full_sort_predict(batch).detach()
    for item, score in rec.recommend(["u3"], k=40, exclude_seen=False)[0]:
        assert score == pytest.approx(float(scores[internal(run, "iid", [item])[0]]), abs=1e-5)

    rec.update([("u3", "i39"), ("new", "i5"), ("new", "i9")])
    rec.update([("u3", "i38"), ("new", "i5")])
    history = rec.history("u3")
    assert history[-2:] == ["i39", "i38"]
    assert rec.recommend(["u3"], k=20)[0] == rec.recommend_history([history], k=20, rule="trained")[0]
    assert rec.recommend(["new"], k=20)[0] == rec.recommend_history([["i5", "i9", "i5"]], k=20)[0]
    assert rec.recommend_history([["i5", "i9"]], k=20) != rec.recommend_history([["i9", "i5"]], k=20)
    for explanation in (rec.explain("u3", "i7"), rec.explain("new", "i7"), rec.explain_history(["i5", "i9"], "i7")):
        assert explanation.residual == pytest.approx(0, abs=1e-6)
    later, earlier = (dict(rec.explain_history(items, "i9").contributions) for items in (["i5", "i9"], ["i9", "i5"]))
    assert later["i9"] > earlier["i9"]


# ---------------------------------------------------------------------------------------------------- the local term


LOCAL = {"local": "ridge", "local_weight": 0.3, "local_neighbors": 5, "local_reg": 2.0}


@pytest.mark.parametrize("recency", ["none", 0.5])
def test_a_local_term_is_exported(timed, tmp_path, recency):
    run = timed(epochs=1, recency="none", local_recency=recency, **LOCAL)
    run.fit()
    manifest = export(tmp_path / "run", tmp_path / "bundle")
    number = 0.0 if recency == "none" else recency
    assert manifest["local"] == {"weight": pytest.approx(0.3), "recency": number, "neighbors": 5, "reg": 2.0}
    rec, term = Recommender.load(tmp_path / "bundle"), run.model.local
    users, items = list(rec.user_ids), internal(run, "iid", list(rec.item_ids))
    batch = {run.dataset.uid_field: torch.as_tensor(internal(run, "uid", users))}
    with torch.no_grad():
        scores = run.model.full_sort_predict(batch).view(30, -1)[:, items].numpy()
    for row, answer in zip(scores, rec.recommend(users, k=40, exclude_seen=False), strict=True):
        expected = dict(zip(rec.item_ids, row.tolist(), strict=True))
        assert dict(answer) == pytest.approx(expected, abs=1e-5)
    matrix = np.zeros((41, 41))
    matrix[np.repeat(np.arange(41), np.diff(term.indptr)), term.indices] = term.weight * term.values
    for item, row in zip(rec.item_ids, matrix[np.ix_(items, items)], strict=True):
        wanted = {other: value for other, value in zip(rec.item_ids, row.tolist(), strict=True) if value > 0}
        assert dict(rec.similar_items([item], k=40, by="local")[0]) == pytest.approx(wanted, abs=1e-7)
    assert (matrix > 0).any()


def test_the_card_the_index_and_the_scorer_know_the_local_term(timed, tmp_path, capsys):
    pytest.importorskip("faiss")
    import onnx

    def exported(weight, *flags):
        timed(epochs=1, **{**LOCAL, "local_weight": weight}, output_dir=str(tmp_path / f"run{weight}")).fit()
        assert main(["export", f"run{weight}", "bundle", "--force", "--onnx", *flags]) == 0
        card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
        ((left_out,),) = ({prop.value} for prop in onnx.load(tmp_path / "bundle" / "scorer.onnx").metadata_props)
        return capsys.readouterr().out, left_out, card

    out, left_out, without = exported(0.0)
    assert ("local term" in out, left_out) == (False, "none")
    assert "local term" not in without
    assert not list((tmp_path / "bundle").glob("local*"))
    out, left_out, card = exported(3.0, "--ann=faiss")
    assert "scorer.onnx: has the scores of the towers alone, without the local term\n" in out
    assert left_out == "left out"
    assert "A local term of weight 3 adds" in card
    assert "ridge regression (lambda 2) of each item on its 5 nearest neighbours" in card
    result = json.loads((tmp_path / "run3.0" / "result.json").read_text())["test"]
    assert f"| all | 30 | {result['recall@10']:.4f} | {result['ndcg@10']:.4f} |" in card
    rec = Recommender.load("bundle", index="faiss")
    assert rec.recommend(["u1"], k=5) == Recommender.load("bundle").recommend(["u1"], k=5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indptr": np.zeros(3, np.int64)}, "do not fit each other or the items"),
        ({"values": np.zeros(3, np.float32)}, "do not fit each other or the items"),
        ({"indices": np.full(1000, 9, np.int32)}, "do not fit each other or the items"),
        ({"indptr": np.arange(42)[::-1]}, "the local term is damaged: local.indptr.npy"),
        ({"indptr": np.array([0, *[1] * 41]), "indices": np.ones(1, np.int32), "values": np.ones(1, np.float32)},
         "the local term has entries for the padding item"),
        ({"weight": 1e13}, "the weight of the local term is 1e+13"),
        ({"weight": float("nan")}, "the weight of the local term is nan"),
    ],
)  # fmt: skip
def test_a01_a_damaged_local_term_of_a_run_is_refused(one_run, monkeypatch, tmp_path, change, words):
    made = random_local(40, np.random.default_rng(3))
    start = np.concatenate(([0], made["local.indptr"]))  # the padding item has an empty row
    term = LocalTerm(start, made["local.indices"] + np.int32(1), made["local.values"], 0.3, 0.0, 5, 2.0)
    monkeypatch.setattr(OneBP, "local", replace(term, **change))
    with pytest.raises(UserError) as error:
        export(one_run, tmp_path / "bundle")
    assert words in str(error.value)
    assert not (tmp_path / "bundle").exists()


# ------------------------------------------------------------------------------------------------ what is in a bundle


def test_train_items_are_left_out(fitted):
    run, path = fitted()
    rec = Recommender.load(path)
    train = run.train_data.dataset
    user, item = (
        train.id2token(field, train.inter_feat[field].numpy()).tolist() for field in (train.uid_field, train.iid_field)
    )
    for name in rec.user_ids:
        taken = {i for u, i in zip(user, item, strict=True) if u == name}
        assert set(rec.history(name)) == taken
        assert {i for i, _ in rec.recommend([name], k=40)[0]} == set(rec.item_ids) - taken


def test_manifest_and_card(fitted, tmp_path):
    _, path = fitted(topk=[10], epochs=2)
    manifest = json.loads((path / "manifest.json").read_text())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert manifest["metrics"] == {"valid": result["valid"], "test": result["test"]}
    assert manifest["aggregation"] == {"rule": "moving", "beta": 0.99, "alpha": 0.0, "recency": 0.0}
    assert manifest["config"]["train_batch_size"] == 160
    assert "output_dir" not in manifest["config"]
    assert (manifest["n_users"], manifest["n_items"], manifest["n_interactions"]) == (30, 40, 300)
    assert list(manifest["data"]["files"]) == ["tiny.inter"]
    assert not manifest["ordered"]
    assert manifest["versions"] == result["versions"]
    card = (path / "MODEL_CARD.md").read_text()
    # Ranking with the bundle gives the test metrics of the run.
    assert f"| all | 30 | {result['test']['recall@10']:.4f} | {result['test']['ndcg@10']:.4f} |" in card
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "recbole_onebp"
    ((tested,),) = (model["results"] for model in metadata["model-index"])
    assert tested["dataset"]["name"] == "tiny"
    assert {one["type"]: one["value"] for one in tested["metrics"]} == result["test"]
    assert "no content, context" in card
    assert "Events change users, and items without train interactions" in card
    groups = [line for line in card.splitlines() if line.startswith(("| most", "| middle", "| least"))]
    shares = [[float(cell.strip(" %")) for cell in line.split("|")[3:5]] for line in groups]
    assert np.sum(shares, axis=0) == pytest.approx([100, 100], abs=0.2)


def test_float16(fitted):
    run, path = fitted(dtype="float16")
    assert Recommender.load(path).bundle.item_encodings.dtype == np.float16
    export(run.folder.path, path, "float32", force=True)
    wide = Recommender.load(path)
    assert wide.bundle.item_encodings.dtype == np.float32
    assert not list(path.parent.glob(".bundle*"))


def test_items_have_titles_and_ids_are_sorted(tmp_path, capsys):
    code = main(["train", "--model=OneBP", "--dataset=ml-100k", "--epochs=0", "--output_dir=run"])
    assert code == 0
    assert main(["export", "run", "bundle", "--dtype=float16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote bundle"
    rec = Recommender.load("bundle")
    assert rec.item_ids[:3] == ["1", "2", "3"]
    assert list(rec.user_ids) == sorted(rec.user_ids, key=int)
    assert rec.title("50") == "Star Wars"
    assert rec.title(50) == "Star Wars"
    assert rec.fields("1") == {
        "movie_title": "Toy Story",
        "release_year": "1995",
        "class": "Animation Children's Comedy",
    }
    assert rec.title("no such") == ""
    assert rec.bundle.manifest["ordered"]


def test_the_manifest_names_the_files_that_the_run_read(tmp_path, capsys):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    rows = [f"u{user},i{(user + 3 * place) % 40},{place}" for user in range(20) for place in range(12)]
    (folder / "mine.inter.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (folder / "mine-extra.inter").write_text("user_id:token\titem_id:token\nu1\ti1\n")
    keys = "--model=OneBP", "--dataset=mine", f"--data_path={folder.parent}", "--epochs=1", "--output_dir=run"
    assert main(["train", *keys]) == 0
    assert main(["export", "run", "bundle"]) == 0
    manifest = Recommender.load("bundle").bundle.manifest
    assert list(manifest["data"]["files"]) == ["mine.inter.csv"]
    assert manifest["ordered"]


def test_a_run_on_some_values_of_a_field_is_read(one_run):
    path = one_run / "config.yaml"
    settings = {**yaml.safe_load(path.read_text()), "val_interval": {"kind": ["a", "b"], "year": "[1990,inf)"}}
    path.write_text(yaml.safe_dump(settings))
    assert read_settings(one_run)["val_interval"] == settings["val_interval"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda run: (run / "model.safetensors").unlink(), r"there is no model\.safetensors"),
        (lambda run: (run / "model.safetensors").write_bytes(b"PK\x03\x04 cut"), "cannot be read as a model"),
        (lambda run: write_tensors(run / "model.safetensors", {}), "cannot be read as a model"),
        (without_tables, "is not a OneBP model"),
        (lambda run: (run.parent / "bundle").mkdir(), "bundle: exists already and is not a bundle"),
        (lambda run: made_bundle(run.parent / "bundle"), "replace it with --force"),
    ],
)
def test_export_errors(one_run, tmp_path, prepare, words):
    prepare(one_run)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=words):
        export(tmp_path / "run", tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_other_models_are_not_exported(tiny, tmp_path):
    tiny("BPR", epochs=1).fit()
    with pytest.raises(UserError, match=r"a run of BPR; only OneBP"):
        export(tmp_path / "run", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows: [*rows, "u99\ti1", "u99\ti2", "u99\ti3"],
            r"30 users and 40 items, the data .* 31 and 40: the data have changed",
        ),
        (  # other internal ids
            lambda rows: rows[::-1],
            r"the data at .* have changed since training: test: .* then, .* now; train: ",
        ),
    ],
    ids=["more", "in another order"],
)
def test_changed_data_are_refused(one_run, tmp_path, tiny_path, change, said):
    data = tmp_path / "data"
    shutil.copytree(tiny_path, data)
    title, *rows = (data / "tiny" / "tiny.inter").read_text().splitlines()
    (data / "tiny" / "tiny.inter").write_text("\n".join([title, *change(rows)]) + "\n")
    with_settings(one_run, data_path=str(data))
    with pytest.raises(UserError, match=said):
        export(tmp_path / "run", tmp_path / "bundle")


# ----------------------------------------------------------------------------------------------------- a stranger's run


def with_settings(run, **settings):
    tensors, metadata = read_tensors(run / "model.safetensors")
    config = {**json.loads(metadata["config"]), **settings}
    write_tensors(run / "model.safetensors", tensors, {**metadata, "config": json.dumps(config)})


def test_a01_no_setting_of_a_run_names_a_pickle(one_run, tmp_path, capsys):
    """The run names pickles in every way that RecBole knows, and others lie where RecBole looks for them."""
    run, mark = one_run, tmp_path / "mark"
    pickled = plant_pickles(tmp_path / "evil", mark)
    for folder in (tmp_path / "saved", run, tmp_path):
        plant_pickles(folder, mark)
    original = (run / "model.safetensors").read_bytes()
    for key in PATH_KEYS:
        if key in ("data_path", "dataset", "preset", "model", "encoding", "benchmark_filename", "load_col"):
            continue
        with_settings(run, **{key: str(pickled if key.endswith("save_path") else pickled.parent)})
        code = main(["export", str(run), str(tmp_path / "bundle"), "--force"])
        assert code == (2 if key == "additional_feat_suffix" else 0), key
        assert not mark.exists(), key
        (run / "model.safetensors").write_bytes(original)
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("\n") == 1
    assert "model.safetensors: additional_feat_suffix.0: " in err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "../evil/evil"}, "model.safetensors: dataset: "),
        ({"dataset": ".."}, "model.safetensors: dataset: "),
        ({"preset": "../../evil/evil"}, "model.safetensors: preset: "),
        ({"benchmark_filename": ["../x", "y", "z"]}, "model.safetensors: benchmark_filename.0: "),
        ({"load_col": {"../x": ["a"]}}, "model.safetensors: load_col.../x"),
        ({"load_col": {"inter": "user_id"}}, "model.safetensors: load_col.inter"),
        ({"encoding": "no such"}, "model.safetensors: encoding: unknown encoding"),
        ({"field_separator": "(a+)+b"}, "model.safetensors: field_separator: "),
        ({"data_path": 5}, "model.safetensors: data_path: 5 is not allowed"),
        ({"data_path": "/no/such"}, "no folder /no/such/tiny"),
        ({"USER_ID_FIELD": ["a"]}, "model.safetensors: USER_ID_FIELD: ['a'] is not allowed"),
        ({"embedding_size": 10**9}, "user_table has 8 dimensions, but embedding_size is 1000000000"),
        ({"seed": "x"}, "seed: 'x' is not allowed"),
    ],
)
def test_a01_settings_that_are_refused(one_run, tmp_path, settings, words):
    plant_pickles(tmp_path / "evil", tmp_path / "mark")
    with_settings(one_run, **settings)
    with pytest.raises(UserError) as error:
        export(tmp_path / "run", tmp_path / "bundle")
    assert words in str(error.value)
    assert not (tmp_path / "mark").exists()


def test_a01_the_place_of_the_data_is_shown_and_may_be_given(one_run, tiny_path, tmp_path, capsys):
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "bundle")]) == 0
    told = capsys.readouterr().out
    assert f"data: {tiny_path}/tiny\n" in told
    assert "held out for validation and test, which the histories of" in told
    moved = shutil.copytree(tiny_path, tmp_path / "moved")
    with_settings(tmp_path / "run", data_path="/no/such")
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "second"), f"--data_path={moved}"]
    assert main(arguments) == 0
    assert f"data: {moved}/tiny\n" in capsys.readouterr().out
    for name in ("item_encodings.npy", "history_item.npy", "user_ids.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()
    (moved / "tiny" / "tiny.inter").unlink()
    os.mkfifo(moved / "tiny" / "tiny.inter")
    with little_time():
        assert main([*arguments, "--force"]) == 2
    assert "tiny.inter: is not a plain file" in capsys.readouterr().err


LAUGHS = b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
LONG = b"a: &a " + b"x" * 10_000 + b"\nb: [" + b"*a, " * 200 + b"]"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", None, "is no run, for it has no config.yaml"),
        ("config.yaml", b"", "config.yaml: expected lines of 'key: value'"),
        ("config.yaml", b"[1, 2]", "config.yaml: expected lines of 'key: value'"),
        ("config.yaml", b"a: [", "config.yaml: not YAML"),
        ("config.yaml", b"a: !!python/name:os.system", "config.yaml: not YAML"),
        ("config.yaml", b"\xff", "not UTF-8"),
        ("config.yaml", LAUGHS, "more than 100,000 values"),
        ("config.yaml", LONG, "stands for more than 1,048,576 letters"),
        ("result.json", b"[]", "result.json: expected the result of a run"),
        ("result.json", b"{", "result.json: damaged: not JSON"),
        ("result.json", b'{"test": 5}', "result.json: test: expected metrics with numbers"),
        ("result.json", b'{"test": {"recall@10": "x"}}', "result.json: test: expected metrics with numbers"),
        ("result.json", b'{"valid": {"\\u001b[2J": 1}}', "result.json: valid: expected metrics with numbers"),
        ("result.json", b'{"best_epoch": "x"}', "result.json: expected the result of a run"),
    ],
)  # fmt: skip
def test_a12_odd_files_of_a_run(tmp_path, name, content, words):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with little_time(), pytest.raises(UserError) as error:
        read_settings(tmp_path), read_results(tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize("kind", ["link", "endless", "pipe", "folder", "sparse"])
@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a12_files_of_a_run_that_are_not_plain(tmp_path, name, kind):
    for file in ("config.yaml", "result.json"):
        (tmp_path / file).write_text("{}")
    replace_file(tmp_path / name, kind)
    with little_time(), pytest.raises(UserError, match=name):
        read_settings(tmp_path), read_results(tmp_path)
