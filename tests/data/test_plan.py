"""The plan: every piece once a pass, new order each pass, mixed shards, and nothing but numbers to resume it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.plan import Piece, ShardPlan, make_plan
from ito_ray.data.rows import read_piece
from ito_ray.data.shards import list_shards
from ito_ray.errors import DataError
from tests.data.makers import good_tar

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
MIX = st.integers(1, 6)
SEED = st.integers(0, 2**32)


def _plan(counts: list[int], mix: int, seed: int) -> ShardPlan:
    pieces = tuple(Piece(f"{shard}.tar", part, count) for shard, count in enumerate(counts) for part in range(count))
    return ShardPlan(pieces, seed=seed, mix=mix)


def _pass(plan: ShardPlan, number: int) -> list[tuple[Piece, ...]]:
    first = number * plan.entries_per_pass
    return [plan.entry(index) for index in range(first, first + plan.entries_per_pass)]


@given(COUNTS, MIX, SEED, st.integers(0, 1000))
def test_every_piece_once_a_pass(counts: list[int], mix: int, seed: int, number: int) -> None:
    plan = _plan(counts, mix, seed)
    dealt = [piece for entry in _pass(plan, number) for piece in entry]
    assert len(dealt) == len(plan.pieces) and set(dealt) == set(plan.pieces)


@given(COUNTS, MIX, SEED)
def test_entries_are_even_and_none_is_empty(counts: list[int], mix: int, seed: int) -> None:
    sizes = [len(entry) for entry in _pass(_plan(counts, mix, seed), 0)]
    assert min(sizes) >= 1 and max(sizes) <= mix and max(sizes) - min(sizes) <= 1


@given(COUNTS, MIX, SEED, st.integers(0, 5))
def test_pieces_of_an_entry_come_from_different_shards(counts: list[int], mix: int, seed: int, number: int) -> None:
    """Whenever that can be: a shard with more pieces than there are entries must meet one of them twice."""
    plan = _plan(counts, mix, seed)
    rounds = -(-max(counts) // plan.entries_per_pass)
    for entry in _pass(plan, number):
        assert max(Counter(piece.url for piece in entry).values()) <= (rounds if rounds == 1 else mix)
        if rounds == 1:
            assert len({piece.url for piece in entry}) == len(entry)


@given(COUNTS, MIX, SEED)
def test_deterministic_and_json_round_trip(counts: list[int], mix: int, seed: int) -> None:
    plan = _plan(counts, mix, seed)
    again = ShardPlan.from_json(plan.to_json())
    assert again == plan
    for index in (7, 0, 3 * plan.entries_per_pass):
        assert again.entry(index) == _plan(counts, mix, seed).entry(index)


def test_each_pass_and_each_seed_has_its_own_order() -> None:
    plan = _plan([8] * 12, 4, seed=0)
    orders = {tuple(_pass(plan, number)) for number in range(5)} | {tuple(_pass(_plan([8] * 12, 4, seed=1), 0))}
    assert len(orders) == 6


def test_neighbouring_entries_are_not_of_the_same_shards() -> None:
    """A rank that takes consecutive entries must see most shards soon."""
    plan = _plan([16] * 32, 4, seed=3)
    urls = [{piece.url for piece in entry} for entry in _pass(plan, 0)]
    shared = [len(left & right) for left, right in pairwise(urls)]
    assert sum(shared) / len(shared) < 1


@pytest.mark.parametrize(("mix", "seed"), [(0, 0), (1, -1)])
def test_refuses_what_makes_no_plan(mix: int, seed: int) -> None:
    with pytest.raises(DataError, match=f"mix={mix}, seed={seed}"):
        ShardPlan((Piece("a.tar", 0, 1),), seed=seed, mix=mix)


def test_refuses_the_json_of_another_version() -> None:
    with pytest.raises(DataError, match="version 99"):
        ShardPlan.from_json('{"version": 99}')


def test_a_planned_pass_delivers_every_row_of_all_shards_once(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar", 70)
    good_tar(tmp_path / "b.tar", 30)
    columns = {"key": [str(i) for i in range(50)], "image": [b"x"] * 50, "caption": ["c"] * 50}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet", row_group_size=10)
    plan = make_plan(list_shards([str(tmp_path)], field="f"), rows_per_task=40, mix=4, seed=5)
    assert len(plan.pieces) == 7 + 3 + 5
    rows = [row for entry in _pass(plan, 1) for piece in entry for row in read_piece(piece, ColumnsConfig())]
    assert len(rows) == 150 and len({(row.url, row.key) for row in rows}) == 150
    assert all(row.bad is None for row in rows)
