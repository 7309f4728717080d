"""What is in shards: counts, sizes, captions, damage, duplicates, and how fast this machine turns them into views."""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ito_ray.config.schema import DataConfig
from ito_ray.data.decode import open_image, to_rgb, upright_size
from ito_ray.data.looks import Looks, look_of
from ito_ray.data.plan import ShardPlan, make_plan
from ito_ray.data.rows import BadSample, Row, one_sample, read_patiently
from ito_ray.data.shards import Shard, list_shards
from ito_ray.data.tally import Tally

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
ROWS_PER_ENTRY = 128
TIMED_ROWS = 128
"""Rows whose views are timed."""
EXAMPLES = 5
"""Duplicates named in the report."""
TASKS_PER_WORKER = 4
"""Data tasks in a pass that each worker should find: with fewer, some wait while others still read."""
_UNEVEN = 4.0


@dataclass(frozen=True)
class Pair:
    """One pair for a contact sheet; `thumbnail` is WebP."""

    key: str
    thumbnail: bytes
    captions: tuple[str, ...]


@dataclass
class Survey:
    """What was seen; grows by `add`."""

    cfg: DataConfig
    pairs_kept: int = 24
    dedup_bits: int = 4
    tally: Tally = field(default_factory=Tally)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bytes_: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    meta: Counter[str] = field(default_factory=Counter)
    captions: list[int] = field(default_factory=list)
    first: list[tuple[int, int]] = field(default_factory=list)
    """Characters and words of first captions."""
    others: list[tuple[int, int]] = field(default_factory=list)
    """The same of all further ones."""
    exact: list[str] = field(default_factory=list)
    similar: list[str] = field(default_factory=list)
    keys_again: int = 0
    same_captions: Counter[str] = field(default_factory=Counter)
    pairs: list[Pair] = field(default_factory=list)
    timed: list[bytes] = field(default_factory=list)
    decode_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(0)
        self._keys: set[str] = set()
        self._digests: dict[bytes, str] = {}
        self._looks = Looks(self.dedup_bits)

    def add(self, row: Row) -> None:
        """Look at one row."""
        try:
            if row.bad is not None or row.image is None:
                raise BadSample(row.bad or "missing_image", row.detail)
            started = time.process_time()
            with one_sample():
                encoded = open_image(row.image, max_pixels=self.cfg.max_pixels)
                kind, size = encoded.format or "", upright_size(encoded)
                image = to_rgb(encoded)
                self.decode_seconds += time.process_time() - started
                look = look_of(image)
        except BadSample as error:
            self.tally += Tally.lost(error.reason, f"{row.url}#{row.key}: {error.detail}")
            return
        self.tally += Tally.good(row.notes)
        self.sizes.append(size)
        self.bytes_.append(len(row.image))
        self.formats[kind] += 1
        self.meta.update(row.meta.keys())
        self.captions.append(len(row.captions))
        lengths = [(len(text), len(text.split())) for text in row.captions]
        self.first.append(lengths[0])
        self.others += lengths[1:]
        self.same_captions[row.captions[0]] += 1
        self._find_duplicates(row, look)
        self._keep(row, row.image, image)

    def _find_duplicates(self, row: Row, look: bytes) -> None:
        self.keys_again += row.key in self._keys
        self._keys.add(row.key)
        digest = hashlib.sha256(row.image or b"").digest()
        if digest in self._digests:
            self.exact.append(f"{row.key} = {self._digests[digest]}")
            return
        self._digests[digest] = row.key
        near = self._looks.find_or_add(look, row.key)
        if near is not None:
            self.similar.append(f"{row.key} ≈ {near}")

    def _keep(self, row: Row, data: bytes, image: Image.Image) -> None:
        """Reservoir sampling: each good row has the same chance to be among the pairs kept, and those timed."""
        seen = self.tally.delivered
        if (place := _place(self.timed, TIMED_ROWS, seen, self._rng)) is not None:
            self.timed[place : place + 1] = [data]
        if (place := _place(self.pairs, self.pairs_kept, seen, self._rng)) is not None:
            small = image.copy()
            small.thumbnail((256, 256), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=85)
            self.pairs[place : place + 1] = [Pair(row.key, buffer.getvalue(), row.captions)]


@dataclass(frozen=True)
class Reach:
    """What there is, and how much of it is looked at."""

    shards: tuple[Shard, ...]
    plan: ShardPlan
    limit: int
    """Rows after which to stop; 0 = all."""

    @staticmethod
    def of(patterns: Sequence[str], *, limit: int, seed: int = 0) -> Reach:
        """List the shards. Raises DataError when there are none."""
        shards = list_shards(patterns, field="--data")
        return Reach(
            shards, make_plan({"data": shards}, {"data": 1.0}, rows_per_task=ROWS_PER_ENTRY, mix=1, seed=seed), limit
        )

    @property
    def entries(self) -> int:
        """Pieces in all shards."""
        return self.plan.entries_per_pass

    def rows(self, cfg: DataConfig) -> Iterator[list[Row]]:
        """Rows of one piece after the other, from all over the shards, until the limit is reached."""
        read = 0
        for entry in range(self.entries):
            rows = [row for piece in self.plan.entry(entry) for row in read_patiently(piece, cfg.columns)]
            yield rows
            read += len(rows)
            if self.limit and read >= self.limit:
                return


