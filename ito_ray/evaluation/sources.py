"""Where pictures to evaluate on come from: shards, a folder a class, a table, or CLIP_benchmark's folders.

A source is small and picklable, and is read in numbered pieces, so that several processes can share the work.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.config.schema import ColumnsConfig, Config
from ito_ray.data.captions import fault_of
from ito_ray.data.file_kinds import IMAGE_EXTENSIONS, PICTURES
from ito_ray.data.heldout import PairReader, shard_rows, whole
from ito_ray.data.prepare.folders import list_pairs
from ito_ray.data.prepare.listing import Listed, load_all
from ito_ray.data.prepare.tables import CLASS_COLUMNS, SUFFIXES, Columns, kind_of, list_classes, list_table, open_table
from ito_ray.data.prepare.web import DEFAULT_POLICY
from ito_ray.data.rows import Row
from ito_ray.data.shards import list_shards, open_shard
from ito_ray.data.tar import read_tar
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.classes import read_class_table, read_templates

LISTED_PER_PIECE = 512
CLASSNAMES, TEMPLATES, SPLIT = "classnames.txt", "zeroshot_classification_templates.txt", "test"
"""Of a folder that CLIP_benchmark reads as WebDataset, https://github.com/LAION-AI/CLIP_benchmark."""
_LABEL = "cls"


class Source(Protocol):
    """Rows in a fixed order, in pieces."""

    @property
    def pieces(self) -> int:
        """How many pieces `rows` knows."""

    def rows(self, piece: int) -> Iterator[Row]:
        """Rows of one piece, good or bad."""


@dataclass(frozen=True)
class ShardSource:
    """One piece a shard."""

    urls: tuple[str, ...]
    columns: ColumnsConfig
    field: str
    """The setting that they come from, for messages."""

    @property
    def pieces(self) -> int:
        return len(self.urls)

    def rows(self, piece: int) -> Iterator[Row]:
        return shard_rows(self.urls[piece], self.columns, self.field)


