"""Tables of every kind: the same ids whatever holds them, and one line for what cannot be read."""

from __future__ import annotations

import datetime
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pyarrow import interchange

from recbole_onebp import fit
from recbole_onebp.dataframe.pairs import Columns, each_once, read_rows
from recbole_onebp.util.errors import UserError
from support.interactions import FAST


class Protocol:
    """A frame of another library: it has one method only."""

    def __init__(self, table: pa.Table, name: str) -> None:
        setattr(self, name, getattr(table, name))


def csv(frame):
    frame.to_csv("pairs.csv", index=False)
    return "pairs.csv"


def parquet(frame):
    frame.to_parquet("pairs.parquet")
    return "pairs.parquet"


def string_views(frame, coded):
    """As polars has text, and categories."""
    columns = (pa.array(frame[name].astype(str).tolist(), pa.string()).dictionary_encode() for name in frame)
    viewed = (pa.DictionaryArray.from_arrays(one.indices, one.dictionary.cast(pa.string_view())) for one in columns)
    if not coded:
        viewed = (pa.array(one.to_pylist(), pa.string_view()) for one in viewed)
    return pa.table(dict(zip(frame, viewed, strict=True)))


KINDS = {
    "text": lambda frame: frame.astype(str),
    "categories": lambda frame: frame.astype(str).astype("category"),
    "categories of numbers": lambda frame: frame.astype("category"),
    "nullable": lambda frame: frame.astype("Int64"),
    "floats": lambda frame: frame.astype(float),
    "small floats": lambda frame: frame.astype("float32"),
    "objects": lambda frame: frame.astype(object),
    "decimals": lambda frame: frame.apply(lambda column: column.map(Decimal)),
    "pandas of arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "arrow": pa.Table.from_pandas,
    "arrow dictionaries": lambda frame: pa.Table.from_pandas(frame.astype(str).astype("category")),
    "arrow stream": lambda frame: Protocol(pa.Table.from_pandas(frame), "__arrow_c_stream__"),
    "interchange": lambda frame: Protocol(pa.Table.from_pandas(frame), "__dataframe__"),
    "string views": lambda frame: string_views(frame, coded=False),
    "dictionaries of string views": lambda frame: string_views(frame, coded=True),
    "odd index": lambda frame: frame.set_index(np.full(len(frame), 7)),
    "csv": csv,
    "parquet": parquet,
}


def read(data, name="data", **columns):
    return each_once(read_rows(data, Columns(**columns), name), name)


def said(data, **columns):
    with pytest.raises(UserError) as error:
        read(data, **columns)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_do_not_depend_on_what_holds_them(pairs, kind):
    found = read(KINDS[kind](pairs))
    pd.testing.assert_frame_equal(found.astype(object), pairs.astype(str).astype(object))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "categories of numbers"])
def test_weights_do_not_depend_on_what_holds_them(pairs, kind):
    rows = pairs.assign(plays=pairs["item_id"] + 1)
    found = read(KINDS[kind](rows), weight="plays")
    assert found["rating"].tolist() == (pairs["item_id"] + 1.0).tolist()


def test_values_of_a_sparse_matrix_are_weights_if_asked_for(pairs, caplog):
    cells = (pairs["item_id"] + 0.5, (pairs["user_id"], pairs["item_id"]))
    matrix = sp.coo_array(cells, shape=(40, 30)).tocsr()
    matrix.data[0] = 0
    found = read(matrix, weight="data")
    assert found["rating"].tolist() == (found["item_id"].astype(int) + 0.5).tolist()
    assert len(found) == len(pairs) - 1
    assert not caplog.records
    matrix.data[3] = -1
    where = "data, entry 2: data is no weight: expected a number from 1e-09 to 1e+09"
    assert said(matrix, weight="data").startswith(where)
    assert said(matrix, weight="plays").startswith("data: a sparse matrix has no columns to name")


@pytest.mark.parametrize(("value", "wrong"), [
    (0, "plays is no weight: expected a number from 1e-09 to 1e+09: values"), (-1.5, "plays is no weight"),
    (float("nan"), "no plays"), (float("inf"), "plays is no number"), (1e12, "plays is no weight"),
    ("x", "plays is no number"),
])  # fmt: skip
def test_the_first_bad_weight_is_named(pairs, value, wrong):
    plays = pd.Series(2.0, pairs.index, object)
    plays[4] = value
    assert said(pairs.assign(plays=plays), weight="plays").startswith(f"data, row 4 (counted from 0): {wrong}")


def test_ratings_of_an_archive_are_weights_only_if_asked_for():
    with zipfile.ZipFile("ml.zip", "w") as archive:
        archive.writestr("ml/u.data", "1\t7\t5\t30\n1\t8\t0\t20\n")
    assert list(read("ml.zip")) == ["user_id", "item_id", "timestamp"]
    assert "rating is no weight: expected" in said("ml.zip", weight="rating")


