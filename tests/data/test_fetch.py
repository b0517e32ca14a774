"""Data sets by name: folders written whole, pins, mirrors, RecBole's archives, and training on them."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

import recbole_onebp
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.data.sources import fetch as fetching
from recbole_onebp.data.sources.catalogue import CATALOGUE
from recbole_onebp.data.sources.fetch import fetch
from recbole_onebp.data.sources.published import read_pairs
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.hashes import git_blob_id
from support.sources import TEST, TRAIN, blob_id, pairs_of, parts_of, run, train_arguments


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
    assert (manifest["split"]["valid"], manifest["split"]["valid_share"]) == ("random", 0.1)
    assert manifest["ordered"] is False
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
        ("train.txt", "0 1\n1 x 2\n", "train.txt, line 2: 'x' is not an id"),
        ("train.txt", "0 1\n1 2.5\n", "train.txt, line 2: '2.5' is not an id"),
        ("train.txt", "0 1\n1 -2\n", "train.txt, line 2: '-2' is not an id"),
        ("train.txt", f"0 {2**70}\n", f"'{2**70}' is not an id"),
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
@pytest.mark.parametrize("kind", ["git blob id", "SHA-256"])
def test_a_mirror_with_its_own_pins(small, server, tmp_path, capsys, listed, paths, kind):
    """A stand-in of other content, known by the mirror's list and not by the catalogue's."""
    train = TRAIN + "20 1 2 3\n"
    server.files = {f"{paths}train.txt": train.encode(), f"{paths}test.txt": TEST.encode()}
    digest = (lambda text: hashlib.sha256(text.encode()).hexdigest().upper()) if kind == "SHA-256" else blob_id
    lines = (f"{path}: {digest(train if text == TRAIN else text)}" for path, text in listed.items())
    (tmp_path / "pins").write_text("# the mirror's files\n\n" + "\n".join(lines) + "\n")
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
        (["--url=http://localhost", "--pins=pins"], "", "--pins pins: no entry for data/small/train.txt"),
        (["--url=http://localhost", "--pins=pins"], "- a", "--pins pins, line 1: '- a': expected lines of 'path: id'"),
        (["--url=http://localhost", "--pins=pins"], "\na: [", "pins, line 2: 'a: [': expected lines of 'path: id'"),
        (["--url=http://localhost", "--pins=pins"], "train.txt: xyz", "'path: id' with a git blob id (40 digits) or a"),
        (["--url=http://localhost", "--pins=pins"], b"\xff", "--pins pins: not text in UTF-8"),
        (["--url=http://localhost", "--pins=pins"], f"big/train.txt: {1:040}", "no entry for data/small/train.txt"),
        (["--url=http://localhost", "--pins=pins"], f"train.txt: {1:040}\nsmall/train.txt: {1:064}", "train.txt and s"),
        (["--url=http://localhost", "--from=."], None, "--from and --url: give only one of them"),
        (["--from=absent"], None, "--from absent: no such folder"),
        (["--frm=x"], None, "unrecognized arguments: --frm=x; did you mean --from?"),
    ],
)  # fmt: skip
def test_fetch_flags_that_make_no_sense(small, capsys, arguments, pins, said):
    if pins is not None:
        Path("pins").write_bytes(pins if isinstance(pins, bytes) else pins.encode())
    code, _, error = run("fetch", "small", *arguments, capsys=capsys)
    assert code == 2
    assert said in error
    assert not Path("dataset").exists()


def test_names_that_nobody_knows(capsys):
    code, _, error = run("fetch", "gowala", capsys=capsys)
    assert code == 2
    assert "data set gowala: unknown name; did you mean gowalla?" in error
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
    assert "small is already in dataset/small; --force fetches it again" in out
    assert (len(server.requests), marker.stat().st_mtime_ns) == (asked, before)
    server.plan = ["404"]
    assert run("fetch", "small", "--force", capsys=capsys)[0] == 2
    assert marker.stat().st_mtime_ns == before
    assert run("fetch", "small", "--force", capsys=capsys)[0] == 0
    assert marker.stat().st_mtime_ns != before
    marker.unlink()
    code, _, error = run("fetch", "small", capsys=capsys)
    assert code == 2
    assert "dataset/small exists and is not a complete data set of fetch; --force replaces it" in error
    assert [path.name for path in Path("dataset").iterdir()] == ["small"]


def test_another_validation_part_than_the_one_that_is_there_is_refused(small, server, capsys):
    fetch("small", valid_share=0.2)
    assert run("fetch", "small", capsys=capsys)[0] == 0
    assert run("fetch", "small", "--valid_share=0.2", capsys=capsys)[0] == 0
    code, _, error = run("fetch", "small", "--valid_share=0.3", capsys=capsys)
    assert code == 2
    assert "dataset/small: is there with valid_share: 0.2, not 0.3; --force makes it anew" in error
    assert run("fetch", "small", "--valid_share=0.3", "--force", capsys=capsys)[0] == 0


def test_other_files_than_those_that_are_there_are_refused(small, server, capsys, tmp_path):
    fetch("small")
    for part, text in {"train": "0 1 2 3\n1 0 2 4\n", "test": "0 4\n1 3\n"}.items():
        (tmp_path / f"{part}.txt").write_text(text)
    code, _, error = run("fetch", "small", f"--from={tmp_path}", capsys=capsys)
    assert code == 2
    assert "dataset/small: is there, made of another file than" in error
    assert error.rstrip().endswith("--force makes it anew")


def test_ml_100k_comes_with_recbole(capsys):
    code, out, _ = run("fetch", "ml-100k", capsys=capsys)
    assert (code, out) == (0, "ml-100k comes with RecBole: nothing to fetch\n")


@pytest.mark.parametrize("name", CATALOGUE)
def test_presets_hold_data_and_evaluation_keys(name):
    content = yaml.safe_load((properties_dir() / "dataset" / f"{name}.yaml").read_text())
    assert content == {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "load_col": {
            "inter": ["user_id", "item_id", *["timestamp"] * CATALOGUE[name].ordered],
            **({"item": ["item_id", "tags", "citations"]} if CATALOGUE[name].read else {}),
        },
        "benchmark_filename": ["train", "valid", "test"],
        "metrics": ["Recall", "NDCG"],
        "topk": [20],
        "valid_metric": "NDCG@20",
    }


def test_a_number_of_hundreds_of_digits_is_one_line(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(f"user,item\n{'9' * 400},2\n2,3\n")
    with pytest.raises(UserError, match="user_id has a number with hundreds of digits"):
        read_pairs(path)


@pytest.fixture
def ordered(small, monkeypatch):
    """The data set ``small``, said to be in order of time."""
    monkeypatch.setattr(fetching, "CATALOGUE", {**CATALOGUE, "small": replace(small, ordered=True)})


def test_files_in_order_keep_it(ordered, server, capsys):
    code, _, _ = run("fetch", "small", capsys=capsys)
    assert code == 0
    rows = {part: pd.read_csv(f"dataset/small/small.{part}.inter", sep="\t") for part in ("train", "valid", "test")}
    of_user = {part: frame[frame["user_id:token"] == 19] for part, frame in rows.items()}
    assert [len(frame) for frame in of_user.values()] == [18, 2, 0]
    of_user = {part: frame[frame["user_id:token"] == 12].sort_values("timestamp:float") for part, frame in rows.items()}
    line = [*TRAIN.splitlines()[12].split()[1:], TEST.splitlines()[12].split()[1]]
    assert [str(item) for frame in of_user.values() for item in frame["item_id:token"]] == line
    assert [time for frame in of_user.values() for time in frame["timestamp:float"]] == [*range(14)]
    manifest = json.loads(Path("dataset/small/manifest.json").read_text())
    assert manifest["ordered"] is True
    assert "inferred" in manifest["order"]
    assert (manifest["split"]["valid"], manifest["split"]["valid_share"]) == ("last", 0.1)


def test_the_share_and_the_kind_of_the_validation_part(ordered, server, capsys):
    run("fetch", "small", "--valid_share=0.5", "--data_path=half", capsys=capsys)
    assert json.loads(Path("half/small/manifest.json").read_text())["counts"]["valid"] == sum(
        (u + 1) // 2 for u in range(20)
    )
    run("fetch", "small", "--valid=random", "--data_path=random", capsys=capsys)
    run("fetch", "small", "--data_path=last", capsys=capsys)
    assert parts_of(Path("random/small"))["valid"] != parts_of(Path("last/small"))["valid"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--valid=last"], "valid: last: the files of small are not in order of time"),
        (["--valid_share=1"], "valid_share: 1 is"),
    ],
)
def test_a_validation_part_that_is_refused(small, server, capsys, flags, said):
    code, _, err = run("fetch", "small", *flags, capsys=capsys)
    assert code == 2
    assert said in err


def test_a_folder_of_an_earlier_version_is_told(small, server, capsys, monkeypatch):
    run("fetch", "small", capsys=capsys)
    monkeypatch.setattr(fetching, "CATALOGUE", {**CATALOGUE, "small": replace(small, ordered=True)})
    code, out, _ = run("fetch", "small", capsys=capsys)
    assert code == 0
    assert "made by an earlier version" in out
    assert "recbole-onebp fetch small --data_path=dataset --force makes it anew" in out


def test_a_folder_of_an_earlier_version_is_trained_on_without_the_order(small, server, capsys, monkeypatch):
    run("fetch", "small", capsys=capsys)
    monkeypatch.setattr(fetching, "CATALOGUE", {**CATALOGUE, "small": replace(small, ordered=True)})
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    files = {
        "benchmark_filename": ["train", "valid", "test"],
        "topk": [5],
        "valid_metric": "NDCG@5",
        "metrics": ["NDCG"],
    }
    built = recbole_onebp.build("OneBP", "small", config_dict={**columns, **files, "output_dir": "out"})
    assert "made by an earlier version" in "".join(capsys.readouterr())
    assert (built.model.recency, built.model.users_from_earlier_items) == (0, False)


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


def test_training_fetches_what_is_not_there(archive, tmp_path, capsys):
    assert run(*train_arguments(tmp_path, "--dataset=theirs"), capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n_train"] == 27
    assert Path("dataset/theirs/manifest.json").is_file()


def test_training_says_what_to_do_when_the_network_fails(small, server, tmp_path, capsys):
    server.plan = ["404"]
    code, _, error = run(*train_arguments(tmp_path, "--dataset=small"), capsys=capsys)
    assert code == 2
    assert "404 Not Found; recbole-onebp fetch small --from DIR reads it from a folder" in error
    assert list(Path.cwd().iterdir()) == []


def test_a_fetched_split_reaches_recbole_as_it_is(small, tmp_path, capsys):
    parts = "--benchmark_filename=['train','valid','test']"
    arguments = train_arguments(tmp_path, "--dataset=small", parts, "--load_col={'inter':['user_id','item_id']}")
    assert run(*arguments, capsys=capsys)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["n_users"], result["n_items"], result["n_train"]) == (20, 31, 190)


def test_fetching_needs_neither_torch_nor_recbole(tmp_path):
    for name, text in (("train.txt", TRAIN), ("test.txt", TEST)):
        (tmp_path / name).write_text(text)
    code = (
        "import sys; from recbole_onebp.cli import main; code = main(['fetch', 'gowalla', '--from=.'])\n"
        "sys.exit(code or bool({'torch', 'recbole'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


CITEULIKE = {
    "warm_emb.csv": "user,item\n0,0\n0,1\n1,1\n1,0\n2,1\n",
    "warm_val.csv": "user,item\n2,0\n",
    "cold_item_val.csv": "user,item\n0,2\n1,2\n",
    "warm_test.csv": "user,item\n3,1\n",
    "cold_item_test.csv": "user,item\n2,3\n",
    "tags.dat": "graphs\ngenes\nthe_web",
    "item-tag.dat": "2 1 0\n0\n1 2\n3 0 0 2\n",
    "citations.dat": "1 2\n0\n1 0\n0\n",
}


@pytest.fixture
def citeulike(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, text in CITEULIKE.items():
        (folder / name).write_text(text)
    return folder


def test_citeulike_has_the_features_of_its_papers_and_cold_ones(citeulike, capsys):
    assert run("fetch", "citeulike", f"--from={citeulike}", "--data_path=here", capsys=capsys)[0] == 0
    folder = Path("here/citeulike")
    parts = parts_of(folder)
    assert parts["valid"] == Counter([("2", "0"), ("0", "2"), ("1", "2")])
    assert parts["test"] == Counter([("3", "1"), ("2", "3")])
    assert (folder / "citeulike.item").read_text().splitlines() == [
        "item_id:token\ttags:token_seq\tcitations:token_seq",
        "0\tgenes graphs\t0 2",
        "1\t\t1",
        "2\tthe_web\t2 0",
        "3\tgraphs the_web\t3",
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["split"] == {"test": "as published", "valid": "as published"}
    assert len(manifest["source"]) == 8


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("item-tag.dat", "2 1 0\n0\n2 2\n0\n", "item-tag.dat, line 3: '2 2': expected a count and as many numbers"),
        ("item-tag.dat", "2 1 0\n0\nx\n0\n", "item-tag.dat, line 3: 'x': expected a count and as many numbers"),
        ("tags.dat", "graphs", "tags.dat: 1 names, and there is a tag 2"),
        ("citations.dat", "0\n", "citations.dat: 1 lines, item-tag.dat 4"),
    ],
)
def test_bad_features_of_citeulike_are_one_line(citeulike, capsys, name, text, message):
    (citeulike / name).write_text(text)
    code, _, error = run("fetch", "citeulike", f"--from={citeulike}", "--data_path=here", capsys=capsys)
    assert code == 2
    assert message in error
    assert not Path("here/citeulike").exists()


def test_citeulike_has_its_own_validation_part(citeulike, capsys):
    code, _, error = run("fetch", "citeulike", f"--from={citeulike}", "--valid=random", capsys=capsys)
    assert code == 2
    assert "valid: random: citeulike is published with its validation part; leave it out" in error
    code, _, error = run("fetch", "citeulike", f"--from={citeulike}", "--valid_share=0.3", capsys=capsys)
    assert code == 2
    assert "valid_share: 0.3: citeulike is published with its validation part; leave it out" in error


def test_data_without_a_published_split_have_no_validation_part(capsys):
    code, _, error = run("fetch", "ml-100k", "--valid=last", capsys=capsys)
    assert code == 2
    assert "valid: last: ml-100k is split by RecBole in each run; leave it out" in error


@pytest.mark.parametrize(
    ("name", "found_in"), [("citeulike", "js05212/citeulike-a"), ("amazon-book-part", "amazon-book's train.txt")]
)
def test_what_cannot_be_downloaded_says_where_its_files_are(tmp_path, capsys, name, found_in):
    code, _, error = run("fetch", name, f"--data_path={tmp_path}", capsys=capsys)
    assert code == 2
    assert found_in in error.splitlines()[0]
    assert not any(tmp_path.iterdir())
