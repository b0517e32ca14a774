"""Faults that people met with other recommender libraries, each under its id: a result, or one line that helps."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import recbole_onebp
from conftest import write_inter
from recbole_onebp.cli import main
from recbole_onebp.config.files import file_names
from recbole_onebp.data.parts import _n_shared
from recbole_onebp.run.recbole_errors import worker_memory_as_user_error
from recbole_onebp.util.errors import UserError
from support import fresh
from support.recbole_models import has

RATED = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
IDS = ["user_id", "item_id"]
ALL = [*IDS, "rating", "timestamp"]


def rows_of(n_users=60, n_items=40, n_pairs=600):
    """(user, item, rating from 1 to 5, time), each pair once, in random order."""
    rng = random.Random(1)
    pairs = rng.sample([(user, item) for user in range(n_users) for item in range(n_items)], n_pairs)
    return [(f"u{user}", f"i{item}", rng.randint(1, 5), 1000 + n) for n, (user, item) in enumerate(pairs)]


def add(data_path, name, rows, header=RATED):
    return write_inter(Path(data_path) / name, rows, header)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A data_path with ``small``: 60 users, 40 items, 600 rated pairs, an item feature and a knowledge graph."""
    data_path, rng = tmp_path_factory.mktemp("cases"), random.Random(2)
    rows = rows_of()
    add(data_path, "small", rows)
    folder = data_path / "small"
    items = range(40)
    (folder / "small.item").write_text("item_id:token\tclass:token\n" + "".join(f"i{i}\tc{i % 4}\n" for i in items))
    (folder / "small.emb").write_text("iid:token\tvector:float_seq\n" + "".join(f"i{i}\t.1 .{i}\n" for i in items))
    (folder / "small.link").write_text("item_id:token\tentity_id:token\n" + "".join(f"i{i}\te{i}\n" for i in items))
    triples = "".join(f"e{i}\tr{rng.randrange(3)}\te{rng.randrange(40, 60)}\n" for i in items for _ in range(3))
    (folder / "small.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\n" + triples)
    add(data_path, "plays", [row for row in rows for _ in range(3)])
    for part, chosen in (("train", rows[:500]), ("valid", []), ("test", rows[500:]), ("leaky", rows[450:])):
        path = add(data_path, "mine", chosen)
        path.rename(data_path / "mine" / f"mine.{part}.inter")
    add(data_path, "full", [*rows, *(("all", f"i{i}", 5, 2000) for i in items)])
    return str(data_path)


@pytest.fixture
def build(sources, tmp_path):
    """Builds a run of one epoch: ``build("BPR", topk=[5])``."""

    def build(model="OneBP", dataset="small", **given):
        values = {"data_path": sources, "epochs": 1, "show_progress": False, "output_dir": str(tmp_path / "run")}
        return recbole_onebp.build(model, dataset, config_dict={**values, **given})

    return build


@pytest.fixture
def line(build):
    """The line that refuses a run, or its fit."""

    def line(*args, **given):
        with pytest.raises(UserError) as refused:
            build(*args, **given).fit()
        return str(refused.value)

    return line


def values_of(result):
    return [*result.valid.values(), *result.test.values()]


# --------------------------------------------------------------------------------------- c05: repeats in train and test

LEAK = re.compile(r"(\d+) of (\d+) interactions of the (\w+) part are in the train part too")


def leaks_of(caplog):
    """Shared and all interactions by part, as the log tells."""
    found = (LEAK.search(record.message) for record in caplog.records if record.levelname == "WARNING")
    return {match[3]: (int(match[1]), int(match[2])) for match in found if match}


def shared_by_hand(run, part):
    train, other = (
        list(zip(*(loader._dataset.inter_feat[field].tolist() for field in IDS), strict=True))
        for loader in (run.train_data, part)
    )
    return sum(pair in set(train) for pair in other), len(other)


@pytest.mark.parametrize("model", ["OneBP", "BPR"])
def test_c05_repeats_in_train_and_test_are_counted(build, caplog, model):
    run = build(model, "plays")
    leaks = leaks_of(caplog)
    assert leaks == {"test": shared_by_hand(run, run.test_data), "validation": shared_by_hand(run, run.valid_data)}
    assert leaks["test"][0] > 100
    assert "rm_dup_inter: first" in caplog.text
    assert "repeatable: true" in caplog.text


