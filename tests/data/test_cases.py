"""Files as people have them elsewhere, and attacks by files and servers: each case by its id."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import socket
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from conftest import write_inter
from recbole_onebp import build
from recbole_onebp.data.quotes import quoted_rows
from recbole_onebp.data.sources.tables import TableFormat, read, read_table
from recbole_onebp.util.errors import UserError
from support.limits import little_memory
from support.sources import TEST, TRAIN, parts_of, run

BIG = 7_003_921_450_000_000_000


def lines_of(name):
    return Path(f"dataset/{name}/{name}.inter").read_text().splitlines()[1:]


def read_parquet(user, **more):
    items = pa.array([f"i{row}" for row in range(len(user))])
    parquet.write_table(pa.table({"user_id": user, "item_id": items, **more}), "x.parquet")
    return read_table(Path("x.parquet"), TableFormat())


# -------------------------------------------------------------------------------------------------------- c01: the ids


def test_c01_ids_of_64_bits_beside_a_null(capsys):
    users = pa.array([BIG + 1, BIG + 2, BIG + 3, BIG + 4] * 3 + [None], pa.int64())
    parquet.write_table(pa.table({"user_id": users, "item_id": pa.array([*range(13)])}), "orders.parquet")
    code, out, _ = run("convert", "orders.parquet", capsys=capsys)
    assert code == 0
    assert "4 users, 12 items, 12 all" in out
    assert lines_of("orders")[0] == f"{BIG + 1}\t0"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        (pa.array([2**64 - 1, None, 2**64 - 2], pa.uint64()), ["18446744073709551615", "18446744073709551614"]),
        (pa.array([BIG + 1, BIG + 2, None]).dictionary_encode(), [str(BIG + 1), str(BIG + 2)]),
        (pa.array([Decimal(BIG + 1), None], pa.decimal128(38, 0)), [str(BIG + 1)]),
        (pa.array([Decimal("12"), Decimal(BIG + 1)], pa.decimal128(38, 2)), ["12", str(BIG + 1)]),
        (pa.array(["007", "12.0", None]), ["007", "12.0"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array([1.0, None, 3.0]), ["1", "3"]),
    ],
)
def test_c01_ids_are_never_numbers(user, ids):
    frame, _ = read_parquet(user)
    assert frame["user_id"].tolist() == ids


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (pa.array([1.5, 2.0]), "user_id is no whole number"),
        (pa.array([float("inf"), 2.0]), "user_id is infinite"),
        (pa.array([2.0**60, 2.0]), "user_id has more digits than a float holds; write it as text or an integer"),
        (pa.array([Decimal("1.5"), Decimal(2)]), "user_id is no whole number"),
        (pa.array([float("nan"), 2.0]), "no user_id"),
        (pa.array(["a\rb", "c"]), "RecBole would not read this user_id back"),
        (pa.array(["a\0b", "c"]), "RecBole would not read this user_id back"),
        (pa.array(["a" * 1001, "c"]), "user_id is longer than 1,000 characters"),
    ],
)
def test_a21_odd_ids_are_bad_rows(user, reason):
    frame, bad = read_parquet(user)
    assert [row.reason for row in bad] == [reason]
    assert bad[0].where == "x.parquet, row 1"
    assert len(frame) == 1


@pytest.mark.parametrize(
    "user",
    [
        pa.array([[1], [2]]), pa.array([{"a": 1}, {"a": 2}]), pa.array([True, False]), pa.array([b"a", b"\xff"]),
        pa.array([datetime.date(2020, 1, 1)] * 2), pa.array([datetime.timedelta(1)] * 2), pa.nulls(2),
    ],
    ids=lambda user: str(user.type),
)  # fmt: skip
def test_a21_ids_of_other_types_are_refused_by_row(user, capsys):
    read_parquet(user)
    code, out, error = run("convert", "x.parquet", capsys=capsys)
    assert code == 2
    assert "2 bad rows left out: " in error
    assert "x.parquet, row 1: " in out
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "x.parquet"]


def test_c03_ids_of_text_stay_as_they_stand(capsys):
    Path("x.csv").write_text("user,item\n17850.0,a\n007,b\n")
    code, out, _ = run("convert", "x.csv", capsys=capsys)
    assert code == 0
    assert "1 rows whose user_id is a whole number with decimals, such as 17850.0" in out
    assert lines_of("x") == ["17850.0\ta", "007\tb"]
    assert run("convert", "x.csv", "--whole_ids", "--force", capsys=capsys)[0] == 0
    assert lines_of("x") == ["17850\ta", "007\tb"]


# ----------------------------------------------------------------------------------------------- c02, c33: quotes, rows

C02 = (
    'user\titem\ttitle\na\tx1\tPlain\na\tx2\t"Heroes (live)\nb\tx3\tS\nb\tx4\tS\nb\tx5\tS\nb\tx6\tS\nb\tx7\tS\n'
    'c\tx8\t"Weird" Al medley\nc\tx9\tEnd\n'
)


@pytest.mark.parametrize(
    ("text", "n_rows"),
    [
        (C02, 9),
        (C02.replace('"Weird" Al', 'The 12"'), 9),
        (C02.replace('"Weird" Al', "Weird Al"), 9),
        (C02.replace("\n", "\r\n"), 9),
    ],
)
def test_c02_a_stray_quote_swallows_no_row(text, n_rows, capsys):
    Path("plays.tsv").write_bytes(text.encode())
    code, out, _ = run("convert", "plays.tsv", capsys=capsys)
    assert code == 0
    assert len(lines_of("plays")) == n_rows
    assert "rows with quotes that make no sense, read as ordinary characters: line 3" in out


def test_c02_quoted_line_breaks_are_text():
    Path("x.csv").write_text('user,item,note\na,x,"one\n\ntwo, ""three"""\n"b",y,"a, b"\n\nc,,5" disk\n')
    table = read(Path("x.csv"), TableFormat())
    assert table.frame.to_numpy().tolist() == [["a", "x"], ["b", "y"]]
    assert table.remarks == ["1 rows of several lines, with line breaks in quotes: line 2"]
    assert [row.where for row in table.bad] == ["x.csv, line 7"]


