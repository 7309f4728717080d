"""Which classes are taken for which others.

N images, K classes, C classes shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.report import Grid, Picture, Section
from ito_ray.evaluation.similarity import chunks, on_grid
from ito_ray.evaluation.zero_shot import ZeroShot

SHOWN = 20
"""Classes in the picture."""
LISTED = 12
"""Rows of the tables."""


@dataclass(frozen=True)
class Confusion:
    """Counts of (true, taken for); only the pairs that occur."""

    true_P: NDArray[np.int64]
    taken_P: NDArray[np.int64]
    count_P: NDArray[np.int64]
    """Most frequent first."""

    def matrix(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(C, C) counts among these classes, true ones down."""
        place = {int(name): at for at, name in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for true, taken, count in zip(self.true_P, self.taken_P, self.count_P, strict=True):
            if int(true) in place and int(taken) in place:
                counts[place[int(true)], place[int(taken)]] = count
        return counts


def first_choice(
    image_ND: Embeddings, class_KD: Embeddings, found: ZeroShot, *, chunk: int = 1024
) -> NDArray[np.int64]:
    """(N,) the class put first; where the true one only ties, the other is taken, as its rank says."""
    choice_N = found.labels.copy()
    wrong_N = np.flatnonzero(found.rank > 1)
    for part in chunks(len(wrong_N), chunk):
        rows_A = wrong_N[part]
        image_AD, best_A = on_grid(image_ND[rows_A]), np.full(len(rows_A), -np.inf)
        for b in chunks(len(class_KD), chunk):
            score_AB = image_AD @ on_grid(class_KD[b]).T
            own = found.labels[rows_A] - b.start
            inside = (own >= 0) & (own < score_AB.shape[1])
            score_AB[np.flatnonzero(inside), own[inside]] = -np.inf
            at_A = score_AB.argmax(axis=1)
            top_A = score_AB[np.arange(len(rows_A)), at_A]
            better = top_A > best_A
            best_A[better] = top_A[better]
            choice_N[rows_A[better]] = at_A[better] + b.start
    return choice_N


def confusion(labels_N: NDArray[np.int64], choice_N: NDArray[np.int64]) -> Confusion:
    """Count what was taken for what."""
    pairs_P2, count_P = np.unique(np.stack([labels_N, choice_N], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs_P2[:, 1], pairs_P2[:, 0], -count_P))
    return Confusion(pairs_P2[order, 0], pairs_P2[order, 1], count_P[order])


def confusion_section(found: ZeroShot, choice_N: NDArray[np.int64], names: Sequence[str]) -> Section:
    """The confusions as a picture of the most confused classes and as tables of all."""
    counted = confusion(found.labels, choice_N)
    wrong = counted.true_P != counted.taken_P
    true_P, taken_P, count_P = counted.true_P[wrong], counted.taken_P[wrong], counted.count_P[wrong]
    images_K = np.bincount(found.labels, minlength=len(names))
    shown = _shown(true_P, taken_P, images_K)
    seen = np.flatnonzero(images_K)
    share_S = found.per_class
    order = np.lexsort((seen, share_S))
    confusions = tuple(
        (names[true], names[taken], f"{count} of {images_K[true]}")
        for true, taken, count in zip(true_P[:LISTED], taken_P[:LISTED], count_P[:LISTED], strict=True)
    )
    hardest = tuple((names[seen[i]], f"{100 * share_S[i]:.0f} %", str(images_K[seen[i]])) for i in order[:LISTED])
    where = (
        "all classes" if len(shown) == len(names) else f"{len(shown)} classes, those of the most frequent confusions,"
    )
    picture = Picture(
        "confusion",
        f"Heat map of {where}: true class down, class put first across; the tables below say the same in words.",
        partial(_draw, counted.matrix(shown), [names[i] for i in shown]),
    )
    return Section(
        "Confusions",
        f"How often each true class (row) is put into each class (column), for {where} of {len(names):,}.",
        pictures=(picture,),
        grids=(
            Grid(("True class", "Taken for", "Images"), confusions, "Most frequent confusions"),
            Grid(("Class", "Top 1", "Images"), hardest, "Hardest classes"),
        ),
    )


def _shown(true_P: NDArray[np.int64], taken_P: NDArray[np.int64], images_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both ends of the most frequent confusions, so that these lie in the picture, then classes that have images."""
    ends = np.stack([true_P, taken_P], axis=1).ravel().tolist()
    in_order = dict.fromkeys([*ends, *np.argsort(images_K == 0, kind="stable").tolist()])
    return np.sort(np.array(list(in_order)[:SHOWN], dtype=np.int64))


def _draw(counts_CC: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    from ito_ray.evaluation.charts import (
        confusion_png,
    )  # matplotlib takes a second, and a training worker draws nothing

    confusion_png(counts_CC, names, path)
