"""Cosine similarities without rounding, so that ranks depend on the embeddings alone.

In float32 two equal vectors can get two similarities that differ in the last bit, because BLAS sums in another order
at another place of the matrix: ties would break by chance, and ranks would change with the chunk size. Here every
component is put on a grid of 2⁻²⁶ (an error of at most 2⁻²⁷ ≈ 7.5e-9, less than float32 encoders reproduce). Products
are then multiples of 2⁻⁵², and by Cauchy-Schwarz no partial sum of two unit vectors exceeds 1 in magnitude, so every
intermediate fits the 53 bits of a float64: the result is exact in whatever order it is summed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ito_ray.evaluation.encoder import Embeddings

_GRID = 2.0**26


def on_grid(unit_ND: Embeddings) -> NDArray[np.float64]:
    """(n, D) float32 unit vectors to float64 whose dot products are exact."""
    grid_ND = unit_ND.astype(np.float64)
    grid_ND *= _GRID
    np.rint(grid_ND, out=grid_ND)
    grid_ND /= _GRID
    return grid_ND


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def require_unit(name: str, unit_ND: Embeddings) -> None:
    """A NaN compares false with everything and would rank first: refuse it.

    Raises:
        ValueError: not (n, D), or a row whose length is not 1 within 1 %.
    """
    if unit_ND.ndim != 2 or not len(unit_ND):
        raise ValueError(f"{name} has shape {unit_ND.shape}: it must be (n, D) with n > 0.")
    for rows in chunks(len(unit_ND), 4096):
        norm_N = np.linalg.norm(unit_ND[rows], axis=1)
        if not (np.abs(norm_N - 1) < 1e-2).all():  # also false for NaN
            raise ValueError(f"{name} must hold finite vectors of length 1.")
