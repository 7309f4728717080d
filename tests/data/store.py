"""A small object store on this machine: as much of S3 as Arrow asks for, with faults on demand."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

Fault = Callable[[str, str], int | float | None]
"""(method, key) → an HTTP status to answer with, seconds to be late by (float), or None."""


class Store:
    """Serves `folder` as the bucket `bucket`; `requests` counts methods, LIST among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.fault: Fault = lambda method, key: None
        self._parts: dict[str, dict[int, bytes]] = {}
        """Of the uploads under way, by key; one of a key at a time."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                store.answer(self)

            def do_GET(self) -> None:
                store.answer(self)

            def do_PUT(self) -> None:
                store.answer(self)

            def do_POST(self) -> None:
                store.answer(self)

            def do_DELETE(self) -> None:
                store.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, key: str) -> str:
        """Address of a key for `list_shards`."""
        port = self.server.server_address[1]
        return f"s3://bucket/{key}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        split = urlsplit(request.path)
        key = split.path.removeprefix("/bucket").strip("/")
        method = "LIST" if "list-type" in split.query else request.command
        self.requests[method] += 1
        sent = _body(request)
        fault = self.fault(method, key)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            return _send(request, fault, b"")
        query = parse_qs(split.query, keep_blank_values=True)
        if method == "LIST":
            return _send(request, 200, self._listed(query))
        if method not in ("HEAD", "GET"):
            return _send(request, 200, self._changed(method, key, query, sent), {"ETag": '"x"'})
        path = self.folder / key
        if not key or not path.is_file():
            return _send(request, 404, b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>")
        data = path.read_bytes()
        status, headers = 200, {"ETag": '"x"', "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT"}
        if wanted := request.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            stop = min(int(last) + 1, len(data)) if last else len(data)
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            status, data = 206, data[int(first) : stop]
        return _send(request, status, data, headers)

    def _changed(self, method: str, key: str, query: dict[str, list[str]], sent: bytes) -> bytes:
        """Take an object, whole or in parts, or remove some; it is there once its last part is."""
        if method == "DELETE" and "uploadId" not in query:
            self._remove(key)
        elif method == "POST" and "delete" in query:
            for name in re.findall(r"<Key>(.*?)</Key>", sent.decode()):
                self._remove(name)
            return b"<DeleteResult></DeleteResult>"
        elif method == "POST" and "uploads" in query:
            self._parts[key] = {}
            head = f"<Bucket>bucket</Bucket><Key>{key}</Key><UploadId>one</UploadId>"
            return f"<InitiateMultipartUploadResult>{head}</InitiateMultipartUploadResult>".encode()
        elif method == "PUT" and "partNumber" in query:
            self._parts[key][int(query["partNumber"][0])] = sent
        elif method == "POST":
            self._keep(key, b"".join(part for _, part in sorted(self._parts.pop(key).items())))
            return b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>'
        elif sent:  # else Arrow's sign for a folder, of which there are real ones here
            self._keep(key, sent)
        return b""

    def _keep(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _remove(self, key: str) -> None:
        path = self.folder / key
        if path.is_file():
            path.unlink()

    def _listed(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        files = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        wanted = [key for key in files if key.startswith(prefix)]
        found = "".join(
            f"<Contents><Key>{key}</Key><Size>{(self.folder / key).stat().st_size}</Size>"
            "<LastModified>2026-11-22T00:00:00.000Z</LastModified></Contents>"
            for key in wanted
        )
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        facts = f"<KeyCount>{len(wanted)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"{head}{facts}{found}</ListBucketResult>".encode()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """What was sent: in chunks of HTTP, and in them in those that Amazon's library signs."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        data = _unchunked(cast(BinaryIO, request.rfile))
    else:
        data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    signed = request.headers.get("x-amz-content-sha256", "").startswith("STREAMING")
    return _unchunked(io.BytesIO(data)) if signed else data


def _unchunked(file: BinaryIO) -> bytes:
    pieces = []
    while size := int(file.readline().split(b";")[0], 16):
        pieces.append(file.read(size))
        file.readline()
    while file.readline().strip():  # what follows the last chunk, and an empty line
        pass
    return b"".join(pieces)


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """The store, up and running."""
    store = Store(folder)
    thread = threading.Thread(target=store.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        thread.join()
