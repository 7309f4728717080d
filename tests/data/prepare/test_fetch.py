"""One file that cannot be had is one reason, whatever is wrong with it; a store that fails as a whole is an OSError."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ito_ray.data.prepare import fetch as fetch_module
from ito_ray.data.prepare.fetch import STORE_FAILURES, WEB_FAILURES, fetch
from ito_ray.data.prepare.listing import Listed, ListedSource, load, load_all
from ito_ray.data.prepare.options import Table
from ito_ray.data.prepare.plan import place
from ito_ray.data.prepare.web import DEFAULT_POLICY, FetchPolicy
from ito_ray.errors import UnreadableError
from tests.data.makers import picture
from tests.data.prepare.makers import read_back, run, write_csv
from tests.data.prepare.web_server import GOOD, Web, cut_off, reason, send
from tests.data.store import serving


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


def test_a_table_of_everything_that_can_be_wrong_balances(server: Web, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(picture(1))
    server.answers |= {"/403": 403, "/410": 410, "/500": 500, "/404": 404, "/cut": cut_off, "/html": 200}
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