@dataclass(frozen=True)
class FileSource:
    """Pictures in files of their own."""

    listed: tuple[Listed, ...]
    field: str

    @property
    def pieces(self) -> int:
        return -(-len(self.listed) // LISTED_PER_PIECE)

    def rows(self, piece: int) -> Iterator[Row]:
        part = self.listed[piece * LISTED_PER_PIECE : (piece + 1) * LISTED_PER_PIECE]
        return whole(load_all(part, "pair", DEFAULT_POLICY), "one of its files", self.field)


@dataclass(frozen=True)
class NumberedSource:
    """CLIP_benchmark's tars: a picture and `cls`, the number of its class."""

    urls: tuple[str, ...]
    field: str

    @property
    def pieces(self) -> int:
        return len(self.urls)

    def rows(self, piece: int) -> Iterator[Row]:
        return whole(self._rows(self.urls[piece]), self.urls[piece], self.field)

    def _rows(self, url: str) -> Iterator[Row]:
        with open_shard(url) as file:
            for sample in read_tar(file, 0, 1):
                image = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
                number = sample.members.get(_LABEL, b"").decode("ascii", "replace").strip()
                bad = sample.bad or ("missing_image" if not image else None if number else "missing_class")
                yield Row(sample.key, image, (number,), {_LABEL: number}, bad=bad, detail=sample.detail, url=url)


@dataclass(frozen=True)
class Labelled:
    """Pictures with a class each."""

    source: Source
    field: str
    """The entry of a row's `meta` that holds its class."""
    table: dict[str, str]
    """Class as the rows have it → class as the prompts say it."""
    templates: tuple[str, ...]


def read(source: Source, *, limit: int | None, max_pixels: int, piece: int | None = None) -> PairReader:
    """Decoded pairs of one piece, or of all in their order; `limit` good ones at most."""
    chosen = range(source.pieces) if piece is None else (piece,)
    rows = itertools.chain.from_iterable(source.rows(number) for number in chosen)
    return PairReader(rows, limit=limit, max_pixels=max_pixels)


def open_pairs(cfg: Config) -> Source:
    """The image-text pairs of data.heldout: shards, a table of picture files and captions, or name.jpg by name.txt.

    Raises:
        DataError: nothing there, or not understood.
    """
    given = cfg.data.heldout
    if len(given) == 1:
        path = Path(given[0])
        if _is_table(path):
            return FileSource(tuple(list_table(path, None, Columns())[0]), "data.heldout")
        if _holds_pictures(path):
            return FileSource(tuple(list_pairs(path)[0]), "data.heldout")
    return _shards(cfg, given, "data.heldout")


def open_labelled(cfg: Config, given: Sequence[str], field: str) -> Labelled:
    """Pictures with classes: shards, a folder a class, a table, or a folder of CLIP_benchmark's.

    Args:
        cfg: `eval.classes`, `eval.templates` and `eval.zero_shot_field` are used.
        given: addresses; a table or folder comes alone.
        field: the setting they come from, for messages.

    Raises:
        ConfigError: class file or prompts missing or wrong.
        DataError: nothing there, or not understood.
    """
    if len(given) == 1:
        path = Path(given[0])
        for root, split in ((path, path / SPLIT), (path.parent, path)):
            if (root / CLASSNAMES).is_file() and split.is_dir():
                return _clip_benchmark(root, split, cfg, field)
        if _is_table(path):
            return _named(_of_table(path, cfg.eval.zero_shot_field), cfg, field)
        if path.is_dir() and (classes := _class_folders(path)):
            return _named(_of_folders(path, classes), cfg, field)
    source = _shards(cfg, given, field)
    if not cfg.eval.classes:
        raise ConfigError(
            f"eval.classes is empty, but {field} names shards: give a text file with one class name a line (a folder "
            "a class, or a table, needs none)."
        )
    return Labelled(
        source, cfg.eval.zero_shot_field, read_class_table(cfg.eval.classes), read_templates(cfg.eval.templates)
    )


def _named(listed: list[Listed], cfg: Config, field: str) -> Labelled:
    """Classes from the class file, or those that are there; the captions of `listed` are their classes."""
    there = sorted({row.captions[0] for row in listed if row.captions and not fault_of(row.captions[0])})
    said = Counter(name.replace("_", " ") for name in there)
    spaced = {name: name.replace("_", " ") for name in there}
    table = (
        read_class_table(cfg.eval.classes)
        if cfg.eval.classes
        else {name: text if said[text] == 1 else name for name, text in spaced.items()}  # else two would be one prompt
    )
    rows = (replace(row, meta={_LABEL: row.captions[0]}) if row.captions else row for row in listed)
    return Labelled(FileSource(tuple(rows), field), _LABEL, table, read_templates(cfg.eval.templates))


def _of_folders(path: Path, classes: Sequence[str]) -> list[Listed]:
    """One of each class in turn, so that the first n pictures hold as many classes as can be."""
    columns = []
    for name in classes:
        files = sorted(file for file in (path / name).rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
        columns.append([Listed(str(file.relative_to(path)), str(file.absolute()), [name]) for file in files])
    return [row for turn in itertools.zip_longest(*columns) for row in turn if row is not None]


def _of_table(path: Path, field: str) -> list[Listed]:
    names = open_table(path, None, (field,)).names
    lower = {name.lower(): name for name in reversed(names)}
    column = field if field in names else next((lower[name] for name in CLASS_COLUMNS if name in lower), "")
    if not column:
        raise DataError(
            f"{path} has no column with the class: it has {', '.join(names)}; name one of them in eval.zero_shot_field "
            f"(--field), or call it {CLASS_COLUMNS[0]!r}."
        )
    return list_classes(path, column)


def _clip_benchmark(root: Path, split: Path, cfg: Config, field: str) -> Labelled:
    shards = list_shards((str(split),), field=field)
    names = list(read_class_table(cfg.eval.classes or str(root / CLASSNAMES)).values())
    own = root / TEMPLATES
    templates = read_templates(cfg.eval.templates or (str(own) if own.is_file() else ""))
    table = {str(number): name for number, name in enumerate(names)}
    return Labelled(NumberedSource(tuple(shard.url for shard in shards), field), _LABEL, table, templates)


def _shards(cfg: Config, given: Sequence[str], field: str) -> ShardSource:
    return ShardSource(tuple(shard.url for shard in list_shards(given, field=field)), cfg.data.columns, field)


def _is_table(path: Path) -> bool:
    """CSV and the like; a Parquet file whose image column holds addresses and not the pictures' bytes."""
    kind = kind_of(path)
    if kind != ".parquet":
        return kind in SUFFIXES and not path.is_dir()
    if not path.is_file():
        return False
    try:
        schema: Any = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False  # a damaged shard: counted when it is read
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
    return not any(test(column.type) for column in schema for test in binary)


def _holds_pictures(path: Path) -> bool:
    return path.is_dir() and any(file.suffix.lower() in PICTURES for file in path.rglob("*"))


def _class_folders(path: Path) -> list[str]:
    """Folders with a picture in them, when there is no shard beside or in them."""
    below = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    pictures = {file.relative_to(path).parts[0] for file in below if file.suffix.lower() in PICTURES}
    return sorted(name for name in pictures if (path / name).is_dir())
