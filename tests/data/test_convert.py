"""A user's own files as atomic files: every row counted, filtered, split and read back by RecBole."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset

from recbole_onebp.cli import main
from recbole_onebp.data.sources.convert import Conversion, convert
from recbole_onebp.data.sources.tables import TableFormat, read_table
from recbole_onebp.util.errors import UserError
from support.sources import pair_set, parts_of, run

RATINGS = """userId,movieId,rating,timestamp
1,10,4.0,100
1,11,2.5,101
2,10,5,102

2,10,1,99
3,12,4.5,103
,12,4,104
3,,4,105
3,13,good,106
3,13,4,
4,13,4,107,9
4,NA,4,108
5,14,4,109
"""


def test_convert_counts_every_row(tmp_path, capsys):
    Path("ratings.csv").write_text(RATINGS)
    code, out, _ = run("convert", "ratings.csv", "--min_rating=3", capsys=capsys)
    assert code == 0
    assert Path("dataset/ratings/ratings.inter").read_text() == (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t4.0\t100\n2\t10\t5.0\t102\n3\t12\t4.5\t103\n5\t14\t4.0\t109\n"
    )
    manifest = json.loads(Path("dataset/ratings/manifest.json").read_text())
    assert manifest["steps"] == {
        "rows read": 12,
        "bad rows left out: RecBole would not read this item_id back": 1,
        "bad rows left out: more fields than columns": 1,
        "bad rows left out: no item_id": 1,
        "bad rows left out: no timestamp": 1,
        "bad rows left out: no user_id": 1,
        "bad rows left out: rating is no number": 1,
        "left out: rated below 3": 2,
        "left out: the same user and item as another row, the first kept": 0,
    }
    assert manifest["counts"] == {"users": 4, "items": 3, "all": 4}
    assert manifest["source"] == [
        {"from": "ratings.csv", "bytes": len(RATINGS), "sha256": hashlib.sha256(RATINGS.encode()).hexdigest()}
    ]
    assert manifest["conversion"]["min_rating"] == 3
    for line in ("line 8: no user_id:  | 12 | 4 | 104", "line 10: rating is no number: 3 | 13 | good | 106",
                 "line 12: more fields than columns: 4 | 13 | 4 | 107 | 9", "... and 1 more"):  # fmt: skip
        assert line in out
    assert "4 users, 3 items, 4 all" in out
    code, _, error = run("convert", "ratings.csv", "--bad_rows=refuse", "--force", capsys=capsys)
    assert code == 2
    assert "6 bad rows, the first: ratings.csv, line 8: no user_id" in error
    assert json.loads(Path("dataset/ratings/manifest.json").read_text()) == manifest


def converted(text, name="x.csv", **settings):
    Path(name).write_text(text)
    form = settings.pop("form", TableFormat())
    convert([Path(name)], "x", Path("data"), Conversion(form, **settings), force=True)
    return parts_of(Path("data/x"))


def test_a_rating_that_is_not_wanted_is_not_missed(capsys):
    Path("x.csv").write_text("user,item,rating\na,x,\nb,y,2\n")
    assert run("convert", "x.csv", "--rating=", capsys=capsys)[0] == 0
    assert Path("dataset/x/x.inter").read_text() == "user_id:token\titem_id:token\na\tx\nb\ty\n"


def test_duplicates_go_by_time():
    rows = "user,item,time,rating\na,x,3,1\na,x,1,2\na,x,2,3\nb,y,1,1\n"
    for keep, rating in (("first", "2"), ("last", "1")):
        converted(rows, duplicates=keep)
        assert f"a\tx\t{rating}\t" in Path("data/x/x.inter").read_text()
    assert converted(rows, duplicates="keep")["x"] == Counter({("a", "x"): 3, ("b", "y"): 1})


def test_repeats_are_added_up():
    converted("user,item,time,rating\na,x,3,1\na,x,1,2\na,x,2,3\nb,y,1,1\n", duplicates="sum")
    assert Path("data/x/x.inter").read_text().splitlines()[1:] == ["a\tx\t6\t1", "b\ty\t1\t1"]
    with pytest.raises(UserError, match="--duplicates=sum: there is no column to add up; name it by --rating"):
        converted("user,item\na,x\na,x\n", duplicates="sum")


def test_repeats_of_a_given_split_are_added_up_within_a_part(capsys):
    Path("a.csv").write_text("user,item,rating\na,x,1\na,x,2\nb,y,1\n")
    Path("b.csv").write_text("user,item,rating\na,x,50\nb,x,4\nb,x,5\n")
    assert run("convert", "--train", "a.csv", "--test", "b.csv", "--name=s", "--duplicates=sum", capsys=capsys)[0] == 0
    assert Path("dataset/s/s.train.inter").read_text().splitlines()[1:] == ["a\tx\t3", "b\ty\t1"]
    assert Path("dataset/s/s.test.inter").read_text().splitlines()[1:] == ["b\tx\t9"]


def test_k_core_goes_on_until_nothing_changes():
    pairs = [(u, i) for u in "abc" for i in "xyz"] + [("d", "x"), ("d", "w"), ("e", "w")]
    text = "user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs)
    # w is taken by d and e, e only by w: without e, w has one row, and without w, d.
    assert converted(text, k_core=2)["x"] == Counter((u, i) for u in "abc" for i in "xyz")


def test_times_in_two_units_are_refused(capsys):
    Path("x.csv").write_text("user,item,time\na,x,1600000000\na,y,1600000100000\na,z,1600000200\n")
    code, _, err = run("convert", "x.csv", "--name=mine", capsys=capsys)
    assert code == 2
    assert "x.csv: times such as 1600000100000 and 1600000000: are they in one unit? give --time_format" in err
    assert not Path("dataset/mine").exists()
    assert run("convert", "x.csv", "--name=mine", "--time_format=s", capsys=capsys)[0] == 0


def test_rows_of_one_time_are_told_where_the_order_decides(capsys):
    Path("x.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{i // 2}\n" for u in "ab" for i in range(10)))
    said = "rows with the time of another row of their user: in the order of the file"
    assert f"20  {said}" in run("convert", "x.csv", "--name=a", "--split=time_user", capsys=capsys)[1]
    assert said not in run("convert", "x.csv", "--name=b", "--split=ratio", capsys=capsys)[1]


def test_without_times_it_is_told_what_is_not_used_and_that_the_last_row_is_none(capsys):
    Path("x.csv").write_text("user,item,when,price\n" + "".join(f"a,{i},{i},1\nb,{i},{i},1\n" for i in range(5)))
    unused = "x.csv: no times, so no order; not used: when, price; name a column of times by --time"
    code, out, err = run("convert", "x.csv", "--name=a", "--split=leave_one_out", capsys=capsys)
    assert code == 0
    assert unused in out + err
    assert "leave_one_out: there are no times, so the rows held out are random" in out + err
    code, out, err = run("convert", "x.csv", "--name=b", "--time=when", "--split=leave_one_out", capsys=capsys)
    assert code == 0
    assert "no times" not in out + err


@pytest.mark.parametrize("split", ["ratio", "leave_one_out", "time"])
def test_splits_and_the_command_that_is_shown(split, tmp_path, capsys):
    rows = "".join(f"u{u},i{(u * 3 + j) % 17},{u + 20 * j}\n" for u in range(12) for j in range(10))
    Path("x.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    code, out, _ = run("convert", "x.csv", "--name=mine", f"--split={split}", "--data_path=d", capsys=capsys)
    assert code == 0
    parts = parts_of(Path("d/mine"))
    sizes = {"ratio": (96, 12, 12), "leave_one_out": (96, 12, 12), "time": (96, 12, 12)}[split]
    assert tuple(sum(parts[part].values()) for part in ("train", "valid", "test")) == sizes
    if split == "leave_one_out":
        assert parts["test"] == Counter((f"u{u}", f"i{(u * 3 + 9) % 17}") for u in range(12))
    if split == "ratio":
        assert set(Counter(u for u, _ in parts["test"]).values()) == {1}
    command = out.splitlines()[-1].partition("recbole-onebp ")[2].split()
    assert main([*command, "--epochs=1", f"--output_dir={tmp_path / 'run'}", "--show_progress=false"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["n_users"], result["n_items"], result["n_train"]) == (12, 17, 96)


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("ml-100k/u.data", "1\t10\t5\t100\n2\t11\t3\t101\n"),
        ("ml-1m/ratings.dat", "1::10::5::100\n2::11::3::101\n"),
        ("ml-25m/ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,100\n2,11,3.0,101\n"),
    ],
)
def test_grouplens_archives(member, content, capsys):
    with zipfile.ZipFile("ml-x.zip", "w") as archive:
        archive.writestr(f"{member.partition('/')[0]}/README", "x")
        archive.writestr(member, content + content.splitlines()[-1].replace("101", "soon") + "\n")
    code, out, _ = run("convert", "ml-x.zip", capsys=capsys)
    assert code == 0
    assert Path("dataset/ml-x/ml-x.inter").read_text().splitlines()[1:] == ["1\t10\t5\t100", "2\t11\t3\t101"]
    line = 4 if member.endswith("csv") else 3
    assert f"ml-x.zip, line of {member.rpartition('/')[2]} {line}: timestamp is no time" in out


def test_several_files_one_after_the_other():
    Path("a.csv").write_text("user,item\na,x\n")
    Path("b.tsv").write_text("item\tuser\ny\tb\n")
    convert([Path("a.csv"), Path("b.tsv")], "both", Path("data"))
    assert parts_of(Path("data/both"))["both"] == Counter([("a", "x"), ("b", "y")])


@pytest.mark.parametrize(
    ("name", "content", "arguments", "said"),
    [
        ("x.csv", b"who,what\na,x\n", [], "which column is the user? name it by --user; its columns are who, what"),
        ("x.csv", b"user,what\na,x\n", ["--item=wat"], "x.csv: no column wat; its columns are user, what"),
        ("x.csv", b"user,what\na,x\n", ["--item=user"], "one column cannot have two meanings"),
        ("x.csv", b"a,x\n", ["--no_header"], "which column is the user? name it by --user, by their numbers"),
        ("x.txt", b"user item\na x\n", [], "which character separates its columns? give it by --sep"),
        ("x.xlsx", b"PK", [], "is a spreadsheet: save it as CSV"),
        ("x.csv", b"user;item\na;x\n", ["--user=user"], "for another separator use --sep"),
        ("x.csv", b"user,item\n\xff,x\n", [], "not text in utf-8; give its own by --encoding"),
        ("x.csv", b"user,item\na,x\n", ["--encoding=utf-99"], "--encoding utf-99: Python does not know it"),
        ("x.csv", b"", [], "x.csv: empty"),
        ("x.csv", b"user,item\n", [], "x: no rows are left: 0 rows read"),
        ("x.csv", b"user,item\na,\n", [], "1 bad rows left out: no item_id"),
        ("x.csv", b'user,item\na,"x\n', [], "1 bad rows left out: the quotes of item_id make no sense"),
        ("x.csv", b"user,item\na,x\n", ["--min_rating=1"], "--min_rating: there is no column of ratings"),
        ("x.csv", b"user,item\na,x\n", ["--split=time"], "--split=time: there is no column of times"),
        ("x.csv", b"user,item\na,x\n", ["--split=leave_one_out"], "x: no rows are left for valid"),
        ("x.csv", b"user,item\na,x\n", ["--k_core=2"], "x: no rows are left: "),
        *(
            ("x.csv", b"user,item,time\na,x,1\n", ["--k_core=2", f"--split={split}"], "x: no rows are left for train")
            for split in ("ratio", "leave_one_out", "time_user", "time")
        ),
        ("x.csv", b"user,item\na,x\n", ["--split=ratio", "--ratios", "0.8", "0.2", "0"], "expected three numbers"),
        ("x.csv", b"user,item\na,x\n", ["--name=a/b"], "--name a/b: expected the name of a folder"),
        ("x.csv", b"user,item\na,x\n", ["--name=gowalla"], "--name gowalla: stands for another data set"),
        ("ml-100k.zip", b"", [], "--name ml-100k: stands for another data set, which --dataset=ml-100k would take"),
        ("x.csv", b"user,item\na,x\n", ["--item="], "x.csv: which column is the item? name it by --item"),
        ("x.csv", b"user,item\na,x\n", ["--split=half"], "invalid choice: 'half'"),
        ("x.csv", b"user,item\na,x\n", ["--data_path=x.csv"], "x.csv/x: cannot be written: Not a directory"),
        ("x.parquet", b"no", [], "x.parquet: not a Parquet file"),
        ("x.zip", b"no", [], "x.zip: not a zip file"),
        ("y.csv", b"", ["x.csv"], "y.csv: empty"),
        ("y.csv", b"user,item,rating\na,x,1\n", ["z.csv"], "z.csv: cannot be read: No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted(name, content, arguments, said, capsys):
    Path(name).write_bytes(content)
    code, _, error = run("convert", name, *arguments, capsys=capsys)
    assert code == 2
    assert said in error
    assert [path.name for path in Path.cwd().iterdir()] == [name]


def test_a_damaged_page_of_parquet(capsys):
    frame = pd.DataFrame({"user": [f"u{number % 3}" for number in range(6)], "item": list("abcdef")})
    frame.to_parquet("x.parquet", compression=None)
    content = Path("x.parquet").read_bytes()
    users = b"\x02\x03\x24\x09"  # of two bits each: 0, 1, 2, 0, 1, 2
    assert content.count(users) == 1
    Path("x.parquet").write_bytes(content.replace(users, b"\x02\x03\xff\x0f"))  # all 3, which there is none of
    code, _, error = run("convert", "x.parquet", capsys=capsys)
    assert code == 2
    assert "x.parquet: not a Parquet file: " in error
    assert [path.name for path in Path.cwd().iterdir()] == ["x.parquet"]


def test_a_zip_of_something_else(capsys):
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.writestr("photo.png", "x")
    code, _, error = run("convert", "x.zip", capsys=capsys)
    assert code == 2
    assert "expected a GroupLens archive with one of u.data, ratings.dat, ratings.csv; it has photo.png" in error


def test_an_existing_data_set_is_not_overwritten(capsys):
    Path("x.csv").write_text("user,item\na,x\nb,y\n")
    assert run("convert", "x.csv", capsys=capsys)[0] == 0
    code, _, error = run("convert", "x.csv", capsys=capsys)
    assert code == 2
    assert "dataset/x exists already; --force replaces it, or choose another --name" in error
    assert run("convert", "x.csv", "--force", capsys=capsys)[0] == 0


ids = st.one_of(
    st.sampled_from(["NA", "null", "nan", "None", " ", "1.0", "01", "1e5", '"', '"a"', "a b", "[PAD]x", "#", "é"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable), min_size=1),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=25), keep=st.sampled_from(["first", "keep"]))
def test_recbole_reads_the_pairs_that_were_converted(rows, keep, tmp_path):
    """What is converted reaches RecBole's data set pair by pair; what it would misread is counted as bad instead."""
    pd.DataFrame(rows, columns=["user", "item"]).to_csv("x.csv", index=False, lineterminator="\n")
    expected = [pair for pair in rows if not {"NA", "null", "nan", "None"} & set(pair)]
    frame, bad = read_table(Path("x.csv"), TableFormat())
    assert len(frame) + len(bad) == len(rows)
    if not len(frame):
        return
    convert([Path("x.csv")], "x", tmp_path / "data", Conversion(duplicates=keep), force=True)
    config = Config(model="BPR", dataset="x", config_dict={"data_path": str(tmp_path / "data")})
    read = pair_set(create_dataset(config))
    assert read <= Counter(expected)
    assert (
        read == Counter(map(tuple, frame.to_numpy()))
        if keep == "keep"
        else set(frame.itertuples(index=False, name=None))
    )
    assert sum((Counter(expected) - read).values()) <= len(bad) + len(expected) - len(set(expected))