def test_c05_also_between_given_parts(build, caplog):
    build("OneBP", "mine", benchmark_filename=["train", "leaky"])
    assert leaks_of(caplog) == {"test": (50, 150)}
    assert "the files of benchmark_filename" in caplog.text


@pytest.mark.parametrize("given", [{"dataset": "small"}, {"dataset": "plays", "repeatable": True}, {"dataset": "plays",
                                   "rm_dup_inter": "first"}])  # fmt: skip
def test_c05_nothing_is_told_where_nothing_leaks_or_repeats_are_wanted(build, caplog, given):
    run = build(**given)
    assert leaks_of(caplog) == {}
    if given.get("repeatable"):
        assert all(len(history[0]) == 0 for _, history, *_ in run.test_data)  # what was taken may be recommended


def test_c05_the_line_is_in_the_log_of_the_command(sources, tmp_path, capsys):
    arguments = ["--model=OneBP", "--dataset=plays", f"--data_path={sources}", "--epochs=1", "--show_progress=False"]
    assert main(["train", *arguments, f"--output_dir={tmp_path / 'run'}"]) == 0
    assert LEAK.search(capsys.readouterr().out)
    assert LEAK.search((tmp_path / "run" / "run.log").read_text())


def test_c05_counts_as_sets_do():
    rng = np.random.default_rng(0)
    for n_train, n_part, highest in ((0, 5, 10), (50, 0, 10), (5000, 300, 2000), (5000, 300, 10**12)):
        train, part = rng.integers(0, highest, n_train), rng.integers(0, highest, n_part)
        assert _n_shared(train, part) == sum(number in set(train.tolist()) for number in part.tolist())


# ---------------------------------------------------------------------------------------------- c09: metrics and modes

LABELED = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "labeled"}


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("OneBP", {"eval_args": LABELED}, "metrics: Recall, MRR, NDCG, Hit, Precision with eval_args.mode: labeled"),
        ("OneBP", {"eval_args": {"mode": {"valid": "full", "test": "labeled"}}}, "with eval_args.mode: labeled"),
        ("OneBP", {"metrics": ["Recall", "AUC"], "valid_metric": "Recall@10"}, "Recall is a ranking metric and AUC a"),
        ("OneBP", {"metrics": "AUC", "valid_metric": "AUC"}, "metrics: AUC with eval_args.mode: full"),
        ("BPR", {"metrics": ["GAUC", "RMSE"], "valid_metric": "GAUC"}, "GAUC is a ranking metric and RMSE a value"),
        (
            "WideDeep",
            {"metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10"},
            "metrics: Recall, NDCG with eval_args",
        ),
        ("OneBP", {"metrics": []}, "metrics: none given"),
    ],
)
def test_c09_metrics_that_do_not_fit_the_mode(line, model, given, said):
    told = line(model, **given)
    assert said in told
    if "none given" not in told:
        assert "full goes with ranking metrics (Recall" in told
        assert "labeled with value metrics (AUC" in told


def test_c09_metrics_that_fit(build):
    sampled = build(metrics=["AUC", "LogLoss"], valid_metric="AUC", eval_args={"mode": "uni20"}).fit()
    assert 0.2 < sampled.test["auc"] < 0.8
    labeled = build(
        eval_args=LABELED, metrics=["AUC"], valid_metric="AUC", threshold={"rating": 4}, load_col={"inter": ALL}
    ).fit()
    assert 0.2 < labeled.test["auc"] < 0.8


@pytest.mark.parametrize("model", ["BPR", "SASRecF", "CKE"])
def test_c09_a_model_that_needs_negatives(line, model):
    given = {"load_col": {"inter": ALL}, "loss_type": "BPR"} if model == "SASRecF" else {}
    assert f"train_neg_sample_args: None: {model} learns from negatives" in line(
        model, train_neg_sample_args=None, **given
    )


# -------------------------------------------------------------------- c10, c11: RecBole's kinds of models, and labels

