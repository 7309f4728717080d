"""One encoder and what it is asked about. Every set is read and embedded once, however many evaluators look at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol, TypeVar

from ito_ray.config.schema import Config
from ito_ray.data.heldout import Pair, PairReader
from ito_ray.data.tally import Tally
from ito_ray.errors import DataError
from ito_ray.evaluation.clip_benchmark import BenchmarkSource
from ito_ray.evaluation.embed import (
    Change,
    LabelledEmbeddings,
    PairEmbeddings,
    embed_changed,
    embed_labelled,
    embed_pairs,
    join_labelled,
    join_pairs,
    joined,
)
from ito_ray.evaluation.encoder import Embeddings, Encoder
from ito_ray.evaluation.report import Measure, Section
from ito_ray.evaluation.sources import Labelled, Source, open_labelled, open_pairs, read
from ito_ray.evaluation.zero_shot import class_embeddings

LOOKED_AT = 1000
"""Labelled samples among which one of a known class is looked for before a run starts."""
T = TypeVar("T")
Task = Callable[[Encoder, PairReader], T]


class Passes(Protocol):
    """How a set is gone through: here, or shared among processes."""

    def __call__(
        self, encoder: Encoder, source: Source, task: Task[T], *, limit: int | None, max_pixels: int
    ) -> list[tuple[T, Tally]]:
        """What `task` makes of each part of the source, in the source's order, with the account of its rows."""


def one_pass(
    encoder: Encoder, source: Source, task: Task[T], *, limit: int | None, max_pixels: int
) -> list[tuple[T, Tally]]:
    """All of it here, in one part."""
    reader = read(source, limit=limit, max_pixels=max_pixels)
    return [(task(encoder, reader), reader.tally)]


@dataclass(frozen=True)
class Finding:
    """What one evaluator found."""

    measures: tuple[Measure, ...]
    sections: tuple[Section, ...] = ()


@dataclass
class Subject:
    """What an evaluator gets.

    Args:
        encoder: to be measured.
        cfg: `data` and `eval` are used.
        limit: samples of each set; None = all.
        captions: of an image that count, the first ones; of CLIP_benchmark's retrieval sets all do.
        thumbnail: side of the small pictures to keep; 0 = none.
        probe: labelled pictures that probes are fitted to; empty = half of eval.zero_shot.
        passes: how sets are gone through.
    """

    encoder: Encoder
    cfg: Config
    limit: int | None = None
    captions: int = 1
    thumbnail: int = 0
    probe: Sequence[str] = ()
    passes: Passes = one_pass
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples that could not be used, by reason."""

    @cached_property
    def pairs(self) -> PairEmbeddings:
        """The held-out pairs.

        Raises:
            DataError: there is none, or the encoder gives a vector that is not finite.
        """
        captions = None if isinstance(self.pair_source, BenchmarkSource) else self.captions
        task = partial(_pairs, batch=self.cfg.eval.batch, captions=captions, thumbnail=self.thumbnail)
        found = join_pairs(self._go(self.pair_source, task))
        if not found.keys:
            raise _no_pair(self.dropped)
        return found

    @cached_property
    def labelled(self) -> LabelledEmbeddings:
        """The labelled pictures whose class is known; see `pairs` for what is raised."""
        return self._labelled(self.labels)

    @cached_property
    def probe_set(self) -> LabelledEmbeddings | None:
        """What probes are fitted to, if it was given."""
        if not self.probe:
            return None
        given = open_labelled(self.cfg, self.probe, "--probe")
        return self._labelled(Labelled(given.source, given.field, self.labels.table, self.labels.templates))

    @cached_property
    def class_embeddings(self) -> Embeddings:
        """(K, D) one vector a class, from all its prompts."""
        return self.embed_classes(self.class_names, self.labels.templates)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, as the prompts say them."""
        return tuple(self.labels.table.values())

    @cached_property
    def pair_source(self) -> Source:
        """Where the pairs come from."""
        return open_pairs(self.cfg)

    @cached_property
    def labels(self) -> Labelled:
        """Where the labelled pictures come from, and their classes."""
        return open_labelled(self.cfg, self.cfg.eval.zero_shot, "eval.zero_shot")

    def embed_classes(self, names: Sequence[str], templates: Sequence[str]) -> Embeddings:
        """(K, D) one vector a class."""
        return class_embeddings(self.encoder, names, templates, batch=self.cfg.eval.batch)

    def changed_pairs(self, changes: Mapping[str, Change], most: int) -> dict[str, Embeddings]:
        """The first `most` images of the pairs under every change; see `pairs` for what is raised."""
        return self._changed(self.pair_source, changes, most, _any)

    def changed_labelled(self, changes: Mapping[str, Change], most: int) -> dict[str, Embeddings]:
        """The first images of known class under every change; `most` of the set are read."""
        accept = partial(_is_known, index=frozenset(self.labels.table), field=self.labels.field)
        return self._changed(self.labels.source, changes, most, accept)

    def _labelled(self, given: Labelled) -> LabelledEmbeddings:
        index = {label: number for number, label in enumerate(given.table)}
        task = partial(_labelled, index=index, field=given.field, batch=self.cfg.eval.batch)
        found = join_labelled(self._go(given.source, task))
        if not len(found.labels):
            raise _no_class(given, found.left_out, found.unknown)
        if found.left_out:
            self.dropped["class_not_listed"] += found.left_out
        return found

    def _changed(
        self, source: Source, changes: Mapping[str, Change], most: int, accept: Callable[[Pair], bool]
    ) -> dict[str, Embeddings]:
        task = partial(_changed, changes=dict(changes), batch=self.cfg.eval.batch, accept=accept)
        limit = most if self.limit is None else min(most, self.limit)
        parts = [part for part, _ in self.passes(self.encoder, source, task, limit=limit, max_pixels=self._max_pixels)]
        found = {name: joined([part[name] for part in parts]) for name in changes}
        if not all(len(rows) for rows in found.values()):
            raise DataError(
                f"The first {limit:,} samples have no picture of a listed class: mix the set, or its classes."
            )
        return found

    def _go(self, source: Source, task: Task[T]) -> list[T]:
        done = self.passes(self.encoder, source, task, limit=self.limit, max_pixels=self._max_pixels)
        for _, tally in done:
            self.dropped.update(tally.dropped)
        return [part for part, _ in done]

    @property
    def _max_pixels(self) -> int:
        return self.cfg.data.max_pixels


