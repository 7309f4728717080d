"""What a user may ask for, one class a kind of source; the command line is made from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ito_ray.config.schema import ColumnsConfig, DataConfig
from ito_ray.data.prepare.delimited import Dialect, Quoting
from ito_ray.data.prepare.filters import Filters
from ito_ray.data.prepare.folders import list_coco, list_pairs
from ito_ray.data.prepare.inspect import Picture
from ito_ray.data.prepare.listing import ListedSource
from ito_ray.data.prepare.plan import Dedup, Rules
from ito_ray.data.prepare.source import Source
from ito_ray.data.prepare.stored import HuggingFaceSource, Keys, ShardSource
from ito_ray.data.prepare.tables import Columns, list_table
from ito_ray.data.prepare.web import DEFAULT_POLICY, SCHEMES, FetchPolicy
from ito_ray.data.write import ShardFormat
from ito_ray.errors import ConfigError, DataError
from ito_ray.redact import without_secrets

MOST_BITS = 16
_NOT_IN_REQUEST = ("out", "verbose")


@dataclass(frozen=True, kw_only=True)
class Output(ABC):
    """What all kinds of sources share."""

    out: Path
    """Folder to make. The same command again goes on where it was killed."""
    format: ShardFormat = "tar"
    """WebDataset tars or Parquet files."""
    per_shard: int = 1000
    """Most samples in a shard; shards of a split differ by one sample at most."""
    val_fraction: float = 0.0
    """Share of the samples that goes to val/ instead of train/, drawn by a hash of the key: it never changes sides."""
    seed: int = 0
    """Of the order of samples. Same inputs, options and seed give equal bytes."""
    dedup: Dedup = "off"
    """exact: of pictures with the same bytes keep the first; perceptual: of those that look the same, too."""
    dedup_bits: int = 4
    """Perceptual hashes (64 bits) that differ in no more bits count as the same."""
    min_side: int = 0
    """Drop pictures whose short side has fewer pixels; 0 = keep all."""
    max_aspect: float = 0.0
    """Drop pictures with a greater ratio of long to short side; 0 = keep all."""
    caption_chars: tuple[int, int] = (0, 0)
    """Least and most characters of a caption, 0 = no limit; a sample without any such caption is dropped."""
    caption_words: tuple[int, int] = (0, 0)
    """The same in words."""
    where: str = ""
    """Keep samples for which this holds, e.g. 'width >= 256 and "logo" not in lower(caption)'."""
    max_side: int = 0
    """Make longer pictures smaller; 0 = keep all bytes as they are."""
    jpeg_quality: int = 92
    """Of pictures that were made smaller; those that came as PNG stay PNG."""
    max_pixels: int = DataConfig().max_pixels
    """Larger pictures are dropped undecoded."""
    verbose: bool = False
    """Let Ray's own log lines through."""

    def __post_init__(self) -> None:
        if self.per_shard < 1:
            raise ConfigError(f"--per-shard is {self.per_shard}: a shard must hold at least 1 sample.")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"--val-fraction is {self.val_fraction}: give a share from 0 up to, not including, 1.")
        if not 0 <= self.dedup_bits <= MOST_BITS:
            raise ConfigError(f"--dedup-bits is {self.dedup_bits}: give 0 to {MOST_BITS} of the 64 bits.")
        if self.max_side < 0:
            raise ConfigError(f"--max-side is {self.max_side}: give pixels, or 0 to keep pictures as they are.")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality is {self.jpeg_quality}: give 1 to 100.")
        if self.max_pixels < 1:
            raise ConfigError(f"--max-pixels is {self.max_pixels}: give at least 1.")
        _ = self.filters

    @property
    def filters(self) -> Filters:
        """Raises ConfigError for limits that make no sense."""
        return Filters(self.min_side, self.max_aspect, self.caption_chars, self.caption_words, self.where)

    @property
    def picture(self) -> Picture:
        """How pictures are read and stored."""
        return Picture(self.max_side, self.jpeg_quality, self.max_pixels)

    def rules(self, source: Source) -> Rules:
        """What decides the plan."""
        return Rules(
            seed=self.seed,
            per_shard=self.per_shard,
            val_fraction=self.val_fraction,
            dedup=self.dedup,
            distance=self.dedup_bits,
            format=self.format,
            scattered=source.scattered,
        )

    def request(self) -> dict[str, Any]:
        """What decides the output, apart from the inputs' content; keys in an address do not."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_IN_REQUEST}
        document = {"source": type(self).__name__.lower(), **values}
        request: dict[str, Any] = without_secrets(json.loads(json.dumps(document, default=_plain)))
        return request

    @abstractmethod
    def open(self, work: Path) -> Source:
        """The inputs; listings are kept in `work`. Raises DataError when there are none."""


@dataclass(frozen=True, kw_only=True)
class Table(Output):
    """Pictures in files, captions in a CSV, TSV, JSON or Parquet table.

    For instance `python -m pipelines.prepare table pairs.csv --images photos --out data/pairs --val-fraction 0.01`.
    Rows of the same picture become one sample with several captions; other columns become its meta data.
    """

    table: Annotated[Path, tyro.conf.Positional]
    """The table: .csv, .tsv, .txt, .jsonl, .json or .parquet; a packed one (.gz, .zst, …) is unpacked on the way."""
    images: Path | None = None
    """Folder that the table's relative paths start from; default: where the table is."""
    image_column: str = ""
    """Column of paths; default: image, image_path, file_name, …, the first that the table has."""
    caption_columns: tuple[str, ...] = ()
    """Columns of captions (text, or lists of it); default: captions, caption, text, …, the first that it has."""
    key_column: str = ""
    """Column of unique keys; default: the path without its ending."""
    separator: str = ""
    """Of a table of separated fields: one character, or tab, semicolon, pipe; default: found out from the text."""
    quoting: Quoting = "auto"
    """double: fields may stand in quotes, those inside are doubled; backslash: …stand after a backslash; none: quotes
    are text; auto: what explains the most lines."""
    encoding: str = ""
    """Of a table's text, e.g. cp1252; default: UTF-8, or UTF-16 where the bytes say so."""
    names: tuple[str, ...] = ()
    """Names of the columns in order, for a table without a header."""
    schemes: tuple[str, ...] = SCHEMES
    """What addresses in the table may begin with, beside plain paths: its author may be a stranger."""
    max_file_bytes: int = DEFAULT_POLICY.max_bytes
    """Larger files are dropped without being read to their end."""
    download_seconds: float = DEFAULT_POLICY.seconds
    """For one download from a web server, tried three times."""
    per_host: int = DEFAULT_POLICY.per_host
    """Downloads at a time from one web server, for each of the tasks that run at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(self.max_file_bytes, self.download_seconds, self.per_host)
        if not least > 0:
            raise ConfigError(
                f"--max-file-bytes, --download-seconds and --per-host must be above 0: the least of them is {least}."
            )

    def open(self, work: Path) -> Source:
        """See `Output.open`."""
        columns = Columns(self.image_column, self.caption_columns, self.key_column)
        dialect = Dialect(self.separator, self.quoting, self.encoding, self.names)
        rows, notes = list_table(self.table, self.images, columns, dialect)
        policy = FetchPolicy(self.schemes, self.max_file_bytes, self.download_seconds, self.per_host, keep=True)
        return ListedSource.write(rows, work / "listing.parquet", notes, policy=policy)


@dataclass(frozen=True, kw_only=True)
class Coco(Output):
    """COCO's captions: one JSON file and a folder of pictures.

    For instance
    `python -m pipelines.prepare coco captions_train2017.json --images train2017 --out data/coco --max-side 512`.
    """

    annotations: Annotated[Path, tyro.conf.Positional]
    """The file captions_*.json."""
    images: Path
    """Folder that its file names start from."""

    def open(self, work: Path) -> Source:
        """See `Output.open`."""
        rows, notes = list_coco(self.annotations, self.images)
        return ListedSource.write(rows, work / "listing.parquet", notes)


@dataclass(frozen=True, kw_only=True)
class Folder(Output):
    """A folder of name.jpg (or .png, .webp, …) with name.txt beside it, subfolders included.

    For instance `python -m pipelines.prepare folder photos --out data/photos --dedup exact`.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder; a .txt holds one caption."""

    def open(self, work: Path) -> Source:
        """See `Output.open`."""
        rows, notes, salt = list_pairs(self.folder)
        return ListedSource.write(rows, work / "listing.parquet", notes, salt)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Output):
    """A data set that `datasets` saved with save_to_disk; needs `pip install "ito_ray[huggingface]"`.

    For instance `python -m pipelines.prepare huggingface flickr --split train --out data/flickr`.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The saved folder."""
    split: str = ""
    """Which split, where the folder has several."""
    image_column: str = ""
    """Column of pictures; default: image, jpg, …, the first that it has."""
    caption_columns: tuple[str, ...] = ()
    """Columns of captions; default: captions, caption, text, …, the first that it has."""
    key_column: str = ""
    """Column of unique keys; default: the row's number."""

    def open(self, work: Path) -> Source:
        """See `Output.open`."""
        return HuggingFaceSource.open(self.folder, self.split, self.image_column, self.caption_columns, self.key_column)


@dataclass(frozen=True, kw_only=True)
class Shards(Output):
    """Other shards: tar or Parquet, local or in an object store; filtered, mixed and cut anew.

    For instance `python -m pipelines.prepare shards 's3://bucket/{00000..00999}.tar' --out data/clean --max-side 512`.
    Runs of samples that lie together in the source are dealt over all new shards and mixed within each.
    """

    shards: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, folders, globs or brace patterns."""
    keys: Keys = "own"
    """shard: put the shard's name before each key, for sets whose keys begin anew in every shard."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def open(self, work: Path) -> Source:
        """See `Output.open`."""
        if not self.shards:
            raise DataError("No shards are given: name .tar or .parquet files, folders of them, or patterns.")
        return ShardSource.open(self.shards, self.keys, self.columns)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, ColumnsConfig) else str(value)


def digest(options: Output, source: Source) -> str:
    """Tells jobs apart: 64 hexadecimal digits over options and inputs."""
    text = json.dumps([options.request(), source.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
