"""The shape of the shared space."""

from __future__ import annotations

import numpy as np

from ito_ray.evaluation.encoder import Embeddings


def modality_gap(image_ND: Embeddings, text_MD: Embeddings) -> float:
    """Euclidean distance between the centroids of the two modalities (Liang et al., arXiv 2203.02053).

    0 = the clouds share their centre; at most 2, for unit vectors.

    Args:
        image_ND: (N, D) float32, L2-normed.
        text_MD: (M, D) float32, L2-normed.
    """
    gap_D = image_ND.mean(axis=0, dtype=np.float64) - text_MD.mean(axis=0, dtype=np.float64)
    return float(np.linalg.norm(gap_D))