ITEMS = "item_id:token\tgenres:token_seq\tyear:float\n10\tComedy War\t1994\n11\t\t\n14\tWar\t2001\n"


def test_features_of_items_come_along(capsys):
    Path("ratings.csv").write_text(RATINGS)
    Path("films.item").write_text(ITEMS)
    assert run("convert", "ratings.csv", "--items=films.item", capsys=capsys)[0] == 0
    folder = Path("dataset/ratings")
    assert (folder / "ratings.item").read_text() == ITEMS + "12\t\t\n"  # without a row its interactions would go
    settings = {"data_path": "dataset", "load_col": None}
    dataset = create_dataset(Config("BPR", "ratings", ["dataset/ratings/ratings.yaml"], settings))
    features = dataset.item_feat
    genres = {
        item: [*dataset.id2token("genres", ids)]
        for item, ids in zip(features["item_id"], features["genres"], strict=True)
    }
    assert {dataset.id2token("item_id", item): names for item, names in genres.items() if item} == {
        "10": ["Comedy", "War"], "11": [], "12": [], "14": ["War"]
    }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["from"] for entry in manifest["source"]] == ["ratings.csv", "films.item"]
    assert "ratings.item" in manifest["files"]


def test_items_without_features_keep_their_rows(capsys):
    Path("ratings.csv").write_text(RATINGS)
    Path("films.item").write_text(ITEMS.replace("10\tComedy War\t1994\n", ""))
    code, out, _ = run("convert", "ratings.csv", "--items=films.item", capsys=capsys)
    assert code == 0
    assert "           2  items without a row in films.item: they have no features" in out
    assert Path("dataset/ratings/ratings.item").read_text().splitlines()[1:] == [
        "11\t\t",
        "14\tWar\t2001",
        "10\t\t",
        "12\t\t",
    ]