def test_c02_a_quote_in_an_id_is_a_bad_row():
    Path("x.csv").write_text('user,item\na,"x\nb,y\n"c" d,z\n')
    frame, bad = read_table(Path("x.csv"), TableFormat())
    assert frame.to_numpy().tolist() == [["b", "y"]]
    assert [row.reason for row in bad] == ["the quotes of item_id make no sense", "the quotes of user_id make no sense"]


def test_c02_many_open_quotes_take_no_time(tmp_path):
    path = tmp_path / "x"
    path.write_text("a,b\n" + '"x,y\n' * 50_000)
    with open(path) as file:
        started = time.monotonic()
        assert sum(row.swallows for row in quoted_rows(file, ",")) == 50_000
    assert time.monotonic() - started < 20


def told(tmp_path, model="OneBP", suffix="", text="", **keys):
    folder = tmp_path / "d"
    folder.mkdir(exist_ok=True)
    (folder / f"d.inter{suffix}").write_text(text)
    with pytest.raises(UserError) as caught:
        build(model, "d", config_dict={"data_path": str(tmp_path), "load_col": None, **keys})
    return str(caught.value)


PAIRS = [(f"u{u}", f"i{(u + j) % 9}") for u in range(9) for j in range(4)]


@pytest.mark.parametrize(("model", "suffix"), [("OneBP", ""), ("OneBP", ".csv"), ("BPR", "")])
def test_c02_a_data_folder_with_a_stray_quote(tmp_path, model, suffix):
    separator = "," if suffix else "\t"
    rows = [[user, item, '"Heroes' if number == 3 else 'The 12"' if number == 9 else "t"]
            for number, (user, item) in enumerate(PAIRS)]  # fmt: skip
    title = ["user_id", "item_id", "title:token"] if suffix else ["user_id:token", "item_id:token", "title:token"]
    text = "".join(separator.join(row) + "\n" for row in [title, *rows])
    assert "line 5: a quote that is not closed in this line" in told(tmp_path, model, suffix, text)


