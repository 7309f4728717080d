"""Which captions are right for which images: an image's own, and whatever says the same.

N images, M captions (M ≥ N), U different captions. `owner_M[m]` is the image of caption m.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True, eq=False)
class Answers:
    """An image and a caption are right for each other if the image has a caption that is equal to this one.

    Two factors are held, (N, U) and (M, U), never N × M: all images may have the same caption.

    Args:
        owner_M: in [0, N); several captions may have the same image, and each image has at least one.
        number_M: of `ito_ray.data.captions.caption_numbers`.

    Raises:
        ValueError: an owner is out of range, or an image has no caption.
    """

    owner_M: NDArray[np.int64]
    number_M: NDArray[np.int64]
    images: int

    def __post_init__(self) -> None:
        m, n = len(self.number_M), self.images
        if self.owner_M.shape != (m,) or self.owner_M.min() < 0 or self.owner_M.max() >= n:
            raise ValueError(f"owner_M must be ({m},) with values in [0, {n}).")
        captions_N = np.bincount(self.owner_M, minlength=n)
        if not captions_N.all():
            raise ValueError(f"image {int(np.argmin(captions_N))} has no caption.")

    def right(self, images: slice, captions: slice | NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """(rows of `images`, rows of `captions`) whether they are right for each other; None if none of them are."""
        found = self._has_NU[images] @ self._is_MU[captions].T
        dense: NDArray[np.bool_] = found.toarray()
        return dense if found.nnz else None

    @cached_property
    def _has_NU(self) -> Any:
        return _true(self.owner_M, self.number_M, (self.images, int(self.number_M.max()) + 1))

    @cached_property
    def _is_MU(self) -> Any:
        m = len(self.number_M)
        return _true(np.arange(m), self.number_M, (m, int(self.number_M.max()) + 1))

    @property
    def captions_N(self) -> NDArray[np.int64]:
        """(N,) right captions of each image."""
        counted: NDArray[np.int64] = self._has_NU.astype(np.int64) @ np.bincount(self.number_M)
        return counted

    @property
    def images_M(self) -> NDArray[np.int64]:
        """(M,) right images of each caption."""
        counted: NDArray[np.int64] = np.bincount(self._has_NU.indices)[self.number_M]
        return counted

    @property
    def shared(self) -> int:
        """Captions that another image has, too."""
        return int((self.images_M > 1).sum())

    @property
    def groups_N(self) -> NDArray[np.int64] | None:
        """(N,) equal for images that captions join, for intervals; None where no two are, or all of them."""
        if not self.shared:
            return None
        n, u = self._has_NU.shape
        edges = coo_array((np.ones(len(self.owner_M), bool), (self.owner_M, n + self.number_M)), shape=(n + u, n + u))
        component = connected_components(edges, directed=False)[1][:n].astype(np.int64)
        return component if component.any() else None


def _true(row: NDArray[np.int64], column: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    cells = coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=shape)
    return csr_array(cells)  # twice the same is once
