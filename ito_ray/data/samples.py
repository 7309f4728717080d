"""From rows to a block of training samples, with an account of every row.

n samples, V views, C captions, H = W = size, T = context.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from ito_ray.config.schema import ViewsConfig
from ito_ray.data.captions import draw, fill
from ito_ray.data.plan import SAMPLE_STREAM, SHUFFLE_STREAM, Piece
from ito_ray.data.position import ROW_PLACE_BITS, ROW_PLACE_MASK
from ito_ray.data.rows import BadSample, Row, one_sample
from ito_ray.data.tally import EntryReport, Lost, Tally
from ito_ray.data.tokens import tokenize
from ito_ray.data.views import make_views

Block = dict[str, npt.NDArray[Any]]
"""uid int64 (n,); source int32 (n,), index in the plan's names; views uint8 (n, V, H, W, 3); ids int32 (n, C, T);
lengths int32 (n, C). n may be 0."""


@dataclass(frozen=True)
class SampleSpec:
    """What a sample is made of."""

    views: ViewsConfig
    captions: int
    size: int
    max_pixels: int
    tokenizer: PreTrainedTokenizerBase
    context: int
    templates: Mapping[str, float] = field(default_factory=dict)


def make_block(
    pieces: Sequence[tuple[Piece, Sequence[Row]]],
    cfg: SampleSpec,
    *,
    seed: int,
    entry: int,
    skip: Collection[int] = (),
) -> tuple[Block, EntryReport]:
    """Decode, augment and tokenise the rows of one entry; bad ones are dropped and counted.

    A row's place is `slot << 24 | number of the row in its piece`, where bad rows have a number too, and its sample's
    uid is `entry << 32 | place`: neither hangs on what was read of the other pieces. Samples are shuffled by
    (seed, entry), so that pieces mix, and each one's augmentation is drawn from (seed, entry, place): the same call
    gives the same block.

    Args:
        pieces: the entry's pieces, slot by slot, with what was read of them.
        skip: places that a resumed run has had; they are left out of the block, but not of the account.

    Returns:
        The block, and the account of each source with the rows that were lost.
    """
    rows = [
        (slot << ROW_PLACE_BITS | number, piece.source, row)
        for slot, (piece, read) in enumerate(pieces)
        for number, row in enumerate(read)
    ]
    order = np.random.default_rng((seed, SHUFFLE_STREAM, entry)).permutation(len(rows)).tolist()
    views = np.empty((len(rows), cfg.views.count, cfg.size, cfg.size, 3), np.uint8)
    made: list[_Made] = []
    lost: list[Lost] = []
    for place, source, row in (rows[index] for index in order):
        if place in skip:
            continue
        rng = np.random.default_rng((seed, SAMPLE_STREAM, entry, place))
        try:
            if row.bad is not None or row.image is None:
                raise BadSample(row.bad or "missing_image", row.detail)
            with one_sample():
                views[len(made)] = make_views(row.image, cfg.views, cfg.size, max_pixels=cfg.max_pixels, rng=rng)
                drawn = draw(row.captions, cfg.captions, rng, row.weights)
                made.append(_Made(place, source, row, [fill(text, cfg.templates, rng) for text in drawn]))
        except BadSample as error:
            lost.append(_lost(place, source, row, error))
    tokens, failed = _tokens([one.texts for one in made], cfg)
    lost += [_lost(made[number].place, made[number].source, made[number].row, error) for number, error in failed]
    kept = np.setdiff1d(np.arange(len(made)), [number for number, _ in failed])
    made = [made[number] for number in kept.tolist()]
    block: Block = {
        "uid": (entry << 32) | np.array([one.place for one in made], np.int64),
        "source": np.array([one.source for one in made], np.int32),
        "views": views[kept] if failed else views[: len(made)],
        **tokens,
    }
    return block, _report(pieces, made, skip, lost)


@dataclass(frozen=True, slots=True)
class _Made:
    """A sample whose views are made; `texts` are its drawn captions."""

    place: int
    source: int
    row: Row
    texts: list[str]


def _lost(place: int, source: int, row: Row, error: BadSample) -> Lost:
    return Lost(source, row.url, row.key, error.reason, error.detail, place)


def _report(
    pieces: Sequence[tuple[Piece, Sequence[Row]]],
    delivered: Sequence[_Made],
    skip: Collection[int],
    lost: Sequence[Lost],
) -> EntryReport:
    """Count by source what was read, delivered now or before (`skip`), lost, and noted of what is delivered."""
    read: Counter[int] = Counter()
    notes: dict[int, Counter[str]] = defaultdict(Counter)
    bad = {one.place for one in lost}
    for slot, (piece, rows) in enumerate(pieces):
        gone = sum(place >> ROW_PLACE_BITS == slot and place & ROW_PLACE_MASK >= len(rows) for place in skip)
        read[piece.source] += len(rows) + gone  # delivered before, and no longer to be read
        for number, row in enumerate(rows):
            if row.notes and slot << ROW_PLACE_BITS | number not in bad:
                notes[piece.source].update(row.notes)
    made = Counter(one.source for one in delivered) + Counter(
        pieces[place >> ROW_PLACE_BITS][0].source for place in skip
    )
    dropped = {source: Tally() for source in read}
    for one in lost:
        dropped[one.source] += Tally.lost(one.reason, f"{one.shard}#{one.key}: {one.detail}")
    tallies = {
        source: Tally(count, made[source], dropped[source].dropped, dropped[source].examples, dict(notes[source]))
        for source, count in read.items()
    }
    return EntryReport(tallies, tuple(lost))


def _tokens(samples: Sequence[Sequence[str]], cfg: SampleSpec) -> tuple[Block, list[tuple[int, BadSample]]]:
    """ids (n, C, T) and lengths (n, C) of the samples that can be tokenised, and which cannot, with the reason."""
    tokenizer = cfg.tokenizer
    failed: list[tuple[int, BadSample]] = []
    try:
        tokens = tokenize(tokenizer, [text for texts in samples for text in texts], cfg.context)
    except Exception:  # one sample's text: found by asking for each alone
        for number, texts in enumerate(samples):
            try:
                with one_sample():
                    tokenize(tokenizer, texts, cfg.context)
            except BadSample as error:
                failed.append((number, error))
        if not failed:
            raise
        bad = {number for number, _ in failed}
        good = [text for number, texts in enumerate(samples) if number not in bad for text in texts]
        tokens = tokenize(tokenizer, good, cfg.context)
    ids = np.full((len(tokens.lengths), cfg.context), tokenizer.pad_token_id, np.int32)
    ids[:, : tokens.ids.shape[1]] = tokens.ids
    shaped = {"ids": ids.reshape(-1, cfg.captions, cfg.context), "lengths": tokens.lengths.reshape(-1, cfg.captions)}
    return shaped, failed