@pytest.mark.parametrize(("model", "suffix"), [("OneBP", ""), ("OneBP", ".csv"), ("BPR", "")])
def test_c33_a_data_folder_with_a_header_in_the_middle(tmp_path, model, suffix):
    separator, kind = (",", "") if suffix else ("\t", ":token")
    title = [f"user_id{kind}", f"item_id{kind}"]
    text = "".join(separator.join(row) + "\n" for row in [title, *PAIRS, title, *PAIRS])
    assert f"line {len(PAIRS) + 2}: the header once more" in told(tmp_path, model, suffix, text)


@pytest.mark.parametrize("quoted", ["", '"q"'])
def test_c33_the_header_row_in_the_middle(quoted, capsys):
    one = f"user,item,note\na,x,{quoted}\nb,y,\n"
    Path("x.csv").write_text(one + "\ufeff" + one.replace("a,x", "c,x"))
    code, out, _ = run("convert", "x.csv", capsys=capsys)
    assert code == 0
    assert "1  bad rows left out: the header once more" in out
    assert "x.csv, line 4: the header once more" in out
    assert "3 users, 2 items" in out


# ----------------------------------------------------------------------------------------------------------- c03: times


@pytest.mark.parametrize(
    ("text", "time_format", "expected"),
    [
        ("2019-10-01 00:00:00 UTC", None, 1569888000),
        ("2019-10-01T02:00:00+02:00", None, 1569888000),
        ("2019-10-01 02:00:00 Europe/Berlin", None, 1569888000),
        ("2019-10-01T02:00:00+02:00[Europe/Berlin]", None, 1569888000),
        ("2019/10/01 0:00", None, 1569888000),
        ("10/13/2019 8:26", None, 1570955160),
        ("10/13/2019 8:26:00 PM", None, 1570998360),
        ("13/10/2019 08:26", None, 1570955160),
        ("1.10.2019 00:00", None, 1569888000),
        ("Oct 1, 2019", None, 1569888000),
        ("Tue, 01 Oct 2019 00:00:00 GMT", None, 1569888000),
        ("09 13, 2009", None, 1252800000),
        ("12/1/2010 8:26", "%m/%d/%Y %H:%M", 1291191960),
        ("12/1/2010 8:26", "%d/%m/%Y %H:%M", 1263284760),
        ("1569888000", None, 1569888000),
        ("1569888000123", None, 1569888000.123),
        ("1569888000123456", None, 1569888000.123456),
        ("1569888000123", "s", 1569888000123),
        ("1000", "ms", 1),
    ],
)
def test_c03_times(text, time_format, expected):
    Path("x.tsv").write_text(f"user\titem\ttime\na\tx\t{text}\n")
    frame, bad = read_table(Path("x.tsv"), TableFormat(time_format=time_format))
    assert bad == []
    assert frame["timestamp"].tolist() == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize(
    ("times", "arguments", "said"),
    [
        (["12/1/2010", "1/2/2010"], [], "is the day or the month first? each could be; give --time_format"),
        (["13/1/2010", "1/13/2010"], [], "both occur"),
        (["soon", "late"], [], "none is understood; give --time_format"),
        (["2010-01-01"], ["--time_format=%d.%m.%Y"], "--time_format=%d.%m.%Y fits none"),
        (["2010-01-01"], ["--time_format=%"], "--time_format"),
    ],
)
def test_c03_times_that_are_not_clear(times, arguments, said, capsys):
    Path("x.csv").write_text("user,item,time\n" + "".join(f"a,x,{text}\n" for text in times))
    code, _, error = run("convert", "x.csv", *arguments, capsys=capsys)
    assert code == 2
    assert said in error


# ------------------------------------------------------------------------------------------------ c04: compressed, JSON

PACKERS = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    ("name", "text"), [("Toys.csv", "user,item\na,x\n"), ("m.inter", "user_id:token\titem_id:token\na\tx\n")]
)
def test_c04_compressed_files(packer, name, text, capsys):
    Path(f"{name}.{packer}").write_bytes(PACKERS[packer](text.encode()))
    assert run("convert", f"{name}.{packer}", capsys=capsys)[0] == 0
    assert lines_of(Path(name).stem) == ["a\tx"]
    Path(f"{name}.{packer}").write_bytes(PACKERS[packer](text.encode())[:-6])
    code, _, error = run("convert", f"{name}.{packer}", "--force", capsys=capsys)
    assert (code, f"damaged {packer} file" in error) == (2, True)


