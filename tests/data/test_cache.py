"""What is kept beside a data set: the same data set, made anew whenever anything is not what it was."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset

from conftest import write_inter
from recbole_onebp import build
from recbole_onebp.data import cache as data_cache
from recbole_onebp.data.cache import fingerprint
from recbole_onebp.data.checks import check_files
from recbole_onebp.data.dataset import OneBPDataset
from recbole_onebp.data.text_table import TextTable
from support.same_data import BY_USER, RATED, SPLITS, assert_same, events


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(data_cache, "WORTH_BYTES", 0)


@pytest.fixture
def config(tmp_path):
    write_inter(tmp_path / "rated", events(150), RATED)

    def make(**overrides):
        given = {"data_path": str(tmp_path), "load_col": None, "eval_args": BY_USER, **overrides}
        return Config(model="OneBP", dataset="rated", config_dict=given)

    return make


@pytest.fixture
def reads(monkeypatch):
    """Names of the text files that are parsed from now on."""
    parse, names = TextTable._parse, []

    def noted(table, *args, **kwargs):
        names.append(table.path.name)
        return parse(table, *args, **kwargs)

    monkeypatch.setattr(TextTable, "_parse", noted)
    return names


def entries(tmp_path):
    return sorted((tmp_path / "rated" / ".cache").glob("*"))


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_the_second_start_reads_nothing(config, reads, tmp_path, split):
    args = {"eval_args": {**split, "mode": "full"}}
    for _ in range(2):
        assert_same(Dataset(config(**args)), OneBPDataset(config(**args)))
    assert reads == ["rated.inter"]
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"threshold": {"rating": 2}},
        {"user_inter_num_interval": "[12,inf)", "item_inter_num_interval": "[10,inf)"},
        {"normalize_all": True},
        {"load_col": {"inter": ["item_id", "user_id"]}},
        {"unused_col": {"inter": ["timestamp", "rating"]}},
    ],
    ids=str,
)
def test_each_configuration_has_its_own(config, reads, tmp_path, keys):
    OneBPDataset(config())
    for _ in range(2):
        assert_same(Dataset(config(**keys)), OneBPDataset(config(**keys)))
    assert len(reads) == len(entries(tmp_path)) == 2
    assert_same(Dataset(config()), OneBPDataset(config()))
    assert len(reads) == 2


def test_parts(config, reads, tmp_path):
    rows = events(150)
    for part, some in {"train": rows[:90], "valid": rows[90:100], "test": rows[100:]}.items():
        write_inter(tmp_path / "rated", some, RATED).rename(tmp_path / "rated" / f"rated.{part}.inter")
    args = {"benchmark_filename": ["train", "valid", "test"]}
    for _ in range(2):
        parts = assert_same(Dataset(config(**args)), OneBPDataset(config(**args)))
        assert [*map(len, parts)] == [90, 10, 50]
    assert len(reads) == 3


def test_columns_are_mapped_and_may_be_written_to(config, tmp_path):
    OneBPDataset(config())
    dataset = OneBPDataset(config())
    column = dataset.inter_feat["user_id"].to_numpy()
    assert any(isinstance(base, np.memmap) for base in (column.base, getattr(column.base, "base", None)))
    before = fingerprint(entries(tmp_path)[0])
    dataset._change_feat_format()
    dataset.inter_feat["user_id"] += 1
    assert fingerprint(entries(tmp_path)[0]) == before


def test_batches_are_recboles(config):
    train, *_ = OneBPDataset(config()).build()
    assert train.inter_feat["user_id"].dtype == torch.int32
    batch = train[np.array([3, 1, 3])]
    assert batch["user_id"].dtype == batch["item_id"].dtype == torch.int64
    assert batch["rating"].dtype == torch.float32
    assert batch["user_id"].tolist() == train.inter_feat["user_id"][[3, 1, 3]].tolist()


def test_changed_data_are_read_anew(config, reads, tmp_path):
    OneBPDataset(config())
    write_inter(tmp_path / "rated", events(150, seed=1), RATED)
    for _ in range(2):
        assert_same(Dataset(config()), OneBPDataset(config()))
    assert len(reads) == 2
    assert len(entries(tmp_path)) == 1


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-7])


HARM = {
    "a bit of a column": lambda folder: _flip(folder / "0.npy"),
    "a bit of a vocabulary": lambda folder: _flip(folder / "4.npy"),
    "a bit of the state": lambda folder: _flip(folder / "state.json"),
    "a column cut short": lambda folder: _cut(folder / "1.npy"),
    "the state cut short": lambda folder: _cut(folder / "state.json"),
    "an empty state": lambda folder: (folder / "state.json").write_text("{}"),
    "no column": lambda folder: (folder / "2.npy").unlink(),
    "a list for a state": lambda folder: (folder / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_one_is_made_anew(config, reads, tmp_path, caplog, harm):
    OneBPDataset(config())
    harm(entries(tmp_path)[0])
    with caplog.at_level(logging.WARNING):
        assert_same(Dataset(config()), OneBPDataset(config()))
    assert "is damaged and will be rebuilt" in caplog.text
    assert_same(Dataset(config()), OneBPDataset(config()))
    assert len(reads) == 2


FORGED = {
    "beyond": lambda ids: np.where(np.arange(len(ids)) == 5, 10**6, ids),
    "negative": lambda ids: np.where(np.arange(len(ids)) == 5, -1, ids),
    "numbers": lambda ids: ids.astype(np.float64),
    "bytes": lambda ids: ids.astype(">i4"),
    "two dimensions": lambda ids: np.stack([ids, ids], axis=1),
    "short": lambda ids: ids[:-1],
    "text": lambda ids: ids.astype(str),
}


@pytest.mark.parametrize(
    "forge", [*FORGED.values(), "tokens", "no tokens", "sizes"], ids=[*FORGED, "tokens", "none", "sizes"]
)
def test_a21_a_forged_one_is_read_anew(config, reads, caplog, monkeypatch, forge):
    """With right checksums, as somebody else can make it."""
    state_of = OneBPDataset._state

    def forged(dataset):
        state = state_of(dataset)
        values, arrays = dict(state.values), dict(state.arrays)
        if forge == "sizes":
            values["file_sizes"] = [-1, 2]
        elif forge == "tokens":
            arrays["tokens user_id"] = np.arange(len(arrays["tokens user_id"]))
        elif forge == "no tokens":
            del arrays["tokens user_id"]
        else:
            arrays["column user_id"] = forge(arrays["column user_id"])
        return data_cache.State(values, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(OneBPDataset, "_state", forged)
        OneBPDataset(config())
    caplog.clear()
    assert_same(Dataset(config()), OneBPDataset(config()))
    assert "is damaged and will be rebuilt" in caplog.text
    assert reads == ["rated.inter"] * 2


def test_a_full_disk_leaves_nothing(config, tmp_path, caplog, monkeypatch):
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    save = np.save
    monkeypatch.setattr(np, "save", full)
    assert_same(Dataset(config()), OneBPDataset(config()))
    assert "cannot be written: No space left on device" in caplog.text
    assert not (tmp_path / "rated" / ".cache").exists()


def test_a_folder_that_cannot_be_written_to(config, tmp_path, caplog):
    (tmp_path / "rated" / ".cache").write_text("in the way")
    assert_same(Dataset(config()), OneBPDataset(config()))
    assert "cannot be written" in caplog.text


def test_it_can_be_switched_off(config, tmp_path):
    OneBPDataset(config(data_cache=False))
    assert entries(tmp_path) == []


def test_small_data_are_not_kept(config, tmp_path, monkeypatch):
    monkeypatch.setattr(data_cache, "WORTH_BYTES", 4 << 20)
    OneBPDataset(config())
    assert entries(tmp_path) == []


def test_features_are_not_kept(config, tmp_path):
    (tmp_path / "rated" / "rated.item").write_text("item_id:token\tyear:float\ni4\t1990\n")
    OneBPDataset(config())
    assert entries(tmp_path) == []


def test_what_is_cached_is_not_checked_again(config, reads, monkeypatch):
    checked = []
    monkeypatch.setattr(TextTable, "check", lambda table, *_: checked.append(table.path.name))
    check_files(config())
    OneBPDataset(config())
    check_files(config())
    assert checked == ["rated.inter"]


@pytest.fixture
def opened(monkeypatch):
    """Names of the files of the data set that are opened from now on, by whatever function of Python's."""
    names, listening = [], [True]

    def note(event, args):
        if listening and event == "open" and str(args[0]).endswith((".inter", ".csv")):
            names.append(os.path.basename(args[0]))

    sys.addaudithook(note)  # for the life of the process: it is switched off below
    yield names
    listening.clear()


