"""Fixtures: a server of files on this machine, and data sets that it serves."""

from __future__ import annotations

import io
import threading
import zipfile

import pytest

from recbole_onebp.data.sources import download as downloads
from recbole_onebp.data.sources import fetch as fetching
from recbole_onebp.data.sources.catalogue import CATALOGUE, Published, RemoteFile
from support.sources import TEST, TRAIN, Server, blob_id


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
