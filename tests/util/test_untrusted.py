"""What may be read of a file that a stranger made."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import map_array, open_plain, plain_name, read_json


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "c:x", "x\0", "n" * 256, 5, None]
)
def test_names_that_leave_the_folder(name, tmp_path):
    with pytest.raises(UserError, match="is not the name of a file"):
        plain_name(name, tmp_path)


def test_a_plain_name_stays(tmp_path):
    assert plain_name("item_ids.json", tmp_path) == "item_ids.json"


def test_only_plain_files_are_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name in ("link", "dangling", "folder", "fifo", "socket", "absent", "a\0b"):
        with pytest.raises(UserError):
            open_plain(tmp_path / name)
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(UserError):
        open_plain(tmp_path / "device")
    with open_plain(tmp_path / "file") as file:
        assert file.read() == b"x"
    listener.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[Infinity]",
        b"[" * 65 + b"]" * 65,
        b"1" * 5000,
        b" " * 2000,
    ],
    ids=["empty", "open", "deep", "not utf-8", "nan", "infinity", "65 deep", "long number", "long"],
)
def test_json_that_is_refused(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_json(path, max_bytes=1500 if content[:1] == b" " else 1 << 20)


def test_json_that_is_read(tmp_path):
    path, value = tmp_path / "file.json", {"a": [1, 2.5, "é", None, {"b": [[]]}]}
    path.write_text(json.dumps(value))
    assert read_json(path) == value


def test_arrays(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(path, array)
    np.testing.assert_array_equal(map_array(path, (2, 3), np.float32, np.float16), array)
    np.testing.assert_array_equal(map_array(path, (-1, 3), np.float32), array)
    for shape, dtype in (((3, 2), np.float32), ((6,), np.float32), ((2, 3), np.float64)):
        with pytest.raises(UserError, match="expected"):
            map_array(path, shape, dtype)


@pytest.mark.parametrize("how", ["object", "order", "fortran", "cut", "longer", "nan", "huge", "text", "pickle"])
def test_arrays_that_are_refused(tmp_path, how):
    path, array = tmp_path / "a.npy", np.ones((4, 3), np.float32)
    if how == "object":
        array = np.array([[{}] * 3] * 4, dtype=object)
    elif how == "order":
        array = array.astype(">f4")
    elif how == "fortran":
        array = np.asfortranarray(array)
    elif how == "nan":
        array[1, 1] = np.nan
    np.save(path, array, allow_pickle=True)
    content = path.read_bytes()
    changed = {
        "cut": content[:-1],
        "longer": content + b"x",
        "huge": content.replace(b"(4, 3)", b"(9**9, 3)"[:6].ljust(6)),
        "text": b"\x93NUMPY\x01\x00v\x00{'descr': __import__('os'), 'fortran_order': False, 'shape': (4,), }".ljust(
            200
        ),
        "pickle": b"\x80\x04.",
    }
    path.write_bytes(changed.get(how, content))
    with pytest.raises(UserError, match=str(path)):
        map_array(path, (4, 3), np.float32)


def test_an_empty_array(tmp_path):
    np.save(tmp_path / "a.npy", np.empty((0, 3), np.float32))
    assert map_array(tmp_path / "a.npy", (-1, 3), np.float32).shape == (0, 3)
