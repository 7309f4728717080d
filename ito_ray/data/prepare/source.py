"""What every source of pairs can do: be read in numbered pieces, always the same rows under the same numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from ito_ray.data.rows import Row
from ito_ray.data.write import JsonValue

LONGEST_KEY = 80
"""Bytes; a tar's header has room for 100 with the ending."""
RESERVED = ("captions", "caption", "text")
"""What a sample's json calls its captions (rows.py): meta data of these names would be read back as captions."""


class Source(Protocol):
    """Inputs in a fixed order. Picklable and small: it goes to every task."""

    @property
    def pieces(self) -> int:
        """How many pieces `read` knows."""

    @property
    def fingerprint(self) -> str:
        """Changes when the inputs do."""

    @property
    def scattered(self) -> bool:
        """Whether single rows can be read cheaply; else a whole piece is passed over for them."""

    @property
    def notes(self) -> Mapping[str, int]:
        """What was met on the way to the inputs, e.g. table rows merged into one sample; for the manifest."""

    def read(self, piece: int, places: Collection[int] | None = None) -> Iterator[tuple[int, Row]]:
        """(place, row) for each input of the piece, or for those at `places`; bad ones with their reason."""


def plain_meta(values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The values that JSON can hold; the names of captions get an underscore, half characters become `?`.

    NaN and infinite numbers, which JSON does not know, become null.
    """
    meta = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if isinstance(value, str | int | float | bool | list | dict | None):
            meta[f"{name}_" if name in RESERVED else name] = value
    text = json.dumps(meta, ensure_ascii=False, default=str)  # bytes or dates may lie deep inside
    plain: dict[str, JsonValue] = json.loads(text.encode("utf-8", "replace"), parse_constant=lambda name: None)
    return plain


def safe_key(key: str) -> str:
    """The key as a tar member may have it: dots, slashes and control characters as %XX; a long one is cut and hashed.

    A key that is safe stays as it is. Should two keys become the same, the later input is a duplicate.
    """
    quoted = "".join(f"%{ord(c):02X}" if c in "./\\" or ord(c) < 32 or ord(c) == 127 else c for c in key) or "%"
    encoded = quoted.encode()
    if len(encoded) <= LONGEST_KEY:
        return quoted
    digest = hashlib.sha256(encoded).hexdigest()[:32]
    return f"{encoded[: LONGEST_KEY - 33].decode('utf-8', 'ignore')}~{digest}"
