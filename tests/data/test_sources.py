"""Data sets by name and from files: a server that misbehaves, folders written whole, splits, and what RecBole reads."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataset import Dataset

import recbole_onebp
from conftest import write_inter
from recbole_onebp.cli import main
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.data.sources import download as downloads
from recbole_onebp.data.sources import fetch as fetching
from recbole_onebp.data.sources.catalogue import CATALOGUE, Published, RemoteFile
from recbole_onebp.data.sources.convert import Conversion, convert
from recbole_onebp.data.sources.fetch import fetch
from recbole_onebp.data.sources.published import read_pairs
from recbole_onebp.data.sources.splits import by_ratio, by_time, leave_one_out
from recbole_onebp.data.sources.tables import TableFormat, read_table
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.hashes import git_blob_id

TRAIN = "".join(f"{u} {' '.join(str((u * 7 + j) % 31) for j in range(u + 1))}\n" for u in range(20))
TEST = "".join(f"{u} {(u * 7 + 29) % 31}\n" for u in range(19)) + "19\n"  # the last user has no test item


def blob_id(text: str) -> str:
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files`` with ranges and ETags; ``plan`` holds how the next answers misbehave."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: list[str] = []
        self.etag = '"v1"'
        self.requests: list[tuple[str, str | None]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        how = server.plan.pop(0) if server.plan else "well"
        body = server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        if how.isdigit():
            return self.send_error(int(how))
        if how == "silence":
            server.released.wait(10)
            return None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if how == "page":
            body, start = b"\n<!DOCTYPE html><html>please log in</html>", 0
        elif how == "wrong":
            body = body.swapcase()[::-1]
        if start and how not in ("ignores range", "drops and ignores range"):
            if start >= len(body):
                return self.send_error(416)
            shift = 1 if how == "wrong range" else 0
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        else:
            start = 0
            self.send_response(200)
        declared = len(body) - start
        if how == "short length":
            declared //= 2
        self.send_header("ETag", '"v2"' if how == "another version" else server.etag)
        if how != "no length":
            self.send_header("Content-Length", str(declared))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: len(rest) // 3] if how.startswith("drops") else rest)
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF", 0.001)
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)
    server = Server()
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(server, monkeypatch):
    """The data set ``small`` in the catalogue, at the local server."""
    server.files = {"/data/small/train.txt": TRAIN.encode(), "/data/small/test.txt": TEST.encode()}
    files = {
        "train": RemoteFile("data/small/train.txt", blob_id(TRAIN)),
        "test": RemoteFile("data/small/test.txt", blob_id(TEST)),
    }
    counts = {"users": 20, "items": 31, "train": 210, "test": 19}
    published = Published(server.base, files, counts)
    monkeypatch.setattr(fetching, "CATALOGUE", {"small": published, **CATALOGUE})
    return published


def run(*arguments, capsys):
    """Exit code, stdout, and the one error line."""
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    errors = [line for line in re.split(r"[\r\n]+", err) if line.startswith("error:")]
    assert len(errors) == (code == 2)
    assert "Traceback" not in err
    return code, out, errors[0] if errors else ""


def parts_of(folder: Path) -> dict[str, Counter]:
    parts = {}
    for path in folder.glob("*.inter"):
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        parts[path.name.split(".")[-2]] = Counter(zip(frame.iloc[:, 0], frame.iloc[:, 1], strict=True))
    return parts


def pairs_of(text: str) -> Counter:
    return Counter((line.split()[0], item) for line in text.splitlines() for item in line.split()[1:])


# ------------------------------------------------------------------------------------------------------------- download


@pytest.mark.parametrize(
    ("plan", "ranges"),
    [
        (["well"], [None]),
        (["no length"], [None]),
        (["drops"], [None, "from 1/3"]),
        (["drops", "drops", "drops"], [None, "from 1/3", "from 5/9", "from 19/27"]),
        (["500", "503", "429"], [None] * 4),
        (["drops", "ignores range"], [None, "from 1/3"]),
        (["drops", "drops and ignores range"], [None, "from 1/3", "from 1/3"]),
        (["drops", "another version"], [None, "from 1/3", None]),
        (["drops", "wrong range"], [None, "from 1/3", None]),
        (["drops", "416"], [None, "from 1/3", None]),
        (["drops", "502"], [None, "from 1/3", "from 1/3"]),
    ],
)
def test_what_a_second_attempt_can_mend(server, tmp_path, capsys, plan, ranges):
    body = bytes(range(256)) * 27 * 40
    server.files["/file"], server.plan = body, list(plan)
    downloads.download(f"{server.base}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == body
    starts = {
        None: None,
        "from 1/3": len(body) // 3,
        "from 5/9": 5 * len(body) // 9,
        "from 19/27": 19 * len(body) // 27,
    }
    assert [r for _, r in server.requests] == [r if r is None else f"bytes={starts[r]}-" for r in ranges]
    assert "100%" in capsys.readouterr().err or plan == ["no length"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (["page"], "a web page came in place of the file"),
        (["wrong"], f"not the file that is expected: git blob id {blob_id(TRAIN.swapcase()[::-1])}"),
        (["short length"], f"({len(TRAIN) // 2} bytes), expected {blob_id(TRAIN)}"),
        (["404"], "404 Not Found"),
        (["403"], "403 Forbidden"),
        (["500"] * 9, "500 Internal Server Error; tried 5 times"),
        (["silence"] * 9, "no answer within 0.05 seconds; tried 5 times"),
        (["drops and ignores range"] * 9, f"broke off after {len(TRAIN) // 3} of {len(TRAIN)} bytes; tried 5 times"),
        (["well", "wrong"], "test.txt: not the file"),
    ],
)
def test_what_it_cannot_mend_is_one_line_and_leaves_nothing(small, server, monkeypatch, capsys, plan, said):
    if "silence" in plan:
        monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    server.plan = list(plan)
    code, _, error = run("fetch", "small", capsys=capsys)
    assert code == 2
    assert said in error
    assert f"{server.base}/data/small/" in error
    assert "recbole-onebp fetch small --from DIR takes it from a folder" in error
    assert list(Path.cwd().iterdir()) == []


def test_a_refused_connection(small, server, monkeypatch, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    code, _, error = run("fetch", "small", f"--url=http://127.0.0.1:{port}", capsys=capsys)
    assert code == 2
    assert "Connection refused; tried 5 times" in error
    assert list(Path.cwd().iterdir()) == []


def test_a_full_disk_while_downloading(small, monkeypatch, capsys):
    class FullDisk(io.FileIO):
        def write(self, _chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "open", FullDisk, raising=False)
    code, _, error = run("fetch", "small", capsys=capsys)
    assert code == 2
    assert "cannot be written: No space left on device" in error
    assert list(Path.cwd().iterdir()) == []


def test_a_full_disk_while_writing_the_folder(small, monkeypatch, capsys):
    def to_csv(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    (Path.cwd() / "dataset").mkdir()
    monkeypatch.setattr(pd.DataFrame, "to_csv", to_csv)
    code, _, error = run("fetch", "small", capsys=capsys)
    assert (code, error) == (2, "error: dataset/small: cannot be written: No space left on device")
    assert list((Path.cwd() / "dataset").iterdir()) == []


def test_ctrl_c_leaves_nothing(small, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads._Transfer, "_put", interrupt)
    assert main(["fetch", "small"]) == 130
    assert list(Path.cwd().iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- fetch


def test_fetch_writes_parts_and_manifest(small, server, capsys):
    code, out, _ = run("fetch", "small", "--data_path=here", capsys=capsys)
    assert code == 0
    folder = Path("here/small")
    assert {path.name for path in folder.iterdir()} == {
        "small.train.inter", "small.valid.inter", "small.test.inter", "manifest.json"
    }  # fmt: skip
    parts = parts_of(folder)
    assert parts["test"] == pairs_of(TEST)
    assert parts["train"] + parts["valid"] == pairs_of(TRAIN)
    held_out = Counter(user for user, _ in parts["valid"])
    assert held_out == Counter({str(u): (u + 1) // 10 or int(u > 0) for u in range(20)}) - Counter()
    test = (folder / "small.test.inter").read_text().splitlines()
    assert test[0] == "user_id:token\titem_id:token"
    assert test[1:] == [line.replace(" ", "\t") for line in TEST.splitlines()[:-1]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"users": 20, "items": 31, "train": 190, "valid": 20, "test": 19}
    assert manifest["published_counts"] == {"users": 20, "items": 31, "train": 210, "test": 19}
    assert manifest["split"]["seed"] == 2020
    assert "floor(n / 10)" in manifest["split"]["valid"]
    assert manifest["source"]["train"] == {
        "from": f"{server.base}/data/small/train.txt",
        "bytes": len(TRAIN),
        "git_blob_id": blob_id(TRAIN),
        "published_git_blob_id": blob_id(TRAIN),
    }
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    assert len(manifest["files"]) == 3
    assert manifest["remarks"] == []
    assert manifest["recbole_onebp"] == recbole_onebp.__version__
    assert "20 users, 31 items, 190 train, 20 valid, 19 test" in out


def test_a_blob_id_is_what_git_says(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_id(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_same_pairs_are_split_alike_in_whatever_order_and_form(small, tmp_path):
    fetch("small", tmp_path / "a")
    copy = tmp_path / "copy"
    copy.mkdir()
    lines = [" ".join([user, *reversed(items)]) for user, *items in map(str.split, TRAIN.splitlines())]
    rows = [f"{user},{item},5" for user, *items in map(str.split, TEST.splitlines()) for item in items]
    (copy / "train.txt").write_text("\n".join(reversed(lines)))
    (copy / "test.csv").write_text("\n".join(["user,item,rating", *rows]))
    fetch("small", tmp_path / "b", source=copy)
    for part in ("train", "valid"):
        a, b = ((tmp_path / x / "small" / f"small.{part}.inter").read_bytes() for x in "ab")
        assert a == b
    assert parts_of(tmp_path / "b" / "small")["test"] == pairs_of(TEST)
    remarks = json.loads((tmp_path / "b" / "small" / "manifest.json").read_text())["remarks"]
    assert len(remarks) == 2
    assert remarks[0].startswith(f"{copy / 'train.txt'} is not the published file: git blob id ")
    assert remarks[0].endswith("the counts are the published ones")


@pytest.mark.parametrize("place", ["data/small/", "small/", ""])
def test_from_a_folder_under_the_published_paths(small, server, tmp_path, capsys, place):
    for name, text in (("train.txt", TRAIN), ("test.txt", TEST)):
        path = tmp_path / "copy" / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code, out, _ = run("fetch", "small", f"--from={tmp_path / 'copy'}", capsys=capsys)
    assert code == 0
    assert "not the published" not in out
    assert server.requests == []


def test_the_authors_csv_files_keep_their_ratings(tmp_path):
    source = tmp_path / "copy"
    source.mkdir()
    (source / "100k_train.csv").write_text(
        "user,item,rating\n" + "".join(f"{i // 5},{i},{i % 5 + 1}\n" for i in range(50))
    )
    (source / "test.csv").write_text("user,item,rating\n0,50,3\n")
    fetch("onebp-ml-100k", tmp_path, source=source)
    folder = tmp_path / "onebp-ml-100k"
    assert (folder / "onebp-ml-100k.test.inter").read_text() == "user_id:token\titem_id:token\trating:float\n0\t50\t3\n"
    remarks = " ".join(json.loads((folder / "manifest.json").read_text())["remarks"])
    assert "not the published counts: 10 users, published 943; 51 items, published 1,682; 50 train" in remarks


def test_pairs_in_both_parts_are_mentioned(small, tmp_path, capsys):
    (tmp_path / "train.txt").write_text("0 1 2 2\n1 3\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    code, out, _ = run("fetch", "small", f"--from={tmp_path}", capsys=capsys)
    assert code == 0
    assert "2 pairs stand there more than once, inside a part or in both" in out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.txt", "0 1\n1 x 2\n", "train.txt, line 2: 'x' is no id"),
        ("train.txt", "0 1\n1 2.5\n", "train.txt, line 2: '2.5' is no id"),
        ("train.txt", "0 1\n1 -2\n", "train.txt, line 2: '-2' is no id"),
        ("train.txt", f"0 {2**70}\n", f"'{2**70}' is no id"),
        ("train.txt", b"\xff\xfe0", "not text"),
        ("train.txt", "", "no pairs"),
        ("train.txt", "3\n4 \n", "no pairs"),
        ("train.csv", "", "No columns to parse"),
        ("train.csv", "user,item\n0,1\n0,\n", "train.csv, line 3: item_id is 'nan', expected an id"),
        ("train.csv", "user,item\n0,1\n0,1.5\n", "train.csv, line 3: item_id is '1.5', expected an id"),
        ("train.csv", "user,item,rating\n0,1,good\n", "train.csv, line 2: rating is 'good', expected a number"),
        ("train.csv", "0,1,5\n0,2,3\n", "train.csv, line 1: '0,1,5': expected a header"),
        ("train.csv", "user\n0\n", "1 columns; expected user,item"),
        ("train.csv", "user,item\n0,1\n0,1,2\n", "line 3"),
        ("other.csv", "", "no train part in it; expected data/small/train.txt, small/train.txt, train.txt, train.csv"),
    ],
)  # fmt: skip
def test_bad_published_files(small, tmp_path, capsys, name, content, said):
    source = tmp_path / "copy"
    source.mkdir()
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (source / "test.txt").write_text(TEST)
    code, _, error = run("fetch", "small", f"--from={source}", capsys=capsys)
    assert code == 2
    assert said in error
    assert str(source) in error
    assert [path.name for path in Path.cwd().iterdir()] == ["copy"]


def test_lines_without_items_are_users_without_pairs(tmp_path):
    (tmp_path / "x.txt").write_text("5 1 2\n\n6\n7 \n8  3 \n")
    assert read_pairs(tmp_path / "x.txt").to_numpy().tolist() == [[5, 1], [5, 2], [8, 3]]


@pytest.mark.parametrize(
    ("listed", "paths"),
    [
        ({"data/small/train.txt": TRAIN, "data/small/test.txt": TEST, "data/big/train.txt": ""}, "/mirror/data/small/"),
        ({"small/train.txt": TRAIN, "/small/test.txt": TEST}, "/mirror/small/"),
        ({"./train.txt": TRAIN, "test.txt": TEST}, "/mirror/"),
    ],
)
@pytest.mark.parametrize("kind", ["yaml", "json", "sha256sum", "ls-tree"])
def test_a_mirror_with_its_own_pins(small, server, tmp_path, capsys, listed, paths, kind):
    """A stand-in of other content, known by the mirror's list and not by the catalogue's."""
    train = TRAIN + "20 1 2 3\n"
    server.files = {f"{paths}train.txt": train.encode(), f"{paths}test.txt": TEST.encode()}
    digest = (lambda text: hashlib.sha256(text.encode()).hexdigest()) if kind == "sha256sum" else blob_id
    pins = {path: digest(train if text == TRAIN else text) for path, text in listed.items()}
    lines = {"sha256sum": "{1}  {0}\n", "ls-tree": "100644 blob {1}\t{0}\n"}
    text = json.dumps(pins) if kind == "json" else yaml.safe_dump(pins)
    text = "".join(lines[kind].format(*item) for item in pins.items()) if kind in lines else text
    (tmp_path / "pins").write_text(text)
    arguments = ["fetch", "small", f"--url={server.base}/mirror/", f"--pins={tmp_path / 'pins'}"]
    code, out, _ = run(*arguments, capsys=capsys)
    assert code == 0
    assert "is not the published file" in out
    assert "21 users, published 20; 213 train, published 210" in out
    assert sum(parts_of(Path("dataset/small"))["test"].values()) == 19


def test_a_mirror_without_pins_holds_the_published_files(small, server):
    server.files = {f"/mirror{path}": body for path, body in server.files.items()}
    fetch("small", url=f"{server.base}/mirror")
    assert [path for path, _ in server.requests] == ["/mirror/data/small/train.txt", "/mirror/data/small/test.txt"]


@pytest.mark.parametrize(
    ("arguments", "pins", "said"),
    [
        (["--pins=pins"], None, "--pins pins: needs --url"),
        (["--url=ftp://here"], None, "--url ftp://here: expected http://... or https://..."),
        (["--url=http://localhost", "--pins=pins"], None, "--pins pins: cannot be read: No such file"),
        (["--url=http://localhost", "--pins=pins"], "- a", "--pins pins: expected lines of 'path: id'"),
        (["--url=http://localhost", "--pins=pins"], "a: [", "--pins pins: expected lines of 'path: id'"),
        (["--url=http://localhost", "--pins=pins"], "train.txt: xyz", "train.txt: 'xyz' is neither a git blob id nor"),
        (["--url=http://localhost", "--pins=pins"], "big/train.txt: 1", "no entry for data/small/train.txt"),
        (["--url=http://localhost", "--pins=pins"], "train.txt: 1\nsmall/train.txt: 2", "train.txt and small/"),
        (["--url=http://localhost", "--from=."], None, "--from and --url: give one of them"),
        (["--from=absent"], None, "--from absent: no such folder"),
        (["--frm=x"], None, "unrecognized arguments: --frm=x"),
    ],
)  # fmt: skip
def test_fetch_flags_that_make_no_sense(small, capsys, arguments, pins, said):
    if pins is not None:
        Path("pins").write_text(pins)
    code, _, error = run("fetch", "small", *arguments, capsys=capsys)
    assert code == 2
    assert said in error
    assert not Path("dataset").exists()


def test_names_that_nobody_knows(capsys):
    code, _, error = run("fetch", "gowala", capsys=capsys)
    assert code == 2
    assert "data set gowala: none known by this name; did you mean gowalla?" in error
    code, _, error = run("fetch", "ml-20m", "--from=.", capsys=capsys)
    assert code == 2
    assert "--from and --url are for gowalla, " in error


def test_what_is_there_is_left_alone_unless_forced(small, server, capsys):
    fetch("small")
    marker = Path("dataset/small/small.train.inter")
    before = marker.stat().st_mtime_ns
    asked = len(server.requests)
    code, out, _ = run("fetch", "small", capsys=capsys)
    assert code == 0
    assert "small is in dataset/small already; --force fetches it anew" in out
    assert (len(server.requests), marker.stat().st_mtime_ns) == (asked, before)
    server.plan = ["404"]
    assert run("fetch", "small", "--force", capsys=capsys)[0] == 2
    assert marker.stat().st_mtime_ns == before
    assert run("fetch", "small", "--force", capsys=capsys)[0] == 0
    assert marker.stat().st_mtime_ns != before
    marker.unlink()
    code, _, error = run("fetch", "small", capsys=capsys)
    assert code == 2
    assert "dataset/small exists and holds no data set that was fetched; --force replaces it" in error
    assert [path.name for path in Path("dataset").iterdir()] == ["small"]


def test_ml_100k_comes_with_recbole(capsys):
    code, out, _ = run("fetch", "ml-100k", capsys=capsys)
    assert (code, out) == (0, "ml-100k comes with RecBole: there is nothing to fetch\n")


@pytest.mark.parametrize("name", CATALOGUE)
def test_presets_hold_data_and_evaluation_keys(name):
    content = yaml.safe_load((properties_dir() / "dataset" / f"{name}.yaml").read_text())
    assert content == {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "load_col": {"inter": ["user_id", "item_id"]},
        "benchmark_filename": ["train", "valid", "test"],
        "metrics": ["Recall", "NDCG"],
        "topk": [20],
        "valid_metric": "NDCG@20",
    }


# ------------------------------------------------------------------------------------------------------ RecBole's names


@pytest.fixture
def archive(server, monkeypatch):
    """The name ``theirs`` among RecBole's, an archive at the local server."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        rows = "".join(f"u{u}\ti{(u + j) % 9}\n" for u in range(9) for j in range(5))
        file.writestr("Their_Set.inter", f"user_id:token\titem_id:token\n{rows}")
        file.writestr("Their_Set.item", "item_id:token\tyear:float\n")
    server.files["/Their_Set.zip"] = content.getvalue()
    known = fetching._archives()
    monkeypatch.setattr(fetching, "_archives", lambda: {**known, "theirs": f"{server.base}/Their_Set.zip"})


