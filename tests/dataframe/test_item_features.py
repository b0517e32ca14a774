"""Features of items from a table: the same as those of an ``.item`` file, and bad ones in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_onebp import OneBPRecommender, build, fit
from recbole_onebp.cli import main
from recbole_onebp.serving import Recommender
from recbole_onebp.util.errors import UserError
from support.interactions import FAST

LISTS = [["x y", "t1"], [], ["t1"], None, ["t2", "x y"]]


@pytest.fixture
def items() -> pd.DataFrame:
    """Of the 25 items of the interactions, and one that nobody has taken."""
    number = range(26)
    return pd.DataFrame({
        "item_id": [*number],
        "kind": ["even" if n % 2 == 0 else "odd" for n in number],
        "tags": [LISTS[n % 5] for n in number],
        "year": pd.array([1990 + n if n % 7 else None for n in number], dtype="Int64"),
        "cover": [np.array([n / 25, 1.0], np.float32) if n % 4 else None for n in number],
    })  # fmt: skip


def test_a_table_is_an_item_file(frame, items, tmp_path):
    rec = fit(frame, item_features=items, output_dir="out", **FAST)
    data = tmp_path / "out" / "data" / "dataframe"
    lines = (data / "dataframe.item").read_text().splitlines()
    assert lines[0] == "item_id:token\tkind:token\ttags:token_seq\tyear:float"
    assert lines[1:4] == ["0\teven\tx y|t1\t", "1\todd\t\t1991.0", "2\teven\tt1\t1992.0"]
    assert (data / "dataframe.cover.ids").read_text().split() == [str(n) for n in range(26) if n % 4]
    np.testing.assert_array_equal(np.load(data / "dataframe.cover.npy")[0], np.float32([1 / 25, 1]))

    keys = {**FAST, "data_path": str(data.parent), "refit": True, "item_features": "all", "seq_separator": "|"}
    keys |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "kind", "tags", "year"]}}
    keys |= {"eval_args": rec.run.config["eval_args"], "epochs": rec.result.best_epoch + 1}
    keys |= {"local_weight": rec.result.local["weight"] if rec.result.local else 0.0}
    run = build("OneBP", "dataframe", config_dict=keys)
    run.fit()
    theirs = run.model.state_dict()
    for name, table in rec.run.model.state_dict().items():
        np.testing.assert_array_equal(table, theirs[name], err_msg=name)


def test_items_that_nobody_has_taken_are_recommended(frame, items):
    rec = fit(frame, item_features=items, **FAST)
    (answer,) = rec.recommend([0], k=26)
    assert "25" in dict(answer)
    added = rec.add_items({"new": {"kind": "odd", "tags": ["x y"], "year": 2000, "cover": [0.5, 1.0]}})
    assert (added.added, added.unknown) == (["new"], [])
    (answer,) = pickle.loads(pickle.dumps(rec)).recommend([0], k=26)
    assert "25" in dict(answer)
    with pytest.raises(UserError, match="items that are made of features cannot start from earlier ones; use fit"):
        rec.refit(frame)
    assert rec.refit(frame, item_features=None).n_items == 25


def test_items_without_a_row_keep_their_interactions(frame, items, caplog):
    rec = fit(frame, item_features=items[20:], **FAST)
    assert (rec.n_items, rec.result.n_train) == (26, len(frame))
    assert "item_features: 20 of 25 items have no row; rows of items without interactions: 1 of 6" in caplog.messages


def test_other_tables(frame, items):
    pa = pytest.importorskip("pyarrow")
    of_pandas = fit(frame, item_features=items, **FAST)
    table = pa.Table.from_pylist(
        [{k: v.tolist() if isinstance(v, np.ndarray) else None if v is pd.NA else v for k, v in row.items()}
         for row in items.to_dict("records")]
    )  # fmt: skip
    of_pyarrow = fit(frame, item_features=table, **FAST)
    assert of_pyarrow.recommend(range(30)) == of_pandas.recommend(range(30))
    estimator = OneBPRecommender(item_features=items.astype({"kind": "category"}), **FAST).fit(frame)
    assert estimator.recommend(range(30)) == of_pandas.recommend(range(30))


def test_files_of_an_earlier_run_do_not_stay(frame, items):
    fit(frame, item_features=items, output_dir="out", **FAST)
    fit(frame, output_dir="out", **FAST)
    assert [path.name for path in Path("out/data/dataframe").iterdir() if path.is_file()] == ["dataframe.inter"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.rename(columns={"item_id": "sku"}),
            "which column is the item? call it item_id; its columns are sku,",
        ),
        (lambda t: t[["item_id"]], "no column but item_id; expected features beside it"),
        (lambda t: pd.concat([t, t[:1]]), ", row 26 (counted from 0): item 0 again"),
        (lambda t: t.assign(item_id=[True, *t["item_id"][1:]]), ", row 0 (counted from 0): item_id is a truth value"),
        (lambda t: t.assign(item_id=t["item_id"].astype(str) + "x"), ": none of its items is in data, which has '"),
        (lambda t: t.assign(item_id=[None, *t["item_id"][1:]]), ", row 0 (counted from 0): no item_id"),
        (
            lambda t: t.assign(item_id=["NA", *t["item_id"][1:]]),
            ": RecBole would not read this item_id back: values NA",
        ),
        (lambda t: t.assign(kind=[1, *t["kind"][1:]]), ": kind, row 0 (counted from 0): '1': expected a column of"),
        (
            lambda t: t.assign(kind=pd.Timestamp("2020")),
            ": kind, row 0 (counted from 0): '2020-01-01 00:00:00': expected",
        ),
        (
            lambda t: t.assign(kind=[["a", 1.5]] * 26),
            ": kind, row 0 (counted from 0): \"['a', 1.5]\": expected a column",
        ),
        (lambda t: t.assign(kind=None), ": kind: no entry has a value; leave the column out"),
        (lambda t: t.assign(kind="NA"), ": kind: RecBole would not read 'NA' back; rename it"),
        (lambda t: t.assign(tags=[["a b|c;d,e\x1f"]] * 26), ": values of lists have all of"),
        (lambda t: t.assign(year=np.inf), ": year, row 0 (counted from 0): expected finite numbers"),
        (
            lambda t: t.assign(cover=[[1.5]] + [[1.0, 2.5]] * 25),
            ": cover: embeddings of 1, 2 numbers; give equal lengths",
        ),
        (lambda t: t.assign(cover=[[np.nan]] * 26), ": cover, row 0 (counted from 0): '[nan]': expected a column of"),
        (lambda t: t.assign(timestamp=1), ": timestamp: a feature cannot be called so; rename the column"),
        (lambda t: t.rename(columns={"kind": "a:b"}), ": a:b: a feature cannot be called so; rename the column"),
        (lambda _: "all", ": all: expected a table with a row for each item, such as a DataFrame"),
        (lambda _: 3, ": int is no table"),
    ],
)
def test_bad_tables(frame, items, change, said):
    with pytest.raises(UserError) as error:
        fit(frame, item_features=change(items), **FAST)
    assert str(error.value).startswith("item_features")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_the_file_of_a_table_is_the_table(frame, items, tmp_path, kind):
    items = items.drop(columns="cover")
    path = tmp_path / f"items.{kind}"
    if kind == "jsonl":
        items.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        items.to_parquet(path)
    else:
        text = items.assign(tags=items["tags"].map(lambda tags: "|".join(tags or [])))
        text.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    fit(frame, item_features=items, output_dir="table", **FAST)
    rec = fit(frame, item_features=path, output_dir="file", **FAST)
    table, file = (
        (tmp_path / name / "data" / "dataframe" / "dataframe.item").read_text() for name in ("table", "file")
    )
    assert file == table
    cells = {"kind": "odd", "tags": "x y|t2", "year": "1999"}
    new = tmp_path / "new.csv"
    new.write_text("item_id,kind,tags,year\nn,odd,x y|t2,1999\n")
    rec.save("bundle")
    assert main(["add-items", "bundle", str(new), "--output", "more"]) == 0
    added = rec.add_items({"m": {**cells, "tags": cells["tags"].split("|"), "year": 1999}})
    assert (added.added, added.unknown) == (["m"], [])
    ((_, of_file), (_, of_python)) = (
        Recommender.load("more").recommend([0], k=1, allow=["n"])[0][0],
        rec.recommend([0], k=1, allow=["m"])[0][0],
    )
    assert of_file == of_python


def test_the_command_takes_a_file_of_features(frame, items, tmp_path, capsys):
    frame.to_csv("rows.csv", index=False)
    items[["item_id", "kind", "year"]].to_csv("items.csv", index=False)
    options = [f"--{key}={value}" for key, value in FAST.items()]
    assert main(["fit", "rows.csv", "bundle", "--item_features=items.csv", *options]) == 0
    assert "25" in {item for item, _ in Recommender.load("bundle").recommend([0], k=26)[0]}
    capsys.readouterr()
    assert main(["fit", "rows.csv", "other", "--item_features=none.csv", *options]) == 2
    assert "error: item_features: none.csv: cannot be read: No such file" in capsys.readouterr().err
    assert main(["fit", "rows.csv", "other", "--data=rows.csv"]) == 2
    assert "error: --data: fit has no such key on the command line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("items.csv", "item_id,a,a\n1,2,3\n", "items.csv, line 1: column 'a' occurs twice"),
        ("items.csv", "item_id,a,b\n1,2,3\n4\n", "items.csv, line 3: has 1 columns; expected 3, as in line 1"),
        ("items.csv", "item_id,a\n1,2,3\n", "items.csv, line 2: has 3 columns; expected 2, as in line 1"),
        ("items.csv", "", ": the table has no rows"),
        ("items.csv", "item_id,a\n", ": the table has no rows"),
        ("items.csv", "item_id,a\n1,inf\n", ": a, row 0 (counted from 0): expected finite numbers"),
        ("items.csv", 'item_id,a\n1,"x', "items.csv, line 2: unexpected end of data"),
        ("items.jsonl", "{", "items.jsonl, line 1: no JSON: "),
        ("items.jsonl", "[1]", "items.jsonl, line 1: expected an object, such as "),
        ("items.parquet", "x", "items.parquet: "),
        ("items.xml", "x", "items.xml: expected a table with a row for each item"),
    ],
)
def test_bad_files(frame, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        fit(frame, item_features=tmp_path / name, **FAST)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