KG = {"load_col": {"inter": IDS, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}}
IN_TIME = {"load_col": {"inter": [*IDS, "timestamp"]}, "MAX_ITEM_LIST_LENGTH": 5}
LIKED = {"threshold": {"rating": 4}}
KINDS = {
    "BPR": {},
    "LightGCN": {},
    "SASRec": IN_TIME,
    "GRU4Rec": IN_TIME,
    "DeepFM": LIKED,
    "WideDeep": LIKED,
    "CKE": KG,
    "CFKG": KG,
}
SLOW_KINDS = {
    "NeuMF": {},
    "BERT4Rec": IN_TIME,
    "FPMC": IN_TIME,
    "DIN": {"load_col": {"inter": ALL}},
    "FM": LIKED,
    "xDeepFM": LIKED,
    "KGCN": KG,
    "KTUP": KG,
    "MKR": KG,
    "RippleNet": KG,
}


@pytest.mark.parametrize(
    ("model", "given"),
    [*KINDS.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_KINDS.items())],
)
def test_c10_c11_each_kind_of_model_gives_a_result(build, tmp_path, model, given):
    result = build(model, **given).fit()
    assert result.n_train > 100
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values_of(result))
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("KGAT", KG, "KGAT needs the package dgl: pip install dgl"),
        ("CKE", {"dataset": "plays"}, "load_col: kg: no file"),
        ("CKE", {"load_col": {"inter": IDS, "kg": ["head_id"], "link": ["item_id", "entity_id"]}}, "kg data requires"),
        ("SASRec", {}, "eval_args.order: TO sorts by timestamp, which load_col leaves out"),
        ("SASRecF", {**IN_TIME, "dataset": "plays"}, "selected_features: SASRecF needs a feature of items named class"),
        ("GRU4RecF", IN_TIME, "the features loaded are none"),
        ("GRU4RecKG", IN_TIME, "Additional feature file"),
    ],
)
def test_c10_c11_or_a_line(line, model, given, said):
    if model == "KGAT" and has("dgl"):
        pytest.skip("dgl is installed")
    assert said in line(model, **given)


def test_c10_metrics_of_the_train_part_with_a_knowledge_model(build):
    result = build("CKE", **KG, metrics=["ItemCoverage", "AveragePopularity"], valid_metric="ItemCoverage@10").fit()
    assert 0 < result.test["itemcoverage@10"] <= 1


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("DeepFM", {}, "DeepFM needs a label: set threshold"),
        ("WideDeep", {"load_col": {"inter": ALL}}, "WideDeep needs a label: set threshold"),
        ("NeuMF", {"train_neg_sample_args": None}, "NeuMF needs a label"),
        ("OneBP", {"eval_args": LABELED, "metrics": ["AUC"], "valid_metric": "AUC"}, "labeled needs a label"),
        ("DeepFM", {"load_col": {"inter": ALL}, "LABEL_FIELD": "rating"}, "rating: the values lie between 1 and 5"),
    ],
)
def test_c11_a_model_without_a_label(line, model, given, said):
    assert said in line(model, **given)


# ---------------------------------------------------------------------------------------------------------- c12: topk


@pytest.mark.parametrize(
    ("model", "given", "k"),
    [
        ("OneBP", {"topk": [10, 100]}, 100),
        ("BPR", {"topk": 41}, 41),
        ("Pop", {"topk": [50]}, 50),
        ("OneBP", {"topk": [50], "eval_args": {"mode": "uni20"}}, 50),
        ("SASRec", {"topk": [50], **IN_TIME}, 50),
    ],
)
def test_c12_topk_beyond_the_number_of_items(line, model, given, k):
    given.setdefault("valid_metric", f"NDCG@{k}")
    assert line(model, **given) == f"topk: {k} is more than the 40 items of data set small"


def test_c12_all_items_are_allowed(build):
    assert build(topk=[40], valid_metric="NDCG@40").fit().test["recall@40"] == 1.0


def test_c12_a_model_that_picks_more_items_itself(line):
    assert "SASRecCPR picks more items at a time than the 40 of data set small" in line("SASRecCPR", **IN_TIME)


