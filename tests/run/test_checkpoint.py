"""Checkpoints: a resumed run equals an uninterrupted one, bit for bit, and a checkpoint is never left half written."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import threading
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.quick_start import load_data_and_model
from recbole.trainer import TraditionalTrainer

import recbole_onebp
from conftest import write_inter
from recbole_onebp.engine.cpu import FusedEngine
from recbole_onebp.run.checkpoint import resume, state, store
from recbole_onebp.run.checkpoint.clock import CheckpointClock
from recbole_onebp.run.checkpoint.signals import StopSignals
from recbole_onebp.util.errors import UserError
from support.recbole_models import MODELS, NEEDS, SMALL, has

SHARED = {"negatives": "shared", "n_shared_negatives": 20, "train_batch_size": 32}
INTERVAL = {"aggregation": "interval", "aggregation_interval": 3}
RECIPE = {**SHARED, **INTERVAL, "beta": 0.0, "leave_one_out": True, "score": "cosine", "item_bias": True,
          "temperature": 0.2, "learning_rate_decay": 0.9}  # fmt: skip
EARLIER = {**INTERVAL, "beta": 0.5, "leave_one_out": False, "recency": 0.5, "training_history": "earlier",
           "train_batch_size": 32}  # fmt: skip
IS_DUE = CheckpointClock.is_due
DYNAMIC = {"distribution": "uniform", "sample_num": 2, "alpha": 1.0, "dynamic": True, "candidate_num": 3}


@pytest.fixture
def often(monkeypatch):
    """A checkpoint at every opportunity."""
    monkeypatch.setattr(CheckpointClock, "is_due", lambda _clock: True)


@pytest.fixture(autouse=True)
def rows_miss_one_step(monkeypatch):
    """So that checkpoints are possible after every second step of these short epochs, not after every fiftieth."""
    monkeypatch.setattr("recbole_onebp.engine.adam.ROWS_A_PLACE", 0)
    monkeypatch.setattr("recbole_onebp.engine.adam.MOST_MISSED", 2)


class StoppedError(Exception):
    pass


def files_of(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path: path.name != ".lock" and path.stat().st_mtime_ns for path in files
    }  # some versions of filelock touch their file


def stop_after(epoch):
    def on_validation(number, _score):
        if number == epoch:
            raise StoppedError

    return on_validation


def everything(run):
    """Everything that must not depend on whether a run was stopped, so without times."""
    tensors: dict[str, torch.Tensor] = {}
    loaders = run.train_data, run.valid_data, run.test_data
    others = dict.fromkeys(state.array_digests(run.trainer.model), "")  # so that all arrays are there
    values = {"state": state.trainer_state(run.trainer, others), "generators": state.generator_states(loaders)}
    rest = store.pack(values, tensors)
    epochs = [{key: value for key, value in e.items() if "seconds" not in key} for e in run.trainer.record.epochs]
    return tensors, json.dumps([rest, epochs])


def assert_same(one, other):
    (tensors, rest), (others, other_rest) = one, other
    assert tensors.keys() == others.keys()
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name
    assert rest == other_rest


def without_seconds(result):
    return {key: value for key, value in vars(result).items() if key not in ("seconds", "epoch_seconds", "peak_rss_mb")}


class Ended:
    """What is left of a run without a stop: its result, its state and its files."""

    def __init__(self, run, folder):
        self.result = without_seconds(run.fit())
        self.everything = everything(run)
        self.epochs = epochs_in(folder)
        self.best = store.read_tensors(folder / "model.safetensors")[0]


@pytest.fixture(scope="module")
def ended():
    """Runs without a stop by their settings: tests that stop the same run compare with the same one."""
    return {}


@pytest.fixture
def same_as_straight(tiny, timed, tmp_path, ended):
    """Train without a stop; train, stop and resume; compare both, and return the resumed run."""
    untimed = tiny

    def compare(stop, model="OneBP", **options):
        tiny = timed if "recency" in options else untimed
        options = {"epochs": 4, **options}
        key = json.dumps([model, options])
        if key not in ended:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(CheckpointClock, "is_due", IS_DUE)  # also where the other run saves often
                folder = tmp_path / "straight"
                ended[key] = Ended(tiny(model, output_dir=str(folder), **options), folder)
        straight, folder = ended[key], tmp_path / "stopped"
        stopped = tiny(model, output_dir=str(folder), **options)
        stop(stopped)
        resumed = tiny(model, output_dir=str(folder), resume="auto", **options)
        assert resumed.trainer.start_epoch > 0 or resumed.trainer.saver.resume_point(0)[0] > 0
        result = resumed.fit()
        assert without_seconds(result) == straight.result
        assert_same(everything(resumed), straight.everything)
        assert epochs_in(folder) == straight.epochs
        best = store.read_tensors(folder / "model.safetensors")[0]
        assert all(torch.equal(best[name], straight.best[name]) for name in best | straight.best)
        return resumed

    return compare


def epochs_in(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def in_the_third_epoch(run):
    with pytest.raises(StoppedError):
        run.train(on_validation=stop_after(2))


def after_three_epochs(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.trainer, "_add_train_loss_to_tensorboard", lambda epoch, *_: stop_after(2)(epoch, 0))
        with pytest.raises(StoppedError):
            run.train()


# ------------------------------------------------------------------------------------------------------ between epochs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "reference"},
        *({"learner": name} for name in ("adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")),
        {"engine": "reference", "learner": "sparse_adam"},
        {"backprop": "two"},
        {"aggregation": "epoch"},
        SHARED,
        RECIPE,
        {**RECIPE, "engine": "reference"},
        {"recency": "auto", "train_batch_size": 64},
        {"local": "ridge", "local_neighbors": 8, "local_reg": 1.0},
        {"recency": 0.5, "training_history": "all", "train_batch_size": 64, "aggregation_interval": 2},
        {"train_neg_sample_args": DYNAMIC},
        {"fast_sampler": False, "engine": "reference"},
        {"eval_args": {"mode": {"valid": "uni5", "test": "uni5"}}, "eval_step": 2},
    ],
    ids=str,
)
def test_a_resumed_run_equals_an_uninterrupted_one(same_as_straight, often, options):
    same_as_straight(in_the_third_epoch if "eval_step" not in options else at_the_fourth_step, **options)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("BPR", {}),
        ("LightGCN", {"n_layers": 2}),  # caches results of its evaluation
        ("MultiVAE", {"mlp_hidden_size": [16], "latent_dimension": 8}),  # counts its steps, has dropout
        ("RecVAE", {"hidden_dimension": 16, "latent_dimension": 8}),  # two optimizers
        ("SGL", {"n_layers": 1}),  # draws a graph per epoch
        ("LINE", {}),  # shuffles an array of users
        ("DiffRec", {"dims_dnn": [16], "steps": 3}),  # keeps the last losses by time step
        ("RaCT", {"train_stage": "actor_pretrain", "pretrain_epochs": 4}),  # puts tensors where numbers were
    ],
)
def test_baselines_resume(same_as_straight, often, model, options):
    stop = in_the_third_epoch if "pretrain_epochs" not in options else after_three_epochs  # RaCT validates later
    same_as_straight(stop, model, learning_rate=0.01, **options)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_general_recommender_resumes(same_as_straight, tiny, tmp_path, often, model):
    options = {"learning_rate": 0.01, "embedding_size": 16, **SMALL.get(model, {})}
    if NEEDS.get(model) and not has(NEEDS[model]):
        pytest.skip(f"{model} needs {NEEDS[model]}")
    if model == "DGCF":
        options |= {"train_batch_size": 160}  # it draws a batch's share of the items from the users too
    if model == "NCL":
        options |= {"num_clusters": 5, "m_step": 1, "warm_up_step": 1}
    if model == "RaCT":
        options |= {"pretrain_epochs": 4}
    run = tiny(model, output_dir=str(tmp_path / "first"), epochs=1, **options)
    if isinstance(run.trainer, TraditionalTrainer):
        assert run.fit().epochs_run == 1
        assert not run.folder.checkpoints.exists()
        return
    stop = in_the_third_epoch if run.trainer.__class__.__name__ != "RaCTTrainer" else after_three_epochs
    same_as_straight(stop, model, **options)


def test_early_stopping_survives_a_resume(same_as_straight, tiny, tmp_path, often):
    options = {"epochs": 40, "stopping_step": 2, "learning_rate": 0.2}
    resumed = same_as_straight(in_the_third_epoch, **options)
    n_epochs = len(resumed.trainer.record.epochs)
    assert 3 < n_epochs < 40
    again = tiny(output_dir=str(tmp_path / "stopped"), resume="auto", **options)
    result = again.fit()
    assert (result.epochs_run, result.best_epoch) == (n_epochs, n_epochs - 1 - 3)
    assert_same(everything(again), everything(resumed))


def test_without_validation_the_last_epoch_is_the_model(same_as_straight, tmp_path, often):
    def stop(run):
        after_three_epochs(run)
        assert not (tmp_path / "stopped" / "model.safetensors").exists()

    resumed = same_as_straight(stop, refit=True)
    model = store.read_tensors(tmp_path / "stopped" / "model.safetensors")[0]
    assert torch.equal(model["user_table"], resumed.model.user_table)


def test_a_finished_run_can_be_longer(tiny, tmp_path):
    tiny(epochs=2).fit()
    longer = tiny(epochs=4, resume="auto")
    result = longer.fit()
    straight = tiny(epochs=4, output_dir=str(tmp_path / "straight"))
    assert without_seconds(straight.fit()) == without_seconds(result)
    assert_same(everything(longer), everything(straight))
    with pytest.raises(UserError, match="4 epochs are done; epochs: 3 is fewer"):
        tiny(epochs=3, resume="auto")


def without_folder(tiny_config, **overrides):
    config = {key: value for key, value in tiny_config.items() if key != "output_dir"}
    return recbole_onebp.build("OneBP", "tiny", config_dict={**config, **overrides})


def test_a_path_resumes_into_another_folder(tiny, tiny_config, tmp_path):
    tiny(epochs=2).fit()
    before = files_of(tmp_path / "run")
    checkpoint = max((tmp_path / "run" / "checkpoint").iterdir())  # on a slow machine there is an earlier one too
    for place, path in enumerate((tmp_path / "run", checkpoint)):
        run = tiny(epochs=3, resume=str(path), output_dir=str(tmp_path / f"other{place}"))
        assert run.fit().epochs_run == 3
    # A checkpoint is also written when nothing is left to train.
    assert tiny(epochs=2, resume=str(checkpoint), output_dir=str(tmp_path / "third")).fit().epochs_run == 2
    assert tiny(epochs=3, resume="auto", output_dir=str(tmp_path / "third")).trainer.start_epoch == 2
    assert files_of(tmp_path / "run") == before
    here = without_folder(tiny_config, epochs=3, resume=str(checkpoint))
    assert here.folder.path == tmp_path / "run"


# ------------------------------------------------------------------------------------------------------ inside an epoch


def at_the_fourth_step(run):
    """SIGTERM arrives in the fourth step of the second epoch."""
    signals_in_step(run, 14, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored():
    """A shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signals_in_step(run, number, *signals):
    steps = 0
    original, plain = FusedEngine._step, run.trainer._loss_of_batch

    def count():
        nonlocal steps
        steps += 1
        if steps == number:
            for each in signals:
                os.kill(os.getpid(), each)

    def step(engine, batch):
        count()
        return original(engine, batch)

    def loss(batch):
        count()
        return plain(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedEngine, "_step", step)
        patch.setattr(run.trainer, "_loss_of_batch", loss)
        with pytest.raises(SystemExit if signals[0] == signal.SIGTERM else KeyboardInterrupt) as caught:
            run.train()
    if signals[0] == signal.SIGTERM:
        assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize(
    "options",
    [{}, {"learner": "sparse_adam"}, {"backprop": "two"}, {"aggregation": "epoch"}, SHARED, {**INTERVAL, "beta": 0.5},
     EARLIER, RECIPE, {"eval_step": 2}],
    ids=str,
)  # fmt: skip
def test_sigterm_saves_inside_an_epoch(same_as_straight, tmp_path, caplog, options):
    same_as_straight(at_the_fourth_step, **options)
    # After the fourth step; with leave_one_out after the sixth, when all users have been aggregated.
    step = 6 if "leave_one_out" in options else 4
    assert f"--resume={tmp_path / 'stopped'} resumes at epoch 1, step {step}" in caplog.text


