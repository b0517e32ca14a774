"""Which hosts a request may name, and from which pages it may come: against DNS rebinding and cross-site requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

from recbole_onebp.util.errors import UserError

__all__ = ["Origins"]

_HOST = re.compile(r"[a-z0-9._:-]+")


class Origins:
    """The hosts under which a service may be addressed."""

    def __init__(self, allowed: Iterable[str] = (), listens_on: str = "127.0.0.1") -> None:
        """Loopback names and the host that the service listens on are always allowed.

        Args:
            allowed: further names, without a port; ``*`` allows all.
            listens_on: the host.  If this means all addresses, as ``0.0.0.0``, any IP address is allowed: a page of
                somebody else can make a name point to this service, but not an address.

        Raises:
            UserError: for what is no name of a host.
        """
        self._named = {_name(host, host) if host != "*" else host for host in allowed}
        address = _address(listens_on)
        self._any_address = address is not None and address.is_unspecified
        self._allowed = self._named | {"localhost", listens_on.lower().rstrip(".")}

    def allows_host(self, header: bytes | None) -> bool:
        """Whether a request with this ``Host`` header is meant for the service."""
        host = _host_of(header)
        return host is not None and self._is_allowed(host[0])

    def allows_origin(self, header: bytes | None, host_header: bytes | None) -> bool:
        """Whether a request that changes something may come from a page of this ``Origin``; None is no page."""
        if header is None:
            return True
        scheme, separator, rest = header.partition(b"://")
        origin = _host_of(rest) if separator and scheme in (b"http", b"https") else None
        if origin is None:
            return False
        if "*" in self._named or origin[0] in self._named:
            return True
        own, default = _host_of(host_header), 443 if scheme == b"https" else 80
        return own is not None and (own[0], own[1] or default) == (origin[0], origin[1] or default)

    def _is_allowed(self, host: str) -> bool:
        if "*" in self._named or host in self._allowed:
            return True
        address = _address(host)
        return address is not None and (address.is_loopback or self._any_address)


@lru_cache(64)
def _host_of(header: bytes | None) -> tuple[str, int | None] | None:
    """Host and port of a header; None if it has another form."""
    with suppress(ValueError):  # of a port, or of a bracket
        text = (header or b"").decode("ascii")
        parts = urlsplit(f"//{text}")
        if parts.netloc == text and "@" not in text and _HOST.fullmatch(parts.hostname or ""):
            return str(parts.hostname).rstrip("."), parts.port
    return None


def _name(text: str, given: str) -> str:
    host = _host_of((f"[{text}]" if _is_bare_ipv6(text) else text).encode("ascii", "replace"))
    if host is None or host[1] is not None or not text.isascii():
        raise UserError(
            f"allowed_hosts: {given!r} is no name of a host; expected names without a port: a.example,b.example"
        )
    return host[0]


def _is_bare_ipv6(text: str) -> bool:
    address = _address(text)
    return address is not None and address.version == 6


@lru_cache(64)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return None