def test_c12_a_batch_that_draws_more_users_than_there_are(line):
    words = "DGCF draws more users or items for each batch than data set small has; lower train_batch_size"
    assert line("DGCF", train_batch_size=20_000, n_layers=1) == words


def test_c12_more_clusters_than_users(line):
    pytest.importorskip("faiss")
    words = "NCL makes more clusters (num_clusters) than data set small has users or items; lower num_clusters"
    assert line("NCL", warm_up_step=0) == words


# ------------------------------------------------------------------------------------------------- c13: given parts

TWO, THREE = {"benchmark_filename": ["train", "test"]}, {"benchmark_filename": ["train", "valid", "test"]}


@pytest.mark.parametrize("parts", [TWO, THREE])
@pytest.mark.parametrize(
    ("model", "given"),
    [("OneBP", {}), ("BPR", {}), ("BPR", {"eval_args": {"mode": "uni10"}}), ("ItemKNN", {}), ("MultiVAE", {})],
)
def test_c13_a_given_split_without_validation(build, parts, model, given):
    run = build(model, "mine", **{**parts, **given})
    result = run.fit()
    assert (len(run.train_data._dataset), run.valid_data, len(run.test_data._dataset)) == (500, None, 100)
    assert (result.n_train, result.valid) == (500, {})
    assert 0 < result.test["recall@10"] <= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"benchmark_filename": ["train"]}, "['train']: expected the parts train and test"),
        ({"benchmark_filename": ["train", "valid", "leaky", "test"]}, "expected the parts train and test"),
        ({"benchmark_filename": ["train", "test", "valid"]}, "mine.valid.inter: no interactions below the header"),
        ({"benchmark_filename": ["valid", "test"]}, "mine.valid.inter: no interactions below the header"),
        ({**TWO, "refit": True}, "there is no validation part"),
        ({**THREE, "refit": True}, "there is no validation part"),
        ({"benchmark_filename": ["train", "absent"]}, "no file"),
    ],
)
def test_c13_other_parts(line, given, said):
    assert said in line("OneBP", "mine", **given)


# ------------------------------------------------------------------------------------------------- c14: config files


@pytest.fixture
def conf(tmp_path):
    folder = tmp_path / "my conf"
    folder.mkdir()
    (folder / "a b.yaml").write_text("model: OneBP\ndataset: small\n")
    (tmp_path / "c.yaml").write_text("learning_rate: 0.01\n")
    (tmp_path / "d.yaml").write_text("learning_rate: 0.02\n")
    return folder


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("my conf/a b.yaml", ["my conf/a b.yaml"]),
        (Path("my conf/a b.yaml"), ["my conf/a b.yaml"]),
        ("c.yaml d.yaml", ["c.yaml", "d.yaml"]),
        (" c.yaml\n d.yaml ", ["c.yaml", "d.yaml"]),
        ("c.yaml 'my conf/a b.yaml'", ["c.yaml", "my conf/a b.yaml"]),
        (["c.yaml", Path("my conf/a b.yaml")], ["c.yaml", "my conf/a b.yaml"]),
        ("absent.yaml", ["absent.yaml"]),
        ("", []),
        (None, []),
    ],
)
def test_c14_names_of_config_files(conf, text, names):
    assert file_names(text) == names


@pytest.mark.parametrize("text", ["my conf/x.yaml", "c.yaml my conf/a b.yaml", "c.yaml 'my conf"])
def test_c14_a_hint_for_names_with_blanks(conf, text):
    with pytest.raises(UserError, match=r"config.files?.*(put a name with blanks among several in quotes|quotation)"):
        file_names(text)


def test_c14_the_command_takes_a_file_with_blanks(conf, sources, tmp_path):
    arguments = [f"--data_path={sources}", "--epochs=0", f"--output_dir={tmp_path / 'run'}"]
    assert main(["train", "--config_files=my conf/a b.yaml", *arguments]) == 0


def test_c14_build_takes_a_plain_string(conf, sources):
    run = recbole_onebp.build("OneBP", "small", "c.yaml", {"data_path": sources})
    assert run.config["learning_rate"] == 0.01
    run = recbole_onebp.build("OneBP", "small", ["c.yaml", "d.yaml"], {"data_path": sources})
    assert run.config["learning_rate"] == 0.02