def test_a_signal_in_the_last_step_of_an_epoch(same_as_straight):
    same_as_straight(lambda run: signals_in_step(run, 20, signal.SIGINT))


def test_ctrl_c_twice_does_not_wait(tiny, tmp_path):
    run = tiny()
    signals_in_step(run, 5, signal.SIGINT, signal.SIGINT)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_signal_ends_the_run_after_its_patience(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(StopSignals, "patience", 0.0)
    run = tiny(**RECIPE)
    signals_in_step(run, 4, signal.SIGTERM)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_reference_engine_ends_its_epoch(same_as_straight, tmp_path, caplog):
    same_as_straight(at_the_fourth_step, engine="reference")
    assert f"--resume={tmp_path / 'stopped'} resumes at epoch 2, step 0" in caplog.text


@pytest.mark.parametrize("options", [{}, {"engine": "reference"}], ids=str)
def test_a_signal_waits_for_the_end_of_a_validation(same_as_straight, tmp_path, caplog, options):
    def in_a_validation(run):
        valid_epoch, validations = run.trainer._valid_epoch, count()

        def ask(*args, **kwargs):
            if next(validations) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return valid_epoch(*args, **kwargs)

        run.trainer._valid_epoch = ask
        with pytest.raises(SystemExit):
            run.train()

    same_as_straight(in_a_validation, **options)
    assert f"--resume={tmp_path / 'stopped'} resumes at epoch 2, step 0" in caplog.text


def test_an_ignored_signal_stays_ignored(tiny):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = tiny()
        with run.trainer.saver.running():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            run.trainer.fit(run.train_data, run.valid_data)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_leaves_no_thread(tiny):
    tiny().fit()
    before = set(threading.enumerate())
    tiny().fit()
    assert set(threading.enumerate()) <= before


def test_a_search_keeps_no_checkpoints(tiny, tmp_path, often):
    tiny().train(saved=False)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


# ------------------------------------------------------------------------------------------------ what cannot resume


def test_other_settings_are_refused_and_shown(tiny, tmp_path):
    tiny(epochs=2).fit()
    before = files_of(tmp_path / "run")
    with pytest.raises(UserError, match=r"other settings: beta: 0.99 then, 0.5 now; seed: 2020 then, 1 now; use the"):
        tiny(epochs=2, beta=0.5, seed=1, resume="auto")
    with pytest.raises(UserError, match="model: OneBP then, BPR now"):
        tiny("BPR", epochs=2, resume="auto")
    assert files_of(tmp_path / "run") == before
    # Settings that no result depends on may change.
    tiny(epochs=2, state="debug", show_progress=True, eval_memory_mb=1, resume="auto")


def test_other_data_are_refused_and_shown(tiny, tmp_path, tiny_path):
    shutil.copytree(tiny_path, tmp_path / "data")
    tiny(epochs=2, data_path=str(tmp_path / "data")).fit()
    tiny(epochs=2, resume="auto")  # the same data elsewhere
    path = tmp_path / "data" / "tiny" / "tiny.inter"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *sorted(lines[1:])]) + "\n")
    with pytest.raises(UserError, match=r"other data: .*train: 300 interactions \(SHA-256 \w+\) then, 300 inter"):
        tiny(epochs=2, data_path=str(tmp_path / "data"), resume="auto")
    write_inter(tmp_path / "data" / "tiny", [tuple(line.split("\t")) for line in lines[1:]] + [("u99", "i1")] * 3)
    with pytest.raises(UserError, match="users: 30 then, 31 now"):
        tiny(epochs=2, data_path=str(tmp_path / "data"), resume="auto")


