"""Where pictures to evaluate on come from: shards, a folder a class, a table, or CLIP_benchmark's folders.

A source is small and picklable, and is read in numbered pieces, so that several processes can share the work.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ito_ray.config.schema import ColumnsConfig, Config
from ito_ray.data import parquet
from ito_ray.data.captions import fault_of
from ito_ray.data.file_kinds import PICTURES
from ito_ray.data.foreign import foreign_part
from ito_ray.data.heldout import PairReader, shard_rows, whole
from ito_ray.data.prepare.folders import files_below, list_pairs
from ito_ray.data.prepare.listing import Listed, load_all
from ito_ray.data.prepare.tables import CLASS_COLUMNS, SUFFIXES, Columns, kind_of, list_classes, list_table, open_table
from ito_ray.data.prepare.web import DEFAULT_POLICY
from ito_ray.data.rows import Row
from ito_ray.data.shards import Shard, file_name, list_shards
from ito_ray.data.walk import PassedOver, is_file, is_folder, local_path
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation import clip_benchmark
from ito_ray.evaluation.classes import read_class_table, read_numbered, read_templates

LISTED_PER_PIECE = 512
_LABEL = "cls"


class Source(Protocol):
    """Rows in a fixed order, in pieces."""

    @property
    def pieces(self) -> int:
        """How many pieces `rows` knows."""

    def rows(self, piece: int) -> Iterator[Row]:
        """Rows of one piece, good or bad."""

    def files(self) -> list[tuple[str, int]]:
        """Name and bytes of everything that `rows` reads, whatever folder it lies in: what makes it the same data."""

    def addresses(self) -> frozenset[str]:
        """Where the pictures are: two sources that share one are not separate."""


@dataclass(frozen=True)
class ShardSource:
    """One piece a shard."""

    shards: tuple[Shard, ...]
    columns: ColumnsConfig
    field: str
    """The setting that they come from, for messages."""

    @property
    def pieces(self) -> int:
        return len(self.shards)

    def rows(self, piece: int) -> Iterator[Row]:
        return shard_rows(self.shards[piece].url, self.columns, self.field)

    def files(self) -> list[tuple[str, int]]:
        return [(file_name(one.url), one.size) for one in self.shards]

    def addresses(self) -> frozenset[str]:
        return frozenset(one.url for one in self.shards)


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

    def addresses(self) -> frozenset[str]:
        return frozenset(one.image for one in self.listed if one.image)

    def files(self) -> list[tuple[str, int]]:
        """Pictures with what is said of them, under their keys, which start from the folder or table."""
        found = []
        for one in self.listed:
            key = file_name(one.key) if "://" in one.key or one.key.startswith("/") else one.key
            found.append((json.dumps([key, one.captions, one.bad]), _bytes_of(one.image)))
            if one.text and one.text != one.image:
                found.append((json.dumps([key, "text"]), _bytes_of(one.text)))
        return found


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
    """The image-text pairs of data.heldout: shards, a table of picture files and captions, name.jpg by name.txt, or a
    retrieval set of CLIP_benchmark's.

    Raises:
        DataError: nothing there, or not understood.
    """
    given = cfg.data.heldout
    if path := _alone(given):
        if found := clip_benchmark.find(path, "data.heldout"):
            return found.open("retrieval", "data.heldout", cfg.data.columns.key_ends)
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
    if path := _alone(given):
        if found := clip_benchmark.find(path, field):
            return _clip_benchmark(found, cfg, field)
        if _is_table(path):
            return _named(_of_table(path, cfg.eval.zero_shot_field), cfg, field)
        if is_folder(path) and (classes := _class_folders(path)):
            return _named(_in_turn(classes), cfg, field)
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


def _alone(given: Sequence[str]) -> Path | None:
    """The only address, when it is on this machine."""
    path = local_path(given[0]) if len(given) == 1 else None
    return None if path is None else Path(path)


def _in_turn(classes: Mapping[str, list[Listed]]) -> list[Listed]:
    """One of each class in turn, so that the first n pictures hold as many classes as can be."""
    return [row for turn in itertools.zip_longest(*classes.values()) for row in turn if row is not None]


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


def _clip_benchmark(found: clip_benchmark.Benchmark, cfg: Config, field: str) -> Labelled:
    source = found.open("classification", field, cfg.data.columns.key_ends)
    own = found.root / clip_benchmark.TEMPLATES
    templates = read_templates(cfg.eval.templates or (str(own) if is_file(own) else ""))
    names = read_numbered(cfg.eval.classes or str(found.root / clip_benchmark.CLASSNAMES))
    return Labelled(source, clip_benchmark.LABEL, names, templates)


def _shards(cfg: Config, given: Sequence[str], field: str) -> ShardSource:
    return ShardSource(list_shards(given, field=field), cfg.data.columns, field)


def _bytes_of(address: str) -> int:
    """Size of a file on this machine; 0 for one that is elsewhere, or is not there."""
    if not address or "://" in address:
        return 0
    try:
        return Path(address).stat().st_size
    except OSError:
        return 0


def _is_table(path: Path) -> bool:
    """CSV and the like; a Parquet file whose image column holds addresses and not the pictures' bytes."""
    kind = kind_of(path)
    if kind != ".parquet":
        return kind in SUFFIXES and not is_folder(path)
    try:
        return is_file(path) and not parquet.holds_bytes(path)
    except OSError:
        return False  # counted when it is read


def _holds_pictures(path: Path) -> bool:
    return is_folder(path) and any(_is_picture(entry.name) for entry in files_below(path, PassedOver()))


def _class_folders(path: Path) -> dict[str, list[Listed]]:
    """Pictures by the folder directly below `path` in which they are; what else is there is said."""
    passed = PassedOver()
    found: dict[str, list[Listed]] = {}
    for entry in files_below(path, passed):
        name = str(Path(entry.path).relative_to(path))
        folder, separator, _ = name.partition("/")
        if not _is_picture(name):
            passed.add("files that are no pictures", name)
        elif separator:
            found.setdefault(folder, []).append(Listed(name, entry.path, [folder]))
        else:
            passed.add("pictures outside the folders", name)
    if found:
        folders = sorted(one.name for one in path.iterdir() if is_folder(one) and not foreign_part(one.name))
        for name in folders:
            if name not in found:
                passed.add("folders without pictures, which are no classes", name)
        passed.report(str(path))
    return found


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)
