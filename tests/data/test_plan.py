"""The plan: every piece once a pass, new order each pass, sources as weighted, nothing but numbers to resume it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.mixer import mixed_batches
from ito_ray.data.plan import Piece, ShardPlan, Source, make_plan
from ito_ray.data.rows import read_piece
from ito_ray.data.shards import list_shards
from ito_ray.errors import DataError
from tests.data.makers import good_tar

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SOURCES = st.lists(st.tuples(COUNTS, st.integers(1, 50)), min_size=1, max_size=4)
MIX = st.integers(1, 6)
SEED = st.integers(0, 2**32)
WHOLE = 2**32


def _plan(sources: list[tuple[list[int], int]], mix: int, seed: int) -> ShardPlan:
    """Sources as [(pieces of each shard, weight), …]."""
    weights = [weight for _, weight in sources]
    ends = [round(sum(weights[: number + 1]) / sum(weights) * WHOLE) for number in range(len(weights))]
    return ShardPlan(
        tuple(
            Source(
                f"s{number}", tuple((f"{number}/{shard}.tar", count) for shard, count in enumerate(counts)), share, 64
            )
            for number, ((counts, _), share) in enumerate(zip(sources, np.diff([0, *ends]).tolist(), strict=True))
        ),
        seed=seed,
        mix=mix,
    )


def _dealt(plan: ShardPlan, entries: int) -> list[Piece]:
    return [piece for index in range(entries) for piece in plan.entry(index)]


def _passes(plan: ShardPlan, source: int, pieces: list[Piece]) -> Iterator[list[Piece]]:
    """The whole passes of a source in a sequence of pieces."""
    mine = [piece for piece in pieces if piece.source == source]
    size = plan.sources[source].pieces
    for start in range(0, len(mine) - size + 1, size):
        yield mine[start : start + size]


@settings(deadline=None)
@given(SOURCES, MIX, SEED)
def test_every_piece_of_a_source_once_in_each_of_its_passes(
    sources: list[tuple[list[int], int]], mix: int, seed: int
) -> None:
    plan = _plan(sources, mix, seed)
    pieces = _dealt(plan, 120)
    assert len(pieces) == 120 * mix
    for number, source in enumerate(plan.sources):
        expected = {(url, part, count) for url, count in source.shards for part in range(count)}
        for dealt in _passes(plan, number, pieces):
            assert len(dealt) == len(expected)
            assert {(piece.url, piece.part, piece.parts) for piece in dealt} == expected


@settings(deadline=None)
@given(SOURCES, MIX, SEED, st.integers(0, 10_000))
def test_sources_have_their_shares_of_every_stretch(
    sources: list[tuple[list[int], int]], mix: int, seed: int, window: int
) -> None:
    """Exactly as weighted over whole windows of 16 entries, to a piece or two, wherever in the run."""
    plan = _plan(sources, mix, seed)
    first = 16 * window
    found = Counter(piece.source for index in range(first, first + 32) for piece in plan.entry(index))
    for number, source in enumerate(plan.sources):
        assert abs(found[number] - 32 * mix * source.share / WHOLE) <= len(sources)


def test_a_small_source_is_passed_often_while_a_large_one_is_passed_once() -> None:
    plan = _plan([([100] * 20, 1), ([10] * 2, 1)], mix=4, seed=0)
    pieces = _dealt(plan, 1000)
    assert (len(list(_passes(plan, 0, pieces))), len(list(_passes(plan, 1, pieces)))) == (1, 100)
    orders = {tuple(dealt) for dealt in _passes(plan, 1, pieces)}
    assert len(orders) == 100, "each pass has an order of its own"


def test_samples_and_not_pieces_are_weighted(tmp_path: Path) -> None:
    """A source of many small shards has thinner pieces and so gets more slots."""
    for name, count, rows in (("thin", 6, 60), ("thick", 1, 320)):
        (tmp_path / name).mkdir()
        for shard in range(count):
            good_tar(tmp_path / name / f"{shard}.tar", rows)
    shards = {name: list_shards([str(tmp_path / name)], field="f") for name in ("thin", "thick")}
    plan = make_plan(shards, {"thin": 3, "thick": 1}, rows_per_task=640, mix=4, seed=0)
    assert plan.names == ("thin", "thick") and plan.fractions == pytest.approx((0.75, 0.25))
    seen = Counter(
        plan.names[piece.source]
        for piece in _dealt(plan, 16)
        for row in read_piece(piece, ColumnsConfig())
        if row.bad is None
    )
    assert seen["thin"] / seen.total() == pytest.approx(0.75, abs=0.03)


@given(SOURCES, MIX, SEED)
def test_deterministic_and_json_round_trip(sources: list[tuple[list[int], int]], mix: int, seed: int) -> None:
    plan = _plan(sources, mix, seed)
    again = ShardPlan.from_json(plan.to_json())
    assert again == plan and again.digest == plan.digest
    for index in (7, 0, 3 * plan.entries_per_pass):
        assert again.entry(index) == _plan(sources, mix, seed).entry(index)


def test_keys_and_options_of_a_store_are_no_part_of_the_digest() -> None:
    def digest(url: str) -> str:
        source = Source("a", ((url, 2),), 1 << 32, 5.0)
        return ShardPlan((source,), seed=0, mix=1).digest

    before, after = (":".join((name, "word")) for name in ("before", "after"))
    assert digest(f"s3://{before}@bucket/0.tar?region=a") == digest(f"s3://{after}@bucket/0.tar") != digest("0.tar")


def test_digest_knows_shards_seed_mix_weights_and_names() -> None:
    plan = _plan([([4, 4], 3), ([4], 1)], 4, 0)
    others = [
        replace(plan, seed=1),
        replace(plan, mix=2),
        _plan([([4, 5], 3), ([4], 1)], 4, 0),
        _plan([([4, 4], 2), ([4], 1)], 4, 0),
        replace(plan, sources=(replace(plan.sources[0], name="x"), plan.sources[1])),
    ]
    assert len({one.digest for one in (plan, *others)}) == 6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [[16] * 32, [156] * 100 + [40], [8] * 9])
def test_mix_neighbours_in_a_pass_come_from_different_shards(counts: list[int], seed: int) -> None:
    """Wherever the entry begins: sources share entries, so a source's pieces are cut anywhere."""
    mix = 4
    plan = _plan([(counts, 1)], mix, seed)
    urls = [piece.url for piece in next(_passes(plan, 0, _dealt(plan, plan.entries_per_pass)))]
    distinct = [len(set(urls[start : start + mix])) for start in range(len(urls) - mix + 1)]
    assert np.mean(np.array(distinct) == mix) > 0.98 and min(distinct) >= mix - 1