def test_recboles_own_names(archive, server, capsys):
    code, _, _ = run("fetch", "theirs", capsys=capsys)
    assert code == 0
    assert {path.name for path in Path("dataset/theirs").iterdir()} == {"theirs.inter", "theirs.item", "manifest.json"}
    assert [path for path, _ in server.requests] == ["/Their_Set.zip"]


@pytest.mark.parametrize(("plan", "said"), [(["404"], "404"), (["page"], "web page"), (["wrong"], "not a zip file")])
def test_a_dead_source_names_convert(archive, server, capsys, plan, said):
    server.plan = plan
    code, _, error = run("fetch", "theirs", capsys=capsys)
    assert code == 2
    assert said in error
    assert "recbole-onebp convert FILE --name=theirs makes the atomic files from a copy" in error
    assert list(Path.cwd().iterdir()) == []


def test_an_archive_without_interactions(archive, server, capsys):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("readme.txt", "moved")
    server.files["/Their_Set.zip"] = content.getvalue()
    code, _, error = run("fetch", "theirs", capsys=capsys)
    assert code == 2
    assert "no theirs.inter in it, but readme.txt" in error


# ------------------------------------------------------------------------------------------------------------ on demand


def train_arguments(tmp_path, *more):
    settings = ["--model=BPR", "--epochs=1", f"--output_dir={tmp_path / 'run'}", "--show_progress=false"]
    return ["train", *settings, *more]


