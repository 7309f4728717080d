"""What is embedded: shards, or folders of pictures, in numbered units that always hold the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.file_kinds import PICTURES
from ito_ray.data.plan import Piece
from ito_ray.data.prepare.listing import Listed, ListedSource
from ito_ray.data.prepare.web import FetchPolicy
from ito_ray.data.rows import Needs, Row, read_patiently
from ito_ray.data.shards import (
    SUFFIXES,
    Shard,
    expand_braces,
    list_files,
    list_shards,
    mean_sample_bytes,
    public_url,
    rows_in,
    shards_among,
)
from ito_ray.data.walk import PassedOver
from ito_ray.errors import DataError

FIELD = "--data"
_AS_GIVEN = FetchPolicy(schemes=None)
"""Addresses come from the command line, not from a file of somebody's."""
ROWS_PER_UNIT = 2048
BYTES_PER_UNIT = 256 << 20
"""A unit is held in memory while it is worked on."""


@dataclass(frozen=True)
class Inputs:
    """Pieces of shards, then parts of a listing of picture files. Picklable and small: it goes to every actor."""

    pieces: tuple[Piece, ...]
    listing: ListedSource | None
    columns: ColumnsConfig
    needs: Needs
    fingerprint: str
    """Changes when the inputs do."""

    @property
    def units(self) -> int:
        """How many units `read` knows."""
        return len(self.pieces) + (self.listing.pieces if self.listing else 0)

    def name(self, unit: int) -> str:
        """What a person calls the unit."""
        if unit >= len(self.pieces):
            return f"pictures, part {unit - len(self.pieces)}"
        piece = self.pieces[unit]
        return public_url(piece.url) + (f", part {piece.part} of {piece.parts}" if piece.parts > 1 else "")

    def read(self, unit: int) -> list[Row]:
        """Rows of a unit in their order, bad ones with their reason; a shard whose store fails gives bad rows too.

        Raises:
            UnreadableError: the store of a picture file fails; one that is not there is a bad row.
        """
        if unit < len(self.pieces):
            return read_patiently(self.pieces[unit], self.columns, self.needs)
        assert self.listing is not None
        return [row for _, row in self.listing.read(unit - len(self.pieces), needs=self.needs)]


def open_inputs(patterns: Sequence[str], needs: Needs, columns: ColumnsConfig, work: Path) -> Inputs:
    """List what `patterns` name: shards as `list_shards` does, and folders that hold pictures but no shard.

    Args:
        needs: `image`: pictures with or without a .txt beside them; `text`: .txt files in such a folder; `pair`: both.
        work: where the listing of pictures is kept.

    Raises:
        DataError: naming --data, when a pattern matches nothing or holds neither shards nor pictures.
    """
    urls = [url for pattern in patterns for url in expand_braces(pattern, FIELD)]
    shards: list[str] = []
    listed: dict[str, Listed] = {}
    stamps: list[str] = []
    for url in urls:
        files = list_files(url, field=FIELD)
        if files is None or shards_among(files, PassedOver()):
            shards.append(url)
            continue
        found = _pictures([file.url for file in files], needs)
        if not found:
            wanted = ".txt" if needs == "text" else ", ".join(PICTURES)
            raise DataError(
                f"{FIELD}: {url!r} holds {len(files)} files, neither shards ({', '.join(SUFFIXES)}) nor {wanted}: give "
                "another folder."
            )
        listed |= found
        stamps += [
            f"{public_url(file.url)} {file.size} {file.stamp}"
            for file in files
            if file.url in found or file.url.endswith(".txt")
        ]
    listing = None
    if listed:
        listing = ListedSource.write(listed.values(), work / "listing.parquet", {}, "\n".join(stamps), _AS_GIVEN)
    found_shards = list_shards(shards, field=FIELD) if shards or not listing else ()
    pieces = _cut(found_shards)
    named = [[public_url(shard.url), shard.size] for shard in found_shards]  # keys in an address may change
    content = [named, listing.fingerprint if listing else ""]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    if needs == "text":
        columns = columns.model_copy(update={"image": ()})  # else every picture would be read to be thrown away
    return Inputs(pieces, listing, columns, needs, fingerprint)


def _pictures(names: Sequence[str], needs: Needs) -> dict[str, Listed]:
    """Inputs of one folder by their address; the key is the address below the folder's name."""
    plain = {name: name.split("?", 1)[0] if "://" in name else name for name in names}
    texts = {path.rpartition(".")[0]: name for name, path in plain.items() if path.lower().endswith(".txt")}
    pictures = {name: path for name, path in plain.items() if path.lower().endswith(PICTURES)}
    if needs == "text":
        return {name: Listed(public_url(name), text=name) for name in texts.values()}
    found: dict[str, Listed] = {}
    for name, path in pictures.items():
        text = texts.get(path.rpartition(".")[0], texts.get(path, ""))
        missing = needs == "pair" and not text
        found[name] = Listed(
            public_url(name),
            name,
            text=text,
            bad="missing_caption" if missing else None,
            detail="no .txt of this name beside it" if missing else "",
        )
    if needs == "pair":
        stems = {path.rpartition(".")[0] for path in pictures.values()}
        lonely = [name for stem, name in texts.items() if stem not in stems]
        found |= {name: Listed(public_url(name), text=name, bad="missing_image", detail="only .txt") for name in lonely}
    return found


def _cut(shards: Sequence[Shard]) -> tuple[Piece, ...]:
    try:
        sample_bytes = mean_sample_bytes(shard for shard in shards if not shard.is_gzipped)
        counts = [_parts(shard, rows_in(shard, sample_bytes)) for shard in shards]
    except OSError as error:
        raise DataError(f"{FIELD}: a shard was listed but cannot be read: {error}. Check the store.") from error
    return tuple(
        Piece(shard.url, part, parts, rows=max(1, round(rows / parts)))
        for shard, (parts, rows) in zip(shards, counts, strict=True)
        for part in range(parts)
    )


def _parts(shard: Shard, rows: float) -> tuple[int, float]:
    if shard.is_gzipped:  # it would be unpacked from its start for every part
        return 1, rows
    return max(1, round(rows / ROWS_PER_UNIT), -(-shard.size // BYTES_PER_UNIT)), rows
