"""What retrieval looks like: some texts, and the images that the encoder puts first for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ito_ray.evaluation.embed import PairEmbeddings
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.similarity import chunks, on_grid


@dataclass(frozen=True)
class Hit:
    """One image of the answer."""

    thumbnail: bytes
    """WebP."""
    name: str
    """The image's own first caption."""
    similarity: float
    """Cosine."""
    right: bool
    """Whether the query is a caption of this very image."""


Choice = Literal["random", "best", "worst"]


@dataclass(frozen=True)
class Query:
    """A text and its first images."""

    text: str
    hits: tuple[Hit, ...]
    rank: int
    """Of the right image; ties count against it."""
    candidates: int


def make_queries(
    pairs: PairEmbeddings,
    *,
    count: int = 12,
    top: int = 5,
    seed: int = 0,
    chunk: int = 1024,
    choice: Choice = "random",
) -> tuple[Query, ...]:
    """Look texts up among all images: drawn at random, so that nobody chose those that went well, or the extremes.

    A query is the first caption of an image; no two have the same text. Memory: chunk² similarities.

    Args:
        pairs: embedded with thumbnails.
        count: queries, fewer when there are fewer texts.
        top: images per query.
        seed: of the draw.
        chunk: images compared at a time; it does not change the result.
        choice: `best` and `worst` go by how much more similar the right image is than the best wrong one.

    Raises:
        ValueError: the pairs were embedded without thumbnails.
    """
    if len(pairs.thumbnails) != len(pairs.keys):
        raise ValueError("pairs has no thumbnails: embed with thumbnail > 0.")
    first_N = np.unique(pairs.owner, return_index=True)[1]
    order_N = np.random.default_rng(seed).permutation(len(first_N))
    if choice != "random":
        margin_N = _margins(pairs.text[first_N], pairs.image, chunk)
        order_N = np.argsort(-margin_N if choice == "best" else margin_N, kind="stable")
    by_text = {pairs.captions[first_N[i]]: i for i in reversed(order_N)}
    drawn_Q = np.array([i for i in order_N if by_text[pairs.captions[first_N[i]]] == i][:count])
    text_QD = on_grid(pairs.text[first_N[drawn_Q]])
    own_Q = np.einsum("qd,qd->q", text_QD, on_grid(pairs.image[drawn_Q]))
    rank_Q = np.zeros(len(drawn_Q), dtype=np.int64)
    best: list[list[tuple[float, bool, int]]] = [[] for _ in drawn_Q]
    for rows in chunks(len(pairs.image), chunk):
        score_QB = text_QD @ on_grid(pairs.image[rows]).T
        rank_Q += np.count_nonzero(score_QB >= own_Q[:, None], axis=1)
        for q, own in enumerate(drawn_Q):
            best[q] = _merge(best[q], score_QB[q], rows.start, int(own), top)
    return tuple(
        Query(
            text=pairs.captions[first_N[own]],
            hits=tuple(
                Hit(pairs.thumbnails[i], pairs.captions[first_N[i]], -score, right) for score, right, i in best[q]
            ),
            rank=int(rank_Q[q]),
            candidates=len(pairs.keys),
        )
        for q, own in enumerate(drawn_Q)
    )


def _margins(text_ND: Embeddings, image_ND: Embeddings, chunk: int) -> NDArray[np.float64]:
    """(N,) similarity of each text to its own image, less that to the best other one."""
    margin_N = np.empty(len(text_ND))
    for a in chunks(len(text_ND), chunk):
        text_AD = on_grid(text_ND[a])
        rows_A = np.arange(len(text_AD))
        best_A, own_A = np.full(len(text_AD), -np.inf), np.einsum("ad,ad->a", text_AD, on_grid(image_ND[a]))
        for b in chunks(len(image_ND), chunk):
            score_AB = text_AD @ on_grid(image_ND[b]).T
            if a == b:
                score_AB[rows_A, rows_A] = -np.inf
            best_A = np.maximum(best_A, score_AB.max(axis=1))
        margin_N[a] = own_A - best_A
    return margin_N


def _merge(
    best: list[tuple[float, bool, int]], score_B: NDArray[np.float64], start: int, own: int, top: int
) -> list[tuple[float, bool, int]]:
    """The first `top` by (−similarity, right, index): among equals the right one comes last, as its rank says."""
    index = start + np.arange(len(score_B))
    order = np.lexsort((index, index == own, -score_B))[:top]
    new = [(-float(score_B[i]), bool(index[i] == own), int(index[i])) for i in order]
    return sorted(best + new)[:top]
