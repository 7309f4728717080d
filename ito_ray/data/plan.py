"""In what order pieces of shards are read: endless, reshuffled each pass, the same on every machine.

The plan is a pure function of (sources, seed, mix, index): resuming needs the index of the next entry, nothing else.

Entry e has the slots e·mix … e·mix + mix − 1, each filled with one piece. Which source fills a slot is decided by the
sources' shares of all slots, exactly over every window of slots and at random within it. The i-th slot of a source is
piece i mod n of its pass i div n, so a small source is passed several times while a large one is passed once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from ito_ray.data.shards import Shard, mean_sample_bytes, public_url, rows_in
from ito_ray.errors import DataError

VERSION = 2
_FOOTER_THREADS = 32
_WINDOW_ENTRIES = 16
"""Entries over which the sources' shares hold exactly; sources are shuffled within, so that no rank meets a rhythm."""
_SHARE_BITS = 32
"""Shares are integers that sum to 2**32: counts of slots are then exact, however long the run."""
PLAN_STREAM, SHUFFLE_STREAM, SAMPLE_STREAM, WINDOW_STREAM = 1, 2, 3, 4
"""Second word of every random generator's seed, so that no two uses share a stream."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part `part` of `parts` of one shard of source number `source`, of about `rows` rows."""

    url: str
    part: int
    parts: int
    source: int = 0
    rows: int = 1


@dataclass(frozen=True)
class Source:
    """Shards that are passed together."""

    name: str
    shards: tuple[tuple[str, int], ...]
    """(address, number of pieces that it is cut in)."""
    share: int
    """Of 2**32 slots."""
    piece_rows: float
    """Estimated rows of a piece."""

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Pieces of each shard."""
        return np.array([count for _, count in self.shards], np.int64)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Pieces of all shards up to and with each."""
        return np.cumsum(self.counts)

    @property
    def pieces(self) -> int:
        """Pieces of all shards together."""
        return int(self.ends[-1])