def numbers(survey: Survey, reach: Reach, entries_read: int, *, global_batch: int) -> dict[str, Any]:
    """The survey as plain numbers, for people and for `--json`. Lengths and sizes are given at `QUANTILES`."""
    tally = survey.tally
    complete = entries_read == reach.entries
    total = tally.read if complete else round(tally.read * reach.entries / max(1, entries_read))
    good = round(total * tally.delivered / tally.read) if tally.read else 0
    shard_bytes = [shard.size for shard in reach.shards]
    widths, heights = (np.array([size[side] for size in survey.sizes], np.int64) for side in (0, 1))
    spoken = [*survey.first, *survey.others]
    again = sum(count - 1 for count in survey.same_captions.values())
    return {
        "complete": complete,
        "read": tally.read,
        "good": tally.delivered,
        "dropped": dict(sorted(tally.dropped.items(), key=lambda item: -item[1])),
        "examples": tally.examples,
        "notes": tally.notes,
        "samples_estimated": total,
        "good_estimated": good,
        "global_batch": global_batch,
        "steps_per_pass": good // global_batch,
        "shards": {
            "count": len(reach.shards),
            "bytes": sum(shard_bytes),
            "smallest": min(shard_bytes),
            "largest": max(shard_bytes),
            "kinds": dict(Counter("tar" if shard.is_tar else "parquet" for shard in reach.shards)),
        },
        "images": {
            "width": _quantiles(widths),
            "height": _quantiles(heights),
            "short_side": _quantiles(np.minimum(widths, heights)),
            "aspect": _quantiles(np.maximum(widths, heights) / np.maximum(1, np.minimum(widths, heights))),
            "bytes": _quantiles(survey.bytes_),
            "formats": dict(survey.formats.most_common()),
        },
        "captions": {
            "per_sample": _quantiles(survey.captions),
            "first_chars": _quantiles([chars for chars, _ in survey.first]),
            "first_words": _quantiles([words for _, words in survey.first]),
            "all_chars": _quantiles([chars for chars, _ in spoken]),
            "all_words": _quantiles([words for _, words in spoken]),
            "first_repeated": again,
            "commonest": survey.same_captions.most_common(3),
        },
        "meta_fields": dict(survey.meta.most_common()),
        "duplicates": {
            "exact": len(survey.exact),
            "similar": len(survey.similar),
            "keys": survey.keys_again,
            "examples": {"exact": survey.exact[:EXAMPLES], "similar": survey.similar[:EXAMPLES]},
        },
        "decode_ms": 1e3 * survey.decode_seconds / max(1, tally.delivered),
    }


def views_ms(survey: Survey, *, size: int) -> float:
    """CPU-milliseconds of one core for all views of a sample, decoding included, as training makes them."""
    from ito_ray.data.views import make_views  # torch takes seconds

    rng = np.random.default_rng(0)
    if not survey.timed:
        return 0.0
    make_views(survey.timed[0], survey.cfg.views, size, max_pixels=survey.cfg.max_pixels, rng=rng)  # warm up
    started = time.process_time()
    for data in survey.timed:
        make_views(data, survey.cfg.views, size, max_pixels=survey.cfg.max_pixels, rng=rng)
    return 1e3 * (time.process_time() - started) / len(survey.timed)


def advice(found: dict[str, Any], cfg: DataConfig, *, workers: int) -> list[str]:
    """What to change, most urgent first; empty when nothing comes to mind."""
    said = []
    shards, read, good = found["shards"], found["read"], max(1, found["good"])
    tasks = -(-found["samples_estimated"] // cfg.rows_per_task)
    lost = read - found["good"]
    if read and lost / read > cfg.max_bad_fraction:
        said.append(
            f"{lost / read:.1%} of the samples are bad, training stops above data.max_bad_fraction="
            f"{cfg.max_bad_fraction:g}: write the good ones anew with `python -m pipelines.prepare shards`."
        )
    if not found["steps_per_pass"]:
        said.append(f"Fewer samples than a global batch of {found['global_batch']}: a batch would repeat pictures.")
    if tasks < TASKS_PER_WORKER * workers:
        said.append(
            f"A pass is {tasks} data tasks for {workers} workers: lower data.rows_per_task "
            f"({cfg.rows_per_task}) to {max(16, found['samples_estimated'] // (TASKS_PER_WORKER * workers))} or less."
        )
    if shards["count"] < cfg.mix:
        said.append(
            f"{shards['count']} shards, and each task mixes pieces of data.mix={cfg.mix}: neighbours in a shard meet "
            "in a batch; prepare more and smaller shards (--per-shard)."
        )
    if shards["largest"] > _UNEVEN * shards["bytes"] / shards["count"]:
        said.append("The largest shard is over four times the mean: `python -m pipelines.prepare shards` evens them.")
    for kind, count in (("exact", found["duplicates"]["exact"]), ("perceptual", found["duplicates"]["similar"])):
        if count / good > 0.01:
            said.append(f"{count / good:.1%} {kind} duplicates: `prepare shards --dedup {kind}` keeps one of each.")
    if found["duplicates"]["keys"]:
        said.append(
            f"{found['duplicates']['keys']} keys come again: prepare would drop these, or see its --keys shard."
        )
    if found["captions"]["first_repeated"] / good > 0.5:
        said.append("More than half of the first captions repeat: in a batch they are false negatives of each other.")
    return said


def _place(kept: Sequence[object], room: int, seen: int, rng: random.Random) -> int | None:
    if len(kept) < room:
        return len(kept)
    place = rng.randrange(seen)
    return place if place < room else None


def _quantiles(values: Any) -> list[float]:
    array = np.asarray(values, np.float64)
    return [round(float(value), 3) for value in np.quantile(array, QUANTILES)] if array.size else []
