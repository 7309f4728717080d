"""Image-text retrieval: the rank of the right answer for every query, both ways.

Equal captions are equal answers: an image that has the query's caption is right, and so is a caption that an image has,
whosever it was. Otherwise two images with one caption could not both be found, whatever the encoder.

N images, M captions (M ≥ N), D width. `owner_M[m]` is the image of caption m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ito_ray.evaluation.answers import Answers
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.similarity import chunks, on_grid, require_unit


@dataclass(frozen=True)
class Ranks:
    """Ranks of one direction, 1 = best, and how many of the candidates were right for each query."""

    rank: NDArray[np.int64]
    """(queries,) 1 + number of wrong candidates at least as similar as the best right one. A tie therefore counts
    against the model: an encoder that maps everything to one point gets the worst rank, not the first. (Averaging the
    ranks of tied candidates would give it the middle one.)"""
    right: NDArray[np.int64]
    """(queries,) right candidates."""
    candidates: int

    def hits(self, k: int) -> NDArray[np.bool_]:
        """(queries,) whether a right candidate is among the first k."""
        return self.rank <= k

    def recall(self, k: int) -> float:
        """R@k: share of queries with a right candidate among the first k."""
        return float(self.hits(k).mean())

    @property
    def median(self) -> float:
        """Median rank."""
        return float(np.median(self.rank))

    def chance(self, k: int) -> float:
        """Expected R@k of a random order: mean over queries of 1 − C(candidates − right, k) / C(candidates, k)."""
        right, queries = np.unique(self.right, return_counts=True)
        missed = [_all_wrong(self.candidates, int(c), k) for c in right]
        return float(1 - np.average(missed, weights=queries))

    @property
    def chance_median(self) -> float:
        """Median rank of a random order: the smallest k that half of the queries reach by chance."""
        low, high = 1, self.candidates
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.chance(middle) >= 0.5 else (middle + 1, high)
        return float(low)


@dataclass(frozen=True)
class Retrieval:
    """Both directions over the same pairs."""

    image_to_text: Ranks
    text_to_image: Ranks


def retrieval(
    image_ND: Embeddings,
    text_MD: Embeddings,
    owner_M: NDArray[np.int64],
    number_M: NDArray[np.int64] | None = None,
    *,
    chunk: int = 1024,
) -> Retrieval:
    """Rank every caption's best-ranked right image, and every image's best-ranked right caption.

    Memory: chunk² similarities and O(N + M), never N × M. The chunk does not change the result (`similarity.py`).

    Args:
        image_ND: (N, D) float32, L2-normed.
        text_MD: (M, D) float32, L2-normed.
        owner_M: (M,) integers in [0, N); several captions may have the same image, and each image has at least one.
        number_M: (M,) `ito_ray.data.captions.caption_numbers`; None = all captions are different.

    Raises:
        ValueError: embeddings are not unit vectors, or an owner is out of range, or an image has no caption.
    """
    require_unit("image_ND", image_ND)
    require_unit("text_MD", text_MD)
    n, m = len(image_ND), len(text_MD)
    answers = Answers(owner_M, np.arange(m) if number_M is None else number_M, n)

    best_N, best_M = np.full(n, -np.inf), np.full(m, -np.inf)
    for a in chunks(n, chunk):
        for b in chunks(m, chunk):
            right_AB = answers.right(a, b)
            if right_AB is not None:
                score_AB = np.where(right_AB, on_grid(image_ND[a]) @ on_grid(text_MD[b]).T, -np.inf)
                np.maximum(best_N[a], score_AB.max(axis=1), out=best_N[a])
                np.maximum(best_M[b], score_AB.max(axis=0), out=best_M[b])

    image_rank_N, text_rank_M = np.ones(n, dtype=np.int64), np.ones(m, dtype=np.int64)
    for a in chunks(n, chunk):
        image_AD = on_grid(image_ND[a])
        for b in chunks(m, chunk):
            score_AB = image_AD @ on_grid(text_MD[b]).T
            right_AB = answers.right(a, b)
            if right_AB is not None:
                score_AB[right_AB] = -np.inf
            image_rank_N[a] += np.count_nonzero(score_AB >= best_N[a, None], axis=1)
            text_rank_M[b] += np.count_nonzero(score_AB >= best_M[None, b], axis=0)
    return Retrieval(
        image_to_text=Ranks(image_rank_N, answers.captions_N, candidates=m),
        text_to_image=Ranks(text_rank_M, answers.images_M, candidates=n),
    )


def _all_wrong(candidates: int, right: int, k: int) -> float:
    """C(candidates − right, k) / C(candidates, k), as C(candidates − k, right) / C(candidates, right): few factors."""
    return math.prod(max(0, candidates - k - j) / (candidates - j) for j in range(right))
