"""Lists for many users: printed, written to files, interrupted and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.serving import batch
from recbole_onebp.serving.batch import Request, write_lists
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.hostile import reseal

BUNDLE = Path("bundle")


@pytest.fixture(autouse=True)
def rec():
    return Recommender.load(made_bundle(BUNDLE, n_users=50))


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr(batch, "_PART", 8)


def rows(rec, users, **filters):
    return [
        (user, item, rank, score)
        for user, answer in zip(users, rec.recommend(users, **filters), strict=True)
        for rank, (item, score) in enumerate(answer, start=1)
    ]


def read(path):
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            head, *lines = csv.reader(file)
        assert head == ["user", "item", "rank", "score"]
        return [(user, item, int(rank), float(score)) for user, item, rank, score in lines]
    if path.suffix == ".jsonl":
        users = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            (user["user"], item, rank, score)
            for user in users
            for rank, (item, score) in enumerate(zip(user["items"], user["scores"], strict=True), start=1)
        ]
    import pyarrow.parquet as pq

    return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files(rec, suffix, short_parts):
    out = Path(f"lists.{suffix}")
    users = ["u3", 'no, "body"', *rec.user_ids[10:], "ghost", "u3"]
    Path("users.txt").write_text("\n".join(users) + "\n\n")
    written = write_lists(BUNDLE, Path("users.txt"), out, Request(k=7, deny=("i1", "phantom")), jobs=2)
    assert read(out) == rows(rec, users, k=7, deny=["i1"])
    assert (written.n_unknown_users, written.unknown_items) == (2, ["phantom"])
    assert Path(f"lists.{suffix}.unknown.txt").read_text().splitlines() == ['no, "body"', "ghost"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "bundle", f"lists.{suffix}", f"lists.{suffix}.unknown.txt", "users.txt"
    ]  # fmt: skip
    with pytest.raises(UserError, match="exists already"):
        write_lists(BUNDLE, None, out, Request())
    write_lists(BUNDLE, None, out, Request(k=2, exclude_seen=False, allow=("i4", "i5", "i6")), jobs=1, force=True)
    assert read(out) == rows(rec, rec.user_ids, k=2, exclude_seen=False, allow=["i4", "i5", "i6"])
    assert not Path(f"lists.{suffix}.unknown.txt").exists()


def test_an_empty_file_of_users():
    Path("users.txt").write_text("")
    for suffix in ("csv", "jsonl", "parquet"):
        write_lists(BUNDLE, Path("users.txt"), Path(f"lists.{suffix}"), Request())
        assert read(Path(f"lists.{suffix}")) == []


def test_resume_computes_only_missing_parts(rec, short_parts, monkeypatch):
    done = []

    def run(bundle_dir, users, parts, part_size, request, write_part, jobs, tick):
        for number, part in enumerate(parts):
            if part.exists():
                continue
            if len(done) == 3 and part.name.startswith("0000003"):
                raise KeyboardInterrupt
            done.append(part.name)
            chunk = rec.user_ids[number * 8 : number * 8 + 8]
            write_part(part, chunk, request.answer(rec, chunk))

    monkeypatch.setattr(batch, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        write_lists(BUNDLE, None, Path("batch.csv"), Request())
    assert not Path("batch.csv").exists()
    done.append("again")
    write_lists(BUNDLE, None, Path("batch.csv"), Request())
    assert done == [f"{n:07d}.csv" for n in (0, 1, 2)] + ["again"] + [f"{n:07d}.csv" for n in (3, 4, 5, 6)]
    assert read(Path("batch.csv")) == rows(rec, rec.user_ids)


def test_parts_of_another_request_are_discarded(rec, short_parts):
    parts = Path(".batch.csv.parts")
    parts.mkdir()
    (parts / "plan.json").write_text("{}")
    (parts / "0000000.csv").write_text("of another run\n")
    write_lists(BUNDLE, None, Path("batch.csv"), Request(k=3), jobs=1)
    assert read(Path("batch.csv")) == rows(rec, rec.user_ids, k=3)


def test_resume_after_a_kill(tmp_path):
    """After SIGKILL to the process group, twice, the file is the same as without interruption."""
    big = made_bundle(tmp_path / "big", n_users=6000, n_items=400)
    code = (
        "import sys; from pathlib import Path; from recbole_onebp.serving import batch\n"
        "batch._PART = 100\n"
        "batch.write_lists(Path('big'), None, Path('batch.jsonl'), batch.Request(), jobs=2)"
    )
    Path("task.py").write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")
    kills = 0
    deadline = time.monotonic() + 120
    while not Path("batch.jsonl").exists():
        process = subprocess.Popen([sys.executable, "task.py"], start_new_session=True)
        seen = len(list(Path.cwd().glob(".batch.jsonl.parts/*.jsonl")))
        while process.poll() is None and time.monotonic() < deadline:
            if kills < 2 and len(list(Path.cwd().glob(".batch.jsonl.parts/*.jsonl"))) > seen + 3:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.002)
        process.wait()
        assert time.monotonic() < deadline
    rec = Recommender.load(big)
    assert kills == 2
    assert read(Path("batch.jsonl")) == rows(rec, rec.user_ids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--users=u1", "--out=batch.txt"], "its suffix is .txt; expected .csv, .jsonl, .parquet"),
        (["--users_file=none.txt"], "none.txt: cannot be read: No such file"),
        (["--users_file=bundle/item_encodings.npy"], "not UTF-8"),
        (["--users=u1", "--all_users"], "not allowed with argument"),
        ([], "for whom? Give --users=IDS, --users_file=FILE, --all_users or --history=IDS"),
        (["--user=u1"], "unrecognized arguments: --user=u1; did you mean --users?"),
        (["--all_users", "--out=batch.csv", "--jobs=0"], "jobs: 0 is not allowed"),
        (["--history=i1", "--out=batch.csv"], "a history is shown, not written"),
        (["--users=u1", "--rule=trained"], "--rule without --history"),
        (["--users="], "--users=: an id is empty; expected ids separated by commas"),
        (["--history=i1,,i2"], "--history=i1,,i2: an id is empty"),
        (["--users=" + "u1," * 2000], "an id is empty"),
        (["--users=u1", "--k=0"], "k: 0 is not allowed"),
        (["--all_users", "--k=0", "--out=batch.csv"], "k: 0 is not allowed"),
        (["--all_users", "--out=bundle/manifest.json/batch.csv"], "batch.csv: cannot be written"),
    ],
)
def test_wrong_commands(arguments, words, capsys):
    assert main(["recommend", "bundle", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert [path.name for path in Path.cwd().iterdir()] == ["bundle"]


def test_lists_are_printed_with_titles(rec, capsys):
    assert main(["recommend", "bundle", "--users=u3, ghost,u4", "--k=2"]) == 0
    out, err = capsys.readouterr()
    (item, score), _ = rec.recommend(["u3"], k=2)[0]
    assert out.splitlines()[:2] == ["user u3", f"   1. Item {item[1:]} ({item})  {score:.4f}"]
    assert [line for line in out.splitlines() if "user" in line] == ["user u3", "user ghost", "user u4"]
    assert err == "unknown user: ghost\n"
    assert main(["recommend", "bundle", "--history=i1,i2,phantom", "--k=1"]) == 0
    out, err = capsys.readouterr()
    ((item, score),) = rec.recommend_history([["i1", "i2"]], k=1)[0]
    assert out.splitlines() == ["user with this history", f"   1. Item {item[1:]} ({item})  {score:.4f}"]
    assert main(["recommend", "bundle", "--history=i1,i2", "--k=1", "--rule=recent"]) == 0
    ((item, score),) = rec.recommend_history([["i1", "i2"]], k=1, rule="recent")[0]
    assert capsys.readouterr().out.endswith(f"({item})  {score:.4f}\n")
    assert err == "unknown item: phantom\n"


def test_lists_for_a_file_of_users(rec, capsys):
    Path("users.txt").write_text("u1\nu2\n")
    assert main(["recommend", "bundle", "--users=users.txt", "--k=1"]) == 0
    assert capsys.readouterr().out.count("user") == 2
    assert main(["recommend", "bundle", "--users=users.txt", "--k=3", "--out=batch.csv", "--jobs=1"]) == 0
    assert capsys.readouterr().out == "wrote batch.csv\n"
    assert read(Path("batch.csv")) == rows(rec, ["u1", "u2"], k=3)


EVIL = "\x1b]0;title\x07\x1b[2J\r\u202e"


def test_a10_ids_and_titles_are_escaped_on_the_screen(tmp_path, capsys):
    made = made_bundle(tmp_path / "evil")
    manifest = json.loads((made / "manifest.json").read_text())
    ids = json.loads((made / "item_ids.json").read_text())
    (made / "item_ids.json").write_text(json.dumps([f"{EVIL}{name}" for name in ids]))
    (made / "user_ids.json").write_text(json.dumps([f"u{EVIL}{number}" for number in range(20)]))
    (made / "item_fields.json").write_text(json.dumps({"title": [f"Item {EVIL}"] * 60}))
    reseal(made, manifest)
    Path("deny.txt").write_text("ghost\x1b[2J\n")
    assert main(["recommend", str(made), "--all_users", "--deny=deny.txt"]) == 0
    assert main(["recommend", str(made), f"--users=x{EVIL}"]) == 0
    assert main(["recommend", str(made), "--all_users", "--deny=deny.txt", "--out=lists.csv", "--jobs=1"]) == 0
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in out.split("\n"))
    assert all(line.isprintable() for line in err.split("\n") if "it/s" not in line and "user/s" not in line)
    assert r"   1. Item \x1b]0;title\x07\x1b[2J\r\u202e (\x1b]0;title" in out
    assert r"unknown item: ghost\x1b[2J" in err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a15_force_replaces_only_lists(suffix, tmp_path):
    out = Path(f"mine.{suffix}")
    request = Request(k=2)
    out.write_text('{"user": 5}\nmy own notes')
    with pytest.raises(UserError, match="exists already and holds no lists of this program"):
        write_lists(BUNDLE, None, out, request, jobs=1, force=True)
    assert out.read_text() == '{"user": 5}\nmy own notes'
    out.unlink()
    write_lists(BUNDLE, None, out, request, jobs=1)
    write_lists(BUNDLE, None, out, request, jobs=1, force=True)
    out.rename(tmp_path / "other")
    out.symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="exists already and holds no lists"):
        write_lists(BUNDLE, None, out, request, jobs=1, force=True)


def test_a15_nothing_beside_the_lists_is_lost():
    Path(".lists.csv.parts").mkdir()
    Path(".lists.csv.parts/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt: is in the way"):
        write_lists(BUNDLE, None, Path("lists.csv"), Request(), jobs=1, force=True)
    assert Path(".lists.csv.parts/mine.txt").read_text() == "mine"
    Path("more.csv.unknown.txt").write_text("mine")
    with pytest.raises(UserError, match=r"more\.csv\.unknown\.txt: is in the way"):
        write_lists(BUNDLE, ["ghost"], Path("more.csv"), Request(), jobs=1, force=True)
    assert Path("more.csv.unknown.txt").read_text() == "mine"


def test_c21_longer_lists_make_smaller_parts(monkeypatch):
    """So that a part needs as much memory for any k."""
    monkeypatch.setattr(batch, "_PART_PAIRS", 100)
    seen = []
    monkeypatch.setattr(
        Request, "answer", lambda self, rec, users: seen.append(len(users)) or rec.recommend(users, self.k)
    )
    batch.show(BUNDLE, None, None, Request(k=10))
    assert seen == [10] * 5
    seen.clear()
    batch.show(BUNDLE, None, None, Request(k=10**9))
    assert seen == [1] * 50


def test_c21_an_endless_line_is_refused():
    with pytest.raises(UserError, match="a line has more than 65536 letters"):
        list(batch.read_ids(Path("/dev/zero")))