def test_neighbouring_entries_are_not_of_the_same_shards() -> None:
    """A rank that takes consecutive entries must see most shards soon, and not always in the same company."""
    plan = _plan([([16] * 32, 1)], 4, seed=3)
    urls = [{piece.url for piece in plan.entry(index)} for index in range(plan.entries_per_pass)]
    assert all(not left & right for left, right in pairwise(urls))
    company = Counter(frozenset((one, other)) for entry in urls for one in entry for other in entry if one < other)
    assert max(company.values()) < 12, "of 16 times that a shard is read"


@pytest.mark.parametrize("workers", [1, 2, 4, 5, 20])
def test_no_batch_is_of_one_source_or_one_shard(workers: int) -> None:
    """A realistic plan: three sources of 64 %, 31 % and 5 %, entries of 4 × 64 rows dealt to ranks in turn."""
    plan = _plan([([100] * 200, 64), ([100] * 50, 31), ([20] * 4, 5)], mix=4, seed=1)
    shards = {url: number for number, url in enumerate(url for one in plan.sources for url, _ in one.shards)}

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for index in range(0, 60 * workers, workers):
            pieces = plan.entry(index)
            rows = {"source": [piece.source for piece in pieces], "shard": [shards[piece.url] for piece in pieces]}
            yield {name: np.repeat(values, 64) for name, values in rows.items()}

    batches = list(mixed_batches(blocks(), batch=128, hold=1024, rng=np.random.default_rng(0)))
    assert len(batches) == 60 * 256 // 128
    sources = [np.bincount(batch["source"], minlength=3) / 128 for batch in batches]
    assert min((share > 0).sum() for share in sources) >= 2
    assert np.mean(sources, axis=0) == pytest.approx((0.64, 0.31, 0.05), abs=0.09)
    held_back = batches[:-8]  # the very last ones drain what was held back
    assert min(len(set(batch["shard"].tolist())) for batch in held_back) >= 12
    assert max(np.bincount(batch["shard"]).max() for batch in held_back) < 64


@pytest.mark.parametrize(("mix", "seed"), [(0, 0), (1, -1)])
def test_refuses_what_makes_no_plan(mix: int, seed: int) -> None:
    with pytest.raises(DataError, match=f"mix={mix}, seed={seed}"):
        ShardPlan((Source("a", (("a.tar", 1),), WHOLE, 1),), seed=seed, mix=mix)


def test_refuses_the_json_of_another_version() -> None:
    with pytest.raises(DataError, match="version 1"):
        ShardPlan.from_json('{"version": 1}')


def test_a_planned_pass_delivers_every_row_of_all_shards_once(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar", 70)
    good_tar(tmp_path / "b.tar", 30)
    columns = {"key": [str(i) for i in range(50)], "image": [b"x"] * 50, "caption": ["c"] * 50}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet", row_group_size=10)
    shards = {"train": list_shards([str(tmp_path)], field="f")}
    plan = make_plan(shards, {"train": 1}, rows_per_task=40, mix=4, seed=5)
    assert plan.sources[0].pieces == 7 + 3 + 5
    (first, second, *_) = _passes(plan, 0, _dealt(plan, 12))
    for pieces in (first, second):
        rows = [row for piece in pieces for row in read_piece(piece, ColumnsConfig())]
        assert len(rows) == 150 and len({(row.url, row.key) for row in rows}) == 150
        assert all(row.bad is None for row in rows)
    assert first != second
