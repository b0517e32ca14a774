"""Files of interactions as users have them: text in many forms, dates, Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_onebp.data.sources.tables import TableFormat, read_table
from support.sources import run


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("x.tsv", "user\titem\na\tx\nb\ty\n", {}),
        ("x.csv", "\ufeffuser,item\r\na,x\r\nb,y\r\n", {}),
        ("x.dat", "a::x::5\nb::y::4\n", {"header": False, "columns": {"user_id": "1", "item_id": "2"}}),
        ("x.log", "y;b;1\nx;a;2\n", {"header": False, "separator": ";", "columns": {"user_id": "2", "item_id": "1"}}),
        ("x.csv", "sku,who\nx,a\ny,b\n", {"columns": {"user_id": "who", "item_id": "sku"}}),
        ("x.csv", 'user,item,note\na,x,"one, two"\nb,y,\n', {}),
        ("x.inter", "user_id:token\titem_id:token\na\tx\nb\ty\n", {}),
    ],
)
def test_forms_of_text(name, text, form):
    frame, bad = read_table_of(name, text.encode(), TableFormat(**form))
    assert sorted(map(tuple, frame[["user_id", "item_id"]].to_numpy())) == [("a", "x"), ("b", "y")]
    assert bad == []


def read_table_of(name, content, form=None):
    Path(name).write_bytes(content)
    return read_table(Path(name), form or TableFormat())


def test_dates_become_seconds():
    text = b"user,item,time\na,x,1970-01-02\na,y,1970-01-01 00:01:00\na,z,1970-01-01T01:00:00+01:00\na,w,soon\n"
    frame, bad = read_table_of("x.csv", text)
    assert frame["timestamp"].tolist() == [86400, 60, 0]
    assert [(row.where, row.reason) for row in bad] == [("x.csv, line 5", "timestamp is no time")]


@pytest.mark.parametrize("kind", ["int", "float", "str", "datetime"])
def test_parquet(kind):
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [7, 8, 9], "note": "n", "rating": [1.5, 2.0, np.nan]})
    if kind == "float":
        frame = frame.astype({"user": float})
        frame.loc[1, "user"] = np.nan
    if kind == "str":
        frame = frame.astype({"user": str, "item": str})
    if kind == "datetime":
        frame["time"] = pd.to_datetime(["1970-01-01 00:00:05"] * 3)
    frame.to_parquet("x.parquet")
    read, bad = read_table(Path("x.parquet"), TableFormat())
    kept = [0] if kind == "float" else [0, 1]
    assert read["user_id"].tolist() == [str(u + 1) for u in kept]
    assert read["item_id"].tolist() == [str(u + 7) for u in kept]
    assert read["rating"].tolist() == [[1.5, 2.0][u] for u in kept]
    assert kind != "datetime" or read["timestamp"].tolist() == [5, 5]
    assert bad[-1].where == "x.parquet, row 3"
    assert [row.reason for row in bad] == ["no user_id"] * (kind == "float") + ["no rating"]


def test_parquet_without_pyarrow(monkeypatch, capsys):
    found = sys.modules["recbole_onebp.data.sources.parquet"].find_spec
    monkeypatch.setattr("recbole_onebp.data.sources.parquet.find_spec", lambda n: None if n == "pyarrow" else found(n))
    Path("x.parquet").write_bytes(b"")
    code, _, error = run("convert", "x.parquet", capsys=capsys)
    assert (code, error) == (2, "error: x.parquet: reading Parquet needs pyarrow: pip install 'recbole-onebp[parquet]'")
