"""The local page over real HTTP, and in a real browser where there is one."""

from __future__ import annotations

import http.client
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from ito_ray.errors import ConfigError
from ito_ray.search.index import Index
from ito_ray.search.page import LONGEST_QUERY
from ito_ray.search.server import SearchServer
from tests.embeddings.makers import HashEncoder
from tests.search.makers import NASTY, make_index

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return make_index(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def server(index: Index) -> Iterator[SearchServer]:
    with SearchServer(index, HashEncoder(), host="127.0.0.1", port=0, top=8) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _ask(
    server: SearchServer, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, answer.headers.get_content_type(), dict(answer.headers), body
    finally:
        connection.close()


def test_a_browser_that_leaves_is_no_error(server: SearchServer, capfd: pytest.CaptureFixture[str]) -> None:
    """It closes its connection with a reset, before it has read anything, or in the midst of its request."""
    for sent in (b"GET /?q=a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50, b"GET /?q="):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", int(server.server_address[1]))) as browser:
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                browser.sendall(sent)
    assert _ask(server, "/")[0] == 200
    time.sleep(0.5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("left", [BrokenPipeError, ConnectionResetError, ConnectionAbortedError, TimeoutError])
def test_what_a_leaving_browser_raises_is_silent_and_a_bug_is_not(
    server: SearchServer, left: type[OSError], capfd: pytest.CaptureFixture[str]
) -> None:
    for error in (left(), ZeroDivisionError()):
        try:
            raise error
        except Exception:
            server.handle_error(None, ("127.0.0.1", 1))
    printed = capfd.readouterr().err
    assert "ZeroDivisionError" in printed and left.__name__ not in printed


def test_a_query_gives_the_pictures_of_the_index(server: SearchServer, index: Index) -> None:
    status, kind, headers, body = _ask(server, "/?q=" + quote("a red heart"))
    assert (status, kind) == (200, "text/html")
    hits = index.search(HashEncoder().encode_texts(["a red heart"])[0], 8)
    html = body.decode()
    places = [html.index(f"/picture/{hit.entry.row}") for hit in hits]
    assert places == sorted(places), "the best first"
    for hit in hits:
        assert f"<code>{hit.entry.key}</code>" in html and f"{hit.similarity:.3f}" in html
        status, kind, _, picture = _ask(server, f"/picture/{hit.entry.row}")
        assert (status, kind, picture) == (200, "image/webp", hit.entry.thumbnail)
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_what_resembles_a_row(server: SearchServer, index: Index) -> None:
    html = _ask(server, "/?like=7")[3].decode()
    hits = index.search(index.vector(7), 9)
    assert hits[0].entry.row == 7
    assert html.count("<li>") == 8
    assert all(f"<code>{hit.entry.key}</code>" in html for hit in hits[1:])


def test_texts_of_people_and_of_data_are_escaped(server: SearchServer, index: Index) -> None:
    html = _ask(server, "/?q=" + quote(NASTY))[3].decode()
    row = next(row for row in range(len(index)) if index.entry(row).caption == NASTY)
    html += _ask(server, f"/?like={row}")[3].decode()
    assert "<script" not in html and "&lt;script&gt;" in html and 'value="&lt;script' in html


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/?q=" + "x" * (LONGEST_QUERY + 1), 400, f"at most {LONGEST_QUERY}"),
        ("/" + "x" * 9000, 414, "too long"),
        ("/?like=30", 404, "no such row"),
        ("/?like=-1", 404, "no such row"),
        ("/?like=%D9%A1", 404, "no such row"),
        ("/picture/../../etc/passwd", 404, "no such row"),
        ("/picture/99999999999999999999", 404, "no such row"),
        ("/etc/passwd", 404, "no such page"),
        ("/?" + "&".join(f"a{n}=1" for n in range(20)), 400, "cannot be understood"),
        ("http://169.254.169.254/latest", 403, "localhost only"),
    ],
)
def test_requests_that_are_refused(server: SearchServer, path: str, status: int, said: str) -> None:
    answered, _, _, body = _ask(server, path)
    assert (answered, said in body.decode()) == (status, True)
    assert _ask(server, "/")[0] == 200, "and the server lives on"


def test_other_methods_and_other_names_are_refused(server: SearchServer) -> None:
    assert _ask(server, "/", method="POST")[0] == 501
    assert _ask(server, "/", headers={"Host": "evil.example"})[0] == 403
    assert _ask(server, "/", headers={"Host": "localhost:1"})[0] == 200
    status, _, headers, body = _ask(server, "/", method="HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 500


def test_many_at_once(server: SearchServer) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(_ask(server, f"/?q=text+{n}")[0])) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 20


def test_a_port_in_use_is_a_sentence(server: SearchServer, index: Index) -> None:
    port = int(server.server_address[1])
    with pytest.raises(ConfigError, match=rf"--port {port} cannot be listened on: it is in use"):
        SearchServer(index, HashEncoder(), host="127.0.0.1", port=port, top=8)
    with pytest.raises(ConfigError, match="cannot be listened on"):
        SearchServer(index, HashEncoder(), host="no.such.host.invalid", port=0, top=8)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_a_person_types_and_sees_pictures(
    server: SearchServer, index: Index, browser: Any, tmp_path: Path, width: int
) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": width, "height": 900})
    slow = {"offline": False, "latency": 200, "downloadThroughput": -1, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)  # images come after the page
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.get_by_label("What to look for").fill(NASTY)
    page.keyboard.press("Enter")
    page.wait_for_selector("li img")
    hits = index.search(HashEncoder().encode_texts([NASTY])[0], 8)
    assert page.locator("li code:first-of-type").all_inner_texts() == [hit.entry.key for hit in hits]
    for image in page.locator("img").all():  # to wait by an expression would need eval, which the page's policy forbids
        expect(image).to_have_js_property("naturalWidth", 16)
    assert page.get_by_label("What to look for").input_value() == NASTY
    assert page.title() != "hacked"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    page.locator("li a").first.click()
    page.wait_for_selector(".query img")
    best = hits[0].entry.row
    assert page.url.endswith(f"/?like={best}")
    others = [hit.entry.key for hit in index.search(index.vector(best), 9) if hit.entry.row != best]
    assert page.locator("li code:first-of-type").all_inner_texts() == others
    shot = page.screenshot(path=str(tmp_path / "page.png"))
    assert np.frombuffer(shot, np.uint8).size > 5000
    assert complaints == [], "neither scripts nor the content policy complain"
    page.close()
