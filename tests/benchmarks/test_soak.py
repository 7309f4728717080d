"""The plan of faults, and what the soak says that each of them cost."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from benchmarks import soak
from benchmarks.catalogue import AWAY_SECONDS, FAULTS, START_SECONDS, Around
from benchmarks.command import PACE, Command
from benchmarks.faults import newest_step
from benchmarks.soak import (
    EVERY,
    LEAST_STEPS,
    SOAKED,
    STEPS_A_HIT,
    Hit,
    Planned,
    Soaked,
    account,
    plan,
    steps_for,
    table,
)


def test_the_plan_has_each_fault_as_often_and_repeats_by_its_seed() -> None:
    planned = plan(SOAKED, 20, seed=3)
    assert Counter(one.fault for one in planned) == dict.fromkeys(SOAKED, 20)
    needs = [FAULTS[one.fault].needs for one in planned]
    assert len(list(itertools.groupby(needs))) == len(set(needs)), "one kind of surroundings after the other"
    assert {one.after for one in planned} == set(range(1, EVERY + 1)), "every moment between two checkpoints"
    assert planned == plan(SOAKED, 20, seed=3)
    assert planned != plan(SOAKED, 20, seed=4)


def test_a_fault_beside_which_steps_are_taken_gets_steps_for_it() -> None:
    stands, goes_on = Planned("controller killed", 1), Planned("MLflow away for a while", 1)
    many = [stands] * 20
    assert steps_for([*many, goes_on]) - steps_for([*many, stands]) == (AWAY_SECONDS + START_SECONDS) / PACE == 100
    assert steps_for([*many, stands, stands]) - steps_for(many) == 2 * STEPS_A_HIT
    assert steps_for([stands]) == LEAST_STEPS, "its end is compared, which must lie beyond the steep part"


def _write(record: Path, name: str, taken: list[tuple[float, int]]) -> None:
    texts = [json.dumps({"time": moment, "step": step, "uid": [], "ids": []}) for moment, step in taken]
    (record / name).write_text("\n".join([*texts, '{"time": 1, "st']))  # a kill leaves half a line


def test_what_a_fault_cost_is_told_from_what_was_trained_until_the_next(tmp_path: Path) -> None:
    _write(tmp_path, "1-0-11.jsonl", [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)])
    _write(tmp_path, "1-0-12.jsonl", [(9.0, 3), (10.0, 4), (11.0, 5), (12.0, 6), (13.0, 7)])  # killed after 4
    _write(tmp_path, "1-0-13.jsonl", [(33.0, 5), (34.0, 6), (35.0, 7), (36.0, 8), (37.5, 9)])  # killed after 7
    hits = [Hit("a", 4.25, 4), Hit("b", 12.5, 6), Hit("c", 36.25, 8)]  # b was noticed a step later
    account(tmp_path, hits)
    assert [hit.redone for hit in hits] == [2, 3, 0]
    assert [hit.seconds_lost for hit in hits] == [6.75, 23.0, 1.25]
    assert newest_step(tmp_path.glob("1-0-1[12].jsonl")) == 7


NAME = "controller killed"
INSIDE = tuple(name for name in SOAKED if FAULTS[name].needs == "one machine")[:7]


@pytest.mark.parametrize(
    ("recovered", "problems", "cells"),
    [
        (True, [], ["2", "2", "2–3", "15.0", "25.0"]),
        (False, ["waited"], ["2", "1", "2", "5.0", "5.0"]),
        (True, ["lost"], ["2", "1", "2–3", "15.0", "25.0"]),
    ],
)
def test_only_faults_of_proven_runs_that_recovered_are_survived(
    recovered: bool, problems: list[str], cells: list[str]
) -> None:
    first = Soaked(9, [Hit(NAME, 1.0, 4, True, 2, 5.0)], 8.0, 8.0)
    second = Soaked(9, [Hit(NAME, 1.0, 4, recovered, 3, 25.0)], 8.0, 8.0, problems)
    assert [list(column.cells) for column in table([first, second]).columns] == [[NAME], *([cell] for cell in cells)]


def test_faults_that_a_run_had_no_steps_left_for_come_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[list[str]] = []

    def three_at_most(folder: Path, planned: Sequence[Planned], *_: object) -> Soaked:
        came.append([one.fault for one in planned[:3]])
        return Soaked(9, [Hit(one.fault, 1.0, 4, True, 0, 5.0) for one in planned[:3]], 8.0, 8.0)

    monkeypatch.setattr(soak, "soak", three_at_most)
    monkeypatch.setattr(soak, "_to_its_end", lambda command: soak.End(8.0, []))
    around = Around(cast(Command, None))
    monkeypatch.setattr(soak, "surroundings", lambda *_: contextlib.nullcontext(around))
    arguments = soak.Arguments(INSIDE, times=1, seed=2, json=tmp_path / "soak.json")
    assert soak.run(arguments, Console(quiet=True)) == 0
    assert [len(faults) for faults in came] == [3, 3, 1]
    in_order = [one.fault for one in plan(INSIDE, 1, seed=2)]
    assert [fault for faults in came for fault in faults] == in_order
    assert len(json.loads((tmp_path / "soak.json").read_text())) == 3
