"""Downloads from a server that misbehaves: what a second attempt repairs, and one line for what it cannot."""

from __future__ import annotations

import errno
import io
import socket
from pathlib import Path

import pandas as pd
import pytest

from recbole_onebp.cli import main
from recbole_onebp.data.sources import download as downloads
from support.sources import TRAIN, blob_id, run


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
        (["page"], "received a web page instead of the file"),
        (["wrong"], f"not the expected file: git blob id {blob_id(TRAIN.swapcase()[::-1])}"),
        (["short length"], f"({len(TRAIN) // 2} bytes), expected {blob_id(TRAIN)}"),
        (["404"], "404 Not Found"),
        (["403"], "403 Forbidden"),
        (["500"] * 9, "500 Internal Server Error; tried 5 times"),
        (["silence"] * 9, "no answer within 0.05 seconds; tried 5 times"),
        (["drops and ignores range"] * 9, f"broke off after {len(TRAIN) // 3} of {len(TRAIN)} bytes; tried 5 times"),
        (["well", "wrong"], "test.txt: not the expected file"),
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
    assert "recbole-onebp fetch small --from DIR reads it from a folder" in error
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
