"""One file that cannot be had is one reason, whatever is wrong with it; a store that fails as a whole is an OSError."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ito_ray.data.prepare import fetch as fetch_module
from ito_ray.data.prepare import web
from ito_ray.data.prepare.fetch import STORE_FAILURES, WEB_FAILURES, fetch
from ito_ray.data.prepare.listing import Listed, ListedSource, load, load_all
from ito_ray.data.prepare.options import Table
from ito_ray.data.prepare.plan import place
from ito_ray.data.prepare.web import DEFAULT_POLICY, FetchPolicy, check_host
from ito_ray.data.rows import BadSample
from ito_ray.errors import UnreadableError
from tests.data.makers import picture
from tests.data.prepare.makers import read_back, run, write_csv
from tests.data.store import serving

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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(fetch_module, "_servers", type(fetch_module._servers)(fetch_module._Server))
    found = Web()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def reason(address: str, policy: FetchPolicy = DEFAULT_POLICY) -> tuple[str, str]:
    with pytest.raises(BadSample) as caught:
        fetch(address, policy)
    return caught.value.reason, caught.value.detail


def test_whatever_is_wrong_with_a_path_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(GOOD)
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    expected = {
        "loop": "file_not_readable",
        "gone": "missing_file",
        "folder": "file_not_readable",
        "file/below": "missing_file",
        "x" * 300: "file_not_readable",
        "x/" * 3000: "file_not_readable",
        "a\x00b": "file_not_readable",
        "pipe": "file_not_readable",
        "socket": "file_not_readable",
        "none.png": "missing_file",
        "simplecache": "missing_file",
    }
    assert {name: reason(f"{tmp_path}/{name}")[0] for name in expected} == expected
    for device in ("/dev/zero", "/dev/tty"):
        assert reason(device)[0] == "file_not_readable"
    listening.close()
    assert fetch(f"{tmp_path}/file", DEFAULT_POLICY) == GOOD
    assert fetch(f"{tmp_path}/file", FetchPolicy(max_bytes=len(GOOD))) == GOOD
    assert reason(f"{tmp_path}/file", FetchPolicy(max_bytes=len(GOOD) - 1))[0] == "file_too_large"


@pytest.mark.parametrize("name", ["a::b.png", "50%20off.png", "[1].png", "{a,b}.png", "zip::x.png", "~x.png", "a?b=c"])
def test_a_path_is_taken_literally(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    path = write_csv(tmp_path / "t.csv", [{"image": name, "caption": "x"}])
    source = Table(table=path, out=tmp_path / "out").open(tmp_path)
    assert [row.image for _, row in source.read(0)] == [GOOD]


def test_a_failing_disk_is_no_fault_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    number = errno.EACCES

    def failing(self: Path, mode: str) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", failing)
    assert load(Listed("a", f"{tmp_path}/a.png", ["x"])).bad == "file_not_readable"
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        load(Listed("a", f"{tmp_path}/a.png", ["x"]))


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


def _cut_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)
    request.close_connection = True


def _reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    request.close_connection = True


def _no_http(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-x\r\n")
    request.close_connection = True


@pytest.mark.parametrize("answer", [_slow_body, _slow_headers, _silent, _cut_off, _reset, _no_http])
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


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hosts",
        "FILE:///etc/hosts",
        "reference://x",
        "simplecache::http://127.0.0.1/a.png",
        "zip://a.png::http://127.0.0.1/x.zip",
        "memory://a.png",
        "ftp://127.0.0.1/a.png",
        "local://etc/hosts",
        "blockcache::s3://bucket/a.png",
        "github://org/a.png",
        "data://x",
    ],
)
def test_what_a_strangers_table_may_not_name(tmp_path: Path, address: str) -> None:
    assert reason(address)[0] == "address_not_allowed"
    path = write_csv(tmp_path / "t.csv", [{"image": address, "caption": "x"}])
    source = Table(table=path, out=tmp_path / "out").open(tmp_path)
    assert [row.bad for _, row in source.read(0)] == ["address_not_allowed"]


def test_a_scheme_may_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    assert fetch(f"file://{tmp_path}/a.png", FetchPolicy(schemes=("file",))) == GOOD


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


def test_a_server_is_asked_for_few_files_at_a_time(server: Web) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.02)
        send(request, GOOD)

    addresses = [server.url(f"/{number}.png") for number in range(40)]
    server.answers |= {f"/{number}.png": slow for number in range(40)}
    server.answers["/7.png"] = 404
    rows = list(load_all([Listed(a, a, ["x"]) for a in addresses], "pair", FetchPolicy(per_host=3, seconds=59)))
    assert [row.key for row in rows] == addresses
    assert [row.bad for row in rows] == [None] * 7 + ["missing_file"] + [None] * 32
    assert server.most_at_once == 3


def test_a_server_that_never_answers_is_soon_asked_once_for_each_file(server: Web) -> None:
    server.answers |= {f"/{number}": 503 for number in range(12)}
    for number in range(12):
        assert reason(server.url(f"/{number}"))[0] == "download_failed"
    assert [server.asked[f"/{number}"] for number in range(12)] == [3] * 8 + [1] * 4


def test_a_server_that_answered_and_is_gone_stops_the_job_with_a_sentence(server: Web, tmp_path: Path) -> None:
    count = WEB_FAILURES + 2
    server.answers |= {f"/{number}.png": 503 for number in range(1, count)}
    rows = [Listed(str(number), server.url(f"/{number}.png"), ["x"]) for number in range(count)]
    source = ListedSource.write(rows, tmp_path / "listing.parquet", {})
    with pytest.raises(UnreadableError, match=r"127.0.0.1 fails: 3\d files in a row.*HTTP 503.*Run the same command"):
        list(source.read(0))
    server.answers.clear()
    assert [row.bad for _, row in source.read(0)] == [None] * count


def test_object_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", ())
    monkeypatch.setattr(fetch_module, "_servers", type(fetch_module._servers)(fetch_module._Server))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")  # pragma: allowlist secret
    (tmp_path / "a.png").write_bytes(GOOD)
    with serving(tmp_path) as store:
        assert fetch(store.url("a.png"), DEFAULT_POLICY) == GOOD
        assert reason(store.url("a.png"), FetchPolicy(max_bytes=10))[0] == "file_too_large"
        assert reason(store.url("none.png"))[0] == "missing_file"
        store.fault = lambda method, key: 403
        assert reason(store.url("a.png"))[0] == "file_not_readable"
    assert reason("s3://bucket/a.png?endpoint_override=169.254.169.254")[0] == "address_not_allowed"


def test_a_store_that_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", ())
    monkeypatch.setattr(fetch_module, "_servers", type(fetch_module._servers)(fetch_module._Server))

    def down(url: str) -> Any:
        raise OSError("When reading: AWS Error NETWORK_CONNECTION during HeadObject operation")

    monkeypatch.setattr(fetch_module, "open_fs", down)
    for _ in range(STORE_FAILURES - 1):
        assert reason("s3://bucket/a.png")[0] == "download_failed"
    with pytest.raises(OSError, match=r"s3://bucket.* fails: 3 files in a row") as caught:
        fetch("s3://bucket/b.png", DEFAULT_POLICY)
    assert caught.value.errno == errno.EIO


def test_check_host_refuses_what_is_not_allowed() -> None:
    with pytest.raises(BadSample, match=r"127\.0\.0\.1 is loopback here"):
        check_host("127.0.0.1", frozenset({"public"}))


def test_a_table_of_everything_that_can_be_wrong_balances(server: Web, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(picture(1))
    server.answers |= {"/403": 403, "/410": 410, "/500": 500, "/404": 404, "/cut": _cut_off, "/html": 200}
    server.answers["/html"] = lambda request: send(request, b"<html>no</html>")
    images = ["good.png", server.url("/good.png"), "loop.png", "folder.png", "pipe.png", "x" * 300, "none.png"]
    images += [server.url(path) for path in ("/403", "/410", "/500", "/404", "/cut", "/html")]
    images += ["file:///etc/passwd", "http://nothing.invalid/a.png", "simplecache::http://x/a.png"]
    path = write_csv(tmp_path / "t.csv", [{"image": image, "caption": f"c {image[:9]}"} for image in images])
    manifest = run(Table(table=path, out=tmp_path / "out"))
    assert manifest["inputs"] == len(images)
    assert manifest["written"] == {"train": 2, "val": 0}
    unreadable = {name: count for name, count in manifest["dropped"].items() if not name.startswith("image_")}
    assert unreadable == {
        "file_not_readable": 5,
        "missing_file": 3,
        "download_failed": 3,
        "address_not_allowed": 2,
    }
    assert sum(manifest["dropped"].values()) == len(images) - 2
    assert sorted(row.image for row in read_back(tmp_path / "out").values() if row.image) == sorted([GOOD, picture(1)])


def test_each_address_is_fetched_once(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40
    for number in range(count):
        server.answers[f"/{number}.png"] = partial(send, data=picture(number))
    server.answers["/5.png"] = 404
    rows = [{"image": server.url(f"/{number}.png"), "caption": f"c {number}", "key": number} for number in range(count)]
    (tmp_path / "here.png").write_bytes(picture(99))
    rows.append({"image": str(tmp_path / "here.png"), "caption": "here", "key": "here"})
    path = write_csv(tmp_path / "t.csv", rows)
    # What they would get at a second time is another picture.
    monkeypatch.setattr("ito_ray.data.prepare.job.place", _then(server.answers.clear))
    manifest = run(Table(table=path, out=tmp_path / "out", key_column="key", per_shard=7, val_fraction=0.2))
    assert manifest["dropped"] == {"missing_file": 1}
    assert set(server.asked.values()) == {1}
    found = {key: (row.image, row.captions) for key, row in read_back(tmp_path / "out").items()}
    expected = {str(number): (picture(number), (f"c {number}",)) for number in range(count) if number != 5}
    assert found == {**expected, "here": (picture(99), ("here",))}
    assert not list((tmp_path / "out").rglob("*fetched*"))


def test_a_file_that_is_gone_between_the_steps_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    path = write_csv(tmp_path / "t.csv", [{"image": "a.png", "caption": "x"}])
    monkeypatch.setattr("ito_ray.data.prepare.job.place", _then((tmp_path / "a.png").unlink))
    with pytest.raises(UnreadableError, match=r"a.png \(a\) could be read when it was inspected.*missing_file"):
        run(Table(table=path, out=tmp_path / "out"))


def _then(act: Callable[[], object]) -> Callable[..., Any]:
    """`place`, after something has happened."""

    def placing(*arguments: Any) -> Any:
        act()
        return place(*arguments)

    return placing