def test_c04_json_lines(capsys):
    rows = [f'{{"user": {BIG + 1}, "item": "x", "rating": 5.0, "note": "a\\"b"}}', '{"user": "a", "item": 12.0}', "",
            '{"user": [1], "item": "y"}', '{"user": true, "item": "y"}', '{"user": NaN, "item": "y"}', "[1]", "{",
            '{"user": null, "item": "y"}', '{"user": "\\ud800", "item": "y"}']  # fmt: skip
    Path("reviews.json").write_text("\n".join(rows))
    code, out, _ = run("convert", "reviews.json", "--rating=", capsys=capsys)
    assert code == 0
    assert lines_of("reviews") == [f"{BIG + 1}\tx", "a\t12.0"]
    for said in ("line 4: user_id is a list", "line 5: user_id is a truth value", "line 6: user_id is NaN",
                 "line 7: not a JSON object", "line 8: not a JSON object"):  # fmt: skip
        assert said in out


def test_c04_a_data_folder_with_a_compressed_file(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.inter.gz").touch()
    with pytest.raises(UserError, match=r"no file .*d\.inter; unpack .*d\.inter\.gz"):
        build("OneBP", "d", config_dict={"data_path": str(tmp_path)})


# -------------------------------------------------------------------------------------------------- c05, c13: the split


def plays(times=3):
    rows = [f"u{u},i{(u * 3 + j) % 17}\n" for u in range(12) for j in range(10)]
    Path("plays.csv").write_text("user,item\n" + "".join(rows) * times)


def test_c05_repeats_are_merged_before_the_split(capsys):
    plays()
    assert run("convert", "plays.csv", "--split=ratio", capsys=capsys)[0] == 0
    parts = parts_of(Path("dataset/plays"))
    assert sum(map(len, parts.values())) == sum(sum(part.values()) for part in parts.values()) == 120
    assert not set(parts["train"]) & {*parts["test"], *parts["valid"]}


@pytest.mark.parametrize("split", ["ratio", "leave_one_out"])
def test_c05_a_split_that_leaks_is_refused_with_the_number(split, capsys):
    plays()
    code, _, error = run("convert", "plays.csv", "--duplicates=keep", f"--split={split}", capsys=capsys)
    assert code == 2
    assert "rows of test repeat a user and item of an earlier part" in error
    assert "add --repeatable" in error
    assert not Path("dataset").exists()
    code, out, _ = run("convert", "plays.csv", "--repeatable", f"--split={split}", capsys=capsys)
    assert code == 0
    assert "rows of test whose user and item are in an earlier part too" in out
    assert "repeatable: true" in Path("dataset/plays/plays.yaml").read_text()
    assert sum(sum(part.values()) for part in parts_of(Path("dataset/plays")).values()) == 360


@pytest.mark.parametrize("valid", [None, "user,item\n", "user,item\nu1,i9\n"])
def test_c13_a_given_split(valid, tmp_path, capsys):
    Path("a.csv").write_text("user,item\n" + "".join(f"u{u},i{(u + j) % 9}\n" for u in range(9) for j in range(4)))
    Path("c.csv").write_text("user,item\nu0,i5\nu0,i0\nu1,i8\n")
    flags = ["--train", "a.csv", "--test", "c.csv", "--name=mine"]
    if valid is not None:
        Path("b.csv").write_text(valid)
        flags += ["--valid", "b.csv"]
    assert run("convert", *flags, capsys=capsys)[0] == 0
    parts = parts_of(Path("dataset/mine"))
    assert sum(parts["train"].values()) == 36
    assert parts["valid"] == (Counter([("u1", "i9")]) if valid and "u1" in valid else Counter())
    assert parts["test"] == Counter([("u0", "i5"), ("u1", "i8")])  # u0 and i0 are in train
    arguments = ["--dataset=mine", "--config_files=dataset/mine/mine.yaml", "--epochs=1", "--show_progress=false",
                 "--topk=[5]", "--valid_metric=MRR@5"]  # fmt: skip
    assert run("train", "--model=OneBP", *arguments, f"--output_dir={tmp_path / 'run'}", capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n_train"] == 36


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train", "a.csv"], "--train and --test: give both"),
        (["a.csv", "--train", "a.csv", "--test", "a.csv"], "not both"),
        (["--train", "a.csv", "--test", "a.csv", "--split=ratio"], "are split already"),
        ([], "give files to convert"),
        (["a.csv", "--seed=-1"], "--seed -1: expected 0 to"),
        (["a.csv", "--split=ratio", "--ratios", "nan", "1", "1"], "expected three numbers above 0"),
        (["a.csv", "--split=leave_one_out", "--ratios", "8", "1", "1"], "nothing to share out with"),
        (["a.csv", "--max_mb=0"], "--max_mb 0: expected at least 1"),
        (["a.csv", "--k_core=-3"], "--k_core -3: expected 0 or more"),
        (["a.csv", "--repeatable", "--duplicates=sum"], "nothing is left to --duplicates=sum"),
        (["a.csv", f"--name={'n' * 300}"], "expected at most 200 bytes"),
        (["a.csv", "--name=.."], "expected the name of a folder"),
        (["/dev/zero", "--sep=,", "--name=z"], "not a plain file"),
    ],
)
def test_a21_flags_that_make_no_sense(arguments, said, capsys):
    Path("a.csv").write_text("user,item\na,x\n")
    code, _, error = run("convert", *arguments, capsys=capsys)
    assert code == 2
    assert said in error


