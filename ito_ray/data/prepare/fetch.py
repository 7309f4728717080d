"""The bytes of one file that a listing names: on disk, on the web or in an object store.

Whatever concerns that one file is a BadSample: missing_file, file_not_readable, file_too_large, address_not_allowed
and, after retries, download_failed. What concerns all of them, a disk or store that fails, is an OSError with an errno.
"""

from __future__ import annotations

import errno
import random
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs

from ito_ray.data.prepare.web import FetchPolicy, TransientError, check_host, download, host_of
from ito_ray.data.rows import BadSample
from ito_ray.data.shards import open_fs, public_url
from ito_ray.redact import remember

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(::.*)?://")
"""An address, chained ones of fsspec (`zip::http://…`) included; anything else is a path."""
RETRY_SECONDS = (0.5, 2.0)
"""Waits between attempts, give or take a half."""
WEB_FAILURES = 32
"""So many in a row of a web server that has answered before, and it is taken to be down or to have had enough of us."""
STORE_FAILURES = 3
"""So many in a row of an object store, and it is taken to be down."""
_HOPELESS = 8
"""So many in a row of a server that never answered, and it is asked only once for each further file."""
_DISK_FAILS = {
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EREMOTEIO),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENODEV),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOBUFS),
}
_STORE_FAILS = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING|status 5\d\d"
    r"|status 429|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|resolve host|connect|timed? ?out|temporar",
    re.IGNORECASE,
)


def is_remote(address: str) -> bool:
    """Whether reading it is waiting."""
    return ADDRESS.match(address) is not None


def fetch(address: str, policy: FetchPolicy) -> bytes:
    """The bytes of a path or address.

    Raises:
        BadSample: see above.
        OSError: the disk, store or web server fails as a whole.
    """
    remember(address)  # errors may quote a part of it
    found = ADDRESS.match(address)
    if found is None:
        return _from_disk(address, policy.max_bytes)
    scheme, chain = found[1].lower(), found[2]
    if policy.schemes is not None and (chain or scheme not in policy.schemes):
        allowed = ", ".join(policy.schemes)
        raise BadSample("address_not_allowed", f"{public_url(address)[:200]}: allowed are paths and {allowed}")
    if scheme == "file" and not chain:
        return _from_disk(address[found.end() :], policy.max_bytes)
    if scheme in ("http", "https") and not chain:
        return _retrying(host_of(address), WEB_FAILURES, lambda: download(address, policy))
    store = address.partition("?")
    bucket = f"{found[0]}{address[found.end() :].partition('/')[0]}?{store[2]}"
    return _retrying(bucket, STORE_FAILURES, lambda: _from_store(address, policy))


def _from_disk(path: str, most: int) -> bytes:
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe or device would be waited for
            kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
            raise BadSample("file_not_readable", f"{path[:200]} is a {kind}, not a file")
        with Path(path).open("rb") as file:
            return _limited(file.read(most + 1), path, most)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadSample("missing_file", f"no file {path[:200]}") from error
    except OSError as error:
        if error.errno in _DISK_FAILS:
            raise
        raise BadSample("file_not_readable", f"{path[:200]}: {error.strerror}") from error
    except ValueError as error:  # NUL
        raise BadSample("file_not_readable", f"{path[:200]!r}: {error}") from error


def _from_store(address: str, policy: FetchPolicy) -> bytes:
    shown = public_url(address)[:200]
    try:
        _check_endpoint(address)
        fs, path = open_fs(address)
        with fs.open(path, "rb") as file:
            return _limited(file.read(policy.max_bytes + 1), shown, policy.max_bytes)
    except BadSample:
        raise
    except FileNotFoundError as error:
        raise BadSample("missing_file", f"no file {shown}") from error
    except Exception as error:  # whatever the store's library raises
        detail = f"{shown}: {type(error).__name__}: {error}"[:400]
        known = isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _DISK_FAILS
        if known or (isinstance(error, OSError) and _STORE_FAILS.search(str(error))):
            raise TransientError(detail, down=True) from error
        raise BadSample("file_not_readable", detail) from error


def _check_endpoint(address: str) -> None:
    """An address may name the store's own server, which must not be this machine's keeper of credentials."""
    for endpoint in parse_qs(address.partition("?")[2]).get("endpoint_override", []):
        check_host(host_of(endpoint if "://" in endpoint else f"http://{endpoint}"))


def _limited(data: bytes, shown: str, most: int) -> bytes:
    if len(data) > most:
        raise BadSample("file_too_large", f"{shown[:200]} has more than {most:,} bytes")
    return bytes(data)


class _Server:
    """How a server has done so far, in this process."""

    def __init__(self) -> None:
        self.answered = False
        self.failures = 0
        self.lock = Lock()

    def note(self, *, failed: bool) -> int:
        """Note the end of a download; failures in a row."""
        with self.lock:
            self.answered = self.answered or not failed
            self.failures = self.failures + 1 if failed else 0
            return self.failures


_servers: defaultdict[str, _Server] = defaultdict(_Server)


def _retrying(host: str, most_failures: int, download: Callable[[], bytes]) -> bytes:
    """The download, tried again where that may help.

    Raises:
        OSError: the server fails as a whole: too many of its files in a row.
    """
    server = _servers[host]
    waits: tuple[float, ...] = () if server.failures >= _HOPELESS and not server.answered else RETRY_SECONDS
    if most_failures == STORE_FAILURES:
        waits = waits[:1]  # its library has tried a few times by itself
    for wait in (*waits, None):
        try:
            data = download()
        except BadSample:
            server.note(failed=False)
            raise
        except TransientError as error:
            if wait is not None:
                time.sleep(max(wait * random.uniform(0.5, 1.5), error.wait))
                continue
            failures = server.note(failed=True) if error.down else 0
            if failures >= most_failures and (server.answered or most_failures == STORE_FAILURES):
                raise OSError(
                    errno.EIO, f"{public_url(host)} fails: {failures} files in a row, at last {error.detail}"
                ) from error
            raise BadSample("download_failed", error.detail) from error
        server.note(failed=False)
        return data
    raise AssertionError("the last attempt returns or raises")
