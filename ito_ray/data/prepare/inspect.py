"""Each input looked at once: can it be used, and what tells it apart from others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
from PIL import Image

from ito_ray.data.captions import is_unicode
from ito_ray.data.decode import decode_rgb, open_image, to_rgb, upright_size
from ito_ray.data.looks import look_of
from ito_ray.data.prepare.filters import Filters, Where
from ito_ray.data.prepare.source import safe_key
from ito_ray.data.rows import BadSample, Row, one_sample

SCHEMA = pa.schema(
    [
        ("piece", pa.int32()),
        ("place", pa.int32()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("digest", pa.binary(32)),
        ("look", pa.binary()),
        ("captions", pa.int32()),
        ("fitting", pa.int32()),
        ("notes", pa.list_(pa.string())),
    ]
)
"""One row an input. `key`: as it will be written, for a bad input as it came; `digest`: SHA-256 of the picture's bytes;
`look`: from `look_of`, null unless asked for; `captions` it has, `fitting` of them are kept; `notes`: as in
`rows.Row`. Where `reason` is set, `digest`, `look` and `fitting` are null or 0."""
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif"}
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")


@dataclass(frozen=True)
class Picture:
    """What becomes of pictures. `max_side`: longer ones are made smaller, 0 = none."""

    max_side: int
    quality: int
    max_pixels: int


def inspect(piece: int, rows: Iterable[tuple[int, Row]], filters: Filters, picture: Picture, *, look: bool) -> pa.Table:
    """One row of `SCHEMA` for each input. `look`: compute perceptual hashes."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for place, row in rows:
        try:
            with one_sample():
                found = _examine(row, filters, picture, look=look)
        except BadSample as error:
            found = {"reason": error.reason, "detail": error.detail, "captions": len(row.captions), "fitting": 0}
        found = {"piece": piece, "place": place, "key": row.key, "url": row.url, "notes": row.notes, **found}
        for name, column in columns.items():
            value = found.get(name)
            column.append(_storable(value) if isinstance(value, str) else value)
    return pa.table(columns, schema=SCHEMA)


def _examine(row: Row, filters: Filters, picture: Picture, *, look: bool) -> dict[str, Any]:
    if row.bad is not None or row.image is None:
        raise BadSample(row.bad or "missing_image", row.detail)
    if not is_unicode(row.key):
        raise BadSample("name_not_utf8", "half of a surrogate pair in the key")
    encoded = open_image(row.image, max_pixels=picture.max_pixels)
    kind = encoded.format
    width, height = upright_size(encoded)
    filters.check_size(width, height)
    captions = filters.fitting(row.captions)
    if filters.where:
        fields = {"key": row.key, "caption": captions[0], "captions": len(captions), "width": width, "height": height}
        _where(filters.where).check({**row.meta, **fields, "format": kind, "bytes": len(row.image)})
    # Decoded to its last line: a damaged one must be known before it is given a place in a shard.
    image = to_rgb(encoded)
    return {
        "key": safe_key(row.key),
        "digest": hashlib.sha256(row.image).digest(),
        "look": look_of(image) if look else None,
        "captions": len(row.captions),
        "fitting": len(captions),
    }


def fit(data: bytes, picture: Picture) -> tuple[bytes, str]:
    """The picture as it is stored, and its file ending.

    Bytes are kept as they are unless the picture is longer than `max_side` or of a format that shards do not hold
    (GIF, BMP, TIFF). What came without loss stays without loss (PNG); the rest becomes JPEG. Both come upright.
    """
    encoded = open_image(data, max_pixels=picture.max_pixels)
    kind = encoded.format or ""
    width, height = upright_size(encoded)
    small = not picture.max_side or max(width, height) <= picture.max_side
    if small and kind in _EXTENSIONS:
        return data, _EXTENSIONS[kind]
    image = decode_rgb(data, max_pixels=picture.max_pixels)
    if not small:
        scale = picture.max_side / max(width, height)
        image = image.resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS, reducing_gap=3.0
        )
    buffer = io.BytesIO()
    if kind in _LOSSY:
        image.save(buffer, "JPEG", quality=picture.quality)
        return buffer.getvalue(), "jpg"
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png"


@lru_cache(maxsize=4)
def _where(expression: str) -> Where:
    return Where(expression)


def _storable(text: str) -> str:
    return text if is_unicode(text) else ascii(text)[1:-1]
