"""Held-out image-caption pairs in a fixed order, for evaluation. Nothing here is ever trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.decode import decode_rgb
from ito_ray.data.plan import Piece
from ito_ray.data.rows import BadSample, Row, one_sample, read_retrying
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


class PairReader(Iterator[Pair]):
    """Yields the good ones of `rows` decoded, one at a time; `tally` accounts for all rows read.

    Args:
        limit: stop after so many good pairs; None = all.
        max_pixels: larger images are dropped.
    """

    def __init__(self, rows: Iterable[Row], *, limit: int | None = None, max_pixels: int) -> None:
        self.tally = Tally()
        self._pairs = self._read(iter(rows), limit, max_pixels)

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
                with one_sample():
                    image = decode_rgb(row.image, max_pixels=max_pixels)
            except BadSample as error:
                self.tally += Tally.lost(error.reason, f"{row.url}#{row.key}: {error.detail}")
                continue
            self.tally += Tally.good(row.notes)
            yield Pair(row.key, image, row.captions, row.meta)


class HeldoutReader(PairReader):
    """The pairs of shards, sorted by address, each in its own order.

    Args:
        patterns: shards as in `list_shards`.
        limit, max_pixels: as for `PairReader`.
        field: the setting that `patterns` come from, for messages.

    Raises:
        DataError: naming `field` when the patterns name no shard.
        UnreadableError: while iterating, see `whole`.
    """

    def __init__(
        self, patterns: Sequence[str], columns: ColumnsConfig, *, limit: int | None = None, max_pixels: int, field: str
    ) -> None:
        shards = list_shards(patterns, field=field)
        rows = (row for shard in shards for row in shard_rows(shard.url, columns, field))
        super().__init__(rows, limit=limit, max_pixels=max_pixels)


def shard_rows(url: str, columns: ColumnsConfig, field: str) -> Iterator[Row]:
    """The rows of one shard; see `whole` for what is raised."""
    return whole(read_retrying(Piece(url, 0, 1), columns), url, field)


def whole(rows: Iterable[Row], url: str, field: str) -> Iterator[Row]:
    """`rows` as they are, and a sentence where the disk or store fails: numbers of a part compare with nothing.

    Raises:
        UnreadableError: naming `url` and the setting `field`.
    """
    try:
        yield from rows
    except OSError as error:
        raise UnreadableError(
            f"{field}: {url} cannot be read to its end: {str(error)[:200]}. Try again when the disk or store answers, "
            "or take it off the list."
        ) from error
