"""Write image-text shards: WebDataset tar or Parquet, byte-equal for equal input.

A tar member group is `KEY.png` (or `.jpg`, `.webp`), `KEY.txt` (first caption) and `KEY.json` (the metadata plus
`captions`); a Parquet row is `key, image, captions, meta` with `meta` as a JSON string.
"""

import io
import itertools
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray import strict_json
from ito_ray.errors import DataError

ShardFormat = Literal["tar", "parquet"]
JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]

PARTIAL = ".partial"
"""End of the name of a file in the making."""
PARQUET_ROW_GROUP = 128
PARQUET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("captions", pa.list_(pa.string())),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its captions.

    `key` must be unique in the data set and free of dots and slashes (a dot would end the key of
    a WebDataset member). `image` is an encoded picture, `extension` names its format in a tar.
    `captions[0]` is the one written to `KEY.txt`.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    meta: Mapping[str, JsonValue]
    extension: str = "png"

    def __post_init__(self) -> None:
        if not self.key or "." in self.key or "/" in self.key:
            raise DataError(f"Sample key {self.key!r} must be non-empty without '.' or '/'.")
        if not self.captions:
            raise DataError(f"Sample {self.key!r} has no caption: give at least one.")


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    prefix: str,
    per_shard: int,
    format: ShardFormat,
) -> dict[str, int]:
    """Write `samples` in their order as `<prefix>-%05d.<tar|parquet>`.

    Holds one shard in memory. A shard appears under its name only when it is whole.

    Returns:
        File name of each shard -> number of samples in it, in the order written.

    Raises:
        DataError: `per_shard` < 1, or a key comes twice.
    """
    if per_shard < 1:
        raise DataError(f"per_shard is {per_shard}: a shard must hold at least 1 sample.")
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, int] = {}
    seen: set[str] = set()
    for index, group in enumerate(_groups(samples, per_shard)):
        for sample in group:
            if sample.key in seen:
                raise DataError(f"Sample key {sample.key!r} comes twice: keys must be unique.")
            seen.add(sample.key)
        name = f"{prefix}-{index:05d}.{format}"
        write_shard(group, folder / name, format=format)
        shards[name] = len(group)
    return shards


def write_shard(samples: Sequence[Sample], path: Path, *, format: ShardFormat) -> None:
    """Write one shard beside `path` and rename it, so that `path` is whole whenever it exists.

    Two processes may write the same shard at once (a killed run's last task and its successor's first).
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        (_write_tar if format == "tar" else _write_parquet)(partial, samples)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _groups(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    stream = iter(samples)
    while group := list(itertools.islice(stream, size)):
        yield group


def _write_tar(path: Path, samples: Sequence[Sample]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            record = {"captions": list(sample.captions), **sample.meta}
            text = strict_json.dumps(record, ensure_ascii=False, sort_keys=True)
            _add_member(tar, f"{sample.key}.{sample.extension}", sample.image)
            _add_member(tar, f"{sample.key}.txt", sample.captions[0].encode())
            _add_member(tar, f"{sample.key}.json", text.encode())


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A fresh TarInfo has mtime 0, uid 0 and no user name: bytes depend on the content alone.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _write_parquet(path: Path, samples: Sequence[Sample]) -> None:
    table = pa.table(
        {
            "key": [sample.key for sample in samples],
            "image": [sample.image for sample in samples],
            "captions": [list(sample.captions) for sample in samples],
            "meta": [strict_json.dumps(dict(sample.meta), ensure_ascii=False, sort_keys=True) for sample in samples],
        },
        schema=PARQUET_SCHEMA,
    )
    # PNG does not shrink further; compressing it again would only cost the reader time.
    pq.write_table(table, path, row_group_size=PARQUET_ROW_GROUP, compression="none")
