"""Download one file over HTTP, with time-outs, retries, and resuming after a broken connection.

It uses the standard library, because the usual libraries retry only until the body is read, and do not resume.
"""

from __future__ import annotations

import base64
import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from tqdm import tqdm

from recbole_onebp import __version__
from recbole_onebp.util.errors import UserError, writing

__all__ = ["Limits", "SourceError", "check_url", "download", "shown"]

TIMEOUT = 20.0
"""Seconds to wait for a connection and for each read."""
ATTEMPTS = 5
BACKOFF = 1.0
"""Seconds before the second attempt, doubled for each further attempt, times a random factor of 0.5 to 1.5."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK = 2**16
_CHANGED = "the file changed on the server while it was read"


@dataclass(frozen=True)
class Limits:
    """What one file may take."""

    max_mb: int = 1000
    timeout: float = 3600.0
    """Seconds for the whole file, all attempts together."""

    def __post_init__(self) -> None:
        if self.max_mb < 1:
            raise UserError(f"--max_mb {self.max_mb}: expected at least 1")
        if not 0 < self.timeout <= threading.TIMEOUT_MAX:
            raise UserError(f"--timeout {self.timeout:g}: expected a number of seconds")


class SourceError(UserError):
    """The server does not answer, or does not send the file."""


class _BrokenOff(Exception):  # noqa: N818  named after what happened
    """The body ended early, or does not continue the part that was received before."""


def shown(url: str) -> str:
    """A URL without its user name and password, which no message and no manifest repeats."""
    scheme, separator, rest = url.partition("//")
    server, slash, path = rest.partition("/")
    return f"{scheme}{separator}{server.rpartition('@')[2]}{slash}{path}"


def check_url(base: str) -> None:
    """Check the URL of a folder of files.

    Raises:
        UserError: unless it is ``http://server/path`` or ``https://...``, with or without ``user:password@``.
    """
    try:
        parts = urlsplit(base)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        fits = fits and base.isprintable() and " " not in base and not (parts.query or parts.fragment)
        if fits:
            parts.netloc.encode("idna")
    except ValueError:  # [::1 or a port above 65535
        fits = False
    if not fits:
        raise UserError(
            f"--url {shown(base).partition('?')[0]}: expected http://... or https://..., a server and a path"
        )


def download(url: str, path: Path, limits: Limits | None = None) -> None:
    """Download ``url`` to ``path``, with a progress bar on stderr.

    Raises:
        SourceError: for a refused or silent connection, an error status, a short file, a web page instead of the file,
            or more bytes or seconds than allowed.
        UserError: if ``path`` cannot be written.  In all cases nothing is left at ``path``.
    """
    try:
        with writing(path), open(path, "wb") as file, _bar(url) as bar:
            _Transfer(url, file, bar, limits or Limits()).run()
        _refuse_web_page(url, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _bar(url: str) -> tqdm[NoReturn]:
    return tqdm(desc=shown(url).rpartition("/")[2], unit="B", unit_scale=True, unit_divisor=1024)


class _Transfer:
    def __init__(self, url: str, file: IO[bytes], bar: tqdm[NoReturn], limits: Limits) -> None:
        self.url, self.file, self.bar, self.limits = shown(url), file, bar, limits
        parts = urlsplit(url)
        self.headers = {"Accept-Encoding": "identity", "User-Agent": f"recbole-onebp/{__version__}"}
        self.authorization: str | None = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self.etag: str | None = None
        self.size: int | None = None

    def run(self) -> None:
        with _Deadline(self.limits.timeout) as deadline:
            self._run(deadline)

    def _run(self, deadline: _Deadline) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._receive(deadline)
            except (OSError, HTTPException, ValueError, _BrokenOff) as error:
                if deadline.is_over:
                    break
                if isinstance(error, (ValueError, InvalidURL)):  # a redirect to something that is no URL
                    raise SourceError(f"{self.url}: {error}") from None
                if isinstance(error, HTTPError) and error.code not in _BUSY:
                    raise SourceError(f"{self.url}: {error.code} {error.reason}") from None
                reason = error
            if attempt < ATTEMPTS:
                deadline.sleep(BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        if deadline.is_over:
            raise SourceError(
                f"{self.url}: not complete after {self.limits.timeout:g} seconds; --timeout=N allows more"
            )
        raise SourceError(f"{self.url}: {_in_words(reason)}; tried {ATTEMPTS} times") from None

    def _receive(self, deadline: _Deadline) -> None:
        """One attempt: request the missing rest if the server supports it, else start from the beginning."""
        start = self.file.tell() if self.size is not None else 0
        headers = dict(self.headers)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag is not None and not self.etag.startswith("W/"):
                headers["If-Range"] = self.etag
        request = Request(self.url, headers=headers)
        if self.authorization is not None:
            request.add_unredirected_header("Authorization", self.authorization)
        try:
            response = deadline.opener.open(request, timeout=TIMEOUT)
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
                self._check_size(self.size or 0)
            while chunk := response.read1(_CHUNK):
                self._put(chunk)
            if deadline.is_over:  # which looks like the end of the file
                raise _BrokenOff("took too long")
        if self.size is not None and self.file.tell() < self.size:
            raise _BrokenOff(f"broke off after {self.file.tell():,} of {self.size:,} bytes")

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_mb << 20:
            raise SourceError(f"{self.url}: larger than {self.limits.max_mb:,} MB; --max_mb=N allows more")

    # Errors of the disk become a UserError here, so that they are not retried as errors of the network.

    def _start_over(self, reason: str | None = None) -> None:
        with writing(Path(self.file.name)):
            self.file.seek(0)
            self.file.truncate()
        if reason is not None:
            raise _BrokenOff(reason)

    def _put(self, chunk: bytes) -> None:
        self._check_size(self.file.tell() + len(chunk))
        with writing(Path(self.file.name)):
            self.file.write(chunk)
        self.bar.update(len(chunk))


class _Deadline:
    """Context that ends all connections of its ``opener`` after some seconds, whatever they are waiting for."""

    def __init__(self, seconds: float) -> None:
        self._over = threading.Event()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []
        self.opener = build_opener(_Plain(self), _Secure(self))

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for copy in self._sockets:
            copy.close()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def sleep(self, seconds: float) -> None:
        self._over.wait(seconds)

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        connection = socket.create_connection(*args, **kwargs)
        self._sockets.append(connection.dup())  # TLS takes the first one over
        if self.is_over:
            self._end()
        return connection

    def _end(self) -> None:
        self._over.set()
        for copy in self._sockets:
            with suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)


def _watched(kind: type[HTTPConnection], deadline: _Deadline) -> Any:
    def connection(*args: Any, **kwargs: Any) -> HTTPConnection:
        made = kind(*args, **kwargs)
        made._create_connection = deadline.connect  # type: ignore[attr-defined]
        return made

    return connection


class _Plain(HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: Request) -> Any:
        return self.do_open(_watched(HTTPConnection, self._deadline), request)


class _Secure(HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: Request) -> Any:
        return self.do_open(_watched(HTTPSConnection, self._deadline), request)


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
        raise SourceError(f"{shown(url)}: received a web page instead of the file (a log-in page, or from a proxy?)")
