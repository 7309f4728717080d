"""Downloads from web servers that may misbehave: bounded in size and time, redirects never into a network of ours.

A name may lead to any address, also to another one at the next look-up: the address that a connection really has is
checked before anything is sent.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    LocationValueError,
    NameResolutionError,
    SSLError,
)

from ito_ray.data.rows import BadSample
from ito_ray.data.shards import public_url

Kind = Literal["public", "private", "loopback", "forbidden"]
EVERYWHERE: frozenset[Kind] = frozenset({"public", "private", "loopback"})
MOST_REDIRECTS = 5
MOST_WAIT = 20.0
"""Seconds that a server's Retry-After is heeded."""
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "ito_ray (prepare)", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
_KEEPERS = {ipaddress.ip_address(address) for address in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")}
"""Where clouds give credentials to their machines, beside the link-local 169.254.169.254."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""An IPv4 address follows."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MISSING = (404, 410)
_BUSY = (408, 425, 429, 502, 503, 504)


SCHEMES = ("http", "https", "s3", "gs", "gcs")
"""What an address in a table may begin with: its author may be a stranger."""


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and how much of it."""

    schemes: tuple[str, ...] | None = SCHEMES
    """Allowed schemes of addresses; None = all, for addresses that the user's own command line gave."""
    max_bytes: int = 100_000_000
    """Of one file; larger ones are not read to their end."""
    seconds: float = 60.0
    """For one download, from the first connection to the last byte."""
    per_host: int = 4
    """Downloads at a time from one web server, for each task."""
    keep: bool = False
    """Keep what was fetched until the job ends (kept.py)."""


DEFAULT_POLICY = FetchPolicy()


class TransientError(Exception):
    """A failure that may be over at the next attempt.

    Args:
        detail: what happened.
        down: the server, not this one file, seems to be at fault.
        wait: seconds that the server asks us to stay away.
    """

    def __init__(self, detail: str, *, down: bool, wait: float = 0.0) -> None:
        super().__init__(detail)
        self.detail, self.down, self.wait = detail, down, wait


def host_of(url: str) -> str:
    """Host in lower case; raises BadSample when there is none."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise BadSample("file_not_readable", f"{public_url(url)[:200]} names no server")
    return host


def download(url: str, policy: FetchPolicy) -> bytes:
    """The body behind `url`, redirects followed.

    Raises:
        BadSample: it cannot be had.
        TransientError: it may be had later.
    """
    until = time.monotonic() + policy.seconds
    try:
        return _follow(url, policy, until)
    except (BadSample, TransientError):
        raise
    except SSLError as error:
        raise BadSample("file_not_readable", f"{public_url(url)[:200]}: {_brief(error)}") from error
    except (LocationParseError, LocationValueError, UnicodeError, ValueError) as error:
        raise BadSample("file_not_readable", f"{public_url(url)[:200]}: {_brief(error)}") from error
    except (HTTPError, OSError) as error:
        raise TransientError(f"{public_url(url)[:200]}: {_brief(error)}", down=True) from error


def _follow(url: str, policy: FetchPolicy, until: float) -> bytes:
    allowed = EVERYWHERE
    first = url
    for _ in range(MOST_REDIRECTS + 1):
        kinds = check_host(host_of(url), allowed)
        if url == first:
            # From the open web to the open web; within a network of ours, not into another.
            allowed = frozenset({"public"}) if "public" in kinds else frozenset({"public", *kinds})
        manager = _manager(EVERYWHERE if url == first else allowed, policy.seconds, policy.per_host)
        headers = _HEADERS | (_login(url) if url == first else {})
        response = manager.request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False, decode_content=False
        )
        whole = False
        try:
            target = response.headers.get("Location")
            if response.status in _REDIRECTS and target:
                url = urljoin(url, target)
                if urlsplit(url).scheme not in ("http", "https"):
                    raise BadSample(
                        "address_not_allowed", f"{public_url(first)[:200]} leads to {public_url(url)[:200]}"
                    )
                continue
            _check_status(first, response)
            data = _body(first, response, policy.max_bytes, until)
            whole = True
            return data
        finally:
            if not whole:
                response.close()
            response.release_conn()
    raise BadSample("address_not_allowed", f"{public_url(first)[:200]}: more than {MOST_REDIRECTS} redirects")


def _check_status(url: str, response: urllib3.BaseHTTPResponse) -> None:
    status, shown = response.status, f"{public_url(url)[:200]}: HTTP {response.status}"
    if status in (200, 203):
        return
    if status in _MISSING:
        raise BadSample("missing_file", shown)
    if status in _BUSY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise TransientError(
            shown, down=status in _BUSY, wait=min(float(wait), MOST_WAIT) if wait.isascii() and wait.isdigit() else 0.0
        )
    raise BadSample("file_not_readable", shown)


def _body(url: str, response: urllib3.BaseHTTPResponse, most: int, until: float) -> bytes:
    """Read as it comes, so that neither size nor time can be more than allowed, whatever the headers say."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":  # it was asked not to; unpacked, a small body may be of any size
        raise BadSample("file_not_readable", f"{public_url(url)[:200]}: Content-Encoding {encoding[:40]}")
    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > most:
            raise BadSample("file_too_large", f"{public_url(url)[:200]} has more than {most:,} bytes")
        if time.monotonic() > until:
            raise TransientError(f"{public_url(url)[:200]}: not whole in time, {len(data):,} bytes came", down=True)
    return bytes(data)


def check_host(host: str, allowed: frozenset[Kind] = EVERYWHERE) -> set[Kind]:
    """Where the host's addresses are.

    Raises:
        BadSample: one of them is where nothing may be fetched from.
        TransientError: the name has no address, now.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise TransientError(f"{host[:200]}: {error}", down=True) from error
    kinds = {_kind(str(entry[4][0])) for entry in found}
    if not kinds <= allowed:
        raise BadSample("address_not_allowed", f"{host[:200]} is {', '.join(sorted(kinds - allowed))} here")
    return kinds


def _kind(address: str) -> Kind:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or (ipaddress.ip_address(ip.packed[12:]) if ip in _NAT64 else ip)
    if ip.is_link_local or ip.is_multicast or ip in _KEEPERS:
        return "forbidden"
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    return "public" if ip.is_global else "private"


def _login(url: str) -> dict[str, str]:
    """User and password of the address, for its own server alone."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    return dict(urllib3.make_headers(basic_auth=f"{parts.username}:{parts.password or ''}"))


@lru_cache(maxsize=16)
def _manager(allowed: frozenset[Kind], seconds: float, per_host: int) -> urllib3.PoolManager:
    """Connections to servers whose addresses are allowed, kept for the life of the process."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            kind = _kind(self.sock.getpeername()[0])
            if kind not in allowed:
                self.close()
                raise BadSample("address_not_allowed", f"{self.host} is {kind} here")

        def getresponse(self) -> Any:
            late = threading.Event()
            timer = threading.Timer(seconds, self._hang_up, (late,))  # a header may come byte by byte for ever
            timer.start()
            try:
                response = super().getresponse()
            finally:
                timer.cancel()
            if late.is_set():  # what is cut off may look whole
                raise TimeoutError(f"no answer in {seconds:g} s")
            return response

        def _hang_up(self, late: threading.Event) -> None:
            late.set()
            with suppress(OSError, AttributeError):
                self.sock.shutdown(socket.SHUT_RDWR)

    class Secure(Plain, HTTPSConnection):
        pass

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    timeout = urllib3.Timeout(connect=min(seconds, 10.0), read=min(seconds, 30.0))
    manager = urllib3.PoolManager(num_pools=64, maxsize=per_host, block=True, timeout=timeout)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def _brief(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    name = "no such host" if isinstance(inner, NameResolutionError) else type(inner).__name__
    return f"{name}: {inner}"[:200]
