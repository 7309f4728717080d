"""Pairs to embeddings, a batch at a time: no more than one batch of decoded images is ever alive.

n images, m captions (m ≥ n), D width.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ito_ray.errors import DataError
from ito_ray.evaluation.encoder import Embeddings, Encoder

if TYPE_CHECKING:
    from ito_ray.data.heldout import Pair


@dataclass(frozen=True)
class PairEmbeddings:
    """Embedded image-text pairs."""

    image: Embeddings
    """(n, D) float32, L2-normed."""
    text: Embeddings
    """(m, D) float32, L2-normed."""
    owner: NDArray[np.int64]
    """(m,) the image of each caption."""
    keys: tuple[str, ...]
    """n sample keys."""
    captions: tuple[str, ...]
    """m captions."""
    thumbnails: tuple[bytes, ...] = ()
    """n small WebP pictures, or none."""


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embedded images with their classes."""

    image: Embeddings
    """(n, D) float32, L2-normed."""
    labels: NDArray[np.int64]
    """(n,) class indices."""
    left_out: int
    """Samples without a known class."""


def embed_pairs(
    encoder: Encoder,
    pairs: Iterable[Pair],
    batch: int,
    *,
    captions: int | None = None,
    thumbnail: int = 0,
) -> PairEmbeddings:
    """Embed all pairs in the order in which they come.

    Args:
        pairs: read one batch at a time.
        batch: images encoded, and held, at a time.
        captions: how many captions of a pair count, the first ones; None = all.
        thumbnail: longest side in pixels of the pictures to keep (a few kB each); 0 = none.

    Raises:
        DataError: no pair, or the encoder gives a vector that is not finite.
    """
    images: list[Embeddings] = []
    texts: list[Embeddings] = []
    owner: list[int] = []
    keys: list[str] = []
    kept: list[str] = []
    thumbnails: list[bytes] = []
    source = iter(pairs)
    while rows := list(islice(source, batch)):
        first = len(keys)
        keys += [row.key for row in rows]
        own = [row.captions[:captions] for row in rows]
        images.append(_checked(encoder.encode_images([row.image for row in rows]), encoder, "images", keys[first:]))
        flat = [caption for group in own for caption in group]
        texts.append(_checked(encoder.encode_texts(flat), encoder, "texts", flat))
        kept += flat
        owner += [first + i for i, group in enumerate(own) for _ in group]
        if thumbnail:
            thumbnails += [_thumbnail(row.image, thumbnail) for row in rows]
        rows.clear()  # or this batch would live while the next one is read
    if not keys:
        raise DataError("The held-out shards gave no pair with a readable image and a caption.")
    return PairEmbeddings(
        image=np.concatenate(images),
        text=np.concatenate(texts),
        owner=np.array(owner, dtype=np.int64),
        keys=tuple(keys),
        captions=tuple(kept),
        thumbnails=tuple(thumbnails),
    )


def embed_labelled(
    encoder: Encoder, pairs: Iterable[Pair], index: Mapping[str, int], field: str, batch: int
) -> LabelledEmbeddings:
    """Embed the images whose class is known.

    Args:
        pairs: read one batch at a time.
        index: class name to class index.
        field: the entry of a pair's `meta` that holds its class name.
        batch: images encoded, and held, at a time.

    Raises:
        DataError: no sample has a known class, or the encoder gives a vector that is not finite.
    """
    images: list[Embeddings] = []
    labels: list[int] = []
    left_out = 0
    said: list[str] = []
    source = iter(pairs)
    while rows := list(islice(source, batch)):
        said = sorted({str(row.meta.get(field, "(nothing)")) for row in rows})[:3]
        known = [row for row in rows if str(row.meta.get(field)) in index]
        left_out += len(rows) - len(known)
        if known:
            embedding_BD = encoder.encode_images([row.image for row in known])
            images.append(_checked(embedding_BD, encoder, "images", [row.key for row in known]))
            labels += [index[str(row.meta[field])] for row in known]
        rows.clear()
        known.clear()
    if not labels:
        raise DataError(
            f"None of the {left_out} zero-shot samples has a class of the class file in its field {field!r}: the "
            f"samples say {said}, the class file {list(index)[:3]}; set the field or the file."
        )
    return LabelledEmbeddings(np.concatenate(images), np.array(labels, dtype=np.int64), left_out)


def _checked(embedding_BD: Embeddings, encoder: Encoder, kind: str, names: Sequence[str]) -> Embeddings:
    bad = np.flatnonzero(~(np.abs(np.linalg.norm(embedding_BD, axis=1) - 1) < 1e-2))
    if len(bad):
        raise DataError(
            f"{encoder.name} gives NaN or zero vectors: {len(bad)} of {len(names)} for {kind}, the first for "
            f"{names[bad[0]]!r}; the model has diverged, evaluate an earlier checkpoint."
        )
    return embedding_BD


def _thumbnail(image: Image.Image, side: int) -> bytes:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=90)
    return out.getvalue()