def test_weights_of_a_pair_are_added_up(pairs, caplog):
    rows = pd.concat([pairs, pairs[:5]], ignore_index=True).assign(plays=np.arange(len(pairs) + 5) + 1.0)
    found = read(rows, weight="plays")
    expected = np.arange(len(pairs)) + 1.0
    expected[:5] += len(pairs) + expected[:5]
    assert found["rating"].tolist() == expected.tolist()
    assert "each pair counts once, with the sum of its weights" in caplog.text


def test_a_sparse_matrix(pairs, caplog):
    cells = (np.ones(len(pairs)), (pairs["user_id"], pairs["item_id"]))
    matrix = sp.coo_array(cells, shape=(40, 30))
    sorted_pairs = pairs.sort_values([*pairs], ignore_index=True).astype(str).astype(object)
    for made in (matrix, matrix.tocsr(), sp.csr_matrix(matrix), matrix.tolil()):
        pd.testing.assert_frame_equal(read(made).astype(object), sorted_pairs)
    assert not caplog.records
    weighted = matrix.tocsr() * 3.0
    weighted.data[0] = 0
    pd.testing.assert_frame_equal(read(weighted).astype(object), sorted_pairs[1:].reset_index(drop=True))
    assert "data: the values are not used" in caplog.text
    assert said(matrix, user="user_id") == (
        "data: a sparse matrix has no columns to name: its rows are users, its columns are items, and "
        'weight="data" stands for its values'
    )
    assert said(sp.csr_array((3, 3))) == "data: no rows"


ZONED = pd.date_range("2020-03-01 12:00", periods=4, freq="h", tz="Europe/Berlin")
SECONDS = [1583060400.0, 1583064000.0, 1583067600.0, 1583071200.0]


@pytest.mark.parametrize(
    "times",
    [
        ZONED,
        ZONED.tz_convert("UTC").tz_localize(None),
        ZONED.as_unit("ns"),
        pd.array(ZONED, dtype=pd.ArrowDtype(pa.timestamp("us", "America/New_York"))),
        np.array([time.to_pydatetime() for time in ZONED], object),
        [time.isoformat() for time in ZONED],
        SECONDS,
        np.array(SECONDS) * 1000,
        pd.array(np.array(SECONDS, np.int64), "Int64"),
        pd.array(np.array(SECONDS, np.int64), dtype="int64[pyarrow]"),
        pd.Categorical(SECONDS),
        [str(int(second)) for second in SECONDS],
    ],
    ids=lambda times: f"{type(times).__name__}-{getattr(times, 'dtype', '')}",
)
def test_times(times):
    frame = pd.DataFrame({"user": list("aabb"), "item": list("xyxy"), "when": times})
    for data in (frame, frame[::-1], pa.Table.from_pandas(frame.assign(when=frame["when"].astype(object)))):
        found = read(data, time="when")
        assert (found["timestamp"].tolist(), [*found["user_id"]]) == (SECONDS, ["a", "a", "b", "b"])
    assert [*read(frame.rename(columns={"when": "timestamp"}), time="")] == ["user_id", "item_id"]


@pytest.mark.parametrize("kind", [str, object, "datetime64[us]"])
def test_a_time_that_nanoseconds_do_not_reach_is_read_or_its_row_is_named(kind):
    never = datetime.datetime(9999, 12, 31)
    times = (
        pd.Series([datetime.datetime(2024, 1, 1), never]).map(str if kind is str else lambda time: time).astype(kind)
    )
    frame = pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "when": times})
    try:
        assert read(frame, time="when")["timestamp"].tolist() == [1704067200.0, 253402214400.0]
    except UserError as error:  # before pandas 3 times have nanoseconds
        assert int(pd.__version__[0]) < 3 and "row 1 (counted from 0): when is no time" in str(error)  # noqa: PT017,PT018


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, "no sku: values 0"),
        (np.nan, "no sku: values 0"),
        (pd.NA, "no sku: values 0"),
        ("", "no sku: values 0"),
        ("NA", "RecBole would not read this sku back: values 0 | NA"),
        ("a\nb", "RecBole would not read this sku back: values 0 | a b"),
        (1.5, "sku is no whole number: values 0 | 1.5"),
        (float("inf"), "sku is infinite: values 0 | inf"),
        (2.0**60, "sku has more digits than a float holds; write it as text or an integer: values 0 | 1.15"),
        (True, "sku is a truth value, neither text nor a whole number: values 0 | True"),
        (datetime.date(2020, 1, 2), "sku is of type date, neither text nor a whole number: values 0 | 2020-01-02"),
        ([1], "sku is of type list, neither text nor a whole number: values 0 | [1]"),
        (b"x", "sku is of type bytes, neither text nor a whole number: values 0 | b'x'"),
    ],
    ids=str,
)
def test_the_first_bad_row_is_named(pairs, value, wrong):
    frame = pairs.astype(object).rename(columns={"item_id": "sku"}).replace({"sku": {1: 99}})
    frame.at[7, "sku"] = value
    assert f"data, row 7 (counted from 0): {wrong}" in said(frame, user="user_id", item="sku")


