"""Columnar files stand for RecBole's atomic ones: same ids, features, split and metrics."""

from __future__ import annotations

import datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import recbole
import recbole.data.dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet
from recbole.config import Config
from recbole.data.dataset import Dataset

from conftest import write_inter
from recbole_onebp import build
from recbole_onebp.data.dataset import OneBPDataset
from recbole_onebp.data.interactions import find
from recbole_onebp.util.errors import UserError
from support.same_data import BY_USER, RATED, assert_same, events

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
COLUMNS = ["user_id", "item_id", "rating", "timestamp"]


def parquet_file(frame, path):
    frame.to_parquet(f"{path}.parquet", index=False, row_group_size=7_000)


def parquet_folder(frame, path):
    folder = Path(f"{path}.parquet")
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    third = -(-len(frame) // 3)
    for number in range(3):
        some = frame.iloc[number * third : (number + 1) * third].astype({"user_id": "category"})
        some.to_parquet(folder / f"part-{number}.parquet", index=False)


def arrow_file(frame, path):
    feather.write_feather(pa.Table.from_pandas(frame.astype({"item_id": str}), preserve_index=False), f"{path}.arrow")


def csv_file(frame, path):
    frame.to_csv(f"{path}.csv", index=False)


WRITERS = [parquet_file, parquet_folder, arrow_file, csv_file]
every_form = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def rated(rows):
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def both(tmp_path):
    """The atomic file by RecBole's Dataset, the columnar one of the same name by ours, under one configuration."""

    def load(**overrides):
        def config(data_path):
            given = {"data_path": str(tmp_path / data_path), "load_col": None, "eval_args": BY_USER, **overrides}
            return Config(model="OneBP", dataset="same", config_dict=given)

        return Dataset(config("atomic")), OneBPDataset(config("columnar"))

    for data_path in ("atomic", "columnar"):
        (tmp_path / data_path / "same").mkdir(parents=True)
    return load


def place(tmp_path, name="same.inter"):
    return tmp_path / "columnar" / "same" / name


@every_form
def test_ml_100k(both, tmp_path, write):
    text = ML_100K.read_text()
    (tmp_path / "atomic" / "same" / "same.inter").write_text(text)
    frame = pd.read_csv(ML_100K, sep="\t")
    write(frame.set_axis([title.split(":")[0] for title in frame], axis=1), place(tmp_path))
    parts = assert_same(*both())
    assert sum(map(len, parts)) == 100_000


@every_form
def test_filters(both, tmp_path, write):
    write_inter(tmp_path / "atomic" / "same", rows := events(150), RATED)
    write(rated(rows), place(tmp_path))
    assert_same(*both())
    assert_same(*both(user_inter_num_interval="[12,inf)", item_inter_num_interval="[10,inf)"))
    assert_same(*both(val_interval={"user_id": ["7", "1e3", "日本"], "rating": "[1,inf)"}))
    assert_same(*both(load_col={"inter": ["item_id", "user_id"]}, rm_dup_inter="first"))


@pytest.mark.parametrize("forms", [[parquet_file] * 3, [parquet_file, csv_file, None], [None, None, arrow_file]])
def test_parts(both, tmp_path, forms):
    rows = events(150)
    parts = {"train": rows[:90], "valid": rows[90:100], "test": [*rows[100:], ("new", "i99", 1, 1)]}
    for (part, some), write in zip(parts.items(), forms, strict=True):
        atomic = write_inter(tmp_path / "atomic" / "same", some, RATED).rename(
            tmp_path / "atomic" / "same" / f"same.{part}.inter"
        )
        if write is None:
            place(tmp_path, atomic.name).write_bytes(atomic.read_bytes())
        else:
            write(rated(some), place(tmp_path, atomic.name))
    assert [*map(len, assert_same(*both(benchmark_filename=list(parts))))] == [90, 10, 51]


def test_features_of_items_are_numbered_with_them(both, tmp_path):
    write_inter(tmp_path / "atomic" / "same", rows := events(150), RATED)
    parquet_file(rated(rows), place(tmp_path))
    for data_path in ("atomic", "columnar"):
        (tmp_path / data_path / "same" / "same.item").write_text("item_id:token\tyear:float\ni4\t1990\nnew\t1991\n")
    assert_same(*both())


def test_kinds_of_columns(both, tmp_path):
    """Numbers of every kind, dates in seconds, text as tokens; a missing number is the mean, as with RecBole."""
    pairs = [(f"u{row % 4}", f"i{row % 5}") for row in range(20)]
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    columns = {
        "user_id": pa.array([user for user, _ in pairs], pa.large_string()),
        "item_id": pa.array([item for _, item in pairs]).dictionary_encode(),
        "rating": pa.array([None, *range(1, 20)], pa.int8()),
        "timestamp": pa.array([day + datetime.timedelta(seconds=row) for row in range(20)], pa.timestamp("us", "UTC")),
        "day": pa.array([day.date()] * 20),
        "price": pa.array([Decimal("1.5")] * 20),
        "bought": pa.array([row % 2 == 0 for row in range(20)]),
        "shop": pa.array([f"s{row % 3}" for row in range(20)]),
        "basket:token": pa.array([row % 7 for row in range(20)]),
        "tags": pa.array([["a"]] * 20),
    }
    parquet.write_table(pa.table(columns), f"{place(tmp_path)}.parquet")
    seconds = int(day.timestamp())
    rows = [
        (*pairs[row], row or "", seconds + row, seconds, 1.5, 1 - row % 2, f"s{row % 3}", row % 7) for row in range(20)
    ]
    title = "day:float\tprice:float\tbought:float\tshop:token\tbasket:token"
    write_inter(tmp_path / "atomic" / "same", rows, f"{RATED}\t{title}")
    assert_same(*both())


_token = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\t\n\r\0"'), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(_token, _token, st.integers(-3, 3), st.floats(0, 2e9, width=32)), min_size=1))
def test_any_tokens(tmp_path, rows):
    """Whatever text is an id: the tables hold it, in order of first appearance."""
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    frame = rated(rows)
    for write in (parquet_file, csv_file):
        write(frame, folder / "any.inter")
        config = Config(model="OneBP", dataset="any", config_dict={"data_path": str(tmp_path), "load_col": None})
        ours = OneBPDataset(config)
        for field in ("user_id", "item_id"):
            assert ours.field2id_token[field].tolist() == ["[PAD]", *dict.fromkeys(frame[field])]
            assert ours.id2token(field, ours.inter_feat[field].to_numpy()).tolist() == frame[field].tolist()
        for file in folder.iterdir():
            file.unlink()


def test_metrics_are_recboles(tmp_path, monkeypatch):
    """A run on ml-100k: by RecBole's own dataset, and from Parquet, with and without the cache."""
    frame = pd.read_csv(ML_100K, sep="\t")
    for data_path in ("atomic", "columnar"):
        (tmp_path / data_path / "ml").mkdir(parents=True)
    (tmp_path / "atomic" / "ml" / "ml.inter").write_bytes(ML_100K.read_bytes())
    frame = frame.set_axis([title.split(":")[0] for title in frame], axis=1)
    frame.to_parquet(tmp_path / "columnar" / "ml" / "ml.inter.parquet")

    def fit(data_path, name):
        given = {"data_path": str(tmp_path / data_path), "output_dir": name, "show_progress": False}
        given |= {"epochs": 2, "train_batch_size": 8192, "n_shared_negatives": 128, "learning_rate": 0.01}
        return build("OneBP", "ml", config_dict=given).fit()

    monkeypatch.setattr("recbole_onebp.data.cache.WORTH_BYTES", 0)
    ours = [fit("columnar", "first"), fit("columnar", "second")]
    assert (tmp_path / "columnar" / "ml" / ".cache").is_dir()
    with monkeypatch.context() as patched:
        patched.setattr(recbole.data.dataset, "OneBPDataset", Dataset)
        theirs = fit("atomic", "theirs")
    for result in ours:
        assert (result.test, result.valid, result.n_train) == (theirs.test, theirs.valid, theirs.n_train)


def test_recboles_own_file_comes_first(tmp_path):
    csv_file(rated(events(9)), tmp_path / "x.inter")
    assert find(tmp_path, "x").name == "x.inter.csv"
    (tmp_path / "x.inter").touch()
    assert find(tmp_path, "x").name == "x.inter"


# --------------------------------------------------------------------------------------------------------------- errors


def said(tmp_path, **overrides):
    """The one line about what is wrong in the data set ``wrong``."""
    given = {"data_path": str(tmp_path), "epochs": 1, "show_progress": False, **overrides}
    with pytest.raises(UserError) as caught:
        build("OneBP", "wrong", config_dict={"load_col": {"inter": COLUMNS}, **given})
    return str(caught.value).removeprefix(f"{tmp_path}/wrong/wrong.inter")


@pytest.fixture
def wrong(tmp_path):
    (tmp_path / "wrong").mkdir()
    return tmp_path / "wrong" / "wrong.inter"


@every_form
def test_a_missing_column(tmp_path, wrong, write):
    write(rated(events(20)).drop(columns="rating"), wrong)
    assert "no column rating; it has user_id, item_id, timestamp" in said(tmp_path)


def test_a_missing_id(tmp_path, wrong):
    frame = rated(events(20)).astype({"item_id": object})
    frame.loc[11, "item_id"] = None
    parquet_file(frame, wrong)
    assert said(tmp_path) == ".parquet: column item_id: row 12 has none; leave such rows out by recbole-onebp convert"
    Path(f"{wrong}.parquet").unlink()
    csv_file(frame, wrong)
    assert said(tmp_path) == ".csv, line 13: item_id is nan, expected an id"


def test_no_number(tmp_path, wrong):
    frame = rated(events(20)).astype({"rating": object})
    frame.loc[3, "rating"] = "good"
    csv_file(frame, wrong)
    expected = ".csv, line 5: rating is 'good', expected a number"
    assert said(tmp_path) == said(tmp_path, load_col={"inter": ["user_id", "item_id", "rating"]}) == expected


@pytest.mark.parametrize(
    ("at", "said_of_it"), [(0, "line 2: more fields than columns"), (7, "Expected 4 fields in line 9, saw 5")]
)
def test_a_comma_too_many(tmp_path, wrong, at, said_of_it):
    csv_file(rated(events(20)), wrong)
    title, *rows = Path(f"{wrong}.csv").read_text().splitlines()
    rows[at] += ",5"
    Path(f"{wrong}.csv").write_text("\n".join([title, *rows]))
    assert said_of_it in said(tmp_path)


def test_ids_of_another_kind(tmp_path, wrong):
    parquet_file(rated(events(20)).assign(item_id=[["i1"]] * 20), wrong)
    assert "column item_id: ids and tokens are text or whole numbers" in said(tmp_path)
    parquet_file(rated(events(20)).assign(user_id=np.arange(20) / 2), wrong)
    assert "column user_id: ids and tokens are text or whole numbers" in said(tmp_path)
    for values in ([b"a"] * 20, [True] * 20, [Decimal("1.5")] * 20, [datetime.date(2020, 1, 1)] * 20):
        parquet_file(rated(events(20)).assign(user_id=values), wrong)
        assert "column user_id: ids and tokens are text or whole numbers; these are of type " in said(tmp_path)
    parquet_file(rated(events(20)).rename(columns={"user_id": "user_id:float"}), wrong)
    assert "user_id:float: ids are tokens; write user_id:token" in said(tmp_path)


def test_no_interactions(tmp_path, wrong):
    parquet_file(rated(events(20)).iloc[:0], wrong)
    assert said(tmp_path) == ".parquet: no interactions"
    Path(f"{wrong}.parquet").unlink()
    csv_file(rated(events(20)).iloc[:0], wrong)
    assert said(tmp_path) == ".csv: no interactions"


def test_damaged_text(tmp_path, wrong):
    table = pa.Table.from_pandas(rated(events(20)), preserve_index=False)
    table = table.set_column(0, "user_id", pa.array(["u1", "u2"] * 10, pa.string()))
    feather.write_feather(table, f"{wrong}.arrow", compression="uncompressed")
    content = Path(f"{wrong}.arrow").read_bytes()
    ends = np.arange(0, 42, 2, dtype=np.int32)  # of the texts in the bytes of all
    assert content.count(ends.tobytes()) == 1
    Path(f"{wrong}.arrow").write_bytes(content.replace(ends.tobytes(), np.append(ends[:-1], ends[-1:] + 4).tobytes()))
    assert said(tmp_path).startswith(".arrow: column user_id: ")


def test_a_column_without_a_name(both, tmp_path):
    write_inter(tmp_path / "atomic" / "same", events(20), RATED)
    frame = rated(events(20))
    frame.to_csv(f"{place(tmp_path)}.csv")  # with the index, as many do
    assert_same(*both())


def test_no_such_format(tmp_path, wrong):
    Path(f"{wrong}.parquet").write_text("user_id,item_id\n1,2\n")
    assert said(tmp_path).startswith(".parquet: not parquet: ")
    csv_file(rated(events(20)), wrong)
    assert said(tmp_path) == ".parquet and wrong.inter.csv: which one holds the interactions? keep one of them"


def test_other_models_read_atomic_files(tmp_path, wrong):
    parquet_file(rated(events(20)), wrong)
    with pytest.raises(UserError, match="BPR reads only RecBole's atomic files; recbole-onebp convert makes them"):
        build("BPR", "wrong", config_dict={"data_path": str(tmp_path)})


def test_without_pyarrow(tmp_path, wrong, monkeypatch):
    parquet_file(rated(events(20)), wrong)
    monkeypatch.setattr(
        "recbole_onebp.data.arrow_table.find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    assert said(tmp_path) == ".parquet: reading parquet needs pyarrow: pip install 'recbole-onebp[parquet]'"
