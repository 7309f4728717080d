"""What the suite says of a run follows from what its ranks recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.faults import given, problems_of_samples, redone, seconds_lost
from ito_ray.config.schema import Config
from ito_ray.data.plan import ShardPlan
from ito_ray.data.position import ROW_BITS, ROW_PLACE_BITS, Position
from ito_ray.data.rows import read_piece
from ito_ray.runtime.preflight import plan_data
from ito_ray.training.state import State, write_state
from tests.runtime.shards import small_config

BATCH = 16


def _write(record: Path, name: str, lines: list[tuple[float, int, list[int]]]) -> None:
    record.mkdir(exist_ok=True)
    texts = [json.dumps({"time": moment, "step": step, "uid": uids, "ids": []}) for moment, step, uids in lines]
    (record / name).write_text("\n".join([*texts, '{"time": 1, "st']))  # a kill leaves half a line


def test_the_last_life_of_a_step_counts_and_the_pause_is_told(tmp_path: Path) -> None:
    _write(tmp_path / "r", "1-0-11.jsonl", [(1.0, 1, [1]), (2.0, 2, [2]), (3.0, 3, [3])])
    _write(tmp_path / "r", "1-0-12.jsonl", [(9.0, 2, [5]), (10.0, 3, [2]), (11.0, 4, [3])])
    assert given(tmp_path / "r") == {(1, 0): [1], (2, 0): [5], (3, 0): [2], (4, 0): [3]}
    assert redone(tmp_path / "r") == 2
    assert seconds_lost(tmp_path / "r", 2.5) == pytest.approx(8.0), "from step 3 to step 4"


def test_a_step_taken_again_by_fewer_ranks_counts_for_these_only(tmp_path: Path) -> None:
    _write(tmp_path / "r", "2-0-11.jsonl", [(1.0, 1, [1]), (2.0, 2, [3])])
    _write(tmp_path / "r", "2-1-12.jsonl", [(1.0, 1, [2]), (2.0, 2, [4])])
    _write(tmp_path / "r", "1-0-13.jsonl", [(9.0, 2, [5, 6])])
    assert given(tmp_path / "r") == {(1, 0): [1], (1, 1): [2], (2, 0): [5, 6]}


def _trained(cfg: Config, plan: ShardPlan, entries: int) -> list[list[int]]:
    """The samples of whole entries, in order."""
    uids = [
        entry << ROW_BITS | slot << ROW_PLACE_BITS | row
        for entry in range(entries)
        for slot, piece in enumerate(plan.entry(entry))
        for row, _ in enumerate(read_piece(piece, cfg.data.columns))
    ]
    return [uids[start : start + BATCH] for start in range(0, len(uids), BATCH)]


def _run(tmp: Path) -> tuple[Config, ShardPlan, list[list[int]], Path]:
    cfg = small_config(tmp, train={"steps": 12})
    plan = plan_data(cfg).plan
    position = Position(complete=[[0, 12]]).to_json()
    (tmp / "checkpoint").mkdir()
    write_state(tmp / "checkpoint", State(12, position, {}, "", [], {}))
    return cfg, plan, _trained(cfg, plan, 12), tmp / "checkpoint"


def test_samples_left_out_or_taken_twice_are_found(tmp_path: Path) -> None:
    cfg, plan, batches, checkpoint = _run(tmp_path)

    def problems(name: str) -> list[str]:
        _write(tmp_path / name, "1-0-1.jsonl", [(step, step, uids) for step, uids in enumerate(batches, start=1)])
        return problems_of_samples(cfg, tmp_path / name, plan, checkpoint, passes=2)

    assert problems("good") == []
    lost = batches[3][0] >> ROW_BITS
    batches[3][0] = batches[4][0]
    assert problems("twice") == [
        "192 samples trained on, 191 different ones",
        f"entry {lost}: 1 samples never trained on",
    ]
    assert "fewer than 3 passes" in problems_of_samples(cfg, tmp_path / "good", plan, checkpoint, passes=3)[0]
    del batches[-1]
    assert problems("short")[0] == "11 of 12 steps were taken"