def test_embeddings_of_items_come_along(capsys):
    Path("ratings.csv").write_text(RATINGS)
    Path("films.item").write_text(ITEMS)
    np.save("films.text.npy", np.eye(2))
    arguments = ("convert", "ratings.csv", "--items=films.item", "--name=mine")
    code, _, error = run(*arguments, capsys=capsys)
    assert code == 2
    assert "films.text.ids: cannot be read" in error
    Path("films.text.ids").write_text("10\n14\n")
    assert run(*arguments, capsys=capsys)[0] == 0
    assert np.array_equal(np.load("dataset/mine/mine.text.npy"), np.eye(2))
    assert Path("dataset/mine/mine.text.ids").read_text() == "10\n14\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "films.item: cannot be read: No such file or directory"),
        ("item_id:token\tyear\n1\t2\n", "films.item, line 1: 'year': expected name:type with token, token_seq, float"),
        ("item:token\n1\n", "films.item, line 1: no column item_id:token"),
        ("item_id:token\tyear:float\n1\t2\n2\t3\n1\t4\n", "films.item, line 4: item 1 again"),
    ],
)
def test_bad_features_of_items_are_one_line(capsys, text, message):
    Path("ratings.csv").write_text(RATINGS)
    if text is not None:
        Path("films.item").write_text(text)
    code, _, error = run("convert", "ratings.csv", "--items=films.item", capsys=capsys)
    assert code == 2
    assert message in error
    assert not Path("dataset/ratings").exists()
