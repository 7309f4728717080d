"""The account of rows under outages of the store, restarts, other numbers of ranks and resumes, against a naive one.

A small world in one process: the real reader, monitor, positions and quarantine; a store that gives any part of a shard
at any time; ranks that are lists.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.util.metrics import Metric

from ito_ray.data import quarantine, rows, samples
from ito_ray.data.plan import Piece
from ito_ray.data.position import ROW_BITS, ROW_PLACE_BITS, Position, Taken, members
from ito_ray.data.rows import Row
from ito_ray.data.tally import close, from_json, mismatch
from ito_ray.runtime import monitor as module
from ito_ray.runtime.monitor import Setup
from ito_ray.runtime.stream import EntryReader, next_entries
from tests.tiny import tiny_config

Monitor: Any = cast(Any, module.Monitor).__ray_metadata__.modified_class
NAMES = ("web", "icons")
ROWS = (4, 3)
"""Of each piece, by slot, which is the number of its source too; the plan expects one less of the first."""
ROTTEN = (2, 9)
"""The row of each piece that is no picture, whoever reads it, in a store that has such rows."""
Version = dict[int, tuple[set[int], dict[int, str]]]
"""What a reading of an entry comes to. Slot → (numbers of the rows delivered, number of each other → why)."""


class Store:
    """Gives of each piece the first `readable` rows and then fails, if it is not all of them."""

    def __init__(self) -> None:
        self.readable: list[int] = list(ROWS)
        self.rotten: tuple[int, ...] = ROTTEN

    def read(self, piece: Piece, *_: object) -> Iterator[Row]:
        slot = int(piece.url[-1])
        for number in range(self.readable[slot]):
            rotten = number == self.rotten[slot]
            yield Row(f"k{number}", b"x", ("a",), bad="image_unreadable" if rotten else None, url=piece.url)
        if self.readable[slot] < ROWS[slot]:
            raise OSError("503")


def _entry(_: int) -> tuple[Piece, ...]:
    return (Piece("s0", 0, 1, source=0, rows=ROWS[0] - 1), Piece("s1", 0, 1, source=1, rows=ROWS[1]))


PLAN: Any = SimpleNamespace(entry=_entry, seed=0, names=NAMES)


@pytest.fixture(name="store")
def _store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(rows, "read_retrying", store.read)
    monkeypatch.setattr(samples, "make_views", lambda *_, **__: 0)
    monkeypatch.setattr(samples, "_tokens", lambda *_: ({}, []))
    return store


@pytest.fixture(name="exported")
def _exported(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """Newest value of each of Ray's metrics of rows."""
    found: dict[tuple[str, ...], float] = {}

    def note(self: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        if self.info["name"].startswith("ito_rows"):
            found[(self.info["name"], *(tags or {}).values())] = value

    monkeypatch.setattr(Metric, "_record", note)
    return found


def _places(numbers: set[int], slot: int) -> set[int]:
    return {slot << ROW_PLACE_BITS | number for number in numbers}


def _version(store: Store, had: set[int]) -> Version:
    """Naively: what was had stays delivered; rows that are read are good or not; what is not read is lost."""
    found: Version = {}
    readable = store.readable
    for slot, count in enumerate(ROWS):
        mine = {place & 0xFFFFFF for place in had if place >> ROW_PLACE_BITS == slot}
        why = {number: "image_unreadable" for number in range(readable[slot]) if number == store.rotten[slot]}
        if readable[slot] < count:
            expected = max(_entry(0)[slot].rows, readable[slot] + 1, max(mine, default=-1) + 2)
            why |= dict.fromkeys(range(readable[slot], expected), "shard_unreadable")
        good = set(range(readable[slot])) - why.keys()
        found[slot] = (mine | good, {number: reason for number, reason in why.items() if number not in mine})
    return found


@dataclass
class Committed:
    """A checkpoint, and what is true at it."""

    position: dict[str, Any] = field(default_factory=dict)
    tallies: dict[str, Any] = field(default_factory=dict)
    open: dict[str, Any] = field(default_factory=dict)
    truth: dict[int, Version] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)


