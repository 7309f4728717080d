"""Held-out image-caption pairs in a fixed order, for evaluation. Nothing here is ever trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.decode import decode_rgb
from ito_ray.data.plan import Piece
from ito_ray.data.rows import BadSample, Row, read_retrying
from ito_ray.data.shards import list_shards
from ito_ray.data.tally import Tally
from ito_ray.errors import UnreadableError


@dataclass(frozen=True)
class Pair:
    """One decoded image (RGB, upright) with all its captions, cleaned, in the shard's order."""

    key: str
    image: Image.Image
    captions: tuple[str, ...]
    meta: dict[str, Any]


class HeldoutReader(Iterator[Pair]):
    """Yields pairs one at a time, shards sorted by address, each in its own order; `tally` accounts for all rows read.

    Args:
        patterns: shards as in `list_shards`.
        limit: stop after so many good pairs; None = all.
        max_pixels: larger images are dropped.
        field: the setting that `patterns` come from, for messages.

    Raises:
        DataError: naming `field` when the patterns name no shard.
        UnreadableError: while iterating, a shard cannot be read to its end: numbers of a part of the data compare with
            nothing.
    """

    def __init__(
        self, patterns: Sequence[str], columns: ColumnsConfig, *, limit: int | None = None, max_pixels: int, field: str
    ) -> None:
        self.tally = Tally()
        pieces = [Piece(shard.url, 0, 1) for shard in list_shards(patterns, field=field)]
        self._pairs = self._read(_rows(pieces, columns, field), limit, max_pixels)

    def __next__(self) -> Pair:
        return next(self._pairs)

    def _read(self, rows: Iterator[Row], limit: int | None, max_pixels: int) -> Iterator[Pair]:
        while limit is None or self.tally.delivered < limit:
            row = next(rows, None)
            if row is None:
                return
            try:
                if row.bad is not None or row.image is None:
                    raise BadSample(row.bad or "missing_image", row.detail)
                image = decode_rgb(row.image, max_pixels=max_pixels)
            except BadSample as error:
                self.tally += Tally.lost(error.reason, f"{row.url}#{row.key}: {error.detail}")
                continue
            self.tally += Tally(read=1, delivered=1)
            yield Pair(row.key, image, row.captions, row.meta)


def _rows(pieces: Sequence[Piece], columns: ColumnsConfig, field: str) -> Iterator[Row]:
    for piece in pieces:
        try:
            yield from read_retrying(piece, columns)
        except OSError as error:
            raise UnreadableError(
                f"{field}: {piece.url} cannot be read to its end: {str(error)[:200]}. Try again when the disk or store "
                "answers, or take the shard off the list."
            ) from error
