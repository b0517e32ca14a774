"""The store of events: durable, each event once, closed to others, and nothing lost in silence."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import zlib
from contextlib import closing

import pytest

from recbole_onebp.serving.http import legacy_journal
from recbole_onebp.serving.http.event_repair import repair
from recbole_onebp.serving.http.events import FILE, Event, EventStore, StoreError
from recbole_onebp.util.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "events"


def stored(folder):
    store = EventStore(folder)
    try:
        return [(run.bundle, *event) for run in store.read() for event in run.events]
    finally:
        store.close()


def histories(folder):
    found = {}
    for _, user, item in stored(folder):
        found.setdefault(user, []).append(item)
    return found


def test_events_come_back_in_order(folder):
    store = EventStore(folder)
    assert store.append("b", [Event("u", "1"), Event("v", "2")]).end == 2
    assert store.append("c", [Event("u", "3")]).new == [True]
    assert [run[:3] for run in store.read()] == [("b", [("u", "1"), ("v", "2")], 2), ("c", [("u", "3")], 3)]
    assert [run[:3] for run in store.read(after=2)] == [("c", [("u", "3")], 3)]
    assert not list(store.read(after=3))
    store.close()
    assert stored(folder) == [("b", "u", "1"), ("b", "v", "2"), ("c", "u", "3")]


def test_a09_a_retry_counts_once(folder):
    store = EventStore(folder)
    events = [Event("u", "1", id="a"), Event("u", "1", time=5.0), Event("u", "1")]
    assert store.append("b", events).new == [True, True, True]
    assert store.append("b", events).new == [False, False, True]  # an event without id and time always counts
    store.compact()
    assert store.append("b", [Event("v", "2", id="a")]).new == [False]
    store.close()
    assert len(stored(folder)) == 4


def test_an_id_counts_once_within_one_request(folder):
    store = EventStore(folder)
    assert store.append("b", [Event("u", "1", id="a"), Event("u", "2", id="a")]).new == [True, False]
    store.close()


def test_compacted_events_are_the_same(folder):
    store = EventStore(folder)
    for number in range(300):
        store.append("b" if number < 200 else "c", [Event(f"u{number % 7}", str(number))])
        if number % 90 == 0:
            store.compact()
    before = {f"u{user}": [str(n) for n in range(300) if n % 7 == user] for user in range(7)}
    store.compact()
    assert store.n_waiting == 0
    keys = {run.bundle for run in store.read()}
    store.close()
    assert histories(folder) == before
    assert keys == {"b", "c"}


def test_a_user_under_two_bundles_keeps_the_order(folder):
    store = EventStore(folder)
    for bundle, item in (("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")):
        store.append(bundle, [Event("u", item)])
        store.compact()
    store.close()
    assert stored(folder) == [("a", "u", "1"), ("b", "u", "2"), ("a", "u", "3"), ("a", "u", "4")]


def test_a08_files_are_for_their_owner_alone(folder):
    before = os.umask(0)
    try:
        store = EventStore(folder)
        store.append("b", [Event("u", "1")])
        store.compact()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
        store.close()
    finally:
        os.umask(before)


def test_one_process_at_a_time(folder):
    store = EventStore(folder)
    code = (
        "import sys, pathlib; from recbole_onebp.serving.http.events import EventStore;"
        "from recbole_onebp.serving.http.event_repair import repair;"
        "from recbole_onebp.util.errors import UserError\n"
        "for use in (EventStore, repair):\n"
        "    try: use(pathlib.Path(sys.argv[1]))\n"
        "    except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "another service uses these events" in first
    assert "a service uses it" in second
    store.close()


def test_a_killed_process_loses_nothing_acknowledged(folder):
    code = (
        "import sys, pathlib; from recbole_onebp.serving.http.events import EventStore, Event\n"
        "store = EventStore(pathlib.Path(sys.argv[1]))\n"
        "number = store.end\n"
        "while True:\n"
        "    store.append('b', [Event('u', str(number))]); number += 1; print(number, flush=True)\n"
        "    if number % 10 == 0: store.compact()"
    )
    acknowledged = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
        for _ in range(25):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        acknowledged = max([acknowledged, *map(int, rest[-1:])])
        process.wait()
        items = histories(folder)["u"]
        assert items == [str(number) for number in range(len(items))]
        assert acknowledged <= len(items) <= acknowledged + 1


@pytest.mark.parametrize("seed", range(8))
def test_a03_damage_is_refused_and_repaired(folder, seed):
    """A part of the file is overwritten: the store says so, and repair keeps what can be read."""
    store = EventStore(folder)
    store.append("b", [Event(f"u{n % 50}", f"item {n}") for n in range(3000)])
    store.close()
    path = folder / FILE
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    page = 3 + seed * (pages - 4) // 8
    content[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged.*repair-events"):
        EventStore(folder)
    n_kept, damaged = repair(folder)
    assert damaged.read_bytes() == bytes(content)
    found = stored(folder)
    assert len(found) == n_kept
    assert n_kept <= 3000
    assert n_kept > 2000 or seed == 0  # the root page of a table: none of its rows can be found
    assert set(found) <= {("b", f"u{n % 50}", f"item {n}") for n in range(3000)}


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(84), b"not a database at all " * 99])
def test_another_file_is_refused(folder, content):
    folder.mkdir()
    (folder / FILE).write_bytes(content)
    if content:
        with pytest.raises(UserError, match=FILE):
            EventStore(folder)
        assert (folder / FILE).read_bytes() == content
    else:
        EventStore(folder).close()


def test_another_database_is_refused(folder):
    folder.mkdir()
    database = sqlite3.connect(folder / FILE)
    database.execute("CREATE TABLE mine (x)")
    database.commit()
    database.close()
    with pytest.raises(UserError, match="not a store of events"):
        EventStore(folder)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER mine AFTER INSERT ON events BEGIN DELETE FROM events; END",
        "CREATE TABLE mine (x)",
        "DROP INDEX ids_by_time",
        "ALTER TABLE events ADD COLUMN more TEXT",
        "INSERT INTO histories (bundle, user, items) VALUES (1, 'u', 'no JSON')",
        "INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '{\"a\": 1}')",
        "INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '[1, null]')",
        f"INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '{'[' * 100_000}')",
        "INSERT INTO histories (bundle, user, items) VALUES (9, 'u', '[]')",
        "INSERT INTO events (bundle, user, item) VALUES (9, 'u', '1')",
    ],
)
def test_a03_content_of_another_shape_is_refused(folder, change):
    """Pages are whole, but not as this program writes them.  What fits is kept by the repair."""
    store = EventStore(folder)
    store.append("b", [Event("u", "1"), Event("v", "2")])
    store.close()
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute(change)
        database.commit()
    with pytest.raises(UserError, match=r"is damaged.*repair-events"):
        stored(folder)
    repair(folder)
    assert {("b", "u", "1"), ("b", "v", "2")} <= set(stored(folder))


def test_a_long_history_is_continued_in_another_row(folder, monkeypatch):
    monkeypatch.setattr("recbole_onebp.serving.http.events._HISTORY_LETTERS", 50)
    store = EventStore(folder)
    for number in range(100):
        store.append("b", [Event("u", str(number))])
        if number % 5 == 0:
            store.compact()
    store.compact()
    assert len(list(store.read())) > 3
    store.close()
    assert histories(folder) == {"u": [str(number) for number in range(100)]}


def test_a_link_is_not_followed(folder, tmp_path):
    folder.mkdir()
    (folder / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not a plain file"):
        EventStore(folder)
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_written_does_not_count(folder, monkeypatch):
    store = EventStore(folder)
    store.append("b", [Event("u", "1")])
    store._database.execute("PRAGMA max_page_count = 1")  # a full disk
    with pytest.raises(StoreError, match="full"):
        store.append("b", [Event("u", "x" * 100_000, id="a")])
    store._database.execute("PRAGMA max_page_count = 1000000")
    assert store.append("b", [Event("u", "2", id="a")]).new == [True]
    store.close()
    assert histories(folder) == {"u": ["1", "2"]}


# --------------------------------------------------------------------------------------------- journals of version 0.1


def line(content):
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def journal(folder, **segments):
    folder.mkdir()
    for name, records in segments.items():
        (folder / f"{name.strip('_'):0>8}.log").write_bytes(b"".join(map(line, records)))


def test_a_journal_is_imported(folder):
    journal(
        folder,
        _1=[{"bundle": "old", "events": [["u", "0"]]}],  # replaced by the compacted segment
        _2=[{"first": 1}, {"bundle": "a", "users": {"u": ["1", "2"], "v": ["3"]}}],
        _3=[{"bundle": "b", "events": [["u", "4"], ["w", "5"]]}],
    )
    expected = [("a", "u", "1"), ("a", "u", "2"), ("a", "v", "3"), ("b", "u", "4"), ("b", "w", "5")]
    assert stored(folder) == expected
    assert len(list((folder / "imported-journal").glob("*.log"))) == 3
    assert stored(folder) == expected  # once


def test_a03_each_journal_is_imported_once(folder, monkeypatch):
    """A process is killed after the import, before the segments are moved; later another journal is put there."""
    journal(folder, _1=[{"bundle": "a", "events": [["u", "1"]]}])
    with monkeypatch.context() as patched:
        patched.setattr(legacy_journal, "set_aside", lambda folder: None)
        assert stored(folder) == [("a", "u", "1")]
    assert stored(folder) == [("a", "u", "1")]
    assert not list(folder.glob("*.log"))
    (folder / "00000001.log").write_bytes(line({"bundle": "a", "events": [["u", "2"]]}))
    assert stored(folder) == [("a", "u", "1"), ("a", "u", "2")]
    assert len(list(folder.glob("imported-journal*/*.log"))) == 2


@pytest.mark.parametrize("how", ["flip", "zeros", "cut", "shape", "missing"])
def test_a03_a_damaged_journal_is_refused(folder, how):
    journal(folder, _1=[{"bundle": "a", "events": [["u", str(n)]]} for n in range(100)],
            _2=[{"bundle": "a", "events": []}], _3=[{"bundle": "a", "events": []}])  # fmt: skip
    path = folder / "00000001.log"
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-5] ^= 1
    elif how == "zeros":
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    elif how == "cut":
        del content[-1:]
    elif how == "shape":
        content = line({"bundle": "a", "events": [["u"]]})
    path.write_bytes(content)
    if how == "missing":
        (folder / "00000002.log").unlink()
    files = {file.name: file.read_bytes() for file in folder.glob("*.log")}
    with pytest.raises(UserError, match=r"damaged|missing"):
        EventStore(folder)
    assert {file.name: file.read_bytes() for file in folder.glob("*.log")} == files


def test_a03_files_of_others_are_left_alone(folder):
    folder.mkdir()
    for name in ("20241128.log", "00000001-copy.log", "notes.txt"):
        (folder / name).write_text("mine, not a journal\n")
    store = EventStore(folder)
    store.append("b", [Event("u", "1")])
    store.close()
    assert (folder / "20241128.log").read_text() == "mine, not a journal\n"
    assert stored(folder) == [("b", "u", "1")]
