"""The journal of a service: acknowledged events are kept, incomplete records are not read."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_onebp.serving.http.journal import Journal, JournalError, Position
from recbole_onebp.util.errors import UserError

EVENTS = [[("u1", "i1")], [("u2", "i1"), ("u1", "i2")], [("u1", 'naïve\n"item"')], [("u3", "i3")] * 3]
SOME_EVENTS = st.tuples(st.sampled_from("uvw"), st.sampled_from("ij"))
ids = st.text(min_size=1, max_size=5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "events"


def written(folder, batches=EVENTS, bundle="A", **options):
    journal = Journal(folder, **options)
    for events in batches:
        journal.append(bundle, events)
    journal.close()


def read(folder):
    journal = Journal(folder)
    try:
        return [(record.bundle, event) for record in journal.read() for event in record.events]
    finally:
        journal.close()


def by_user(events):
    """The bundle and item of each user's events, in order.  The order between users does not matter."""
    found = {}
    for bundle, (user, item) in events:
        found.setdefault(user, []).append((bundle, item))
    return found


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.tuples(ids, ids), max_size=4), max_size=8))
def test_what_is_written_is_read(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("events")
    written(folder, batches)
    assert read(folder) == [("A", event) for events in batches for event in events]


def test_an_incomplete_record_is_removed(folder, tmp_path):
    """Cut at every byte of the last record: earlier records are read, and new ones can be appended."""
    written(folder)
    content = (folder / "00000001.log").read_bytes()
    start = content[:-1].rindex(b"\n") + 1
    for size in range(start, len(content)):
        copy = tmp_path / str(size)
        shutil.copytree(folder, copy)
        os.truncate(copy / "00000001.log", size)
        journal = Journal(copy)
        assert journal.torn_bytes == size - start
        journal.append("A", [("u9", "i9")])
        journal.close()
        assert read(copy) == [("A", event) for events in [*EVENTS[:-1], [("u9", "i9")]] for event in events]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"garbage\n", b"\n\n", b"00000000 {}\nmore"])
def test_garbage_at_the_end_is_removed(folder, tail):
    written(folder)
    with open(folder / "00000001.log", "ab") as file:
        file.write(tail)
    journal = Journal(folder)
    assert journal.torn_bytes == len(tail)
    journal.close()
    assert len(read(folder)) == 7


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_at_the_end(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("events")
    written(folder)
    path = folder / "00000001.log"
    content = bytearray(path.read_bytes())
    last = content[:-1].rindex(b"\n")
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    if last < bit // 8 < len(content) - 1:  # like an incomplete record
        assert [event for _, event in read(folder)] == [event for events in EVENTS[:-1] for event in events]
    else:
        with pytest.raises(UserError, match=r"00000001\.log: line \d is damaged"):
            Journal(folder)


@pytest.mark.parametrize("place", [-1, -2], ids=["the last", "the one before"])
def test_a_record_with_a_damaged_end_is_refused(folder, place):
    written(folder)
    path = folder / "00000001.log"
    *_, before_last, last = [place for place, byte in enumerate(path.read_bytes()) if byte == ord("\n")]
    content = bytearray(path.read_bytes())
    content[last if place == -1 else before_last] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"line \d is damaged"):
        Journal(folder)


def test_one_process_at_a_time(folder):
    journal = Journal(folder)
    with pytest.raises(UserError, match="another service uses these events"):
        Journal(folder)
    journal.close()
    Journal(folder).close()


def test_events_that_cannot_be_written(folder, monkeypatch):
    journal = Journal(folder)
    journal.append("A", [("u1", "i1")])
    write = os.write

    def full(file, line):
        return write(file, line[:10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError, match="no room"):
        journal.append("A", [("u1", "i2")])
    monkeypatch.setattr(os, "write", write)
    journal.append("A", [("u1", "i3")])  # there is room again

    def fail(file):
        raise OSError("I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalError, match="I/O error"):
        journal.append("A", [("u1", "i4")])
    monkeypatch.undo()
    with pytest.raises(JournalError, match="start the service again"):
        journal.append("A", [("u1", "i5")])
    journal.close()
    assert [item for _, (_, item) in read(folder)][:2] == ["i1", "i3"]


def test_segments_and_positions(folder):
    journal = Journal(folder, segment_bytes=100)
    middle = None
    for number in range(10):
        journal.append("A", [("u", f"i{number}")])
        if number == 4:
            middle = journal.end
        if journal.is_full:
            journal.turn()
    assert len(list(folder.glob("*.log"))) > 2
    found = [event[1] for record in journal.read(middle) for event in record.events]
    assert found == [f"i{number}" for number in range(5, 10)]
    found = [event[1] for record in journal.read(Position(0, 0), middle) for event in record.events]
    assert found == [f"i{number}" for number in range(5)]
    assert journal.bytes == sum(path.stat().st_size for path in folder.glob("*.log"))
    journal.close()


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from("AB"), st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("ij")), max_size=3)
        ),
        max_size=20,
    ),
    turns=st.sets(st.integers(0, 20)),
    compacted=st.sets(st.integers(0, 20)),
)
def test_compaction_keeps_each_users_events(tmp_path_factory, batches, turns, compacted):
    folder = tmp_path_factory.mktemp("events")
    journal = Journal(folder)
    for number, (bundle, events) in enumerate(batches):
        journal.append(bundle, events)
        if number in turns:
            journal.turn()
        if number in compacted:
            journal.compact()
    journal.turn()
    journal.compact()
    assert len(list(folder.glob("*.log"))) == 2
    journal.close()
    expected = [(bundle, event) for bundle, events in batches for event in events]
    assert by_user(read(folder)) == by_user(expected)


def test_compaction_is_smaller(folder):
    journal = Journal(folder)
    for number in range(300):
        journal.append("f" * 64, [(f"u{number % 10}", f"i{number}")])
    journal.turn()
    before = journal.bytes
    journal.compact()
    assert journal.bytes < before / 10
    journal.close()
    assert len(read(folder)) == 300


@pytest.mark.parametrize("step", ["before the rename", "after the rename"])
def test_a_killed_compaction(folder, monkeypatch, step):
    journal = Journal(folder)
    for number in range(9):
        journal.append("A", [("u", f"i{number}")])
        if number % 3 == 2:
            journal.turn()
    if step == "before the rename":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        monkeypatch.setattr(Journal, "_remove_replaced", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        journal.compact()
    monkeypatch.undo()
    journal.close()
    (folder / ".00000003.log.99.tmp").write_text("a leftover")
    assert [item for _, (_, item) in read(folder)] == [f"i{number}" for number in range(9)]
    assert not list(folder.glob(".*.tmp"))
