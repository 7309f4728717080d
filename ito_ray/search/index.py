"""An index over what pipelines.embed made: vectors, and what each belongs to, all mapped from disk.

folder/
  index.json          model, rows, how it is searched
  rows.arrow          key, shard, caption, thumbnail
  vectors.npy         (N, D) unit vectors, searched exactly; or, beyond `exact_up_to` rows,
  vectors.usearch     the same vectors in a graph (HNSW), searched approximately

N rows, D width of a vector, Q queries.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ito_ray.data.job_folder import known, read_json, write_json
from ito_ray.embeddings.model import SHORT, Model
from ito_ray.errors import ConfigError, DataError

INDEX, ROWS, EXACT, GRAPH = "index.json", "rows.arrow", "vectors.npy", "vectors.usearch"
VERSION = 1
EXACT_UP_TO = 1_000_000
MANIFEST = "manifest.json"
"""Of pipelines.embed."""
Kind = Literal["image", "text"]
Vectors = NDArray[Any]
"""float32 or float16."""
_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string()), ("caption", pa.string()), ("thumbnail", pa.binary())]
)
_ROWS_AT_ONCE = 4096
_PROBES, _TOP = 200, 10
_ENOUGH_RECALL, _MOST_EXPANSION = 0.95, 1024


@dataclass(frozen=True)
class Entry:
    """What a vector belongs to."""

    row: int
    key: str
    shard: str
    caption: str
    thumbnail: bytes
    """WebP; empty when none was kept."""


@dataclass(frozen=True)
class Hit:
    """One answer."""

    entry: Entry
    similarity: float
    """Cosine."""


class Index:
    """An index on disk; safe to be searched by several threads.

    Raises:
        DataError: `folder` holds no index, or one of another version.
        ConfigError: usearch is not installed.
    """

    def __init__(self, folder: Path) -> None:
        facts = known(folder / INDEX)
        if facts.get("version") != VERSION:
            raise DataError(
                f"{folder} holds no index{' of this version' if facts else ''}: make one with "
                "`python -m pipelines.search index EMBEDDINGS --out INDEX`."
            )
        self._library = _usearch()
        self.folder = folder
        self.facts = facts
        self.model: dict[str, str] = facts["model"]
        self.expansion: int | None = facts["expansion"]
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
        self._graph: Any = None
        self._matrix: Any = None
        if facts["search"] == "exact":
            self._matrix = np.load(folder / EXACT, mmap_mode="r", allow_pickle=False)
        else:
            self._graph = self._library.Index.restore(str(folder / GRAPH), view=True)
            self._graph.expansion_search = self.expansion

    def __len__(self) -> int:
        return int(self.facts["rows"])

    @property
    def kind(self) -> Kind:
        """Of its vectors."""
        kind: Kind = self.facts["kind"]
        return kind

    def check(self, model: Model) -> None:
        """Raises ConfigError unless the vectors come from this very model."""
        if model.checksum != self.model["sha256"]:
            version = f" version {self.model['version']}" if self.model["version"] else ""
            raise ConfigError(
                f"The index {self.folder} was made with {self.model['address']}{version}, sha256 "
                f"{self.model['sha256'][:SHORT]}…, but --model is {model.title}: vectors of different models cannot be "
                "compared. Give that model, or embed and index again with this one."
            )

    def search(self, vector_D: NDArray[np.float32], top: int) -> list[Hit]:
        """The `top` rows most similar to a unit vector, the best first; fewer when the index has fewer."""
        rows, similarity = self._nearest(np.ascontiguousarray(vector_D)[None], min(top, len(self)))
        return [Hit(self.entry(int(row)), float(value)) for row, value in zip(rows[0], similarity[0], strict=True)]

    def entry(self, row: int) -> Entry:
        """What row `row` (0 ≤ row < N) is."""
        batch, place = divmod(row, _ROWS_AT_ONCE)
        values = self._reader.get_batch(batch).slice(place, 1).to_pylist()[0]
        return Entry(row, values["key"], values["shard"], values["caption"] or "", values["thumbnail"] or b"")

    def vector(self, row: int) -> NDArray[np.float32]:
        """(D,) of one row."""
        vector = self._matrix[row] if self._matrix is not None else self._graph.get(row)
        return np.asarray(vector, np.float32)

    def _nearest(
        self, query_QD: NDArray[np.float32], top: int, *, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top) rows and their similarities."""
        if self._matrix is not None:
            kind = self._library.MetricKind.IP
            found = self._library.search(self._matrix, query_QD.astype(self._matrix.dtype), top, kind, exact=True)
        else:
            found = self._graph.search(query_QD, top, exact=exact)
        shape = (len(query_QD), -1)  # usearch gives a flat answer for one query
        return found.keys.reshape(shape).astype(np.int64), 1 - found.distances.reshape(shape)

    def measure(self) -> tuple[float, float]:
        """(recall@10 against exact search, milliseconds of one search), over points between two rows drawn at random.

        A row itself would be found too easily: the graph was built from it.
        """
        rows = np.random.default_rng(0).choice(len(self), (_PROBES, 2))
        query = np.stack([self.vector(one) + self.vector(other) for one, other in rows.tolist()])
        query /= np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-6)
        top = min(_TOP, len(self))
        times = []
        for one in query[:20]:
            started = time.perf_counter()
            self._nearest(one[None], top)
            times.append(time.perf_counter() - started)
        milliseconds = 1e3 * float(np.median(times))
        if self._graph is None:
            return 1.0, milliseconds
        best, found = self._nearest(query, top, exact=True)[0], self._nearest(query, top)[0]
        shared = [len(np.intersect1d(one, other)) for one, other in zip(best, found, strict=True)]
        return float(np.mean(shared)) / top, milliseconds

    def widen(self) -> tuple[float, float]:
        """Search the graph wider until recall is 0.95 or the limit is reached; what `measure` says then."""
        recall, milliseconds = self.measure()
        while self._graph is not None and recall < _ENOUGH_RECALL and self._graph.expansion_search < _MOST_EXPANSION:
            self._graph.expansion_search *= 2
            self.expansion = int(self._graph.expansion_search)
            recall, milliseconds = self.measure()
        return recall, milliseconds