def test_resume_without_a_checkpoint(tiny, tiny_config, tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(UserError, match="auto needs output_dir"):
        without_folder(tiny_config, resume="auto")
    with pytest.raises(UserError, match="there is no such folder"):
        without_folder(tiny_config, resume="absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: there is no checkpoint"):
        without_folder(tiny_config, resume=str(tmp_path / "empty"))
    assert not list((tmp_path / "empty").iterdir())
    assert tiny(resume="auto").trainer.start_epoch == 0
    assert "no checkpoint in" in caplog.text
    assert tiny("Pop", resume="auto").fit().epochs_run == 1  # has one epoch, and no checkpoints
    assert tiny("Pop", resume="auto").fit().epochs_run == 1


def test_another_version_is_reported(tiny, caplog, monkeypatch):
    tiny(epochs=1).fit()
    monkeypatch.setattr(resume, "VERSIONS", {**resume.VERSIONS, "torch": "1.0"})
    tiny(epochs=2, resume="auto")
    assert f"torch: {torch.__version__.split('+')[0]}" in caplog.text
    assert "1.0 now" in caplog.text


def test_a_new_run_removes_the_old_ones_checkpoints(tiny, tmp_path):
    tiny().fit()
    tiny(epochs=1).fit()
    names = {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()}
    assert "epoch-000001-step-000000000" in names
    assert not any(name > "epoch-000001-step-000000000" for name in names), "a slow run may have saved inside its epoch"


# ------------------------------------------------------------------------------------------------------------- damage


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "best.safetensors"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_previous_checkpoint_replaces_a_damaged_one(same_as_straight, tmp_path, often, caplog, name, damage):
    def stop(run):
        in_the_third_epoch(run)
        older, newer = sorted((tmp_path / "stopped" / "checkpoint").iterdir())
        assert (older.name, newer.name) == ("epoch-000002-step-000000004", "epoch-000002-step-000000005")
        damage(newer / name)

    caplog.set_level("INFO")
    same_as_straight(stop, train_batch_size=300)
    assert f"{name}: damaged: " in caplog.text
    assert "trying the previous checkpoint" in caplog.text
    assert f"resuming from {tmp_path / 'stopped' / 'checkpoint' / 'epoch-000002-step-000000004'}" in caplog.text


def test_only_damaged_checkpoints_are_an_error(tiny, tmp_path):
    tiny(epochs=1).fit()
    (checkpoint,) = (tmp_path / "run" / "checkpoint").iterdir()
    cut(checkpoint / "state.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint can be read, .*does not match its checksum; restore one"):
        tiny(epochs=2, resume="auto")
    with pytest.raises(UserError, match=r"state\.safetensors: damaged: it does not match its checksum"):
        tiny(epochs=2, resume=str(checkpoint))


@pytest.mark.parametrize("obstacle", ["another version", "little memory"])
def test_a_newest_checkpoint_that_is_intact_is_never_passed_over(tmp_path, monkeypatch, obstacle):
    """An older one in its place would let the next save remove it."""
    kept = store.Checkpoints(tmp_path / "checkpoint")
    names = [f"epoch-{epoch:06d}-step-000000000" for epoch in range(2)]
    kept.save(names[0], {"at": torch.zeros(9)}, None)
    if obstacle == "another version":
        monkeypatch.setattr(store, "_VERSION", 2)
    kept.save(names[1], {"at": torch.zeros(999)}, None)
    monkeypatch.undo()
    if obstacle == "little memory":
        monkeypatch.setattr(store.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    reason = {"another version": "has format version 2", "little memory": "more than the free memory, 1000 bytes"}
    with pytest.raises(UserError, match=f"{names[1]}.*{reason[obstacle]}"):
        kept.load()


def test_two_checkpoints_are_kept_and_temporary_folders_removed(tmp_path):
    kept = store.Checkpoints(tmp_path / "checkpoint")
    a, b, c = (f"epoch-{epoch:06d}-step-000000000" for epoch in range(3))
    (tmp_path / "checkpoint" / f".{a}.123.tmp").mkdir(parents=True)
    for name in (a, b, c):
        kept.save(name, {"at": name}, None)
    assert sorted(path.name for path in kept.folder.iterdir()) == [b, c]
    assert store.Checkpoints(kept.folder).load().values == {"at": c}
    kept.save(c, {"at": "again"}, None)
    assert sorted(path.name for path in kept.folder.iterdir()) == [b, c]
    assert store.Checkpoints(kept.folder).load().values == {"at": "again"}


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_leaves_earlier_files_intact(tiny, tmp_path, limit):
    """A limit on the size of files simulates a full disk."""
    run = tiny(epochs=2)
    run.fit()
    before = files_of(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        for write in (lambda: run.trainer.saver.save(7), lambda: run.trainer.saver.save_best(7)):
            with pytest.raises(UserError, match=r"File too large; the previous .* is intact and resumes at epoch 2"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path / "run") == before


def test_an_error_of_safetensors_keeps_the_error_of_the_system(tmp_path, monkeypatch):
    def full(*_):
        raise store.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store.write_tensors(tmp_path / "x", {})
    assert caught.value.errno == 28


# -------------------------------------------------------------------------------------------------------------- files

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text().filter(lambda key: key != "$"), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(_PLAIN)
def test_plain_values_round_trip(value):
    assert store.unpack(json.loads(json.dumps(store.pack(value, {}), allow_nan=False)), {}) == value


def test_tensors_round_trip(tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    value = {"a": table, "again": table, "b": [torch.tensor(3), (table.T, np.float64(0.1))], "none": torch.zeros(0, 3)}
    kept = store.Checkpoints(tmp_path / "checkpoint")
    name = "epoch-000001-step-000000000"
    kept.save(name, value, None)
    back = kept.load().values
    assert torch.equal(back["a"], table)
    assert torch.equal(back["again"], table)
    assert torch.equal(back["b"][1][0], table.T)
    assert (back["b"][0], back["b"][1][1], back["none"].shape) == (torch.tensor(3), 0.1, (0, 3))
    mode = (tmp_path / "checkpoint" / name / "state.json").stat().st_mode
    assert (tmp_path / "checkpoint" / name / "state.safetensors").stat().st_mode == mode
    with pytest.raises(TypeError, match=r"a\.0: a set cannot be saved"):
        store.pack({"a": [set()]}, {})


def test_no_file_of_a_run_is_a_pickle(tiny, tmp_path, often):
    """Except with recbole_checkpoint: true."""
    tiny().fit()
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pth", ".pt", ".pkl"))]
    run = tiny(recbole_checkpoint=True)
    result = run.fit()
    _, model, *_ = load_data_and_model(str(tmp_path / "run" / "checkpoint.pth"))
    assert all(torch.equal(table, run.model.state_dict()[name]) for name, table in model.state_dict().items())
    assert result.epochs_run == 3


def test_the_resume_point_is_logged(tiny, tmp_path, caplog):
    tiny(epochs=2).fit()
    caplog.set_level(logging.INFO)
    tiny(epochs=3, resume="auto")
    assert f"resuming from {tmp_path / 'run' / 'checkpoint' / 'epoch-000002-step-000000000'}: epoch 2" in caplog.text
