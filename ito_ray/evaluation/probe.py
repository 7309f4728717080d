"""What frozen image features hold: a linear classifier and the nearest neighbours, both from scikit-learn.

n training pictures, m test pictures, K classes, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ito_ray.errors import DataError
from ito_ray.evaluation.embed import LabelledEmbeddings
from ito_ray.evaluation.encoder import Embeddings

CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of L2 that are tried; unit vectors need weak ones."""
NEIGHBOURS = (1, 5, 20)
_STEPS = 1000


@dataclass(frozen=True)
class Split:
    """What a probe is fitted to and asked about."""

    train_nD: Embeddings
    train_n: NDArray[np.int64]
    test_mD: Embeddings
    test_m: NDArray[np.int64]
    left_out: int
    """Pictures of classes that are not on both sides."""

    @property
    def classes(self) -> int:
        return len(np.unique(self.train_n))


def split(labelled: LabelledEmbeddings, train: LabelledEmbeddings | None) -> Split:
    """Fit to `train`, ask about `labelled`; without `train`, fit to every second picture of each class, in their order.

    Raises:
        DataError: fewer than two classes are on both sides.
    """
    if train is None:
        turn = _turns(labelled.labels)
        fitted, asked = labelled.labels[turn % 2 == 0], labelled.labels[turn % 2 == 1]
        vectors = labelled.image[turn % 2 == 0], labelled.image[turn % 2 == 1]
    else:
        fitted, asked, vectors = train.labels, labelled.labels, (train.image, labelled.image)
    common = np.intersect1d(fitted, asked)
    if len(common) < 2:
        where = "training set (--probe)" if train else "set, half of which is for training,"
        raise DataError(
            f"Probes need at least two classes with a picture to fit to and one to ask about: the {where} leaves "
            f"{len(common)}. Give more pictures a class, or leave linear_probe and knn out of --evaluators."
        )
    keep_n, keep_m = np.isin(fitted, common), np.isin(asked, common)
    return Split(
        vectors[0][keep_n],
        fitted[keep_n],
        vectors[1][keep_m],
        asked[keep_m],
        int((~keep_n).sum() + (~keep_m).sum()),
    )


def linear_probe(parts: Split) -> tuple[NDArray[np.bool_], float]:
    """Logistic regression on the features as they are.

    C is chosen among `CS` on every second training picture of each class (the first best one), and the final classifier
    is fitted to all training pictures. The test pictures take no part in the choice.

    Returns:
        (m,) whether each test picture is right, and C.
    """
    turn = _turns(parts.train_n)
    held = turn % 2 == 1
    chosen = CS[len(CS) // 2]
    if held.any() and len(np.unique(parts.train_n[~held])) > 1:
        scores = [
            _fit(parts.train_nD[~held], parts.train_n[~held], c).score(parts.train_nD[held], parts.train_n[held])
            for c in CS
        ]
        chosen = CS[int(np.argmax(scores))]
    model = _fit(parts.train_nD, parts.train_n, chosen)
    hits: NDArray[np.bool_] = model.predict(parts.test_mD) == parts.test_m
    return hits, chosen


def nearest(parts: Split, k: int) -> NDArray[np.bool_]:
    """(m,) whether the vote of the k nearest training pictures, weighted by 1/distance, is right. k ≤ n."""
    model = KNeighborsClassifier(n_neighbors=k, weights="distance", algorithm="brute")
    with _few_pictures_a_class():
        model.fit(parts.train_nD, parts.train_n)
    hits: NDArray[np.bool_] = model.predict(parts.test_mD) == parts.test_m
    return hits


def _fit(image_nD: Embeddings, label_n: NDArray[np.int64], c: float) -> LogisticRegression:
    with _few_pictures_a_class():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after that many steps more change no digit
        return LogisticRegression(C=c, max_iter=_STEPS).fit(image_nD, label_n)


@contextmanager
def _few_pictures_a_class() -> Iterator[None]:
    """Without scikit-learn's guess that many classes must be a regression."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _turns(label_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many pictures of the same class came before each."""
    order = np.argsort(label_n, kind="stable")
    starts = np.searchsorted(label_n[order], label_n[order])
    turn = np.empty(len(label_n), dtype=np.int64)
    turn[order] = np.arange(len(label_n)) - starts
    return turn
