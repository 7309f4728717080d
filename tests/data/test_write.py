"""What is written comes back equal, byte for byte and run for run."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ito_ray.data.write import Sample, ShardFormat, write_shards
from ito_ray.errors import DataError

SAMPLES = [
    Sample(
        key=f"s-{index:03d}",
        image=bytes([index % 251]) * (index + 1),
        captions=(f"thing {index}", f"a naïve thing {index}"),
        meta={"name": f"thing {index}", "nested": {"tags": ["a", 1, None]}},
    )
    for index in range(300)
]


def _from_tar(path: Path) -> list[Sample]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            key, suffix = info.name.split(".")
            members.setdefault(key, {})[suffix] = content.read()
    samples = []
    for key, parts in members.items():
        record = json.loads(parts["json"])
        captions = tuple(record.pop("captions"))
        assert parts["txt"].decode() == captions[0]
        samples.append(Sample(key, parts["png"], captions, record))
    return samples


def _from_parquet(path: Path) -> list[Sample]:
    return [
        Sample(row["key"], row["image"], tuple(row["captions"]), json.loads(row["meta"]))
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.parametrize(("format_", "read"), [("tar", _from_tar), ("parquet", _from_parquet)])
def test_reads_back_equal(tmp_path: Path, format_: ShardFormat, read: Callable[[Path], list[Sample]]) -> None:
    shards = write_shards(iter(SAMPLES), tmp_path, prefix="x", per_shard=140, format=format_)
    assert shards == {f"x-0000{i}.{format_}": n for i, n in enumerate((140, 140, 20))}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shards)
    assert [sample for name in shards for sample in read(tmp_path / name)] == SAMPLES


@pytest.mark.parametrize("format_", ["tar", "parquet"])
def test_two_runs_give_equal_bytes(tmp_path: Path, format_: ShardFormat) -> None:
    for run in ("a", "b"):
        write_shards(SAMPLES, tmp_path / run, prefix="x", per_shard=500, format=format_)
    name = f"x-00000.{format_}"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_parquet_row_groups_are_small_enough_to_mix(tmp_path: Path) -> None:
    write_shards(SAMPLES, tmp_path, prefix="x", per_shard=500, format="parquet")
    footer = pq.ParquetFile(tmp_path / "x-00000.parquet").metadata
    sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    assert sizes == [128, 128, 44]


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'s-000' comes twice"):
        write_shards([SAMPLES[0], SAMPLES[0]], tmp_path, prefix="x", per_shard=9, format="tar")


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_a_key_that_would_not_survive_a_tar_is_refused(key: str) -> None:
    with pytest.raises(DataError, match="must be non-empty"):
        Sample(key, b"", ("x",), {})


def test_a_killed_shard_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    unserialisable = Sample("k", b"", ("x",), {"bad": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        write_shards([*SAMPLES, unserialisable], tmp_path, prefix="x", per_shard=300, format="tar")
    assert (tmp_path / "x-00000.tar").exists()
    assert not (tmp_path / "x-00001.tar").exists()
