"""What retrieval looks like: some texts, and the images that the encoder puts first for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ito_ray.evaluation.embed import PairEmbeddings
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
    """Whether the query is a caption of this image."""


Choice = Literal["random", "best", "worst"]


@dataclass(frozen=True)
class Query:
    """A text and its first images."""

    text: str
    hits: tuple[Hit, ...]
    rank: int
    """Of the best right image; ties count against it."""
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
        choice: `best` and `worst` go by how much more similar the best right image is than the best wrong one.

    Raises:
        ValueError: the pairs were embedded without thumbnails.
    """
    if len(pairs.thumbnails) != len(pairs.keys):
        raise ValueError("pairs has no thumbnails: embed with thumbnail > 0.")
    first_N = np.unique(pairs.owner, return_index=True)[1]
    order_N = np.random.default_rng(seed).permutation(len(first_N))
    if choice != "random":
        margin_N = _margins(pairs, first_N, chunk)
        order_N = np.argsort(-margin_N if choice == "best" else margin_N, kind="stable")
    number_N = pairs.answers.number_M[first_N]
    first_with = {number_N[i]: i for i in reversed(order_N)}
    drawn_Q = np.array([i for i in order_N if first_with[number_N[i]] == i][:count])
    text_QD = on_grid(pairs.text[first_N[drawn_Q]])
    best: list[list[tuple[float, bool, int]]] = [[] for _ in drawn_Q]
    best_right_Q, rank_Q = np.full(len(drawn_Q), -np.inf), np.ones(len(drawn_Q), dtype=np.int64)
    for rows in chunks(len(pairs.image), chunk):
        score_QB, right_QB = _scores(pairs, text_QD, first_N[drawn_Q], rows)
        np.maximum(best_right_Q, score_QB.max(axis=1, where=right_QB, initial=-np.inf), out=best_right_Q)
        for q in range(len(drawn_Q)):
            best[q] = _merge(best[q], score_QB[q], right_QB[q], rows.start, top)
    for rows in chunks(len(pairs.image), chunk):
        score_QB, right_QB = _scores(pairs, text_QD, first_N[drawn_Q], rows)
        rank_Q += np.count_nonzero((score_QB >= best_right_Q[:, None]) & ~right_QB, axis=1)
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


def _scores(
    pairs: PairEmbeddings, text_QD: NDArray[np.float64], caption_Q: NDArray[np.int64], images: slice
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(Q,B) similarities of the captions to some images, and whether they are right for each other."""
    score_QB = text_QD @ on_grid(pairs.image[images]).T
    right_BQ = pairs.answers.right(images, caption_Q)
    return score_QB, np.zeros(score_QB.shape, dtype=bool) if right_BQ is None else right_BQ.T


def _margins(pairs: PairEmbeddings, first_N: NDArray[np.int64], chunk: int) -> NDArray[np.float64]:
    """(N,) similarity of each image's first caption to the best right image, less that to the best wrong one."""
    margin_N = np.empty(len(first_N))
    for a in chunks(len(first_N), chunk):
        text_AD = on_grid(pairs.text[first_N[a]])
        right_A, wrong_A = np.full(len(text_AD), -np.inf), np.full(len(text_AD), -np.inf)
        for b in chunks(len(pairs.image), chunk):
            score_AB, right_AB = _scores(pairs, text_AD, first_N[a], b)
            np.maximum(right_A, score_AB.max(axis=1, where=right_AB, initial=-np.inf), out=right_A)
            np.maximum(wrong_A, score_AB.max(axis=1, where=~right_AB, initial=-np.inf), out=wrong_A)
        margin_N[a] = right_A - wrong_A
    return margin_N


def _merge(
    best: list[tuple[float, bool, int]], score_B: NDArray[np.float64], right_B: NDArray[np.bool_], start: int, top: int
) -> list[tuple[float, bool, int]]:
    """The first `top` by (−similarity, right, index): among equals the right ones come last, as their rank says."""
    index = start + np.arange(len(score_B))
    order = np.lexsort((index, right_B, -score_B))[:top]
    new = [(-float(score_B[i]), bool(right_B[i]), int(index[i])) for i in order]
    return sorted(best + new)[:top]
