"""From rows to a block of training samples, with an account of every row.

n samples, V views, C captions, H = W = size, T = context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from ito_ray.config.schema import ViewsConfig
from ito_ray.data.captions import draw, fill
from ito_ray.data.plan import SAMPLE_STREAM, SHUFFLE_STREAM, Piece
from ito_ray.data.position import ROW_PLACE_BITS
from ito_ray.data.rows import BadSample, Row
from ito_ray.data.tally import EntryReport, Lost, Tally
from ito_ray.data.tokens import load_tokenizer, tokenize
from ito_ray.data.views import make_views

Block = dict[str, npt.NDArray[Any]]
"""uid int64 (n,); source int32 (n,), index in the plan's names; views uint8 (n, V, H, W, 3); ids int32 (n, C, T);
lengths int32 (n, C). n may be 0."""
_NUMBER_MASK = (1 << ROW_PLACE_BITS) - 1


@dataclass(frozen=True)
class SampleSpec:
    """What a sample is made of; small and picklable, since it goes to every task."""

    views: ViewsConfig
    captions: int
    size: int
    max_pixels: int
    tokenizer_dir: str
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
    places: list[int] = []
    sources: list[int] = []
    texts: list[str] = []
    lost: list[Lost] = []
    for place, source, row in (rows[index] for index in order):
        if place in skip:
            continue
        rng = np.random.default_rng((seed, SAMPLE_STREAM, entry, place))
        try:
            if row.bad is not None or row.image is None:
                raise BadSample(row.bad or "missing_image", row.detail)
            views[len(places)] = make_views(row.image, cfg.views, cfg.size, max_pixels=cfg.max_pixels, rng=rng)
        except BadSample as error:
            lost.append(Lost(source, row.url, row.key, error.reason, error.detail, place))
            continue
        texts += [fill(text, cfg.templates, rng) for text in draw(row.captions, cfg.captions, rng, row.weights)]
        places.append(place)
        sources.append(source)
    ids, lengths = _tokens(texts, cfg)
    block: Block = {
        "uid": (entry << 32) | np.array(places, np.int64),
        "source": np.array(sources, np.int32),
        "views": views[: len(places)],
        "ids": ids,
        "lengths": lengths,
    }
    return block, _report(pieces, sources, skip, lost)


def _report(
    pieces: Sequence[tuple[Piece, Sequence[Row]]], delivered: Sequence[int], skip: Collection[int], lost: Sequence[Lost]
) -> EntryReport:
    """Count by source what was read, delivered now or before (`skip`), and lost."""
    read: Counter[int] = Counter()
    for slot, (piece, rows) in enumerate(pieces):
        gone = sum(place >> ROW_PLACE_BITS == slot and place & _NUMBER_MASK >= len(rows) for place in skip)
        read[piece.source] += len(rows) + gone  # delivered before, and no longer to be read
    made = Counter(delivered) + Counter(pieces[place >> ROW_PLACE_BITS][0].source for place in skip)
    dropped = {source: Tally() for source in read}
    for one in lost:
        dropped[one.source] += Tally.lost(one.reason, f"{one.shard}#{one.key}: {one.detail}")
    tallies = {
        source: Tally(count, made[source], dropped[source].dropped, dropped[source].examples)
        for source, count in read.items()
    }
    return EntryReport(tallies, tuple(lost))


def _tokens(texts: Sequence[str], cfg: SampleSpec) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """ids (n, C, T) and lengths (n, C) of n·C captions."""
    tokenizer = _tokenizer(cfg.tokenizer_dir)
    tokens = tokenize(tokenizer, texts, cfg.context)
    ids = np.full((len(texts), cfg.context), tokenizer.pad_token_id, np.int32)
    ids[:, : tokens.ids.shape[1]] = tokens.ids
    return ids.reshape(-1, cfg.captions, cfg.context), tokens.lengths.reshape(-1, cfg.captions)


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Loaded once a process: reading one takes longer than using it on a block."""
    return load_tokenizer(folder)