class World:
    """A run from its start to its end, one event after the other."""

    def __init__(
        self, store: Store, folder: Path, random: Random, exported: dict[tuple[str, ...], float] | None = None
    ) -> None:
        self.store, self.folder, self.random = store, folder, random
        self.exported = {} if exported is None else exported
        self.committed, self.step = Committed(), 0
        self.launch()

    def launch(self) -> None:
        """A new driver: its monitor knows what the checkpoint does."""
        self.exported.clear()  # of a monitor's process
        known = Position.from_json(self.committed.position)
        kept = {int(entry): from_json(one) for entry, one in self.committed.open.items()}
        quarantine.forget(self.folder, lambda entry: entry in kept or entry in set(members(known.complete)))
        tallies = from_json(self.committed.tallies)
        self.monitor = Monitor(Setup(NAMES, 2, 1.0, str(self.folder), known.complete, tallies, kept))
        self.truth = {
            entry: version
            for entry, version in self.committed.truth.items()
            if entry in kept or entry in set(members(known.complete))
        }
        self.unread = set(kept)  # on disk there may be what a reading after the checkpoint found
        self.restart()

    def restart(self) -> None:
        """Workers begin anew at the checkpoint, any number of them."""
        _, self.stream = self.monitor.stream()
        known = Position.from_json(self.committed.position)
        self.taken = set(self.committed.taken)
        open_places = {entry: frozenset(places) for entry, (_, places) in known.open.items()}
        self.reader = EntryReader(PLAN, tiny_config(), cast(Any, SimpleNamespace(load=object)), None, open_places, 0)
        self.coming, self.read_now = next_entries(known, 12), list[int]()
        self.ranks = [Position.from_json(self.committed.position) for _ in range(self.random.choice((1, 2, 3)))]
        self.held: list[list[tuple[int, int, int]]] = [[] for _ in self.ranks]

    def weather(self) -> None:
        """The store fails more or less, or works again."""
        whole = self.random.random() < 0.4
        self.store.readable = list(ROWS) if whole else [self.random.randint(0, count) for count in ROWS]

    def read(self) -> None:
        """The next entry; its task may be made twice. A rank gets what the last one made."""
        if not self.coming:
            return
        entry = self.coming.pop(0)
        self.read_now.append(entry)
        self.unread.discard(entry)
        for _ in range(self.random.choice((1, 1, 2))):
            block = self._make(entry, self.stream)
            self.truth[entry] = _version(self.store, set(self.reader.taken.get(entry, ())))
            self.weather()
        total = len(block["uid"]) + len(self.reader.taken.get(entry, ()))
        held = self.random.choice(self.held)
        held += [(uid, total, source) for uid, source in zip(block["uid"], block["source"], strict=True)]
        self.random.shuffle(held)

    def _make(self, entry: int, stream: int) -> dict[str, Any]:
        block, report = self.reader.make(entry)
        assert self.monitor.record(entry, report, stream) == ""
        return cast(dict[str, Any], block)

    def late(self) -> None:
        """A task of the stream before this one ends only now. What this one has read of the entry still counts."""
        if self.read_now:
            self._make(self.random.choice(self.read_now), self.stream - 1)

    def take(self) -> None:
        """A rank takes some of what it holds."""
        rank = self.random.randrange(len(self.ranks))
        some = self.held[rank][: self.random.randint(0, 5)]
        del self.held[rank][: len(some)]
        if some:
            uids, totals, sources = (np.array(column) for column in zip(*some, strict=True))
            self.ranks[rank].take(uids, totals, sources)
            self.taken |= set(uids.tolist())

    def save(self, *, lost: bool) -> None:
        """A checkpoint, which may never be registered."""
        self.step += 1
        locals_ = [copy.deepcopy(rank.local) for rank in self.ranks]
        for rank in self.ranks:
            rank.merge(copy.deepcopy(locals_))
        position = self.ranks[0].to_json()
        kept = self.monitor.settle(f"step-{self.step}", position["complete"], list(self.ranks[0].open))
        if not lost:
            self.monitor.committed(f"/run/step-{self.step}")
            truth = copy.deepcopy(self.truth)
            self.committed = Committed(position, kept.tallies, kept.open, truth, set(self.taken))

    def event(self) -> None:
        what = self.random.choices(
            ("read", "take", "weather", "late", "save", "lost", "restart", "launch"), (8, 8, 2, 2, 3, 1, 1, 1)
        )[0]
        if what in ("save", "lost"):
            self.save(lost=what == "lost")
        else:
            getattr(self, what)()


