"""Web servers that misbehave, and addresses that lead where nothing may be fetched from."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ito_ray.data.prepare import web
from ito_ray.data.prepare.fetch import fetch
from ito_ray.data.prepare.web import DEFAULT_POLICY, FetchPolicy, check_host
from ito_ray.data.rows import BadSample
from tests.data.prepare.web_server import GOOD, Web, cut_off, reason, send


@pytest.mark.parametrize(
    ("status", "expected", "times"),
    [
        (403, "file_not_readable", 1),
        (401, "file_not_readable", 1),
        (400, "file_not_readable", 1),
        (204, "file_not_readable", 1),
        (304, "file_not_readable", 1),
        (404, "missing_file", 1),
        (410, "missing_file", 1),
        (429, "download_failed", 3),
        (500, "download_failed", 3),
        (503, "download_failed", 3),
    ],
)
def test_each_http_status_is_a_reason(server: Web, status: int, expected: str, times: int) -> None:
    server.answers["/a.png"] = status
    found, detail = reason(server.url("/a.png"))
    assert (found, server.asked["/a.png"]) == (expected, times)
    assert f"HTTP {status}" in detail
    assert fetch(server.url("/b.png"), DEFAULT_POLICY) == GOOD


def test_what_fails_once_is_tried_again_as_late_as_the_server_asks(server: Web) -> None:
    moments: list[float] = []

    def busy(request: BaseHTTPRequestHandler) -> None:
        moments.append(time.monotonic())
        if len(moments) == 1:
            send(request, b"", 429, Retry_After="1")
        else:
            send(request, GOOD)

    server.answers["/a.png"] = busy
    assert fetch(server.url("/a.png"), DEFAULT_POLICY) == GOOD
    assert moments[1] - moments[0] >= 1


def _endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(300):
        request.wfile.write(bytes(1 << 20))
    request.close_connection = True


def _slow_body(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(b"x")
        time.sleep(0.05)


def _slow_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(1000):
        request.wfile.write(b"x")
        time.sleep(0.05)


def _silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def _reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    request.close_connection = True


def _no_http(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-x\r\n")
    request.close_connection = True


@pytest.mark.parametrize("answer", [_slow_body, _slow_headers, _silent, cut_off, _reset, _no_http])
def test_a_server_that_misbehaves_costs_one_row_and_little_time(server: Web, answer: Any) -> None:
    server.answers["/a.png"] = answer
    begun = time.monotonic()
    assert reason(server.url("/a.png"), FetchPolicy(seconds=0.5))[0] == "download_failed"
    assert time.monotonic() - begun < 6
    assert server.asked["/a.png"] == 3


def test_a_body_without_end_is_left_at_the_limit(server: Web) -> None:
    server.answers["/a.png"] = _endless
    assert reason(server.url("/a.png"), FetchPolicy(max_bytes=3_000_000)) == (
        "file_too_large",
        f"{server.url('/a.png')} has more than 3,000,000 bytes",
    )
    assert fetch(server.url("/b.png"), DEFAULT_POLICY) == GOOD


def test_a_packed_body_is_not_unpacked(server: Web) -> None:
    server.answers["/a.png"] = lambda request: send(request, b"x", Content_Encoding="gzip")
    assert reason(server.url("/a.png"))[0] == "file_not_readable"


def _to(target: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: send(request, b"", 302, Location=target)


def test_redirects_are_few_and_lead_nowhere_else(server: Web) -> None:
    server.answers |= {
        "/one": _to("/good.png"),
        "/loop": _to("/loop"),
        "/file": _to("file:///etc/passwd"),
        "/meta": _to("http://169.254.169.254/latest/meta-data"),
        "/lan": _to("http://10.0.0.1/a.png"),
        "/s3": _to("s3://bucket/a.png"),
    }
    assert fetch(server.url("/one"), DEFAULT_POLICY) == GOOD
    for path in ("/loop", "/file", "/meta", "/lan", "/s3"):
        assert reason(server.url(path))[0] == "address_not_allowed", path
    assert server.asked["/loop"] == 6


def test_from_the_open_web_no_redirect_leads_into_a_network_of_ours(
    server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = web._kind
    monkeypatch.setattr(web, "_kind", lambda address: "public" if address == "127.0.0.1" else kind(address))
    monkeypatch.setattr(web, "_manager", web._manager.__wrapped__)
    for target in ("http://[::1]/a.png", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/", "http://0/"):
        server.answers["/a"] = _to(target)
        assert reason(server.url("/a"))[0] == "address_not_allowed", target
    server.answers["/a"] = lambda request: send(request, b"", 302, Location="/good")
    assert fetch(server.url("/a"), DEFAULT_POLICY) == GOOD


def test_a_name_that_leads_elsewhere_at_the_second_look_is_found_out(
    server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "check_host", lambda host, allowed=web.EVERYWHERE: {"public"})
    server.answers["/a"] = lambda request: send(request, b"", 302, Location=server.url("/good"))
    assert reason(server.url("/a")) == ("address_not_allowed", "127.0.0.1 is loopback here")


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("169.254.169.254", "forbidden"),
        ("::ffff:169.254.169.254", "forbidden"),
        ("fd00:ec2::254", "forbidden"),
        ("64:ff9b::169.254.169.254", "forbidden"),
        ("2002:a9fe:a9fe::1", "forbidden"),
        ("64:ff9b::8.8.8.8", "public"),
        ("fe80::1%eth0", "forbidden"),
        ("224.0.0.1", "forbidden"),
        ("127.8.8.8", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::1", "loopback"),
        ("172.16.1.1", "private"),
        ("100.64.0.1", "private"),
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
    ],
)
def test_kinds_of_addresses(address: str, kind: str) -> None:
    assert web._kind(address) == kind


@pytest.mark.parametrize("address", ["http://", "http:///a.png", "http://[::1", "http://x:port/", "https://\ud800/"])
def test_addresses_that_are_none(address: str) -> None:
    assert reason(address)[0] in ("file_not_readable", "download_failed")


def test_no_name_no_server_and_no_certificate(server: Web, tmp_path: Path) -> None:
    assert reason("http://nothing.invalid/a.png")[0] == "download_failed"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert reason(f"http://127.0.0.1:{closed.getsockname()[1]}/a.png")[0] == "download_failed"
    assert reason(server.url("/a.png").replace("http:", "https:"))[0] == "file_not_readable"


def test_a_certificate_that_nobody_signed(server: Web, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    found, detail = reason(server.url("/a.png").replace("http:", "https:"))
    assert found == "file_not_readable"
    assert "certificate verify failed" in detail


def test_user_and_password_go_to_their_own_server_alone(server: Web) -> None:
    seen: dict[str, str | None] = {}

    def note(request: BaseHTTPRequestHandler) -> None:
        seen[request.path] = request.headers.get("Authorization")
        if request.path == "/a":
            send(request, b"", 302, Location="/b")
        else:
            send(request, GOOD)

    server.answers |= {"/a": note, "/b": note}
    address = server.url("/a").replace("://", "://me:secret@")  # pragma: allowlist secret
    assert fetch(address, DEFAULT_POLICY) == GOOD
    assert seen == {"/a": "Basic bWU6c2VjcmV0", "/b": None}
    server.answers["/a"] = 403
    assert "secret" not in reason(address)[1]


def test_check_host_refuses_what_is_not_allowed() -> None:
    with pytest.raises(BadSample, match=r"127\.0\.0\.1 is loopback here"):
        check_host("127.0.0.1", frozenset({"public"}))
