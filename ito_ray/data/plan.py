"""In what order pieces of shards are read: endless, reshuffled each pass, the same on every machine.

The plan is a pure function of (pieces, seed, mix, index): resuming needs the index of the next entry, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from ito_ray.data.shards import Shard, mean_sample_bytes, parts
from ito_ray.errors import DataError

_VERSION = 1
_FOOTER_THREADS = 32
PLAN_STREAM, SHUFFLE_STREAM, SAMPLE_STREAM = 1, 2, 3
"""Second word of every random generator's seed, so that no two uses share a stream."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part `part` of `parts` of one shard."""

    url: str
    part: int
    parts: int


@dataclass(frozen=True)
class ShardPlan:
    """Endless sequence of entries; an entry is the pieces that one task reads and mixes.

    A pass deals every piece exactly once, in an order drawn from (seed, pass). Pieces of one entry come from different
    shards unless one shard has more pieces than a pass has entries.
    """

    pieces: tuple[Piece, ...]
    seed: int
    mix: int

    def __post_init__(self) -> None:
        if not self.pieces or self.mix < 1 or self.seed < 0:
            raise DataError(
                f"A plan needs pieces, mix ≥ 1 and seed ≥ 0, not {len(self.pieces)} pieces, mix={self.mix}, "
                f"seed={self.seed}: check data.train, data.mix and train.seed."
            )

    @property
    def entries_per_pass(self) -> int:
        return -(-len(self.pieces) // self.mix)

    def entry(self, index: int) -> tuple[Piece, ...]:
        """Pieces of entry `index` ≥ 0, `mix` of them or, where the division leaves a rest, fewer."""
        assert index >= 0, index
        number, place = divmod(index, self.entries_per_pass)
        order = _deal(self._shards, self.entries_per_pass, self.seed, number)
        return tuple(self.pieces[piece] for piece in order[place :: self.entries_per_pass])

    def to_json(self) -> str:
        """Text that `from_json` turns back into an equal plan."""
        shards = [
            [url, total, [piece.part for piece in run]]
            for (url, total), run in groupby(self.pieces, key=lambda piece: (piece.url, piece.parts))
        ]
        return json.dumps({"version": _VERSION, "seed": self.seed, "mix": self.mix, "shards": shards})

    @property
    def digest(self) -> str:
        """Tells plans apart: 16 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @staticmethod
    def from_json(text: str) -> ShardPlan:
        """Raises DataError for another version."""
        plan = json.loads(text)
        if plan.get("version") != _VERSION:
            raise DataError(
                f"This shard plan has version {plan.get('version')!r}, not {_VERSION}: resume with the version of "
                "ito_ray that wrote it, or start a new run."
            )
        pieces = tuple(Piece(url, part, total) for url, total, taken in plan["shards"] for part in taken)
        return ShardPlan(pieces, seed=plan["seed"], mix=plan["mix"])

    @cached_property
    def _shards(self) -> bytes:
        """Number of the shard of each piece, int32; as bytes, whose hash is kept by Python."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(piece.url, len(numbers)) for piece in self.pieces], np.int32).tobytes()


def make_plan(shards: Sequence[Shard], *, rows_per_task: int, mix: int, seed: int) -> ShardPlan:
    """Cut the shards in pieces of about `rows_per_task / mix` rows. Reads the head of one tar and all Parquet footers.

    Raises:
        DataError: for no shards, mix < 1 or a negative seed.
    """
    rows = max(1, rows_per_task // max(1, mix))
    sample_bytes = mean_sample_bytes(shards)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        counts = pool.map(lambda shard: parts(shard, rows, sample_bytes), shards)
        pieces = tuple(
            Piece(shard.url, part, count) for shard, count in zip(shards, counts, strict=True) for part in range(count)
        )
    return ShardPlan(pieces, seed=seed, mix=mix)


@lru_cache(maxsize=4)
def _deal(shards: bytes, entries: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """Order of the pieces in pass `number`; entry e takes every `entries`-th of them from e.

    The pieces are laid out row by row in a grid with one column per entry. Those of a shard stand together, so a shard
    of at most `entries` pieces meets no column twice. The columns are then permuted: else entries that follow each
    other would read the same shards.
    """
    rng = np.random.default_rng((seed, PLAN_STREAM, number))
    shard = np.frombuffer(shards, np.int32)
    rank = rng.permutation(int(shard.max()) + 1)
    order = np.lexsort((rng.random(len(shard)), rank[shard]))
    grid = np.full((-(-len(order) // entries), entries), -1, np.int64)
    grid.flat[: len(order)] = order
    grid = grid[:, rng.permutation(entries)]
    full = grid[-1] >= 0
    return np.concatenate([grid[:, full], grid[:, ~full]], axis=1).ravel()[: len(order)]