@pytest.mark.parametrize("suffix", [".inter", ".inter.csv"])
def test_a_small_file_is_read_once(config, opened, tmp_path, monkeypatch, suffix):
    """Found, fingerprinted, checked and loaded: one open() in all."""
    monkeypatch.setattr(data_cache, "WORTH_BYTES", 4 << 20)
    path = write_inter(tmp_path / "rated", [(f"u{n}", f"i{n * step % 40}") for n in range(30) for step in (1, 7, 11)])
    if suffix == ".inter.csv":
        pd.read_csv(path, sep="\t").to_csv(f"{path}.csv", index=False)
        path.unlink()
    opened.clear()
    given = {"data_path": str(tmp_path), "load_col": None, "show_progress": False}
    run = build("OneBP", "rated", config_dict=given)
    assert run.dataset.inter_num == 90
    assert opened == [f"rated{suffix}"]


def test_a_large_file_is_checked_and_read_in_chunks(config, opened, monkeypatch):
    """It is not held in memory as a whole, and a number of a line is found in it too."""
    expected = Dataset(config())
    monkeypatch.setattr("recbole_onebp.data.text_table.SMALL_BYTES", 10)
    monkeypatch.setattr("recbole_onebp.data.text_table._CHUNK", 7)
    given = config()
    check_files(given)
    assert all(table.content is None for table in given.interaction_files.tables)
    assert_same(expected, OneBPDataset(given))


