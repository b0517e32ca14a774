"""What may be replaced: what this program has made, and nothing else."""

from __future__ import annotations

import gc
import os

import pytest

from recbole_onebp.util import files
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import MARKER, TemporaryFolder, claim_folder, is_claimed, whole_folder, write_atomically


def test_a15_a_folder_of_ours_is_taken_again(tmp_path):
    folder = tmp_path / "a" / "out"
    claim_folder(folder, "run", ["result.json"])
    (folder / "result.json").write_text("{}")
    claim_folder(folder, "run", ["result.json"])
    assert (folder / MARKER).read_text() == '{"kinds": ["run"]}\n'
    assert is_claimed(folder, "run")
    assert not is_claimed(folder, "bundle")


def test_a15_what_is_not_replaced_may_be_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim_folder(tmp_path, "run", ["result.json"])
    claim_folder(tmp_path, "bundle", ["manifest.json"])
    assert (tmp_path / MARKER).read_text() == '{"kinds": ["bundle", "run"]}\n'


def test_a15_somebody_elses_files_are_in_the_way(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match=r"holds checkpoint, which would be replaced.*move checkpoint away"):
        claim_folder(tmp_path, "run", ["result.json", "checkpoint"])
    assert not (tmp_path / MARKER).exists()
    claim_folder(tmp_path, "run", ["result.json", "checkpoint"], lambda _folder: True)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kinds": "run"}', '{"kinds": [["run"]]}', "[" * 5000])
def test_a15_a_marker_of_somebody_else(tmp_path, content):
    (tmp_path / MARKER).write_text(content)
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="holds x"):
        claim_folder(tmp_path, "run", ["x"])


@pytest.mark.parametrize("name", ["x", "log", MARKER])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a15_links_and_devices_are_not_written_through(tmp_path, name, kind):
    folder = tmp_path / "out"
    claim_folder(folder, "run", ["x"])
    (folder / name).unlink(missing_ok=True)
    (tmp_path / "mine").write_text("mine")
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(tmp_path / ("mine" if kind == "link" else "nothing"))
    with pytest.raises(UserError, match="is a link or a device"):
        claim_folder(folder, "run", ["x"], opened=["log"])
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".x.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "x", lambda file: file.write_text("new"))
    assert ((tmp_path / "x").read_text(), (tmp_path / "mine").read_text()) == ("new", "mine")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a18_a_folder_is_replaced_at_once(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    else:  # no moment without a folder: it is never moved away
        monkeypatch.setattr(files.os, "replace", lambda *_: pytest.fail("two steps"))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    monkeypatch.setattr(files, "mark_folder", lambda path, kind: (path / MARKER).write_text(kind))
    with whole_folder(folder, replace=True, kind="bundle") as made:
        (made / "new").touch()
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_temporary_folder_goes_with_its_object_but_not_with_a_forked_process():
    folder = TemporaryFolder()
    path = folder.path
    files._remove_folder(path, pid=os.getpid() + 1)
    assert path.is_dir()
    del folder
    gc.collect()
    assert not path.exists()