def test_bad_rows_of_other_types_are_named(pairs):
    nullable = pairs.astype("Int64")
    nullable.loc[[3, 5], "user_id"] = pd.NA
    for data in (nullable, nullable.astype(float), pa.Table.from_pandas(nullable)):
        assert said(data).startswith("data, row 3 (counted from 0): no user_id: values | ")
        assert said(data).endswith("; 2 rows are bad; correct or leave out such rows")
    assert "row 0 (counted from 0): item_id is a truth value" in said(pairs.assign(item_id=pairs["item_id"] > 5))
    assert "item_id is of type Timestamp" in said(pairs.assign(item_id=pd.Timestamp("2020")))
    timed = pairs.assign(ts=pd.Timestamp("2020"))
    timed.loc[4, "ts"] = pd.NaT
    assert "data, row 4 (counted from 0): no ts" in said(timed, time="ts")
    assert "data, row 4 (counted from 0): ts is no time" in said(timed.astype({"ts": object}).fillna("soon"), time="ts")
    asked = "make dates of them by pd.to_datetime with a format"
    assert f"times such as 'soon': none is understood; {asked}" in said(pairs.assign(ts="soon"), time="ts")
    assert f"each could be; {asked}" in said(pairs.assign(ts="1/2/2020"), time="ts")
    with open("pairs.csv", "w") as file:
        file.write("user,item\n1,2\n,3\n")
    Path("other.csv").write_text("a,b,c\n1,2,3\n")
    assert said("other.csv") == "other.csv: which column is the user? name it by user=; its columns are a, b, c"
    assert said("pairs.csv") == "pairs.csv, line 3: no user_id: values | 3; correct or leave out such rows"
    nullable.to_parquet("pairs.parquet")
    assert said("pairs.parquet").startswith("pairs.parquet, row 4: no user_id: values | ")


def test_columns_are_found_or_asked_for(pairs):
    for names in (["userId", "movieId"], ["uid", "Item"], ["a", "b"], [0, 1]):
        assert len(read(pairs.set_axis(names, axis=1))) == len(pairs)
    assert len(read(pairs.set_axis([5, 6], axis=1).assign(more=1), user=5, item=6)) == len(pairs)
    swapped = pairs.set_axis(["item_id", "customer"], axis=1)
    asked = "data: which column is the user? name it by user=; its columns are "
    assert said(swapped) == f"{asked}item_id, customer"
    assert said(pairs.set_axis(["a", "b"], axis=1).assign(c=1)) == f"{asked}a, b, c"
    assert said(pairs, user="who") == "data: no column who; its columns are user_id, item_id"
    assert "one column cannot have two meanings" in said(pairs, user="item_id")
    assert "2 columns are called user_id" in said(pd.concat([pairs, pairs[["user_id"]]], axis=1), user="user_id")


@pytest.mark.parametrize("data", [None, [1, 2], {"user": 1}, np.ones((2, 2)), pd.Series([1])], ids=type)
def test_what_is_no_table(data):
    assert said(data).startswith(f"data: {type(data).__name__} is no table: expected a DataFrame")


def test_what_is_told(pairs, caplog):
    """Duplicates, ratings and blanks: each with one line."""
    rows = pd.concat([pairs, pairs[:5]]).assign(rating=5).astype({"item_id": object}).reset_index(drop=True)
    rows.loc[0, "item_id"] = " x"
    assert len(read(rows)) == len(pairs) + 1
    assert [record.getMessage() for record in caplog.records] == [
        "data: column rating is not used: each row counts the same; leave low ratings out, or name it by weight=",
        "data: 1 values of item_id begin or end with blanks, such as ' x'; they differ from those without",
        "data: 4 rows are of a user and item that an earlier row has too; each pair counts once",
    ]
    caplog.clear()
    pairs.assign(rating=5).to_csv("pairs.csv", index=False)
    assert len(read("pairs.csv")) == len(pairs)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["pairs.csv"]


def test_too_few(pairs):
    for data, why in (
        (pairs[:0], "data: no rows"),
        (pairs.drop_duplicates("user_id"), "data: every user has only one row"),
        (pairs[:1], "data: every user has only one row"),
        (pd.DataFrame(), "data: which column is the user"),
    ):
        with pytest.raises(UserError, match=why):
            fit(data, **FAST)
    assert fit(pairs[:10], state="ERROR", **FAST).recommend(["0"], exclude_seen=False)[0]


def test_a_stream_is_read_by_its_protocol(pairs):
    """The doubles of other libraries have what pyarrow asks for."""
    table = pa.Table.from_pandas(pairs)
    assert pa.table(Protocol(table, "__arrow_c_stream__")).num_rows == len(pairs)
    assert interchange.from_dataframe(Protocol(table, "__dataframe__")).num_rows == len(pairs)