@dataclass(frozen=True)
class ShardPlan:
    """Endless sequence of entries; an entry is the `mix` pieces that one task reads and mixes.

    A pass of a source deals every piece of it exactly once, in an order drawn from (seed, source, pass), in which
    `mix` neighbours come from different shards where shards are many and of like size.
    """

    sources: tuple[Source, ...]
    seed: int
    mix: int

    def __post_init__(self) -> None:
        if not self.sources or not all(source.shards for source in self.sources) or self.mix < 1 or self.seed < 0:
            raise DataError(
                f"A plan needs sources with shards, mix ≥ 1 and seed ≥ 0, not {len(self.sources)} sources, "
                f"mix={self.mix}, seed={self.seed}: check data.train, data.mix and train.seed."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources; a piece's `source` is the index."""
        return tuple(source.name for source in self.sources)

    @property
    def entries_per_pass(self) -> int:
        """Entries that hold as many pieces as all sources have; exactly one pass when there is one source."""
        return -(-sum(source.pieces for source in self.sources) // self.mix)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Of all samples, by source, as far as the estimated rows of a piece are right."""
        rows = [source.share * source.piece_rows for source in self.sources]
        return tuple(one / sum(rows) for one in rows)

    def entry(self, index: int) -> tuple[Piece, ...]:
        """The `mix` pieces of entry `index` ≥ 0."""
        assert index >= 0, index
        window, place = divmod(index, _WINDOW_ENTRIES)
        slots = _WINDOW_ENTRIES * self.mix
        sources, turns = _window(self._shares, slots, self.seed, window)
        mine = slice(place * self.mix, (place + 1) * self.mix)
        return tuple(
            self._piece(source, turn) for source, turn in zip(sources[mine].tolist(), turns[mine].tolist(), strict=True)
        )

    def _piece(self, number: int, turn: int) -> Piece:
        """What fills the `turn`-th slot of source `number`."""
        source = self.sources[number]
        again, place = divmod(turn, source.pieces)
        dealt = int(_deal(source.counts.tobytes(), self.mix, self.seed, number, again)[place])
        shard = int(np.searchsorted(source.ends, dealt, side="right"))
        url, parts = source.shards[shard]
        return Piece(url, dealt - int(source.ends[shard]) + parts, parts, number, max(1, round(source.piece_rows)))

    @property
    def _shares(self) -> tuple[int, ...]:
        return tuple(source.share for source in self.sources)

    def to_json(self) -> str:
        """Text that `from_json` turns back into an equal plan."""
        sources = [
            {"name": one.name, "share": one.share, "piece_rows": one.piece_rows, "shards": one.shards}
            for one in self.sources
        ]
        return json.dumps({"version": VERSION, "seed": self.seed, "mix": self.mix, "sources": sources})

    @property
    def digest(self) -> str:
        """Tells plans apart: 16 hexadecimal digits. Keys and options in an address may change, its data do not."""
        sources = tuple(
            replace(one, shards=tuple((public_url(url), parts) for url, parts in one.shards)) for one in self.sources
        )
        return hashlib.sha256(replace(self, sources=sources).to_json().encode()).hexdigest()[:16]

    @staticmethod
    def from_json(text: str) -> ShardPlan:
        """Raises DataError for another version."""
        plan = json.loads(text)
        if plan.get("version") != VERSION:
            raise DataError(
                f"This shard plan has version {plan.get('version')!r}, not {VERSION}: resume with the version of "
                "ito_ray that wrote it, or start a new run."
            )
        sources = tuple(
            Source(one["name"], tuple((url, parts) for url, parts in one["shards"]), one["share"], one["piece_rows"])
            for one in plan["sources"]
        )
        return ShardPlan(sources, seed=plan["seed"], mix=plan["mix"])


def make_plan(
    shards: Mapping[str, Sequence[Shard]], weights: Mapping[str, float], *, rows_per_task: int, mix: int, seed: int
) -> ShardPlan:
    """Cut the shards in pieces of about `rows_per_task / mix` rows and share the slots among the sources.

    Reads the head of one tar of each source and all Parquet footers.

    Args:
        shards: of each source, by its name.
        weights: fraction of the samples that each source shall have, up to a common factor.

    Raises:
        DataError: for no shards, mix < 1, a negative seed, or a store that fails.
    """
    per_piece = max(1, rows_per_task // max(1, mix))
    cut = [_cut(listed, per_piece) for listed in shards.values()]
    slots = [weights[name] / piece_rows for name, (_, piece_rows) in zip(shards, cut, strict=True)]
    ends = [round(sum(slots[: number + 1]) / sum(slots) * 2**_SHARE_BITS) for number in range(len(slots))]
    sources = tuple(
        Source(name, pieces, share=end - before, piece_rows=piece_rows)
        for name, (pieces, piece_rows), before, end in zip(shards, cut, [0, *ends], ends, strict=False)
    )
    return ShardPlan(sources, seed=seed, mix=mix)


def _cut(shards: Sequence[Shard], per_piece: int) -> tuple[tuple[tuple[str, int], ...], float]:
    """[(address, pieces)] and the mean rows of a piece."""
    try:
        sample_bytes = {
            gzipped: mean_sample_bytes(shard for shard in shards if shard.is_gzipped == gzipped)
            for gzipped in (False, True)
        }
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            rows = list(pool.map(lambda shard: rows_in(shard, sample_bytes[shard.is_gzipped]), shards))
    except OSError as error:
        raise DataError(
            f"data.train: a shard was listed but cannot be read: {error}. Check the store and your rights, and run "
            "the same command again."
        ) from error
    pieces = tuple((shard.url, max(1, round(count / per_piece))) for shard, count in zip(shards, rows, strict=True))
    found = sum(rows) / max(1, sum(count for _, count in pieces))
    return pieces, round(found, 3) or float(per_piece)


@lru_cache(maxsize=8)
def _window(
    shares: tuple[int, ...], slots: int, seed: int, number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Source of each slot in window `number`, and how many slots that source had before."""
    before, after = (_counts(shares, slots * edge) for edge in (number, number + 1))
    sources = np.repeat(np.arange(len(shares)), [end - start for start, end in zip(before, after, strict=True)])
    if len(shares) > 1:
        sources = np.random.default_rng((seed, WINDOW_STREAM, number)).permutation(sources)
    turns = np.empty(slots, np.int64)
    for source, start in enumerate(before):
        mine = sources == source
        turns[mine] = start + np.arange(int(mine.sum()))
    return sources, turns


def _counts(shares: Sequence[int], slots: int) -> list[int]:
    """Of the first `slots` slots, how many each source has: as shared, rounded, and `slots` in all.

    The first source takes its share of all, the second its share of what that leaves, and so on: each count grows by
    at most one a slot, and the last source takes what is left.
    """
    counts = []
    left, of = slots, sum(shares)
    for share in shares:
        counts.append(taken := (left * share + of // 2) // of if of > share else left)
        left, of = left - taken, of - share
    return counts


@lru_cache(maxsize=16)
def _deal(counts: bytes, mix: int, seed: int, source: int, number: int) -> npt.NDArray[np.int64]:
    """Order of a source's pieces in its pass `number`.

    Each shard's pieces, in random order, are spread evenly over the pass: piece j of c stands near (j + u)/c. With
    shards enough, one random half of them has u below ½ and the other above, drawn anew for each piece: neighbours
    change from round to round, and yet a shard returns only after about half of the others.
    """
    rng = np.random.default_rng((seed, PLAN_STREAM, source, number))
    of = np.frombuffer(counts, np.int64)
    shard = np.repeat(np.arange(len(of)), of)
    pieces = np.lexsort((rng.random(len(shard)), shard))
    turn = np.arange(len(shard)) - (np.cumsum(of) - of)[shard]
    rank = rng.permutation(len(of))[shard]
    offset = (rank % 2 + rng.random(len(shard))) / 2 if len(of) >= 2 * mix else (rank + 0.5) / len(of)
    order: npt.NDArray[np.int64] = pieces[np.argsort((turn + offset) / of[shard], kind="stable")]
    return order
