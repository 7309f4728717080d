"""From rows to a block of training samples, with an account of every row.

n samples, V views, C captions, H = W = size, T = context.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from ito_ray.config.schema import ViewsConfig
from ito_ray.data.captions import draw
from ito_ray.data.plan import SAMPLE_STREAM, SHUFFLE_STREAM
from ito_ray.data.rows import BadSample, Row
from ito_ray.data.tally import Tally
from ito_ray.data.tokens import load_tokenizer, tokenize
from ito_ray.data.views import make_views

Block = dict[str, npt.NDArray[Any]]
"""uid int64 (n,); views uint8 (n, V, H, W, 3); ids int32 (n, C, T); lengths int32 (n, C). n may be 0."""


@dataclass(frozen=True)
class SampleSpec:
    """What a sample is made of; small and picklable, since it goes to every task."""

    views: ViewsConfig
    captions: int
    size: int
    max_pixels: int
    tokenizer_dir: str
    context: int


def make_block(
    rows: Sequence[Row], cfg: SampleSpec, *, seed: int, entry: int, skip: Collection[int] = ()
) -> tuple[Block, Tally]:
    """Decode, augment and tokenise the rows of one entry; bad ones are dropped and counted.

    Rows are shuffled by (seed, entry), so that the pieces they come from mix, and each sample's augmentation is drawn
    from (seed, entry, its place): the same call gives the same block. A sample's uid is `entry << 32 | place`, where
    bad rows have a place too. Places in `skip` (what a resumed run has had) are left out, block and account alike.
    """
    tokenizer = _tokenizer(cfg.tokenizer_dir)
    order = np.random.default_rng((seed, SHUFFLE_STREAM, entry)).permutation(len(rows)).tolist()
    views = np.empty((len(rows), cfg.views.count, cfg.size, cfg.size, 3), np.uint8)
    places: list[int] = []
    texts: list[str] = []
    tally = Tally()
    for place, index in enumerate(order):
        if place in skip:
            continue
        row = rows[index]
        rng = np.random.default_rng((seed, SAMPLE_STREAM, entry, place))
        try:
            if row.bad is not None or row.image is None:
                raise BadSample(row.bad or "missing_image", row.detail)
            views[len(places)] = make_views(row.image, cfg.views, cfg.size, max_pixels=cfg.max_pixels, rng=rng)
        except BadSample as error:
            tally += Tally.lost(error.reason, f"{row.url}#{row.key}: {error.detail}")
            continue
        texts += draw(row.captions, cfg.captions, rng)
        places.append(place)
    delivered = len(places)
    tally += Tally(delivered, delivered)
    tokens = tokenize(tokenizer, texts, cfg.context)
    ids = np.full((delivered * cfg.captions, cfg.context), tokenizer.pad_token_id, np.int32)
    ids[:, : tokens.ids.shape[1]] = tokens.ids
    block: Block = {
        "uid": (entry << 32) | np.array(places, np.int64),
        "views": views[:delivered],
        "ids": ids.reshape(delivered, cfg.captions, cfg.context),
        "lengths": tokens.lengths.reshape(delivered, cfg.captions),
    }
    return block, tally


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Loaded once a process: reading one takes longer than using it on a block."""
    return load_tokenizer(folder)