def test_a21_a_long_field_that_is_not_used(capsys):
    Path("x.csv").write_text(f'user,item,text\na,x,{"t" * 200_000}\nb,y,"{"t" * 200_000}"\n')
    assert run("convert", "x.csv", capsys=capsys)[0] == 0
    assert lines_of("x") == ["a\tx", "b\ty"]


# ----------------------------------------------------------------------------------------------------- a13: downloads


@contextmanager
def slow_server(head: bytes):
    """Sends ``head`` and then a byte every 50 ms until it is told to stop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()
        listener.settimeout(0.1)

        def serve() -> None:
            while not over.is_set():
                try:
                    client, _ = listener.accept()
                except TimeoutError:
                    continue
                with client:
                    try:
                        client.sendall(head)
                        while not over.wait(0.05):
                            client.sendall(b"1")
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 O"]
)
def test_a13_a_byte_now_and_then_ends(small, head, capsys):
    with slow_server(head) as url:
        started = time.monotonic()
        code, _, error = run("fetch", "small", f"--url={url}", "--timeout=1", capsys=capsys)
    assert code == 2
    assert "not complete after 1 seconds; --timeout=N allows more" in error
    assert time.monotonic() - started < 10
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("plan", ["well", "no length"])
def test_a13_a_download_that_is_too_large(small, server, plan, capsys):
    server.files["/data/small/train.txt"] = b"1 2\n" * (1 << 19)
    server.plan = [plan]
    code, _, error = run("fetch", "small", "--max_mb=1", capsys=capsys)
    assert code == 2
    assert "larger than 1 MB; --max_mb=N allows more" in error
    assert len(server.requests) == 1


def test_a13_pins_are_bounded(small, capsys):
    with open("pins", "wb") as file:
        file.truncate(1 << 31)
    code, _, error = run("fetch", "small", "--url=http://127.0.0.1:9", "--pins=pins", capsys=capsys)
    assert code == 2
    assert "--pins pins: has more than 1 MB" in error


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://me:secret@[::1", "http://me:secret@h:99999", "http://", "ftp://me:secret@h",
            "http://me:secret@h/?a=secret", "http://a b/", f"http://{'h' * 70}/"],
)  # fmt: skip
def test_a21_odd_urls_are_one_line(small, url, capsys):
    code, out, error = run("fetch", "small", f"--url={url}", capsys=capsys)
    assert code == 2
    assert "expected http://... or https://..." in error
    assert "secret" not in error + out


def test_a22_a_password_in_a_url_is_never_shown(small, server, capsys):
    base = server.base.replace("//", "//me:secret@")
    server.plan = ["404"]
    code, out, error = run("fetch", "small", f"--url={base}", capsys=capsys)
    assert (code, "404 Not Found" in error, "secret" in out + error) == (2, True, False)
    server.files = {f"/data/small/{name}.txt": text.encode() for name, text in (("train", TRAIN), ("test", TEST))}
    assert run("fetch", "small", f"--url={base}", capsys=capsys)[0] == 0
    assert "secret" not in Path("dataset/small/manifest.json").read_text()


# ----------------------------------------------------------------------------------------------------- a14: conversions


def test_a14_rows_of_parquet_are_counted_before_they_are_read(capsys):
    values = pa.array(np.zeros(3_000_000, np.int64))
    parquet.write_table(pa.table({"user_id": values, "item_id": values}), "x.parquet")
    assert Path("x.parquet").stat().st_size < 100_000
    code, _, error = run("convert", "x.parquet", "--max_mb=10", capsys=capsys)
    assert code == 2
    assert "x.parquet: larger than 10 MB when it is read; --max_mb=N allows more" in error
    with little_memory(900):
        assert run("convert", "x.parquet", capsys=capsys)[0] == 0


def test_a14_one_long_text_in_all_rows_of_parquet(capsys):
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array(["x" * 100_000]))
    parquet.write_table(pa.table({"user_id": texts, "item_id": texts}), "x.parquet")
    with little_memory(900):
        code, _, error = run("convert", "x.parquet", capsys=capsys)
    assert code == 2
    assert "1,000,000 bad rows left out: user_id is longer than 1,000 characters" in error


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a14_what_unpacks_to_too_much(kind, capsys):
    content = b"1\t2\t3\t4\n" * (1 << 22)
    if kind == "gz":
        Path("x.tsv.gz").write_bytes(gzip.compress(content))
    else:
        with zipfile.ZipFile("x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ml/u.data", content)
    name = "x.zip" if kind == "zip" else "x.tsv.gz"
    code, _, error = run("convert", name, capsys=capsys)
    assert (code, "unpacks to more than 100 times its size; --max_mb=N" in error) == (2, True)
    code, _, error = run("convert", name, "--max_mb=8", capsys=capsys)
    assert (code, "larger than 8 MB" in error) == (2, True)


def test_a14_a_plain_file_that_is_too_large(capsys):
    with open("x.csv", "wb") as file:
        file.truncate(2 << 30)
    code, _, error = run("convert", "x.csv", capsys=capsys)
    assert (code, "larger than 1,000 MB" in error) == (2, True)


# ------------------------------------------------------------------------------------------------ a15: what is replaced


@pytest.mark.parametrize("stranger", ["no manifest", "their manifest", "damaged", "beside ours", "link", "file"])
def test_a15_only_what_we_made_is_replaced(stranger, tmp_path, capsys):
    Path("x.csv").write_text("user,item\na,x\nb,y\n")
    folder, mine = Path("dataset/x"), Path("dataset/x/thesis.txt")
    if stranger in ("beside ours", "link"):
        assert run("convert", "x.csv", capsys=capsys)[0] == 0
    if stranger == "link":
        folder = folder.rename(tmp_path / "elsewhere")
        mine = folder / "manifest.json"
        Path("dataset/x").symlink_to(folder)
    elif stranger == "file":
        folder.parent.mkdir()
        mine = folder
        folder.write_text("mine")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        if stranger in ("their manifest", "damaged"):
            (folder / "manifest.json").write_text('{"files": ["thesis.txt"]}' if stranger == "their manifest" else "{")
    before = mine.read_bytes()
    code, _, error = run("convert", "x.csv", "--force", capsys=capsys)
    assert code == 2
    assert "which recbole-onebp did not make" in error
    assert mine.read_bytes() == before


def test_a15_fetch_replaces_only_what_it_made(small, capsys):
    write_inter(Path("dataset/small"), [("a", "x")])
    code, _, error = run("fetch", "small", "--force", capsys=capsys)
    assert (code, "which recbole-onebp did not make" in error) == (2, True)
    assert Path("dataset/small/small.inter").is_file()


def test_c14_the_command_that_is_shown_is_quoted(capsys):
    Path("x.csv").write_text("user,item\na,x\nb,y\n")
    _, out, _ = run("convert", "x.csv", "--name=my data", capsys=capsys)
    assert "'--dataset=my data' --data_path=dataset '--config_files=dataset/my data/my data.yaml'" in out