def build(
    embeddings: Path,
    out: Path,
    *,
    kind: Kind | None = None,
    exact_up_to: int = EXACT_UP_TO,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> Index:
    """Make the index of a folder that pipelines.embed finished; an earlier index at `out` is replaced when it is done.

    Args:
        kind: which vectors; None = those of pictures where there are any, else of texts.
        exact_up_to: rows up to which every vector is compared with the query; beyond, a graph is searched.
        progress: called with the share done and a text.

    Raises:
        DataError: unfinished or damaged embeddings, none of that kind, vectors of several models, or `out` is something
            else than an index.
        ConfigError: usearch is not installed.
    """
    library = _usearch()
    manifest = _finished(embeddings)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / INDEX).is_file())):
        raise DataError(f"--out {out} is not empty and is not an index: give a new folder.")
    kinds: dict[str, int] = manifest["kinds"]
    kind = kind or ("image" if kinds.get("image") else "text")
    total, width = kinds.get(kind, 0), manifest["width"]
    if not total:
        had = ", ".join(f"{count} {name}" for name, count in kinds.items())
        raise DataError(f"{embeddings} has no vectors of kind {kind}, only {had}: give another --kind.")
    dtype = np.dtype(manifest["request"]["dtype"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        built = Path(scratch, "built")
        built.mkdir()
        graph: Any = (
            None if total <= exact_up_to else library.Index(ndim=width, metric="ip", dtype=_SCALARS[dtype.name])
        )
        matrix = np.lib.format.open_memmap(built / EXACT, "w+", dtype, (total, width)) if graph is None else None
        done = 0
        with pa.OSFile(str(built / ROWS), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            for rows, vector_ND in _of(_read(embeddings, manifest, kind)):
                writer.write_table(rows, max_chunksize=_ROWS_AT_ONCE)
                if matrix is not None:
                    matrix[done : done + len(vector_ND)] = vector_ND
                else:
                    graph.add(np.arange(done, done + len(vector_ND), dtype=np.uint64), vector_ND)
                done += len(vector_ND)
                progress(done / total, f"{done:,} of {total:,}")
        if done != total:
            raise DataError(f"{embeddings} holds {done} vectors, its manifest says {total}: embed again.")
        if matrix is not None:
            matrix.flush()
        else:
            graph.save(str(built / GRAPH))
        facts = {
            "version": VERSION,
            "model": manifest["model"],
            "kind": kind,
            "rows": total,
            "width": width,
            "dtype": dtype.name,
            "search": "exact" if graph is None else "graph",
            "expansion": None if graph is None else int(graph.expansion_search),
        }
        write_json(built / INDEX, facts)
        index = Index(built)
        recall, milliseconds = index.widen()
        measured = {"recall_at_10": recall, "milliseconds": round(milliseconds, 3)}
        write_json(built / INDEX, {**facts, "expansion": index.expansion, **measured})
        built.chmod(0o755)
        if out.exists():
            out.rename(Path(scratch, "replaced"))
        built.rename(out)
    return Index(out)


_SCALARS = {"float32": "f32", "float16": "f16"}


def _finished(embeddings: Path) -> dict[str, Any]:
    if not (embeddings / MANIFEST).is_file():
        raise DataError(
            f"{embeddings} has no {MANIFEST}: give a folder that pipelines.embed made; if it was stopped, run it again."
        )
    manifest = read_json(embeddings / MANIFEST)
    if "kinds" not in manifest or "files" not in manifest:
        raise DataError(f"{embeddings} was not made by pipelines.embed: give a folder that was.")
    return manifest


def _read(embeddings: Path, manifest: dict[str, Any], kind: Kind) -> Iterator[tuple[pa.Table, Vectors]]:
    """Rows of `_SCHEMA` with their vectors, file by file."""
    checksum = manifest["model"]["sha256"]
    for name in manifest["files"]:
        path = embeddings / name
        try:
            file = pq.ParquetFile(path)
            made_with = (file.schema_arrow.metadata or {}).get(b"ito.model_sha256", b"").decode()
            if made_with != checksum:
                raise DataError(
                    f"{path} comes from another model than its manifest says: embed again into a new folder."
                )
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                table = pa.Table.from_batches([batch])
                table = table.filter(pc.equal(table["kind"], kind))
                yield _columns(table), _matrix(table["embedding"])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}): embed again.") from error


def _columns(table: pa.Table) -> pa.Table:
    names = table.column_names
    return pa.Table.from_arrays(
        [table[field.name] if field.name in names else pa.nulls(table.num_rows, field.type) for field in _SCHEMA],
        schema=_SCHEMA,
    )


def _matrix(column: pa.ChunkedArray) -> Vectors:
    width = column.type.list_size
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: Vectors = flat.reshape(-1, width)
    return matrix


def _of(parts: Iterator[tuple[pa.Table, Vectors]]) -> Iterator[tuple[pa.Table, Vectors]]:
    """The same rows in parts of exactly `_ROWS_AT_ONCE` but the last: row i lies in batch i // _ROWS_AT_ONCE."""
    tables: list[pa.Table] = []
    vectors: list[Vectors] = []
    held = 0
    for table, matrix in parts:
        tables.append(table)
        vectors.append(matrix)
        held += len(matrix)
        if held >= _ROWS_AT_ONCE:
            joined, stacked = pa.concat_tables(tables).combine_chunks(), np.concatenate(vectors)
            whole = held - held % _ROWS_AT_ONCE
            for start in range(0, whole, _ROWS_AT_ONCE):
                yield joined.slice(start, _ROWS_AT_ONCE), stacked[start : start + _ROWS_AT_ONCE]
            tables, vectors, held = [joined.slice(whole)], [stacked[whole:]], held - whole
    if held:
        yield pa.concat_tables(tables).combine_chunks(), np.concatenate(vectors)


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise ConfigError('Searching needs the package usearch: pip install "ito_ray[search]".') from error
    return usearch.index
