"""Pairs to embeddings, a batch at a time: no more than one batch of decoded images is ever alive, and it is bounded.

n images, m captions (m ≥ n), D width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ito_ray.data.captions import caption_numbers
from ito_ray.errors import DataError
from ito_ray.evaluation.answers import Answers
from ito_ray.evaluation.encoder import Embeddings, Encoder

if TYPE_CHECKING:
    from ito_ray.data.heldout import Pair

Change = Callable[[Image.Image, str], Image.Image]
"""A picture and its sample's key to the changed picture; the key seeds what is drawn."""
_EXAMPLES = 3
_MOST_PIXELS = 128_000_000
"""Held at a time, besides one image more: 512 MB as Pillow has them. A batch of large photos is cut here."""


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

    @cached_property
    def answers(self) -> Answers:
        """Which captions are right for which images."""
        return Answers(self.owner, caption_numbers(self.captions), len(self.keys))


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embedded images with their classes."""

    image: Embeddings
    """(n, D) float32, L2-normed."""
    labels: NDArray[np.int64]
    """(n,) class indices."""
    left_out: int
    """Samples without a known class."""
    unknown: tuple[str, ...] = ()
    """Some of the classes of those."""


def embed_pairs(
    encoder: Encoder,
    pairs: Iterable[Pair],
    batch: int,
    *,
    captions: int | None = None,
    thumbnail: int = 0,
) -> PairEmbeddings:
    """Embed all pairs in the order in which they come; no pair gives arrays without rows.

    Args:
        pairs: read one batch at a time.
        batch: images encoded, and held, at a time.
        captions: how many captions of a pair count, the first ones; None = all.
        thumbnail: longest side in pixels of the pictures to keep (a few kB each); 0 = none.

    Raises:
        DataError: the encoder gives a vector that is not finite.
    """
    images: list[Embeddings] = []
    texts: list[Embeddings] = []
    owner: list[int] = []
    keys: list[str] = []
    kept: list[str] = []
    thumbnails: list[bytes] = []
    for rows in _batches(pairs, batch):
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
    return PairEmbeddings(
        image=joined(images),
        text=joined(texts),
        owner=np.array(owner, dtype=np.int64),
        keys=tuple(keys),
        captions=tuple(kept),
        thumbnails=tuple(thumbnails),
    )


def embed_labelled(
    encoder: Encoder, pairs: Iterable[Pair], index: Mapping[str, int], field: str, batch: int
) -> LabelledEmbeddings:
    """Embed the images whose class is known; none gives arrays without rows.

    Args:
        pairs: read one batch at a time.
        index: class as the samples have it to class index.
        field: the entry of a pair's `meta` that holds its class.
        batch: images encoded, and held, at a time.

    Raises:
        DataError: the encoder gives a vector that is not finite.
    """
    images: list[Embeddings] = []
    labels: list[int] = []
    left_out = 0
    unknown: set[str] = set()
    for rows in _batches(pairs, batch):
        known = [row for row in rows if str(row.meta.get(field)) in index]
        left_out += len(rows) - len(known)
        if len(known) < len(rows) and len(unknown) < _EXAMPLES:
            unknown |= {str(row.meta.get(field, "(nothing)")) for row in rows} - index.keys()
        if known:
            embedding_BD = encoder.encode_images([row.image for row in known])
            images.append(_checked(embedding_BD, encoder, "images", [row.key for row in known]))
            labels += [index[str(row.meta[field])] for row in known]
        known.clear()
    return LabelledEmbeddings(
        joined(images), np.array(labels, dtype=np.int64), left_out, tuple(sorted(unknown)[:_EXAMPLES])
    )


def embed_changed(
    encoder: Encoder, pairs: Iterable[Pair], changes: Mapping[str, Change], batch: int, accept: Callable[[Pair], bool]
) -> dict[str, Embeddings]:
    """Embed the images of the accepted pairs once under every change; each picture is read once.

    Raises:
        DataError: the encoder gives a vector that is not finite.
    """
    found: dict[str, list[Embeddings]] = {name: [] for name in changes}
    for rows in _batches((pair for pair in pairs if accept(pair)), batch):
        keys = [row.key for row in rows]
        for name, change in changes.items():
            embedding_BD = encoder.encode_images([change(row.image, row.key) for row in rows])
            found[name].append(_checked(embedding_BD, encoder, f"images ({name})", keys))
    return {name: joined(parts) for name, parts in found.items()}


def join_pairs(parts: Sequence[PairEmbeddings]) -> PairEmbeddings:
    """One set of pairs from those of its pieces, in their order."""
    first = np.cumsum([0, *(len(part.keys) for part in parts)])
    return PairEmbeddings(
        image=joined([part.image for part in parts]),
        text=joined([part.text for part in parts]),
        owner=np.concatenate([part.owner + start for part, start in zip(parts, first, strict=False)]),
        keys=tuple(key for part in parts for key in part.keys),
        captions=tuple(caption for part in parts for caption in part.captions),
        thumbnails=tuple(picture for part in parts for picture in part.thumbnails),
    )


def join_labelled(parts: Sequence[LabelledEmbeddings]) -> LabelledEmbeddings:
    """One set of labelled images from those of its pieces, in their order."""
    return LabelledEmbeddings(
        joined([part.image for part in parts]),
        np.concatenate([part.labels for part in parts]),
        sum(part.left_out for part in parts),
        tuple(sorted({name for part in parts for name in part.unknown})[:_EXAMPLES]),
    )


def joined(parts: Iterable[Embeddings]) -> Embeddings:
    """The rows of all parts; those without rows do not know their width and are passed over."""
    rows = [part for part in parts if len(part)]
    return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    rows: list[Pair] = []
    pixels = 0
    for pair in pairs:
        rows.append(pair)
        pixels += pair.image.width * pair.image.height
        del pair  # or it would live on while the next one is read
        if len(rows) == size or pixels >= _MOST_PIXELS:
            yield rows
            rows.clear()
            pixels = 0
    if rows:
        yield rows


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
