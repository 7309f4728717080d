"""A small local page where a person types and sees pictures. Standard library only, for few people at a time.

GET /             the page; ?q=TEXT searches, ?like=ROW shows what resembles a row of the index
GET /picture/ROW  the small picture of that row

A request can name rows of the index and a text, nothing else: no address or path in it is ever opened.
"""

from __future__ import annotations

import errno
import ipaddress
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ito_ray.data.captions import fault_of
from ito_ray.data.preprocess import clean_text
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import Encoder
from ito_ray.search.index import Index
from ito_ray.search.page import LONGEST_QUERY, Page, render

LONGEST_REQUEST = 8192
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_IDLE_SECONDS = 20
_EXAMPLES, _DRAWS = 4, 24


class _Refused(Exception):
    """A request that is not answered with results."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """Serves one index; `serve_forever` until `shutdown`.

    Args:
        host: address to listen on; 127.0.0.1 lets nobody else in.
        port: 0 = any that is free.
        top: pictures shown for a query.

    Raises:
        ConfigError: the port is taken or may not be used, or there is no such address.
    """

    daemon_threads = True

    def __init__(self, index: Index, encoder: Encoder, *, host: str, port: int, top: int) -> None:
        self.index, self.encoder, self.top = index, encoder, top
        self.turn = threading.Lock()
        """The encoder takes one query at a time."""
        self.heading = f"{len(index):,} {'pictures' if index.kind == 'image' else 'texts'}"
        self.examples = _examples(index)
        self.local_only = _is_loopback(host)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = "it is in use" if getattr(error, "errno", 0) == errno.EADDRINUSE else str(error)
            raise ConfigError(
                f"--host {host} --port {port} cannot be listened on: {reason}. Give another --port, or 0 for any."
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before its answer has come is no error; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def page(self, query: Mapping[str, list[str]]) -> Page:
        """The answer to one query. Raises _Refused."""
        text = clean_text(query.get("q", [""])[0])
        like = query.get("like", [""])[0]
        if like:
            return self._similar(self.row(like))
        if not text:
            note = "Type something, or take one of the examples." if self.examples else "Type something."
            return Page(self.heading, note, examples=self.examples, live=True)
        if len(text) > LONGEST_QUERY:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, f"The query has {len(text)} characters, at most {LONGEST_QUERY} are allowed."
            )
        if fault := fault_of(text):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"The query is no text: {fault[1]}.")
        started = time.perf_counter()
        with self.turn:
            vector_D = self.encoder.encode_texts([text])[0]
        hits = self.index.search(vector_D, self.top)
        note = (
            f"{len(hits)} of {len(self.index):,}, the most similar first, in {_ms(started)}; the number is the cosine."
        )
        return Page(self.heading, note, hits, self.index.kind, text=text, live=True)

    def _similar(self, row: int) -> Page:
        started = time.perf_counter()
        hits = self.index.search(self.index.vector(row), self.top + 1)
        others = [hit for hit in hits if hit.entry.row != row][: self.top]
        entry = self.index.entry(row)
        note = (
            f"{len(others)} of {len(self.index):,} that resemble it most, in {_ms(started)}; the number is the cosine."
        )
        picture = f"/picture/{row}" if entry.thumbnail else ""
        caption = entry.caption or entry.key
        return Page(self.heading, note, others, self.index.kind, picture=picture, caption=caption, live=True)

    def row(self, text: str) -> int:
        """A row of the index. Raises _Refused."""
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < len(self.index)):
            raise _Refused(HTTPStatus.NOT_FOUND, "The index has no such row.")
        return int(text)


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    server_version = "ito"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Page or picture."""
        try:
            self._check()
            split = urlsplit(self.path)
            if split.path == "/":
                page = self.server.page(parse_qs(split.query, max_num_fields=8))
                self._send(HTTPStatus.OK, render(page, lambda entry: f"/picture/{entry.row}").encode(), "text/html")
            elif split.path.startswith("/picture/"):
                entry = self.server.index.entry(self.server.row(split.path.removeprefix("/picture/")))
                if not entry.thumbnail:
                    raise _Refused(HTTPStatus.NOT_FOUND, "No picture was kept of this row.")
                self._send(HTTPStatus.OK, entry.thumbnail, "image/webp")
            else:
                raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
        except _Refused as refused:
            self._refuse(refused.status, str(refused))
        except ValueError as error:  # of parse_qs and urlsplit
            self._refuse(HTTPStatus.BAD_REQUEST, f"The address cannot be understood: {str(error)[:100]}.")

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent: what people look for is theirs."""

    def _check(self) -> None:
        if len(self.path) > LONGEST_REQUEST:
            raise _Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long.")
        # A page elsewhere could point its own name at 127.0.0.1 and read the answers.
        if self.server.local_only and not _is_loopback(_host(self.headers.get("Host", ""))):
            raise _Refused(HTTPStatus.FORBIDDEN, "This server answers to 127.0.0.1 and localhost only.")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        page = Page(self.server.heading, "", error=text, examples=self.server.examples, live=True)
        self._send(status, render(page, lambda entry: "").encode(), "text/html")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        caching = "no-store" if kind.startswith("text/") else "private, max-age=3600"
        headers = {"Content-Type": kind + charset, "Content-Length": str(len(body)), "Cache-Control": caching}
        for name, value in {**headers, **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _examples(index: Index) -> tuple[str, ...]:
    """Some captions of the index, always the same."""
    rows = np.random.default_rng(0).choice(len(index), min(_DRAWS, len(index)), replace=False)
    captions = dict.fromkeys(index.entry(int(row)).caption for row in rows)
    return tuple(caption for caption in captions if 0 < len(caption) <= 80)[:_EXAMPLES]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: str) -> str:
    """Of a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _ms(started: float) -> str:
    return f"{1e3 * (time.perf_counter() - started):.0f} ms"