# ------------------------------------------------------------------------------------------------------ c16: notebooks


def test_c16_losses_and_metrics_are_seen_in_a_script(sources):
    shared = f"{{'data_path': {sources!r}, 'epochs': 2, 'show_progress': False, 'output_dir': 'run'}}"
    done = fresh.python(
        f"import logging, recbole_onebp; run = recbole_onebp.build('OneBP', 'small', config_dict={shared}); run.fit();"
        "root = logging.getLogger(); print(root.handlers, root.level)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 30\n"
    assert [f"epoch {n} training" in done.stderr for n in range(3)] == [True, True, False]
    assert done.stderr.count("valid result") == 2
    assert re.search(r"test, epoch \d: recall@10: 0\.\d+", done.stderr)
    assert "\x1b" not in done.stderr


def test_c16_an_application_with_a_handler_of_its_own_is_left_alone(sources):
    shared = f"{{'data_path': {sources!r}, 'epochs': 1, 'show_progress': False, 'output_dir': 'run'}}"
    done = fresh.python(
        "import logging, recbole_onebp; logging.basicConfig(level='ERROR');"
        f"recbole_onebp.build('OneBP', 'small', config_dict={shared}).fit()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------------------------- c17: weights and columns of nowhere


def test_c17_a_file_of_load_col_that_is_not_there(line, sources):
    said = line("OneBP", "plays", load_col={"inter": IDS, "item": ["item_id", "itememb"]})
    assert said == f"load_col: item: no file {Path(sources) / 'plays' / 'plays.item'}"
    assert "load_col: net: no file" in line(load_col={"inter": IDS, "net": "*"})
    assert "small.item: no column emb" in line(load_col={"inter": IDS, "item": ["item_id", "emb"]})


@pytest.mark.parametrize("model", ["OneBP", "BPR"])
def test_c17_a_weight_that_no_one_uses_is_told(build, caplog, model):
    loaded = {"inter": IDS, "emb": ["iid", "vector"]}
    named = {"additional_feat_suffix": ["emb"], "alias_of_item_id": ["iid"], "preload_weight": {"iid": "vector"}}
    build(model, load_col=loaded, **named)
    assert f"preload_weight: not used: {model} does not read preloaded weights" in caplog.text


def test_c17_a_weight_of_nowhere(line):
    assert "Preload value field [itememb] not exist" in line(preload_weight={"item_id": "itememb"})


# ----------------------------------------------------------------------------------------------------- c21: /dev/shm

SHM = "unable to allocate shared memory(shm) for file </torch_17979_4237757994_2>: No space left on device (28)"
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"


@pytest.mark.parametrize("error", [RuntimeError(SHM), RuntimeError(BUS), OSError(28, "No space left", "/torch_1_2")])
def test_c21_too_little_shared_memory(build, monkeypatch, error):
    run = build("BPR", worker=2)

    def fail(*_args):
        raise error

    monkeypatch.setattr(run.model, "calculate_loss", fail)
    with pytest.raises(UserError, match=r"^worker: 2: .*shared memory.*set worker: 0, or .*--shm-size") as refused:
        run.fit()
    assert refused.value.__cause__ is error


def test_c21_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="a bug"), worker_memory_as_user_error(2):
        raise RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="shared memory"), worker_memory_as_user_error(0):
        raise RuntimeError(SHM)


# -------------------------------------------------------------------------------------- c22: a user who took every item


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_c22_shared_negatives_need_no_free_item(build, engine):
    result = build("OneBP", "full", engine=engine).fit()
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values_of(result))


@pytest.mark.parametrize(
    ("model", "given"),
    [("OneBP", {"negatives": "per_pair"}), ("OneBP", {"eval_args": {"mode": "uni10"}}), ("BPR", {})],
)
def test_c22_negatives_of_single_users_do(line, model, given):
    assert "user all has interacted with all 40 items" in line(model, "full", **given)


# ------------------------------------------------------------------------------------------- c25: warnings as errors


