"""Download one file over HTTP, with time-outs, retries, and resuming after a broken connection.

It uses the standard library, because the usual libraries retry only until the body is read, and do not resume.
"""

from __future__ import annotations

import random
import time
from http.client import HTTPException
from pathlib import Path
from typing import IO, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from recbole_onebp import __version__
from recbole_onebp.util.errors import UserError, writing

__all__ = ["SourceError", "download"]

TIMEOUT = 20.0
"""Seconds to wait for a connection and for each read."""
ATTEMPTS = 5
BACKOFF = 1.0
"""Seconds before the second attempt, doubled for each further attempt, times a random factor of 0.5 to 1.5."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK = 2**16
_CHANGED = "the file changed on the server while it was read"


class SourceError(UserError):
    """The server does not answer, or does not send the file."""


class _BrokenOff(Exception):  # noqa: N818  named after what happened
    """The body ended early, or does not continue the part that was received before."""


def download(url: str, path: Path) -> None:
    """Download ``url`` to ``path``, with a progress bar on stderr.

    Raises:
        SourceError: for a refused or silent connection, an error status, a short file, or a web page
            instead of the file.
        UserError: if ``path`` cannot be written.  In all cases nothing is left at ``path``.
    """
    try:
        with writing(path), open(path, "wb") as file, _bar(url) as bar:
            _Transfer(url, file, bar).run()
        _refuse_web_page(url, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _bar(url: str) -> tqdm[NoReturn]:
    return tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, unit_divisor=1024)


class _Transfer:
    def __init__(self, url: str, file: IO[bytes], bar: tqdm[NoReturn]) -> None:
        self.url, self.file, self.bar = url, file, bar
        self.etag: str | None = None
        self.size: int | None = None

    def run(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._receive()
            except (OSError, HTTPException, _BrokenOff) as error:
                if isinstance(error, HTTPError) and error.code not in _BUSY:
                    raise SourceError(f"{self.url}: {error.code} {error.reason}") from None
                reason = error
            if attempt < ATTEMPTS:
                time.sleep(BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise SourceError(f"{self.url}: {_in_words(reason)}; tried {ATTEMPTS} times") from None

    def _receive(self) -> None:
        """One attempt: request the missing rest if the server supports it, else start from the beginning."""
        start = self.file.tell() if self.size is not None else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": f"recbole-onebp/{__version__}"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag is not None and not self.etag.startswith("W/"):
                headers["If-Range"] = self.etag
        try:
            response = urlopen(Request(self.url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == 416:  # the file is now shorter than the received part
                self._start_over(_CHANGED)
            raise
        with response:
            if response.status == 206:
                continued = f"bytes {start}-{(self.size or 0) - 1}/{self.size}"
                if (response.headers["Content-Range"], response.headers["ETag"]) != (continued, self.etag):
                    self._start_over(_CHANGED)
            else:
                self._start_over()
                self.etag, self.size = response.headers["ETag"], response.length
                self.bar.reset(self.size)
            while chunk := response.read(_CHUNK):
                self._put(chunk)
        if self.size is not None and self.file.tell() < self.size:
            raise _BrokenOff(f"broke off after {self.file.tell():,} of {self.size:,} bytes")

    # Errors of the disk become a UserError here, so that they are not retried as errors of the network.

    def _start_over(self, reason: str | None = None) -> None:
        with writing(Path(self.file.name)):
            self.file.seek(0)
            self.file.truncate()
        if reason is not None:
            raise _BrokenOff(reason)

    def _put(self, chunk: bytes) -> None:
        with writing(Path(self.file.name)):
            self.file.write(chunk)
        self.bar.update(len(chunk))


def _in_words(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT:g} seconds"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _refuse_web_page(url: str, path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head")):
        raise SourceError(f"{url}: received a web page instead of the file (a log-in page, or from a proxy?)")