def require_samples(cfg: Config) -> None:
    """Look whether each set has a sample to measure on, without an encoder; the first one as a rule.

    Raises:
        ConfigError, DataError: what `evaluate` would raise for sets without one.
    """
    if cfg.data.heldout:
        reader = read(open_pairs(cfg), limit=1, max_pixels=cfg.data.max_pixels)
        if next(reader, None) is None:
            raise _no_pair(reader.tally.dropped)
    if cfg.eval.zero_shot:
        given = open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")
        pairs = read(given.source, limit=LOOKED_AT, max_pixels=cfg.data.max_pixels)
        said = dict.fromkeys(str(pair.meta.get(given.field, "(nothing)")) for pair in _until_known(pairs, given))
        if pairs.tally.delivered < LOOKED_AT and not said.keys() & given.table.keys():
            raise _no_class(given, pairs.tally.delivered, sorted(said)[:3])


def _until_known(pairs: Iterable[Pair], given: Labelled) -> Iterator[Pair]:
    """As far as the first whose class is listed."""
    for pair in pairs:
        yield pair
        if _is_known(pair, index=frozenset(given.table), field=given.field):
            return


def _no_pair(dropped: Mapping[str, int]) -> DataError:
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return DataError(f"data.heldout gave no pair with a readable image and a caption; dropped: {lost or 'none'}.")


def _no_class(given: Labelled, left_out: int, unknown: Sequence[str]) -> DataError:
    return DataError(
        f"None of the {left_out} labelled samples has a class of the class file in its field {given.field!r}: the "
        f"samples say {list(unknown)}, the class file {list(given.table)[:3]}; set the field or the file."
    )


def _pairs(encoder: Encoder, reader: PairReader, *, batch: int, captions: int | None, thumbnail: int) -> PairEmbeddings:
    return embed_pairs(encoder, reader, batch, captions=captions, thumbnail=thumbnail)


def _labelled(
    encoder: Encoder, reader: PairReader, *, index: Mapping[str, int], field: str, batch: int
) -> LabelledEmbeddings:
    return embed_labelled(encoder, reader, index, field, batch)


def _changed(
    encoder: Encoder,
    reader: PairReader,
    *,
    changes: Mapping[str, Change],
    batch: int,
    accept: Callable[[Pair], bool],
) -> dict[str, Embeddings]:
    return embed_changed(encoder, reader, changes, batch, accept)


def _any(pair: Pair) -> bool:
    return True


def _is_known(pair: Pair, *, index: frozenset[str], field: str) -> bool:
    return str(pair.meta.get(field)) in index