def test_what_was_checked_is_no_part_of_a_pickled_configuration(config):
    given = config()
    small = len(pickle.dumps(given))
    check_files(given)
    assert len(pickle.dumps(given)) < small + 3000
    assert_same(Dataset(config()), OneBPDataset(pickle.loads(pickle.dumps(given))))


def test_fingerprint(tmp_path, monkeypatch):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes(range(256)) * 40)
    other.write_bytes(path.read_bytes())
    assert fingerprint(path) == fingerprint(other)  # whatever the time
    _flip(other)
    assert fingerprint(path) != fingerprint(other)


@pytest.mark.parametrize("at", [0, 5_000, 10_239])
def test_fingerprint_of_a_large_file(tmp_path, monkeypatch, at):
    monkeypatch.setattr(data_cache, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(data_cache, "_BLOCK_BYTES", 64)
    path = tmp_path / "a"
    path.write_bytes(content := bytes(range(256)) * 40)
    first, times = fingerprint(path), (1, 2)
    os.utime(path, ns=times)
    assert fingerprint(path) != first
    first = fingerprint(path)
    path.write_bytes(content[:at] + b"x" + content[at + 1 :])
    os.utime(path, ns=times)
    assert fingerprint(path) != first
    path.write_bytes(content + b"y")
    os.utime(path, ns=times)
    assert fingerprint(path) != first
    path.write_bytes(content)
    os.utime(path, ns=times)
    assert fingerprint(path) == first


def test_a_large_file_is_known_in_no_time(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(20 << 30)
    start = time.perf_counter()
    fingerprint(path)
    assert time.perf_counter() - start < 1