def _check(world: World) -> None:
    exported = world.exported
    position = Position.from_json(world.committed.position)
    news = world.monitor.drain(0)
    accounts = close(news.tallies, position.seen, NAMES)
    left = world.monitor.ahead(position.complete) - position.samples_open
    assert mismatch(accounts, ahead=left, repeats=position.repeats) == ""
    lost = set()
    for source, name in enumerate(NAMES):
        versions = [version[source] for version in world.truth.values()]
        dropped = Counter(reason for _, why in versions for reason in why.values())
        made = sum(len(good) for good, _ in versions)
        taken = sum((uid & 0xFFFFFFFF) >> ROW_PLACE_BITS == source for uid in world.taken)
        account = accounts[name]
        assert (account.delivered, account.pending, account.dropped) == (taken, made - taken, dict(dropped))
        assert account.read == made + dropped.total()
        assert exported.get(("ito_rows_read", name), 0) == account.read
        reasons = {key[2]: value for key, value in exported.items() if key[:2] == ("ito_rows_dropped", name) and value}
        assert reasons == account.dropped
        for entry in world.truth.keys() - world.unread:
            version = world.truth[entry]
            lost |= {(entry, place, name) for place in _places(set(version[source][1]), source)}
    world.monitor.flush()
    found = quarantine.read(world.folder).to_pylist()
    assert {(row["entry"], row["place"], row["source"]) for row in found if row["entry"] not in world.unread} == lost
    for entry in members(position.complete):
        places = set().union(*(_places(good, slot) for slot, (good, _) in world.truth[entry].items()))
        assert {entry << ROW_BITS | place for place in places} <= world.taken


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9))
def test_whatever_fails_and_starts_again_the_account_is_what_was_read_last(
    store: Store, exported: dict[tuple[str, ...], float], seed: int
) -> None:
    random = Random(seed)
    store.readable, store.rotten = list(ROWS), random.choice((ROTTEN, (9, 9)))
    with tempfile.TemporaryDirectory() as folder:
        world = World(store, Path(folder), random, exported)
        for _ in range(random.randint(5, 80)):
            world.event()
        world.save(lost=False)
        _check(world)
        world.launch()  # the finished run once more: nothing is read, and the account is of what it had consumed
        _check(world)


@pytest.mark.parametrize(("first", "again"), [((0, 0), ROWS), (ROWS, (0, 0)), (ROWS, (1, 3)), ((1, 3), ROWS)])
@pytest.mark.parametrize("taken_before", [0, 1, 3])
def test_an_entry_that_is_read_again_after_a_restart(
    store: Store, tmp_path: Path, first: tuple[int, int], again: tuple[int, int], taken_before: int
) -> None:
    """An outage at the first reading, or at the second, or in the middle of a shard."""
    world = World(store, tmp_path, Random(0))
    store.readable = list(first)
    world.random = cast(Random, SimpleNamespace(choice=lambda options: options[0], shuffle=lambda _: None))
    world.weather = lambda: None  # type: ignore[method-assign]
    world.restart()
    world.read()
    some, world.held[0] = world.held[0][:taken_before], []
    if some:
        uids, totals, sources = (np.array(column) for column in zip(*some, strict=True))
        world.ranks[0].take(uids, totals, sources)
        world.taken |= set(uids.tolist())
    world.save(lost=False)
    store.readable = list(again)
    world.restart()
    if world.coming[0] == 0:
        world.read()
    if world.held[0]:
        uids, totals, sources = (np.array(column) for column in zip(*world.held[0], strict=True))
        world.ranks[0].take(uids, totals, sources)
        world.taken |= set(uids.tolist())
    world.save(lost=False)
    position = Position.from_json(world.committed.position)
    accounts = close(world.monitor.drain(0).tallies, position.seen, NAMES)
    assert mismatch(accounts, ahead=world.monitor.ahead(position.complete) - position.samples_open) == ""
    good = 5 + 1 if again == ROWS else len(some)
    if again == ROWS:  # all that is good was taken, whatever was kept back at first
        assert {name: (one.delivered, one.dropped) for name, one in accounts.items()} == {
            "web": (3, {"image_unreadable": 1}),
            "icons": (3, {}),
        }
        assert good == 6 and position.complete == [[0, 1]]
    assert sum(one.pending for one in accounts.values()) == 0
    assert all(one.read >= one.delivered for one in accounts.values())


def _taken(places: set[int], total: int, entry: int = 0) -> Taken:
    position = Position()
    uids = np.array([entry << ROW_BITS | place for place in sorted(places)])
    position.take(uids, np.full(len(uids), total), np.zeros(len(uids), int))
    return position.local


def test_an_entry_that_shrank_below_what_was_taken_is_complete_and_its_rest_is_no_crash() -> None:
    position = Position()
    position.merge([_taken({0, 1, 2, 3}, 10)])
    assert position.open == {0: (10, {0, 1, 2, 3})}
    position.merge([_taken({7}, 2)])
    assert position.complete == [[0, 1]] and position.open == {} and position.seen == {0: 5}
    position.take(np.array([8]), np.array([10]), np.array([0]))
    position.merge([position.local])
    assert (position.repeats, position.seen) == (1, {0: 5})
    again = Position.from_json(position.to_json())
    assert again.repeats == 1 and "1 samples were taken once more" in mismatch({}, ahead=0, repeats=again.repeats)


def test_two_versions_of_an_entry_on_two_ranks_are_no_crash() -> None:
    position = Position()
    position.merge([_taken({0, 1, 2}, 6), _taken({2, 3}, 4)])
    assert position.complete == [[0, 1]] and position.repeats == 1
    position.take(np.array([1 << ROW_BITS] * 2), np.array([3, 3]), np.array([0, 0]))
    position.merge([position.local])
    assert position.repeats == 2 and position.open == {1: (3, {0})}
