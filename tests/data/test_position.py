"""A position merged over ranks knows exactly what was taken, and survives JSON."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ito_ray.data.position import ROW_BITS, Position, members


def _take(position: Position, pairs: list[tuple[int, int]], rows: dict[int, int]) -> None:
    uids = np.array([entry << ROW_BITS | row for entry, row in pairs], np.int64)
    position.take(uids, np.array([rows[entry] for entry, _ in pairs]), uids % 3)


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 9)), st.integers(1, 4), st.randoms(use_true_random=False))
def test_ranks_in_any_order_add_up(rows: dict[int, int], ranks: int, random: Random) -> None:
    samples = [(entry, row) for entry, count in rows.items() for row in range(count)]
    random.shuffle(samples)
    cut = len(samples) // 2
    merged = Position()
    for part in (samples[:cut], samples[cut:]):
        positions = [Position() for _ in range(ranks)]
        for number, position in enumerate(positions):
            _take(position, part[number::ranks], rows)
        merged.merge([position.local for position in positions])
        again = Position.from_json(json.loads(json.dumps(merged.to_json())))
        assert (again.complete, again.open, again.seen) == (merged.complete, merged.open, merged.seen)
        if part is samples[:cut]:
            taken = {(e, r) for e in members(merged.complete) for r in range(rows[e])}
            taken |= {(e, r) for e, (_, kept) in merged.open.items() for r in kept}
            assert taken == set(samples[:cut])
    assert set(members(merged.complete)) == set(rows)
    assert merged.seen == Counter(((entry << ROW_BITS) + row) % 3 for entry, row in samples)
    assert not merged.open


def test_state_of_a_long_run_stays_small() -> None:
    position = Position()
    for entry in range(2000):
        _take(position, [(entry, row) for row in range(64)], {entry: 64})
    _take(position, [(2000, row) for row in range(0, 64, 2)], {2000: 64})
    position.merge([position.local])
    assert len(json.dumps(position.to_json())) < 1000
    assert position.samples_open == 32
