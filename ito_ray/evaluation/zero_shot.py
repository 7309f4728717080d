"""Zero-shot classification: the class whose prompts are nearest to the image.

N images, K classes, P templates, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ito_ray.data.preprocess import clean_text
from ito_ray.errors import DataError
from ito_ray.evaluation.encoder import Embeddings, Encoder
from ito_ray.evaluation.similarity import chunks, on_grid, require_unit


@dataclass(frozen=True)
class ZeroShot:
    """The rank of the true class for every image; ties count against the model, as in retrieval.

    Classes of one name are the exception: of these the first is put first, as an argmax does.
    """

    rank: NDArray[np.int64]
    """(N,) 1 + number of wrong classes at least as similar as the true one, without later ones of its name."""
    labels: NDArray[np.int64]
    """(N,) true classes."""
    classes: int

    def hits(self, k: int) -> NDArray[np.bool_]:
        """(N,) whether the true class is among the first k."""
        return self.rank <= k

    def top(self, k: int) -> float:
        """Top-k accuracy."""
        return float(self.hits(k).mean())

    def chance(self, k: int) -> float:
        """Top-k accuracy of a random order."""
        return min(1.0, k / self.classes)

    @property
    def per_class(self) -> NDArray[np.float64]:
        """Top-1 accuracy of each class that has an image, in the order of the classes."""
        images = np.bincount(self.labels, minlength=self.classes)
        hits = np.bincount(self.labels, weights=self.hits(1), minlength=self.classes)
        accuracy: NDArray[np.float64] = hits[images > 0] / images[images > 0]
        return accuracy

    @property
    def mean_per_class(self) -> float:
        """Top-1 accuracy averaged over the classes that have an image, however many each has."""
        return float(self.per_class.mean())


def class_embeddings(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str], *, batch: int = 256
) -> Embeddings:
    """One unit vector per class: the renormalised mean of its prompts' embeddings (CLIP, arXiv 2103.00020, 3.1.4).

    Args:
        names: K class names.
        templates: P prompts, each with {} where the name goes.
        batch: prompts encoded at a time, about.

    Returns:
        (K, D) float32, L2-normed.

    Raises:
        DataError: a class whose prompts cancel out or are not finite.
    """
    said = list(dict.fromkeys(names))  # equal names must give equal vectors, whatever the batch
    step = max(1, batch // len(templates))
    parts = []
    for rows in chunks(len(said), step):
        prompts = [clean_text(template.replace("{}", name)) for name in said[rows] for template in templates]
        text_XD = encoder.encode_texts(prompts)  # X = K · P, class by class
        mean_KD = text_XD.reshape(len(text_XD) // len(templates), len(templates), -1).mean(axis=1)
        norm_K1 = np.linalg.norm(mean_KD, axis=1, keepdims=True)
        if not (norm_K1 > 1e-6).all():
            bad = said[rows][int(np.argmin(np.nan_to_num(norm_K1[:, 0])))]
            raise DataError(
                f"The prompts of class {bad!r} have no direction under {encoder.name}: the model gives NaN or zero "
                "vectors; evaluate an earlier checkpoint."
            )
        parts.append(mean_KD / norm_K1)
    place = {name: at for at, name in enumerate(said)}
    class_XD: Embeddings = np.concatenate(parts)
    return class_XD[[place[name] for name in names]]


def zero_shot(
    image_ND: Embeddings,
    labels_N: NDArray[np.int64],
    class_KD: Embeddings,
    names: Sequence[str] = (),
    *,
    chunk: int = 1024,
) -> ZeroShot:
    """Rank the true class of every image among all classes.

    Memory: chunk² similarities and O(N + K); the chunk does not change the result (`similarity.py`).

    Args:
        image_ND: (N, D) float32, L2-normed.
        labels_N: (N,) integers in [0, K).
        class_KD: (K, D) float32, L2-normed.
        names: K names, of which some may be equal; their vectors are then the same. Empty = all differ.

    Raises:
        ValueError: embeddings are not unit vectors, or a label is out of range.
    """
    require_unit("image_ND", image_ND)
    require_unit("class_KD", class_KD)
    n, k = len(image_ND), len(class_KD)
    if labels_N.shape != (n,) or labels_N.min() < 0 or labels_N.max() >= k:
        raise ValueError(f"labels_N must be ({n},) with values in [0, {k}).")
    rank_N = np.zeros(n, dtype=np.int64)
    for a in chunks(n, chunk):
        image_AD = on_grid(image_ND[a])
        own_A = np.einsum("ad,ad->a", image_AD, on_grid(class_KD[labels_N[a]]))
        for b in chunks(k, chunk):
            score_AB = image_AD @ on_grid(class_KD[b]).T
            rank_N[a] += np.count_nonzero(score_AB >= own_A[:, None], axis=1)
    if names:
        rank_N -= _later_of_one_name(names)[labels_N]
    return ZeroShot(rank_N, labels_N, classes=k)


def _later_of_one_name(names: Sequence[str]) -> NDArray[np.int64]:
    """(K,) how many classes after each one have its name."""
    left = Counter(names)
    later = []
    for name in names:
        left[name] -= 1
        later.append(left[name])
    return np.array(later, dtype=np.int64)
