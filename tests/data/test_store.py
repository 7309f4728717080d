"""Shards in an object store that is slow, refuses, or loses one: waited for, then counted, never a crash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data import rows as module
from ito_ray.data.heldout import HeldoutReader
from ito_ray.data.plan import Piece, make_plan
from ito_ray.data.prepare.stored import ShardSource
from ito_ray.data.rows import Row, read_patiently
from ito_ray.data.shards import list_shards, open_shard
from ito_ray.errors import DataError, UnreadableError
from tests.data.makers import good_tar
from tests.data.store import Store, serving

pytestmark = pytest.mark.slow  # a server, and Arrow's own retries


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    # An address is the whole configuration: no keys or region of the machine may matter.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.01))
    for number in range(4):
        good_tar(tmp_path / f"{number}.tar", 40)
    columns = {"key": [str(i) for i in range(40)], "image": [b"x"] * 40, "caption": ["c"] * 40}
    pq.write_table(pa.table(columns), tmp_path / "4.parquet", row_group_size=10)
    with serving(tmp_path) as running:
        yield running


def _read(url: str, part: int = 0, parts: int = 1) -> list[Row]:
    return read_patiently(Piece(url, part, parts, rows=40), ColumnsConfig())


def _reasons(rows: list[Row]) -> list[str | None]:
    return [row.bad for row in rows]


def test_an_explicit_list_is_not_listed(store: Store) -> None:
    """One HEAD a shard for its size, which the plan cuts by; tars are not opened but for the head of one."""
    shards = list_shards([store.url("{0..3}.tar")], field="f")
    assert store.requests == {"HEAD": 4}
    store.requests.clear()
    make_plan({"train": shards}, {"train": 1}, rows_per_task=40, mix=4, seed=0)
    assert store.requests["GET"] <= 2 and store.requests["HEAD"] <= 1 and store.requests["LIST"] == 0


def test_a_glob_is_one_listing_and_no_request_a_shard(store: Store) -> None:
    assert len(list_shards([store.url("*.tar")], field="f")) == 4
    assert store.requests["LIST"] <= 2 and store.requests["HEAD"] <= 1


@pytest.mark.parametrize("name", ["0.tar", "4.parquet"])
def test_pieces_are_read_by_range(store: Store, name: str) -> None:
    keys = [row.key for part in range(4) for row in _read(store.url(name), part, 4)]
    assert len(keys) == len(set(keys)) == 40


@pytest.mark.parametrize("name", ["0.tar", "4.parquet"])
def test_a_store_that_refuses_for_a_while_is_waited_for(store: Store, name: str) -> None:
    refused: list[str] = []

    def refuse(method: str, key: str) -> int | None:
        if method == "GET" and len(refused) < 5:  # more than Arrow's own tries
            refused.append(key)
            return 503
        return None

    store.fault = refuse
    rows = _read(store.url(name))
    assert len(refused) == 5
    assert _reasons(rows) == [None] * 40


@pytest.mark.parametrize("name", ["0.tar", "4.parquet"])
def test_a_store_that_goes_on_refusing_costs_the_piece_and_says_why(store: Store, name: str) -> None:
    store.fault = lambda method, key: 503 if method == "GET" else None
    rows = _read(store.url(name))
    assert _reasons(rows) == ["shard_unreadable"] * 40, "as many as the plan expects of the piece"
    assert rows[0].url == store.url(name) and "0" in rows[0].detail and rows[0].key == ""


@pytest.mark.parametrize("name", ["0.tar", "4.parquet"])
def test_a_shard_that_vanishes_is_not_waited_for(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (60.0,))
    (store.folder / name).unlink()
    assert _reasons(_read(store.url(name))) == ["shard_unreadable"] * 40


def test_held_out_pairs_are_waited_for_too_and_come_once_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ito_ray.data.tar_members._CHUNK", 4096)
    monkeypatch.setattr("ito_ray.data.tar_members._CHUNK_BEYOND", 4096)
    asked = 0

    def refuse(method: str, key: str) -> int | None:
        nonlocal asked
        asked += method == "GET"
        return 503 if method == "GET" and 6 < asked < 11 else None

    store.fault = refuse
    reader = HeldoutReader([store.url("0.tar")], ColumnsConfig(), max_pixels=10**8, field="data.heldout")
    assert [pair.key for pair in reader] == [row.key for row in _read(str(store.folder / "0.tar"))]
    assert asked > 11, "it failed with some pairs read, and went on"


def test_held_out_pairs_that_cannot_be_read_are_refused(store: Store) -> None:
    reader = HeldoutReader([store.url("0.tar")], ColumnsConfig(), max_pixels=10**8, field="data.heldout")
    store.fault = lambda method, key: 503
    with pytest.raises(UnreadableError, match=r"data\.heldout: s3://bucket/0\.tar.* cannot be read to its end"):
        list(reader)


def test_preparing_from_a_store_that_fails_stops_rather_than_loses(store: Store) -> None:
    source = ShardSource.open([store.url("0.tar")], "own", ColumnsConfig())
    whole = [row.key for _, row in source.read(0)]
    store.fault = lambda method, key: 503
    with pytest.raises(UnreadableError, match="Run the same command again"):
        list(source.read(0))
    store.fault = lambda method, key: None
    assert [row.key for _, row in source.read(0)] == whole


def test_a_slow_store_is_slow_and_no_more(store: Store) -> None:
    store.fault = lambda method, key: 0.3
    assert _reasons(_read(store.url("0.tar"))) == [None] * 40


def test_a_store_that_cannot_be_read_at_start_is_refused_in_a_sentence(store: Store) -> None:
    shards = list_shards([store.url("{0..3}.tar")], field="f")
    store.fault = lambda method, key: 503
    with pytest.raises(DataError, match=r"data\.train: a shard was listed but cannot be read"):
        make_plan({"train": shards}, {"train": 1}, rows_per_task=40, mix=4, seed=0)


def test_rows_before_the_failure_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ito_ray.data.tar_members._CHUNK", 4096)
    monkeypatch.setattr("ito_ray.data.tar_members._CHUNK_BEYOND", 4096)
    read = 0

    def refuse_later(method: str, key: str) -> int | None:
        nonlocal read
        read += method == "GET"
        return 503 if method == "GET" and read > 6 else None

    store.fault = refuse_later
    monkeypatch.setattr(module, "RETRY_SECONDS", ())
    rows = _read(store.url("0.tar"))
    good = [row for row in rows if row.bad is None]
    assert 0 < len(good) < 40 and len(rows) == 40
    assert [row.key for row in good] == [f"s{number:03d}" for number in range(len(good))]


def test_what_any_library_raises_is_an_oserror_with_an_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    """As aiohttp's errors, which are none."""

    class Odd(Exception):
        pass

    memory = fsspec.filesystem("memory")
    memory.pipe("/odd/a.tar", b"12")

    def fail(*_: object, **__: object) -> bytes:
        raise Odd("payload is not completed")

    with open_shard("memory://odd/a.tar") as file:
        monkeypatch.setattr(type(memory.open("/odd/a.tar")), "read", fail)
        with pytest.raises(OSError, match="Odd: payload is not completed") as caught:
            file.read(1)
    assert caught.value.errno is not None
