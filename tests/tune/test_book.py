"""The book survives a kill at any byte, and refuses what would mix two sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ito_ray.errors import ConfigError, DataError
from tests.tune.books import fill, finished_sweep, settings
from tune.book import Book, Job, Spent


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with finished_sweep(tmp_path / "book.jsonl") as book:
        book.spend(Spent(10, 20, 3.5, 0.25))
        book.note("test", {"scores": [1]})
    again = Book(tmp_path / "book.jsonl", read_only=True)
    assert again.trials == book.trials
    assert (again.spent, again.notes, again.settings) == (book.spent, book.notes, book.settings)


def test_a_kill_at_any_byte_leaves_a_book_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    with Book(path) as book:
        book.open_session(settings())
        fill(book, 0, 2.0)
        fill(book, 1, 3.0, last=30)
    content = path.read_bytes()
    whole = [place for place in range(len(content)) if content[place : place + 1] == b"\n"]
    for cut in range(0, len(content), 7):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:cut])
        with Book(torn) as resumed:
            assert sum(1 for place in whole if place < cut) == torn.read_bytes().count(b"\n")
            resumed.open_session(settings())
            before = len(resumed.trials)
            resumed.started(Job(9, 0, "search", {}))
        assert len(Book(torn, read_only=True).trials) == before + 1


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    path.write_text('{"event": "session", "settings": {}}\n{"eve\n{"event": "note", "name": "a", "value": 1}\n')
    with pytest.raises(DataError, match="line 2, is no JSON"):
        Book(path, read_only=True)


def test_two_drivers_at_once_are_refused(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl"), pytest.raises(ConfigError, match="driven by another process"):
        Book(tmp_path / "book.jsonl")
    with Book(tmp_path / "book.jsonl"):
        pass


def test_a_study_may_get_more_arms_but_no_others(tmp_path: Path) -> None:
    arms = {"clip": {"a": 1}, "ito": {"a": 2}}
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(arms=arms))
        book.open_session(settings(arms={**arms, "more": {"a": 3}}), growing=("arms",))
        assert list(book.settings["arms"]) == ["clip", "ito", "more"]
        for other in (arms, {"ito": {"a": 2}, "clip": {"a": 1}, "more": {"a": 3}}, {**arms, "more": {"a": 4}}):
            with pytest.raises(ConfigError, match="was started with arms="):
                book.open_session(settings(arms=other), growing=("arms",))
        with pytest.raises(ConfigError, match="was started with arms="):
            book.open_session(settings(arms={**arms, "more": {"a": 3}, "last": {}}))


def test_another_space_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings())
        book.open_session(settings())
        with pytest.raises(ConfigError, match="started with searcher='random' instead of 'tpe'"):
            book.open_session(settings(searcher="tpe"))
        other = {**settings()["config"], "train.steps": 7}
        with pytest.raises(ConfigError, match=r"train\.steps': 90} instead of .*'train\.steps': 7"):
            book.open_session(settings(config=other))


def test_a_trial_starts_once(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.started(Job(0, 0, "search", {}))
        with pytest.raises(AssertionError, match="p000-s0"):
            book.started(Job(0, 0, "search", {}))
