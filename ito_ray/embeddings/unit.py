"""One unit of rows through the encoder: embeddings, and each row that gave none with its reason.

D is the width of an embedding.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ito_ray.data.captions import is_unicode
from ito_ray.data.decode import decode_rgb
from ito_ray.data.rows import BadSample, Row, one_sample
from ito_ray.data.shards import public_url
from ito_ray.data.views import eval_view
from ito_ray.embeddings.spec import Spec
from ito_ray.evaluation.encoder import Embeddings, Encoder

REJECTED = pa.schema([("shard", pa.string()), ("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
_AHEAD = 2
"""Batches decoded or being decoded while one is encoded."""
_NEAR_UNIT = 1e-2


@dataclass
class Unit:
    """What became of the rows: read = embedded + rejected."""

    read: int = 0
    embedded: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Embeddings by kind; a row may give several."""
    rejected: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Rows of `REJECTED`."""
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("key", "shard", "kind", "caption", "thumbnail")}
    )
    embeddings: list[Embeddings] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    """Of embedded rows, as in `rows.Row`."""

    @property
    def dropped(self) -> Counter[str]:
        """Rejected rows by reason."""
        return Counter(reason for _, _, reason, _ in self.rejected)

    def table(self, schema: pa.Schema) -> pa.Table:
        """Rows of `schema`, in the order of the input."""
        kind = schema.field("embedding").type
        width = kind.list_size
        flat = np.concatenate([np.empty((0, width), np.float32), *self.embeddings])
        flat = flat.astype(kind.value_type.to_pandas_dtype()).reshape(-1)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), width)
        arrays = [pa.array(self.columns[name], schema.field(name).type) for name in schema.names[:-1]]
        return pa.Table.from_arrays([*arrays, vectors], schema=schema)

    def rejected_table(self) -> pa.Table:
        """Rows of `REJECTED`."""
        columns = list(zip(*self.rejected, strict=True)) or [()] * len(REJECTED)
        arrays = [pa.array(list(map(_storable, values)), pa.string()) for values in columns]
        return pa.Table.from_arrays(arrays, schema=REJECTED)

    def reject(self, row: Row, reason: str, detail: str) -> None:
        """Note a row that gives no embedding."""
        self.rejected.append((public_url(row.url), row.key, reason, detail))

    def add(self, row: Row, kind: str, caption: str | None, thumbnail: bytes | None) -> None:
        """Note what the next embedding belongs to."""
        self.kinds[kind] += 1
        values = (_storable(row.key), public_url(row.url), kind, caption, thumbnail)
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)


@dataclass(frozen=True)
class _Ready:
    """A row to encode; `image` only when pictures are asked for."""

    row: Row
    image: Image.Image | None
    thumbnail: bytes | None


def embed_unit(rows: Sequence[Row], encoder: Encoder, spec: Spec, *, batch: int, pool: Executor) -> Unit:
    """Embed every row that can be; the rest is rejected with its reason.

    Args:
        encoder: gives unit vectors; a row whose vector is not finite or not of unit length is rejected (not_finite).
        batch: rows encoded at a time; the next ones are decoded in `pool` meanwhile.
    """
    unit = Unit(read=len(rows))
    for ready in _decoded(rows, spec, batch, pool):
        good = [one for one in ready if isinstance(one, _Ready)]
        for row, error in (one for one in ready if not isinstance(one, _Ready)):
            unit.reject(row, error.reason, error.detail)
        _encode_apart(good, encoder, spec, unit)
    assert unit.read == unit.embedded + len(unit.rejected)
    return unit


def _encode_apart(good: Sequence[_Ready], encoder: Encoder, spec: Spec, unit: Unit) -> None:
    """One batch; when the encoder fails with it, row by row, and a row it fails with is rejected."""
    if not good:
        return
    try:
        embeddings = _encode(good, encoder, spec)
    except Exception as error:
        if len(good) == 1:
            unit.reject(good[0].row, "unexpected_error", f"{type(error).__name__}: {error}"[:200])
            return
        for one in good:
            _encode_apart([one], encoder, spec, unit)
        return
    _note(good, *embeddings, spec, unit)


def _encode(good: Sequence[_Ready], encoder: Encoder, spec: Spec) -> tuple[Embeddings, Embeddings]:
    """Embeddings of the pictures, and of all captions."""
    none = np.empty((0, 0), np.float32)
    images = [one.image for one in good if one.image is not None]
    captions = [caption for one in good for caption in one.row.captions] if spec.what != "image" else []
    image_ND = encoder.encode_images(images) if images else none
    return image_ND, encoder.encode_texts(captions) if captions else none


def _note(good: Sequence[_Ready], image_ND: Embeddings, text_ND: Embeddings, spec: Spec, unit: Unit) -> None:
    """What belongs to which row: of a row the picture first, then its captions."""
    at = 0
    for number, one in enumerate(good):
        own = one.row.captions if spec.what != "image" else ()
        parts = ([image_ND[number : number + 1]] if len(image_ND) else []) + (
            [text_ND[at : at + len(own)]] if own else []
        )
        at += len(own)
        if not all(_is_unit(part) for part in parts):
            unit.reject(one.row, "not_finite", "the encoder gives NaN or a zero vector")
            continue
        unit.embedded += 1
        unit.notes.update(one.row.notes)
        unit.embeddings += parts
        if len(image_ND):
            unit.add(one.row, "image", next(iter(one.row.captions), None), one.thumbnail)
        for caption in own:
            unit.add(one.row, "text", caption, None)


def _is_unit(part_ND: Embeddings) -> bool:
    return bool((np.abs(np.linalg.norm(part_ND, axis=1) - 1) < _NEAR_UNIT).all())  # NaN compares false


def _decoded(
    rows: Sequence[Row], spec: Spec, batch: int, pool: Executor
) -> Iterator[list[_Ready | tuple[Row, BadSample]]]:
    """Batches in order; the next ones are being decoded while one is used, and no more than those."""
    source = iter(rows)
    ahead: deque[list[Future[_Ready | tuple[Row, BadSample]]]] = deque()
    while True:
        while len(ahead) < _AHEAD and (part := list(islice(source, batch))):
            ahead.append([pool.submit(_ready, row, spec) for row in part])
        if not ahead:
            return
        yield [future.result() for future in ahead.popleft()]


def _ready(row: Row, spec: Spec) -> _Ready | tuple[Row, BadSample]:
    try:
        if row.bad is not None:
            raise BadSample(row.bad, row.detail)
        if spec.what == "text":
            return _Ready(row, None, None)
        if row.image is None:
            raise BadSample("missing_image")
        with one_sample():
            image = decode_rgb(row.image, max_pixels=spec.max_pixels)
            thumbnail = make_thumbnail(image, spec.thumbnail) if spec.thumbnail else None
            if spec.size is not None:  # the encoder's own transform leaves a picture of its size as it is
                image = Image.fromarray(eval_view(image, spec.size))
        return _Ready(row, image, thumbnail)
    except BadSample as error:
        return row, error


def make_thumbnail(image: Image.Image, side: int) -> bytes:
    """WebP, its longer side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80, method=2)
    return out.getvalue()


def _storable(text: str) -> str:
    return text if is_unicode(text) else ascii(text)[1:-1]
