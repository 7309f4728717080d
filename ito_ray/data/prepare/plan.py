"""Which input goes to which shard: duplicates out, split by key, shuffled, cut evenly. A function of the inspection.

Everything here happens in one process and in the inputs' order, so that it is the same however many tasks inspected.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ito_ray.data.looks import Looks
from ito_ray.data.write import ShardFormat

Dedup = Literal["off", "exact", "perceptual"]
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Rules:
    """What decides the plan."""

    seed: int
    per_shard: int
    val_fraction: float
    dedup: Dedup
    distance: int
    """Bits in which perceptual hashes of duplicates differ at most."""
    format: ShardFormat
    scattered: bool
    """Shuffle single samples; else the source's pieces, and samples within a shard."""


@dataclass(frozen=True)
class Placement:
    """`names`: shards in order; `rows[i]`: inspected rows (numbers) of shard i in their order; `reasons[n]`: why
    inspected row n is left out, None when it is not."""

    names: tuple[str, ...]
    rows: tuple[npt.NDArray[np.int64], ...]
    reasons: tuple[tuple[str, str] | None, ...]


def place(inspected: pa.Table, rules: Rules) -> Placement:
    """Plan the shards.

    Args:
        inspected: rows of `inspect.SCHEMA`, sorted by piece and place.
    """
    keys = inspected["key"].to_pylist()
    reasons = _reasons(inspected, keys, rules)
    kept = np.array([number for number, reason in enumerate(reasons) if reason is None], np.int64)
    chance = np.array([_uniform("split", keys[number]) for number in kept.tolist()])
    order = np.array([_uniform(f"order/{rules.seed}", keys[number]) for number in kept.tolist()])
    pieces = np.asarray(inspected["piece"])[kept]
    rank = {piece: _uniform(f"piece/{rules.seed}", str(piece)) for piece in np.unique(pieces).tolist()}
    run = np.array([0.0 if rules.scattered else rank[piece] for piece in pieces.tolist()])
    names: list[str] = []
    rows: list[npt.NDArray[np.int64]] = []
    for split, members in zip(SPLITS, (chance >= rules.val_fraction, chance < rules.val_fraction), strict=True):
        chosen = np.flatnonzero(members)
        chosen = chosen[np.lexsort((order[chosen], run[chosen]))]
        shards = -(-len(chosen) // rules.per_shard)
        for number, part in enumerate(np.array_split(chosen, shards) if shards else []):
            names.append(f"{split}/{split}-{number:05d}.{rules.format}")
            rows.append(kept[part[np.argsort(order[part], kind="stable")]])
    return Placement(tuple(names), tuple(rows), tuple(reasons))


def _reasons(inspected: pa.Table, keys: list[str], rules: Rules) -> list[tuple[str, str] | None]:
    reasons: list[tuple[str, str] | None] = []
    seen: set[str] = set()
    first: dict[bytes, str] = {}
    looks = Looks(rules.distance)
    columns = [inspected[name].to_pylist() for name in ("reason", "detail", "digest", "look")]
    for key, reason, detail, digest, look in zip(keys, *columns, strict=True):
        if reason is not None:
            reasons.append((reason, detail))
        elif key in seen:
            reasons.append(("duplicate_key", "an earlier input has this key"))
        elif rules.dedup != "off" and digest in first:
            reasons.append(("duplicate_image", f"same bytes as {first[digest]}"))
        elif rules.dedup == "perceptual" and (near := looks.find_or_add(look, key)) is not None:
            reasons.append(("similar_image", f"looks like {near}"))
        else:
            reasons.append(None)
            seen.add(key)
            first[digest] = key
    return reasons


def account(inspected: pa.Table, placement: Placement) -> dict[str, Any]:
    """Inputs = written + dropped, captions = written + removed by length + lost with their sample."""
    dropped: dict[str, int] = defaultdict(int)
    for reason in placement.reasons:
        if reason is not None:
            dropped[reason[0]] += 1
    written = dict.fromkeys(SPLITS, 0)
    for name, rows in zip(placement.names, placement.rows, strict=True):
        written[name.partition("/")[0]] += len(rows)
    used = pa.array([reason is None for reason in placement.reasons], pa.bool_())
    read, fitting = (pc.fill_null(inspected[name], 0) for name in ("captions", "fitting"))
    total, of_used, kept = (
        int(pc.sum(column).as_py() or 0) for column in (read, read.filter(used), fitting.filter(used))
    )
    captions = {"read": total, "written": kept, "removed_by_length": of_used - kept, "of_dropped": total - of_used}
    notes = Counter(pc.list_flatten(inspected["notes"]).to_pylist())
    assert inspected.num_rows == sum(written.values()) + sum(dropped.values()), (written, dropped)
    return {
        "inputs": inspected.num_rows,
        "written": written,
        "dropped": dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
        "captions": captions,
        "notes": dict(sorted(notes.items())),
    }


def _uniform(purpose: str, key: str) -> float:
    """[0, 1), the same for the same key everywhere and always."""
    digest = hashlib.sha256(f"{purpose}/{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
