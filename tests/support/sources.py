"""A published data set in small, a server of files that misbehaves on request, and how to look at what was written."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd

from recbole_onebp.cli import main

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


def pair_set(dataset, feat=None):
    feat = dataset.inter_feat if feat is None else feat
    users, items = dataset.id2token("user_id", feat["user_id"]), dataset.id2token("item_id", feat["item_id"])
    return Counter(zip(users, items, strict=True))


def train_arguments(tmp_path, *more):
    settings = ["--model=BPR", "--epochs=1", f"--output_dir={tmp_path / 'run'}", "--show_progress=false", "--topk=[5]",
                "--valid_metric=MRR@5"]  # fmt: skip
    return ["train", *settings, *more]