@pytest.mark.parametrize("model", ["OneBP", "BPR", "DeepFM", "CKE"])
def test_c25_with_warnings_as_errors(build, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(model, user_inter_num_interval="[2,inf)", **KINDS.get(model, {})).fit()


@pytest.mark.process
def test_c25_the_command_with_warnings_as_errors(sources, tmp_path):
    arguments = ["--model=OneBP", "--dataset=small", f"--data_path={sources}", "--epochs=1", "--show_progress=False"]
    command = [sys.executable, "-W", "error", "-m", "recbole_onebp", "train", *arguments]
    path = str(Path(recbole_onebp.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "test, epoch 0" in done.stdout


# ------------------------------------------------------------------------------------------------------ c31: threshold


@pytest.mark.parametrize("model", ["OneBP", "BPR", "SASRec", "CKE"])
def test_c31_only_what_is_rated_at_least_that_counts(build, caplog, model):
    caplog.set_level(logging.INFO)
    given = {"SASRec": {"load_col": {"inter": ALL}}, "CKE": {"load_col": {**KG["load_col"], "inter": ALL}}}
    run = build(model, threshold={"rating": 4}, **given.get(model, {}))
    liked = sum(rating >= 4 for _, _, rating, _ in rows_of())
    if model != "SASRec":  # which makes sequences of them
        assert sum(len(part._dataset) for part in (run.train_data, run.valid_data, run.test_data)) == liked
    assert run.dataset.inter_feat["rating"].min() >= 4
    assert "only interactions with rating of 4 or more count" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": {"rating": 4}, "load_col": {"inter": IDS}}, "threshold: rating is not loaded; add it to"),
        ({"threshold": {"stars": 4}}, "no column stars; it has user_id, item_id, rating, timestamp"),
        ({"threshold": {"rating": 4, "timestamp": 5}}, "threshold: "),
        ({"threshold": {"rating": "four"}}, "threshold.rating: 'four' is not allowed"),
        ({"threshold": 4}, "threshold: 4 is not allowed"),
        ({"threshold": {"rating": 4}, "val_interval": {"rating": "[2,inf)"}}, "both are about rating"),
        ({"threshold": {"rating": 4}, "dataset": "mine", **TWO}, "['train', 'test'] with threshold"),
        ({"threshold": {"rating": 6}}, "data set small"),
    ],
)
def test_c31_a_threshold_that_cannot_be_used(line, given, said):
    assert said in line(**given)


def test_c31_labels_below_one_are_told(build, caplog):
    build(threshold={"rating": 4}, eval_args=LABELED, metrics=["AUC"], valid_metric="AUC")
    below = sum(rating < 4 for _, _, rating, _ in rows_of())
    assert f"label: {below} interactions have a value below 1; OneBP takes every interaction as" in caplog.text


# -------------------------------------------------------------------------------------------- a21: flags of every form


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=70000", "port: 70000: expected a number from 1 to 65535"),
        ("--output_dir=a\0b", "output_dir: 'a\\\\x00b' holds a null character"),
        ("--config_files=a\0b", "config_files: 'a\\\\x00b' holds a null character"),
        ("--encoding=a\0b", "encoding: "),
        ("--field_separator=", "field_separator: '' is not allowed"),
        ("--field_separator=None", "field_separator: None is not allowed"),
        ("--load_col={}", "load_col: {}: expected the ids"),
        ("--load_col={'inter':['user_id']}", "expected the ids among the columns"),
        ("--eval_args={'split':{}}", "eval_args.split: {}: expected one way to split"),
        ("--eval_args={'split':{'RS':[0,0,0]}}", "eval_args.split: "),
        ("--eval_args={'mode':'unix'}", "error: "),
        ("--embedding_size=100000000000", "out of memory: lower embedding_size"),
        ("--n_shared_negatives=10000000000000", "out of memory"),
    ],
)
def test_a21_a_flag_that_cannot_be_used_is_one_line(sources, tmp_path, capsys, flag, said):
    given = {"model": "OneBP", "dataset": "small", "data_path": sources, "output_dir": tmp_path / "run", "epochs": 1}
    others = [f"--{key}={value}" for key, value in given.items() if not flag.startswith(f"--{key}=")]
    assert main(["train", flag, "--show_progress=False", *others]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said.replace("\\\\", "\\") in err
