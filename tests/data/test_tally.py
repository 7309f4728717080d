"""Accounts close, or say what is wrong; dropped rows are on disk, each once, whoever was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ito_ray.data import quarantine
from ito_ray.data.quarantine import Quarantine
from ito_ray.data.tally import Account, Lost, Tally, added, close, from_json, mismatch, to_json, without

TALLIES = {0: Tally(7, 5, {"bad_json": 2}, {"bad_json": ["a#x: "]}), 2: Tally(4, 4)}


def test_a_tally_that_does_not_add_up_cannot_be() -> None:
    with pytest.raises(AssertionError):
        Tally(3, 1, {"bad_json": 1})


def test_tallies_of_sources_add_up_and_survive_json() -> None:
    total = added(TALLIES, {1: Tally.lost("bad_json", "b#y: "), 2: Tally(1, 1)})
    assert {source: tally.read for source, tally in total.items()} == {0: 7, 1: 1, 2: 5}
    assert from_json(json.loads(json.dumps(to_json(total)))) == total


def test_accounts_close() -> None:
    accounts = close(TALLIES, {0: 3, 2: 3}, ["a", "b", "c"])
    assert mismatch(accounts, ahead=3) == ""
    assert accounts["a"] == Account(7, 3, {"bad_json": 2}, 2, 0.5)
    assert accounts["b"] == Account(0, 0, {}, 0, 0.0)
    assert accounts["c"].metrics() == {"read": 4, "delivered": 3, "pending": 1}


@pytest.mark.parametrize(
    ("seen", "ahead", "repeats", "said"),
    [
        ({0: 6, 2: 3}, 0, 0, "6 samples of a were taken, but 5 made"),
        ({0: 3, 2: 3}, 4, 0, "3 samples that were made were not taken, but the unfinished entries hold 4"),
        ({0: 3, 2: 3}, 3, 2, "2 samples were taken once more"),
    ],
)
def test_accounts_that_do_not_close_are_a_sentence(seen: dict[int, int], ahead: int, repeats: int, said: str) -> None:
    accounts = close(TALLIES, seen, ["a", "b", "c"])
    assert accounts["a"].delivered == seen[0] and accounts["a"].pending == max(0, 5 - seen[0])
    assert f"does not add up: {said}." in mismatch(accounts, ahead=ahead, repeats=repeats)


def test_a_part_is_taken_out_again_as_it_was_added() -> None:
    part = {0: Tally.lost("tar_damaged", "b#y: "), 1: Tally(2, 2)}
    total = without(added(TALLIES, part), part)
    assert {source: tally for source, tally in total.items() if tally.read} == TALLIES


def _lost(place: int, reason: str = "bad_json") -> Lost:
    return Lost(0, "a.tar", f"k{place}", reason, "detail", place)


def test_parts_are_read_as_one_and_rows_once(tmp_path: Path) -> None:
    for entries in ((3, 1), (1, 2)):  # entry 1 is read again after a resume
        writer = Quarantine(tmp_path, ["web"])
        for entry in entries:
            writer.add(entry, [_lost(5), _lost(2)])
        writer.flush()
    assert len(list(tmp_path.glob("part-*"))) == 2
    rows = quarantine.read(tmp_path).to_pylist()
    assert [(row["entry"], row["place"]) for row in rows] == [(1, 2), (1, 5), (2, 2), (2, 5), (3, 2), (3, 5)]
    assert {(row["source"], row["shard"], row["reason"]) for row in rows} == {("web", "a.tar", "bad_json")}
    assert rows[0]["key"] == "k2" and rows[0]["time"].year >= 2026


def test_what_is_read_again_is_forgotten_first(tmp_path: Path) -> None:
    writer = Quarantine(tmp_path, ["web"])
    writer.add(1, [_lost(0)])
    writer.add(2, [_lost(0, "shard_unreadable")])
    writer.flush()
    quarantine.forget(tmp_path, lambda entry: entry == 1)
    again = Quarantine(tmp_path, ["web"])
    again.add(2, [_lost(0, "tar_damaged")])
    again.flush()
    assert quarantine.merge(tmp_path, tmp_path / "all.parquet") == {"bad_json": 1, "tar_damaged": 1}
    assert (tmp_path / "all.parquet").is_file()


def test_of_an_entry_that_is_read_again_the_last_report_counts(tmp_path: Path) -> None:
    writer = Quarantine(tmp_path, ["web"])
    for entry in (1, 2, 3):
        writer.add(entry, [_lost(0, "shard_unreadable"), _lost(1, "shard_unreadable")])
    writer.flush()
    writer.add(1, [], again=True)
    writer.add(2, [_lost(1)], again=True)
    writer.flush()
    left = [(2, 1, "bad_json"), (3, 0, "shard_unreadable"), (3, 1, "shard_unreadable")]
    found = quarantine.read(tmp_path).to_pylist()
    assert [(row["entry"], row["place"], row["reason"]) for row in found] == left
    quarantine.forget(tmp_path, lambda entry: entry != 3)
    again = Quarantine(tmp_path, ["web"])
    again.add(2, [], again=True)
    again.flush()
    assert quarantine.read(tmp_path).to_pylist() == []


def test_memory_is_bounded_and_nothing_makes_no_file(tmp_path: Path) -> None:
    assert quarantine.merge(tmp_path, tmp_path / "all.parquet") == {}
    writer = Quarantine(tmp_path, ["web"])
    writer.flush()
    assert not list(tmp_path.iterdir())
    for entry in range(25):
        writer.add(entry, [_lost(place) for place in range(100)])
    assert len(quarantine.read(tmp_path)) == 2000
    writer.flush()
    assert len(quarantine.read(tmp_path)) == 2500
