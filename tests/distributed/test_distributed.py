"""Several processes against one: the same tables and metrics for any number of processes and hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

import recbole_onebp
from conftest import PLAIN
from recbole_onebp import cli
from recbole_onebp.distributed.host import Host
from recbole_onebp.distributed.launch import free_port
from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.distributed.sharding import Shard
from recbole_onebp.engine import Schedule
from recbole_onebp.engine.schedule import even_first
from recbole_onebp.model import _xavier_rows, _xavier_rows_of
from recbole_onebp.run.checkpoint.resume import find_checkpoint
from recbole_onebp.run.folder import RunFolder
from support.films import COLD, write_films
from support.ranks import InRanks

METRICS = ["Recall", "NDCG", "MRR", "GAUC", "ItemCoverage", "GiniIndex", "ShannonEntropy", "AveragePopularity",
           "TailPercentage"]  # fmt: skip
RECIPE = {"aggregation": "interval", "aggregation_interval": 3, "beta": 0.0, "leave_one_out": True, "item_bias": True,
          "aggregation_alpha": 0.5, "score": "cosine", "learning_rate_decay": 0.9, "ema_decay": 0.9}  # fmt: skip
POPULAR = {"distribution": "popularity", "sample_num": 3, "alpha": 0.5}
SHARED_RECIPE = {"negatives": "shared", "n_shared_negatives": 16, "train_batch_size": 32, **RECIPE}
ORDER = {"order": "TO", "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "mode": "full"}
FEATURES = {**SHARED_RECIPE, "aggregation_alpha": 0.0, "item_features": "all", "learning_rate": 0.02}
OPTIONS = {
    "plain": {"learning_rate": 0.05},
    "recipe": RECIPE,
    "two": {"backprop": "two", "weight_decay": 0.01, "ema_decay": 0.5},
    "sparse": {"learner": "sparse_adam", "item_bias": True, "duplicates": "mean", "train_neg_sample_args": POPULAR},
    "epoch": {"aggregation": "epoch", "beta": 0.5, "duplicates": "mean", "user_encoding": "fresh"},
    "one pair": {"train_batch_size": 1, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
                 "epochs": 1, "eval_args": {"split": {"RS": [0.1, 0.45, 0.45]}}},  # a step for each pair: few pairs
    "shared": {"negatives": "shared", "n_shared_negatives": 16, "train_batch_size": 32, "logq_correction": True},
    "shared recipe": SHARED_RECIPE,
    "refit": {"refit": True},
    "ordered": {**SHARED_RECIPE, "eval_args": ORDER},
    "ordered, all": {**SHARED_RECIPE, "eval_args": ORDER, "recency": 0.5, "training_history": "all"},
    "local": {**SHARED_RECIPE, "local": "ridge", "local_neighbors": 8, "local_reg": 1.0},
    "ordered, local": {**SHARED_RECIPE, "eval_args": ORDER, "local": "ridge", "local_reg": 1.0, "local_history": 9},
    "weighted": {**SHARED_RECIPE, "WEIGHT_FIELD": "plays", "local": "ridge", "local_reg": 1.0},
    "ordered, weighted": {**SHARED_RECIPE, "eval_args": ORDER, "WEIGHT_FIELD": "plays", "weight_transform": "log1p"},
    "features": {**FEATURES, "learner": "sparse_adam", "id_dropout": 0.3},
    "features, dense": {**FEATURES, "weight_decay": 0.01, "item_features": ["genres"], "eval_items": "cold",
                        "local": "ridge", "local_neighbors": 8},
    "device": {"item_bias": True, "score": "cosine", "learning_rate": 0.01},
    "shared, many": {"negatives": "shared", "n_shared_negatives": 600, "backprop": "two", "item_bias": True},
    "device shared": {"negatives": "shared", "n_shared_negatives": 16, "train_batch_size": 32, "backprop": "two",
                      "ema_decay": 0.9},
    "device, features": {**FEATURES, "id_dropout": 0.3},
}  # fmt: skip
INTERRUPTED = {f"{name}, interrupted": name for name in ("plain", "two", "shared recipe", "features")}
OPTIONS.update({interrupted: {**OPTIONS[name], "epochs": 2} for interrupted, name in INTERRUPTED.items()})


@pytest.fixture(autouse=True)
def rows_miss_steps(monkeypatch):
    """As those of large tables do."""
    monkeypatch.setattr("recbole_onebp.engine.adam.ROWS_A_PLACE", 0)


def rounded(shape, name):
    """Whether results may differ in rounding: gradients are summed rank by rank, or in other groups of users."""
    return "device" in name or shape[0] == 3


def settings(data_path, folder, name):
    columns = ["user_id", "item_id", *["timestamp"] * name.startswith("ordered"), *["plays"] * ("weighted" in name)]
    about_data = {"data_path": data_path, "load_col": {"inter": columns}}
    with_features, metrics = "features" in name, METRICS
    if with_features:
        about_data |= {"benchmark_filename": ["train", "valid", "test"]}
        metrics = [metric for metric in METRICS if metric != "GAUC"]  # it cannot be combined with cold items
    return "films" if with_features else "tiny", {
        **about_data, "embedding_size": 8,
        "train_batch_size": 160, "epochs": 3, "metrics": metrics, "topk": [5, 10], "valid_metric": "NDCG@10",
        "show_progress": False, "output_dir": str(folder), "recbole_checkpoint": True, **PLAIN, **OPTIONS[name],
    }  # fmt: skip


def ml_100k(folder):
    """The defaults, in fewer and larger steps: with more processes than cores, each step waits for the scheduler."""
    config = {"epochs": 1, "train_batch_size": 4096, "aggregation_interval": 5, "output_dir": str(folder)}
    return "ml-100k", {**config, "metrics": METRICS, "topk": [10], "show_progress": False, "recbole_checkpoint": True}


GROUPS = {
    (1, 1): [*OPTIONS, "ml-100k"],
    (2, 2): [*OPTIONS, "ml-100k"],
    (4, 4): ["shared", "shared, many", "local", "ordered, local", "weighted", "features", "ml-100k"],
    (3, 3): ["plain", "shared recipe", "features"],
    (4, 2): ["recipe", "shared", "features"],
    (2, 1): ["plain", "two", "shared recipe"],
}
"""Runs for each (number of processes, processes per host)."""


@pytest.fixture(scope="module")
def in_ranks():
    with InRanks() as train:
        yield train


@pytest.fixture(scope="module")
def films_path(tmp_path_factory):
    """Films with features; with two processes, one has no user who takes a film that is new in the test part."""
    folder = tmp_path_factory.mktemp("data")
    write_films(folder)
    path, new = folder / "films" / "films.test.inter", {f"f{film}" for film in COLD["test"]}
    head, *rows = (line.split("\t") for line in path.read_text().splitlines())
    kept = [head, *([user, film] for user, film in rows if film not in new or int(user[1:]) % 2 == 0)]
    path.write_text("".join("\t".join(row) + "\n" for row in kept))
    return str(folder)


@pytest.fixture(scope="module")
def trained(in_ranks, tiny_path, timed_path, films_path, tmp_path_factory):
    """Trains a group once and returns the folder of one of its runs: ``trained((2, 2), "plain")``."""
    folders = {}

    def train(shape, name):
        if (shape, name) not in folders:
            runs = {}
            for each in GROUPS[shape]:
                folder = folders[shape, each] = tmp_path_factory.mktemp("run")
                timed = each.startswith("ordered") or "weighted" in each
                path = timed_path if timed else films_path if "features" in each else tiny_path
                runs[each] = ml_100k(folder) if each == "ml-100k" else settings(path, folder, each)
            in_ranks(*shape, runs)
        return folders[shape, name]

    return train


def seen(folder, name, rank=0):
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def tables(folder):
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=False)
    moments = {
        f"{number} {name}": torch.as_tensor(value)
        for number, state in checkpoint["optimizer"]["state"].items()
        for name, value in state.items()
    }
    return {**checkpoint["state_dict"], **moments}


@pytest.mark.parametrize(
    ("shape", "name"), [(shape, name) for shape, names in GROUPS.items() if shape != (1, 1) for name in names]
)
def test_tables_and_metrics_do_not_depend_on_the_number_of_processes(trained, shape, name):
    alone, several = trained((1, 1), name), trained(shape, name)
    expected, found = tables(alone), tables(several)
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        if rounded(shape, name):
            torch.testing.assert_close(found[key], table, rtol=0, atol=1e-5)
        else:
            assert torch.equal(found[key], table), key
    expected = seen(alone, name)
    for rank in range(shape[0]):  # all ranks have the result
        found = seen(several, name, rank)
        for part in ("valid", "test", "test_among", "test_by_train_pairs"):
            assert found[part] == expected[part]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
        assert found["stats"] == pytest.approx(expected["stats"], rel=1e-4)
        assert (found["n_train"], found["parameters"]) == (expected["n_train"], expected["parameters"])


@pytest.mark.parametrize(("shape", "name"), [((2, 2), "ml-100k"), ((4, 4), "ml-100k"), ((2, 2), "two")])
def test_a_rank_has_its_own_users_only(trained, shape, name):
    n_users, world = seen(trained((1, 1), name), name)["user_rows"] - 1, shape[0]
    rows = [seen(trained(shape, name), name, rank)["user_rows"] - 1 for rank in range(world)]
    assert sum(rows) == n_users
    assert max(rows) == -(-n_users // world)


def test_one_process_evaluates_the_model_of_several(trained, tiny_config):
    folder = trained((2, 2), "recipe")
    run = recbole_onebp.build("OneBP", "tiny", config_dict={**tiny_config, **OPTIONS["recipe"], "metrics": METRICS})
    run.trainer.eval_collector.data_collect(run.train_data)
    test = run.trainer.evaluate(run.test_data, model_file=str(folder / "checkpoint.pth"))
    assert {name: float(value) for name, value in test.items()} == seen(folder, "recipe")["test"]


@pytest.mark.parametrize(("before", "after"), [((1, 1), (2, 2)), ((2, 2), (1, 1))])
def test_a_run_resumes_with_another_number_of_processes(
    trained, in_ranks, tiny_path, films_path, tmp_path, before, after
):
    runs = {}
    for interrupted, name in INTERRUPTED.items():
        shutil.copytree(trained(before, interrupted), tmp_path / name)
        path = films_path if name == "features" else tiny_path
        dataset, config = settings(path, tmp_path / name, name)
        runs[name] = dataset, {**config, "resume": "auto"}
    in_ranks(*after, runs)
    for name in runs:
        expected, found = tables(trained((1, 1), name)), tables(tmp_path / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], table) for key, table in expected.items())
        assert seen(tmp_path / name, name)["test"] == seen(trained((1, 1), name), name)["test"]
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_parts_of_the_whole(world):
    table, rng = torch.arange(12.0).reshape(6, 2), np.random.default_rng(0)
    user, item = rng.integers(1, 6, 50), rng.integers(1, 9, 50)
    found = torch.zeros_like(table)
    count = torch.bincount(torch.from_numpy(item), minlength=9)
    for rank in range(world):
        number = np.flatnonzero((user - 1) % world == rank).astype(np.int32)
        shard = Shard(rank, world, 6, number, 50, count)
        assert np.array_equal(np.flatnonzero(shard.owned(torch.from_numpy(user))), number)
        local = shard.local(torch.from_numpy(user[number]))
        assert np.array_equal(shard.whole_ids(local), user[number])
        own = shard.own_rows(table)
        assert torch.equal(own[local], table[user[number]])
        found[shard.rows] = own[1:]
    assert torch.equal(found[1:], table[1:])


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("negatives", ["per_pair", "shared"])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_steps_of_all_ranks_make_the_steps_of_one(tiny, negatives, distribution, world):
    """Pairs are ordered by rank, even ranks first.  With 3 processes the groups and the order within a step differ."""
    args = {"distribution": distribution, "sample_num": 2, "alpha": 0.5}
    run = tiny(negatives=negatives, train_neg_sample_args=args, train_batch_size=64, n_shared_negatives=4)
    schedule = run.trainer._schedule_of(run.train_data)
    count = torch.from_numpy(np.bincount(schedule.item, minlength=41))
    shards = [
        Shard(
            rank,
            world,
            31,
            np.flatnonzero((schedule.user - 1) % world == rank).astype(np.int32),
            len(schedule.user),
            count,
        )
        for rank in even_first(world)
    ]
    plans = [
        Schedule(
            1 + (schedule.user[s.number] - 1) // world,
            schedule.item[s.number],
            31,
            41,
            schedule.config,
            schedule.seed,
            True,
            s,
        )
        for s in shards
    ]
    for whole, *parts in zip(schedule.batches(5), *(part.batches(5) for part in plans), strict=True):
        users = [shard.whole_ids(torch.from_numpy(part.user)) for shard, part in zip(shards, parts, strict=True)]
        found = [np.concatenate(users), np.concatenate([part.item for part in parts])]
        expected = [whole.user, whole.item]
        if negatives == "per_pair":
            found.append(np.concatenate([part.negative for part in parts]))
            expected.append(whole.negative)
        else:
            assert all(np.array_equal(part.negative, whole.negative) for part in parts)
        if world == 3:
            found, expected = (sorted(np.column_stack(columns).tolist()) for columns in (found, expected))
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
        assert [part.n_pairs for part in parts] == [len(whole.user)] * world


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_the_parts_of_a_step_are_of_all_its_pairs(tiny, world):
    whole = tiny(train_batch_size=160).trainer._schedule_of(tiny().train_data)
    brought = {}
    for rank in range(world):
        number = np.flatnonzero((whole.user - 1) % world == rank).astype(np.int32)
        shard = Shard(rank, world, 31, number, len(whole.user), torch.zeros(41))
        user = 1 + (whole.user[number] - 1) // world
        schedule = Schedule(
            user, whole.item[number], 31, 41, whole.config, whole.seed, True, shard if world > 1 else None
        )
        batch = next(schedule.batches(0))
        for part, groups in schedule.own_parts(batch).items():
            assert part not in brought
            whole_ids = shard.whole_ids(torch.from_numpy(batch.user)).numpy()
            brought[part] = [whole_ids[pairs] for pairs in groups]
    assert sorted(brought) == list(range(max(2, world)))
    assert sum(len(group) for groups in brought.values() for group in groups) == batch.n_pairs
    if world in (1, 2, 4):  # the same groups in the same order: users 0 and 2 modulo 4, then 1 and 3
        found = [group for part in even_first(max(2, world)) for group in brought[part]]
        assert [set((group - 1) % 4) for group in found] == [{0}, {2}, {1}, {3}]


@pytest.mark.parametrize(("n_users", "size"), [(3, 5), (100, 16), (50, 7)])
def test_shards_start_with_the_rows_of_the_whole_table(monkeypatch, n_users, size):
    monkeypatch.setattr("recbole_onebp.model._ROWS_AT_ONCE", 16)
    torch.manual_seed(3)
    whole, after = _xavier_rows(n_users + 1, size), torch.rand(1)
    for rank in range(3):
        shard = Shard(rank, 3, n_users + 1, np.empty(0, dtype=np.int32), 0, torch.zeros(1))
        torch.manual_seed(3)
        assert torch.equal(_xavier_rows_of(shard, size), shard.own_rows(whole))
        assert torch.equal(torch.rand(1), after)


def test_a_lost_rank_of_a_host_is_an_error():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    host = Host(Ranks())
    host._ranks, host._arrivals = Ranks(0, 2, 0, 2), np.zeros((2, 8), dtype=np.int64)
    host._others = [psutil.Process(child.pid)]
    child.kill()
    start = time.monotonic()
    with pytest.raises(recbole_onebp.util.errors.LostRankError, match=f"process {child.pid} of this host has ended"):
        host.wait()
    assert time.monotonic() - start < 5
    child.wait()


def test_a_killed_rank_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    out = tmp_path / "out"
    arguments = ["train", "--model=OneBP", "--dataset=ml-100k", "--epochs=5000", "--nproc=2", "--show_progress=False"]
    code = f"import sys; from recbole_onebp.cli import main; sys.exit(main({[*arguments, f'--output_dir={out}']!r}))"
    with open(tmp_path / "stderr", "w+") as stderr:
        run = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=stderr, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(recbole_onebp.__file__).parent.parent)},
        )  # fmt: skip
        deadline = time.monotonic() + 100
        while not list(out.glob("checkpoint/epoch-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        ranks = [child for child in psutil.Process(run.pid).children() if child.cmdline()[-1].startswith("--multipro")]
        # Rank 0 is started first.  Both may have the same start time, because the clock is coarse.
        os.kill(max(ranks, key=lambda rank: (rank.create_time(), rank.pid)).pid, signal.SIGKILL)
        start = time.monotonic()
        assert run.wait(timeout=60) == 1
        assert time.monotonic() - start < 20
        stderr.seek(0)
        output = stderr.read()
    last = output.strip().splitlines()[-1]
    assert "leaked" not in output
    assert last.startswith(("error: rank 1 of 2 was ended by SIGKILL", "error: rank 0 of 2: another process has ended"))
    assert find_checkpoint("auto", RunFolder(out)).values["epoch"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--negatives=per_pair"]])
def test_torchrun_resumes_a_run_with_a_killed_rank(tmp_path, flags):
    script = tmp_path / "train.py"
    script.write_text("import sys\nfrom recbole_onebp.cli import main\nsys.exit(main(['train', *sys.argv[1:]]))\n")
    common = ["--model=OneBP", "--dataset=ml-100k", "--epochs=12", "--show_progress=False", *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(recbole_onebp.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    straight, out = tmp_path / "straight", tmp_path / "out"
    subprocess.run([sys.executable, script, *common, f"--output_dir={straight}"], env=environment, check=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=3",
                f"--master_port={free_port()}"]  # fmt: skip
    with subprocess.Popen([*torchrun, script, *common, f"--output_dir={out}", "--resume=auto"], env=environment) as run:
        while not list(out.glob("checkpoint/epoch-*")) and run.poll() is None:
            time.sleep(0.05)
        ranks = [child for child in psutil.Process(run.pid).children() if str(script) in child.cmdline()]
        ranks[-1].kill()
        assert run.wait(timeout=300) == 0
    assert "resuming from" in (out / "run.log").read_text()
    newest = [max((folder / "checkpoint").iterdir()) for folder in (straight, out)]
    assert newest[0].name == newest[1].name
    for expected, found in (newest, (straight, out)):
        for file in expected.glob("*.safetensors"):
            assert (found / file.name).exists()
            expected_tables, found_tables = load_file(file), load_file(found / file.name)
            assert expected_tables.keys() == found_tables.keys()
            assert all(torch.equal(found_tables[key], table) for key, table in expected_tables.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nproc=0"], "nproc: 0, world_size: 0"),
        (["--nproc=2", "--world_size=1"], "group_offset"),
        (["--nproc=2", "--world_size=4", "--group_offset=3"], "group_offset: 3"),
    ],
)
def test_invalid_numbers_of_processes_are_refused(capsys, flags, message):
    assert cli.main(["train", "--model=OneBP", "--dataset=ml-100k", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "reference"}, "engine: reference"),
        ({"learner": "sgd"}, "learner: sgd"),
        ({"fast_evaluator": False}, "fast_evaluator: False"),
        ({"eval_args": {"mode": "uni10"}}, "eval_args.mode"),
    ],
)
def test_unsupported_settings_in_several_processes_are_refused(tiny, monkeypatch, options, message):
    monkeypatch.setattr("recbole_onebp.trainer.current", lambda: Ranks(0, 2, 0, 2))
    with pytest.raises(recbole_onebp.util.errors.UserError, match=message):
        tiny(**options)


def test_other_models_train_in_one_process(tiny, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(recbole_onebp.util.errors.UserError, match="nproc: BPR trains in one process"):
        tiny("BPR")
