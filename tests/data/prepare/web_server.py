"""A web server on this machine that does what a test tells it to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ito_ray.data.prepare.fetch import fetch
from ito_ray.data.prepare.web import DEFAULT_POLICY, FetchPolicy
from ito_ray.data.rows import BadSample
from tests.data.makers import picture

GOOD = picture(0)


class Web:
    """A server on this machine; `answers[path]` is what it does, an HTTP status or a function of the request."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.answers: dict[str, int | Callable[[BaseHTTPRequestHandler], None]] = {}
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with lock:
                    outer.asked[self.path] += 1
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    answer = outer.answers.get(self.path, 200)
                    if callable(answer):
                        answer(self)
                    else:
                        send(self, GOOD if answer == 200 else b"no", answer)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with lock:
                        outer.at_once -= 1

            def log_message(self, format: str, *arguments: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"


def send(request: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(data)


def cut_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)
    request.close_connection = True


def reason(address: str, policy: FetchPolicy = DEFAULT_POLICY) -> tuple[str, str]:
    with pytest.raises(BadSample) as caught:
        fetch(address, policy)
    return caught.value.reason, caught.value.detail
