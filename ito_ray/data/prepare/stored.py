"""Sources that hold pictures and captions together: shards, and a folder that Hugging Face `datasets` saved."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.parquet import values_of
from ito_ray.data.plan import Piece
from ito_ray.data.prepare.listing import Listed, load
from ito_ray.data.prepare.source import plain_meta
from ito_ray.data.prepare.tables import CAPTION_COLUMNS
from ito_ray.data.rows import BadSample, Row, listed, one_sample, read_retrying, usable_captions
from ito_ray.data.shards import list_shards, mean_sample_bytes, public_url, rows_in
from ito_ray.errors import ConfigError, DataError, UnreadableError

Keys = Literal["own", "shard"]

RUN = 128
"""Rows of a shard that stay together when it is shuffled: an output shard gathers such runs from all over the input."""
ROWS_PER_PIECE = 512


@dataclass(frozen=True)
class ShardSource:
    """Other shards, cut in runs."""

    runs: tuple[Piece, ...]
    fingerprint: str
    keys: Keys
    columns: ColumnsConfig
    shared: int
    """Folders that all shards have in common, counted from the root."""
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def pieces(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def scattered(self) -> bool:
        """A tar has no index."""
        return False

    @staticmethod
    def open(patterns: Sequence[str], keys: Keys, columns: ColumnsConfig) -> ShardSource:
        """List the shards. Raises DataError when nothing matches, see `list_shards`."""
        shards = list_shards(patterns, field="shards")
        sample_bytes = mean_sample_bytes(shard for shard in shards if not shard.is_gzipped)
        runs = []
        for shard in shards:
            # A compressed tar would be unpacked from its start for every piece.
            count = 1 if shard.is_gzipped else max(1, round(rows_in(shard, sample_bytes) / RUN))
            runs += [Piece(shard.url, part, count) for part in range(count)]
        listed = json.dumps([[public_url(shard.url), shard.size] for shard in shards])
        folders = [public_url(shard.url).split("/")[:-1] for shard in shards]
        shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
        digest = hashlib.sha256(listed.encode()).hexdigest()
        return ShardSource(tuple(runs), digest, keys, columns, shared, {"shards": len(shards)})

    def read(self, piece: int, places: Collection[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows of one run.

        Raises:
            UnreadableError: the disk or store goes on failing; what is done stays, and the same command goes on.
        """
        run = self.runs[piece]
        try:
            for place, row in enumerate(read_retrying(run, self.columns)):
                if places is None or place in places:
                    yield place, replace(row, key=self._key(row), meta=plain_meta(row.meta))
        except OSError as error:
            raise UnreadableError(
                f"{run.url} cannot be read to its end: {str(error)[:200]}. Run the same command again when the disk or "
                "store answers: it goes on where it stopped."
            ) from error

    def _key(self, row: Row) -> str:
        """`row 7` is the name that a Parquet file without keys gives; it begins anew in every file."""
        url = public_url(row.url)
        unnamed = url.lower().endswith(".parquet") and row.key.startswith("row ")
        if not unnamed and self.keys == "own":
            return row.key
        return "/".join([*url.rpartition(".")[0].split("/")[self.shared :], row.key])


@dataclass(frozen=True)
class HuggingFaceSource:
    """A data set saved with `save_to_disk`."""

    path: str
    split: str
    rows: int
    fingerprint: str
    image: str
    captions: tuple[str, ...]
    key: str
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def pieces(self) -> int:
        """Ranges of rows."""
        return -(-self.rows // ROWS_PER_PIECE)

    @property
    def scattered(self) -> bool:
        """The files are mapped into memory."""
        return True

    @staticmethod
    def open(path: Path, split: str, image: str, captions: tuple[str, ...], key: str) -> HuggingFaceSource:
        """Find the columns.

        Raises:
            ConfigError: `datasets` is not installed.
            DataError: no saved data set, no such split or column, or no rows.
        """
        found = _open(str(path), split)
        names = list(found.column_names)
        if not found.num_rows:
            raise DataError(f"{path} has no rows.")

        def find(option: str, given: str, known: Sequence[str]) -> str:
            name = given or next((name for name in known if name in names), "")
            if name not in names:
                raise DataError(f"{path} has the columns {', '.join(names)}: give {option}, one of them.")
            return name

        image = find("--image-column", image, ColumnsConfig().image)
        captions = tuple(find("--caption-columns", name, ()) for name in captions)
        captions = captions or (find("--caption-columns", "", CAPTION_COLUMNS),)
        key = find("--key-column", key, ()) if key else ""
        paths = [Path(item["filename"]).resolve() for item in found.cache_files]
        files = [[str(path), path.stat().st_size] for path in paths]
        digest = hashlib.sha256(json.dumps([found.num_rows, names, files]).encode()).hexdigest()
        return HuggingFaceSource(str(path.absolute()), split, found.num_rows, digest, image, captions, key)

    def read(self, piece: int, places: Collection[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows of one range.

        Raises:
            UnreadableError: the disk of a picture file fails.
        """
        start = piece * ROWS_PER_PIECE
        chosen = range(min(ROWS_PER_PIECE, self.rows - start)) if places is None else sorted(places)
        table = _open(self.path, self.split).with_format("arrow")
        for place in chosen:
            one = table[start + place : start + place + 1]
            values = {name: values_of(one[name])[0] for name in one.column_names}
            try:
                with one_sample():
                    row = self._row(start + place, values)
                yield place, row
            except BadSample as error:
                url = f"{self.path}#{start + place}"
                yield place, Row(url, None, (), bad=error.reason, detail=error.detail, url=url)
            except OSError as error:
                raise UnreadableError(f"{self.path}: {str(error)[:300]}. Run the same command again later.") from error

    def _row(self, number: int, values: dict[str, Any]) -> Row:
        named = values.get(self.key) if self.key else None
        key = f"{number:09d}" if named is None else str(named)
        url = f"{self.path}#{number}"
        image = values[self.image]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        found = [text for name in self.captions for text in listed(values[name])]
        meta = plain_meta({name: value for name, value in values.items() if name not in {self.image, *self.captions}})
        if not data and path:
            return load(Listed(key, path, found, meta=meta))
        try:
            if not isinstance(data, bytes) or not data:
                raise BadSample("missing_image", f"column {self.image!r} holds {type(data).__name__}")
            texts = usable_captions(found)
            return Row(key, data, texts.captions, meta, url=url, notes=texts.notes)
        except BadSample as error:
            return Row(key, None, (), bad=error.reason, detail=error.detail, url=url)


@lru_cache(maxsize=2)
def _open(path: str, split: str) -> Any:
    """The data set, opened once a process."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            'Reading a saved Hugging Face data set needs the package datasets: pip install "ito_ray[huggingface]".'
        ) from error
    try:
        found = datasets.load_from_disk(_plain_path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no data set saved with save_to_disk: {str(error)[:200]}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{path} has the splits {', '.join(found)}: give --split, one of them.")
        return found[split]
    if split:
        raise DataError(f"{path} has no splits: leave --split={split!r} out.")
    return found


def _plain_path(path: str) -> str:
    """`datasets` takes `::` for a chain of file systems: a link without it, for the life of the process."""
    if "::" not in path:
        return path
    link = Path(tempfile.mkdtemp(prefix="ito-link-"), "saved")
    atexit.register(shutil.rmtree, link.parent, ignore_errors=True)
    link.symlink_to(Path(path).absolute())
    return str(link)