def test_training_fetches_what_is_not_there(archive, tmp_path, capsys):
    assert run(*train_arguments(tmp_path, "--dataset=theirs"), capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n_train"] == 27
    assert Path("dataset/theirs/manifest.json").is_file()


def test_training_says_what_to_do_when_the_network_fails(small, server, tmp_path, capsys):
    server.plan = ["404"]
    code, _, error = run(*train_arguments(tmp_path, "--dataset=small"), capsys=capsys)
    assert code == 2
    assert "404 Not Found; recbole-onebp fetch small --from DIR takes it from a folder" in error
    assert list(Path.cwd().iterdir()) == []


def test_a_fetched_split_reaches_recbole_as_it_is(small, tmp_path, capsys):
    parts = "--benchmark_filename=['train','valid','test']"
    arguments = train_arguments(tmp_path, "--dataset=small", parts, "--load_col={'inter':['user_id','item_id']}")
    assert run(*arguments, capsys=capsys)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["n_users"], result["n_items"], result["n_train"]) == (20, 31, 190)


# ---------------------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def split_path(tmp_path):
    """A data_path with the data set ``split``: 30 users, 40 items, parts of 8, 2 and 2 items a user."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "split"
    rows = [(f"u{u}", f"i{i}") for u in range(30) for i in rng.permutation(40)[:12]]
    for part, chosen in (("train", range(8)), ("valid", (8, 9)), ("test", (10, 11))):
        path = write_inter(folder, [row for n, row in enumerate(rows) if n % 12 in chosen])
        path.rename(folder / f"split.{part}.inter")
    return str(tmp_path / "data")


@pytest.fixture
def split(split_path, tmp_path):
    def build(model="OneBP", **overrides):
        values = {
            "data_path": split_path,
            "load_col": {"inter": ["user_id", "item_id"]},
            "benchmark_filename": ["train", "valid", "test"],
            "output_dir": str(tmp_path / "run"),
            "metrics": ["Recall", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "show_progress": False,
            "epochs": 2,
            **overrides,
        }
        return recbole_onebp.build(model, "split", config_dict={k: v for k, v in values.items() if v is not None})

    return build


def pair_set(dataset, feat=None):
    feat = dataset.inter_feat if feat is None else feat
    users, items = dataset.id2token("user_id", feat["user_id"]), dataset.id2token("item_id", feat["item_id"])
    return Counter(zip(users, items, strict=True))


@pytest.mark.parametrize("model", ["OneBP", "BPR", "ItemKNN", "MultiVAE"])
def test_refit_trains_on_train_and_validation(split, split_path, model):
    run = split(model, refit=True, **({"epochs": None} if model == "ItemKNN" else {}))
    parts = parts_of(Path(split_path) / "split")
    assert pair_set(run.train_data.dataset) == parts["train"] + parts["valid"]
    assert pair_set(run.test_data.dataset) == parts["test"]
    assert run.valid_data is None
    usual = split(model)
    assert pair_set(usual.train_data.dataset) == parts["train"]
    for (_, history, *positive), (_, usual_history, *usual_positive) in zip(
        run.test_data, usual.test_data, strict=True
    ):
        by_user, usual_by_user = (sorted(zip(*map(list, h), strict=True)) for h in (history, usual_history))
        assert by_user == usual_by_user  # what is masked at the test stays train and validation
        assert [p.tolist() for p in positive] == [p.tolist() for p in usual_positive]
    result = run.fit()
    assert result.n_train == 300
    assert result.valid == {}
    assert result.epochs_run == (1 if model == "ItemKNN" else 2)
    assert result.best_epoch == result.epochs_run - 1
    assert 0 < result.test["recall@10"] <= 1


@pytest.mark.parametrize("split_args", [{"RS": [0.8, 0.1, 0.1]}, {"LS": "valid_and_test"}])
@pytest.mark.parametrize("mode", ["full", "uni10"])
def test_refit_with_a_split_of_recboles(tiny, split_args, mode):
    settings = {"eval_args": {"split": split_args, "mode": mode}, "epochs": 1}
    usual, refit = tiny("BPR", **settings), tiny("BPR", refit=True, **settings)
    together = pair_set(usual.train_data.dataset) + pair_set(usual.valid_data.dataset)
    assert pair_set(refit.train_data.dataset) == together
    assert pair_set(refit.test_data.dataset) == pair_set(usual.test_data.dataset)
    refit.fit()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"refit": True, "epochs": None}, "refit: true needs epochs, the number chosen on validation"),
        ({"refit": True, "benchmark_filename": ["train", "test", "test"]}, "refit: true with benchmark_filename"),
        ({"refit": True, "save_dataloaders": True}, "refit: true with save_dataloaders"),
        ({"refit": "yes"}, "refit: 'yes' is not allowed"),
        ({"rm_dup_inter": "first"}, "benchmark_filename: ['train', 'valid', 'test'] with rm_dup_inter: RecBole takes"),
        ({"val_interval": {"rating": "[3,inf)"}}, "with val_interval"),
        ({"user_inter_num_interval": "[5,inf)"}, "with user_inter_num_interval"),
        ({"item_inter_num_interval": "[5,inf)"}, "with item_inter_num_interval"),
        ({"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}}, "with eval_args.split"),
        ({"eval_args": {"order": "TO"}}, "with eval_args.order"),
    ],
)
def test_contradictions_are_refused(split, overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        split(**overrides)


def test_what_does_not_contradict_is_allowed(split):
    split(user_inter_num_interval="[0,inf)", rm_dup_inter=None, eval_args={"mode": "full"}, refit=False)


def test_refit_without_a_validation_part(tiny):
    with pytest.raises(UserError, match="there is no validation part to add"):
        tiny("BPR", refit=True, eval_args={"split": {"LS": "test_only"}})


# --------------------------------------------------------------------------------------------------------------- splits

small_ints = st.integers(0, 6)
USERS = st.lists(small_ints, min_size=1, max_size=80)


@given(user=USERS, ratios=st.sampled_from([(0.8, 0.1, 0.1), (0.9, 0.1), (1, 1, 1), (0.7, 0.2, 0.1), (0.5, 0.0, 0.5)]))
def test_ratios_count_as_recbole_counts(user, ratios):
    part = by_ratio(pd.Series(user), ratios, seed=1)
    shares = [ratio / sum(ratios) for ratio in ratios]
    for one in set(user):
        n = user.count(one)
        bounds = [0, *Dataset._calcu_split_ids(None, n, shares), n]
        sizes = np.bincount(part[np.array(user) == one], minlength=len(ratios))
        assert sizes.tolist() == np.diff(bounds).tolist()


@given(user=USERS, data=st.data())
def test_leave_one_out_takes_the_last(user, data):
    time = data.draw(st.lists(small_ints, min_size=len(user), max_size=len(user)))
    part = leave_one_out(pd.Series(user), pd.Series(time), seed=1)
    for one in set(user):
        rows = sorted((t, n) for n, (u, t) in enumerate(zip(user, time, strict=True)) if u == one)
        index = [[n for _, n in rows]]
        expected = Dataset._split_index_by_leave_one_out(None, index, 2)
        assert [np.flatnonzero((part == k) & (np.array(user) == one)).tolist() for k in range(3)] == [
            sorted(rows) for rows in expected
        ]


@given(time=st.lists(st.integers(0, 50), min_size=3, max_size=60))
def test_by_time_leaks_no_later_row_into_an_earlier_part(time):
    part = by_time(pd.Series(time), (0.6, 0.2, 0.2))
    latest = [max((t for t, p in zip(time, part, strict=True) if p == k), default=-1) for k in range(3)]
    earliest = [min((t for t, p in zip(time, part, strict=True) if p == k), default=99) for k in range(3)]
    assert latest[0] < earliest[1] or latest[1] == -1
    assert max(latest[0], latest[1]) < earliest[2] or latest[2] == -1
    assert (part == 0).sum() >= round(0.6 * len(time))


def test_by_time_cuts_where_it_says():
    assert by_time(pd.Series(range(10)), (0.8, 0.1, 0.1)).tolist() == [0] * 8 + [1, 2]
    assert by_time(pd.Series([5, 5, 1, 1, 9]), (0.2, 0.4, 0.4)).tolist() == [1, 1, 0, 0, 2]


def test_draws_are_the_same_everywhere():
    """Fixed values: a split must not move with the version of numpy."""
    user = pd.Series([1] * 10 + [2] * 5)
    drawn = by_ratio(user, (0.6, 0.2, 0.2), seed=2020).tolist()
    assert drawn == [2, 2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 2, 1, 0, 0]
    assert by_ratio(user, (0.6, 0.2, 0.2), seed=2021).tolist() != drawn


# -------------------------------------------------------------------------------------------------------------- convert

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


def test_k_core_goes_on_until_nothing_changes():
    pairs = [(u, i) for u in "abc" for i in "xyz"] + [("d", "x"), ("d", "w"), ("e", "w")]
    text = "user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs)
    # w is taken by d and e, e only by w: without e, w has one row, and without w, d.
    assert converted(text, k_core=2)["x"] == Counter((u, i) for u in "abc" for i in "xyz")


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
    assert [(row.where, row.reason) for row in bad] == [("x.csv, line 5", "timestamp is no number")]


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
    found = sys.modules["recbole_onebp.data.sources.tables"].find_spec
    monkeypatch.setattr("recbole_onebp.data.sources.tables.find_spec", lambda n: None if n == "pyarrow" else found(n))
    Path("x.parquet").write_bytes(b"")
    code, _, error = run("convert", "x.parquet", capsys=capsys)
    assert (code, error) == (2, "error: x.parquet: reading Parquet needs pyarrow: pip install 'recbole-onebp[parquet]'")


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
    assert f"ml-x.zip, line of {member.rpartition('/')[2]} {line}: timestamp is no number" in out


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
        ("x.csv", b"user,what\na,x\n", ["--item=user"], "one column cannot be two"),
        ("x.csv", b"a,x\n", ["--no_header"], "which column is the user? name it by --user, by their numbers"),
        ("x.txt", b"user item\na x\n", [], "which character separates its columns? give it by --sep"),
        ("x.csv", b"user,item\n\xff,x\n", [], "not text in utf-8; give its own by --encoding"),
        ("x.csv", b"user,item\na,x\n", ["--encoding=utf-99"], "--encoding utf-99: none that Python knows"),
        ("x.csv", b"", [], "x.csv: empty"),
        ("x.csv", b"user,item\n", [], "x: no rows are left for all (0 rows read"),
        ("x.csv", b"user,item\na,\n", [], "1 bad rows left out: no item_id"),
        ("x.csv", b'user,item\na,"x\n', [], "x.csv: Error tokenizing data"),
        ("x.csv", b"user,item\na,x\n", ["--min_rating=1"], "--min_rating: there is no column of ratings"),
        ("x.csv", b"user,item\na,x\n", ["--split=time"], "--split=time: there is no column of times"),
        ("x.csv", b"user,item\na,x\n", ["--split=leave_one_out"], "x: no rows are left for valid"),
        ("x.csv", b"user,item\na,x\n", ["--k_core=2"], "x: no rows are left for all"),
        ("x.csv", b"user,item\na,x\n", ["--ratios", "0.8", "0.2", "0"], "--ratios 0.8 0.2 0.0: expected three numbers"),
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


# ---------------------------------------------------------------------------------------------------------------- light


def test_fetching_needs_neither_torch_nor_recbole(tmp_path):
    for name, text in (("train.txt", TRAIN), ("test.txt", TEST)):
        (tmp_path / name).write_text(text)
    code = (
        "import sys; from recbole_onebp.cli import main; code = main(['fetch', 'gowalla', '--from=.'])\n"
        "sys.exit(code or bool({'torch', 'recbole'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
