"""One job on disk: a file of embeddings for each unit of the input, whole or not there; at the end the manifest.

out/manifest.json, rejected.parquet, embeddings/00000.parquet, …
out/.embed/       only until the end: job.json, listing.parquet, done/, rejected/
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data import job_folder
from ito_ray.data.job_folder import difference, known, read_json, remove_partials, write_json, write_parquet
from ito_ray.embeddings.inputs import Inputs, open_inputs
from ito_ray.embeddings.model import Model
from ito_ray.embeddings.spec import NEEDS, Spec
from ito_ray.embeddings.unit import REJECTED, embed_unit
from ito_ray.errors import DataError, ItoError
from ito_ray.evaluation.encoder import Encoder

MANIFEST, REJECTED_FILE, FOLDER, WORK = "manifest.json", "rejected.parquet", "embeddings", ".embed"
VERSION = 1
_AGAIN = "shard_unreadable"
"""Rows lost for this reason are tried again by the next run of the same command: the store may be up again."""


@dataclass(frozen=True)
class Job:
    """Picklable: it goes to every actor. All methods may be called again after a kill."""

    out: Path
    spec: Spec
    inputs: Inputs
    model: Model
    request: dict[str, Any]

    @property
    def _work(self) -> Path:
        return self.out / WORK

    def units_to_embed(self) -> list[int]:
        """Units that have no file yet, or lost rows to a store that failed."""
        return [unit for unit in range(self.inputs.units) if not self._is_done(unit)]

    def done_before(self) -> Counter[str]:
        """Rows read and embedded of the units that are done."""
        records = [read_json(self._record(unit)) for unit in range(self.inputs.units) if self._is_done(unit)]
        return Counter({name: sum(record[name] for record in records) for name in ("read", "embedded")})

    def embed(self, unit: int, encoder: Encoder, *, batch: int, pool: Executor) -> dict[str, Any]:
        """Write one unit's files; its record: read, embedded, dropped by reason, seconds, ….

        The record comes last: a unit that has one is whole.
        """
        started = time.time()
        made = embed_unit(self.inputs.read(unit), encoder, self.spec, batch=batch, pool=pool)
        rejected = self._work / "rejected" / _file(unit)
        if made.rejected:
            write_parquet(made.rejected_table(), rejected)
        else:
            rejected.unlink(missing_ok=True)
        width = made.embeddings[0].shape[1] if made.embeddings else self._width(encoder)
        path = self.out / FOLDER / _file(unit)
        write_parquet(made.table(self.spec.schema(width, self._metadata())), path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = {
            "source": self.inputs.name(unit),
            "read": made.read,
            "embedded": made.embedded,
            "dropped": dict(made.dropped),
            "kinds": dict(made.kinds),
            "notes": dict(made.notes),
            "width": width,
            "bytes": path.stat().st_size,
            "sha256": digest,
        }
        write_json(self._record(unit), record)
        return {**record, "started": started, "seconds": time.time() - started}

    def finish(self) -> dict[str, Any]:
        """Write the manifest and remove what only the work needed; the manifest.

        Raises:
            DataError: nothing was embedded.
        """
        units = range(self.inputs.units)
        records = {f"{FOLDER}/{_file(unit)}": read_json(self._record(unit)) for unit in units}
        dropped: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        for record in records.values():
            dropped.update(record["dropped"])
            kinds.update(record["kinds"])
            notes.update(record.get("notes", {}))
        read, embedded = (sum(record[name] for record in records.values()) for name in ("read", "embedded"))
        assert read == embedded + dropped.total(), (read, embedded, dropped)
        parts = [pq.read_table(path, schema=REJECTED) for path in sorted((self._work / "rejected").glob("*.parquet"))]
        write_parquet(pa.concat_tables([REJECTED.empty_table(), *parts]), self.out / REJECTED_FILE)
        if not embedded:
            counts = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "no rows"
            raise DataError(f"None of the {read} rows was embedded ({counts}): see {self.out / REJECTED_FILE}.")
        manifest = {
            "version": VERSION,
            "request": self.request,
            "model": self.model.document(),
            "width": next(record["width"] for record in records.values()),
            "read": read,
            "embedded": embedded,
            "dropped": dict(dropped.most_common()),
            "kinds": dict(kinds),
            "notes": dict(notes),
            "files": {name: {k: v for k, v in record.items() if k != "width"} for name, record in records.items()},
        }
        write_json(self.out / MANIFEST, manifest)
        if not dropped[_AGAIN]:
            shutil.rmtree(self._work)
        remove_partials(self.out)
        return manifest

    def _width(self, encoder: Encoder) -> int:
        return int(encoder.encode_texts(["nothing of this unit can be embedded"]).shape[1])

    def _metadata(self) -> dict[str, str]:
        model, spec = self.model, self.spec
        return {
            "ito.model": model.address,
            "ito.model_version": model.version,
            "ito.model_sha256": model.checksum,
            "ito.what": spec.what,
            "ito.format": str(VERSION),
        }

    def _record(self, unit: int) -> Path:
        return self._work / "done" / f"{unit:05d}.json"

    def _is_done(self, unit: int) -> bool:
        record = known(self._record(unit))
        path = self.out / FOLDER / _file(unit)
        whole = bool(record) and path.is_file() and path.stat().st_size == record["bytes"]
        return whole and not record["dropped"].get(_AGAIN)


def alone(out: Path) -> AbstractContextManager[None]:
    """Keep other processes out of the folder. Raises DataError when one is at work there, or when it is a file."""
    return job_folder.alone(out, lock=f"{WORK}.lock", works="embeds into --out")


def open_job(
    out: Path, data: tuple[str, ...], columns: ColumnsConfig, spec: Spec, model: Model
) -> Job | dict[str, Any]:
    """Begin the job or go on with it; its manifest when it is complete.

    Raises:
        DataError: nothing to embed; `out` holds something else, or was begun with another model, other data or options.
    """
    out = out.absolute()
    manifest, begun = known(out / MANIFEST), known(out / WORK / "job.json")
    if not manifest and not begun and out.exists() and any(not path.name.startswith(WORK) for path in out.iterdir()):
        raise DataError(f"--out {out} is not empty and was not made by embed: give a new folder or empty it.")
    for name in ("done", "rejected"):
        (out / WORK / name).mkdir(parents=True, exist_ok=True)
    (out / FOLDER).mkdir(exist_ok=True)
    try:
        inputs = open_inputs(data, NEEDS[spec.what], columns, out / WORK)
        request = {
            "model": model.checksum,
            "data": inputs.fingerprint,
            "what": spec.what,
            "dtype": spec.dtype,
            "thumbnail": spec.thumbnail,
            "max_pixels": spec.max_pixels,
            "columns": columns.model_dump(mode="json"),
        }
        for found in (manifest, begun):
            if found and found.get("request") != request:
                raise DataError(
                    f"--out {out} holds another job ({difference(found.get('request'), request)}): give a new folder "
                    "or remove it."
                )
    except ItoError:
        _remove_empty(out, begun=bool(begun or manifest))
        raise
    job = Job(out, spec, inputs, model, request)
    if (
        manifest
        and not manifest["dropped"].get(_AGAIN)
        and all(_is_whole(out, item) for item in manifest["files"].items())
    ):
        shutil.rmtree(out / WORK)
        return manifest
    write_json(out / WORK / "job.json", {"version": VERSION, "request": request})
    return job


def _remove_empty(out: Path, *, begun: bool) -> None:
    """What `open_job` made in vain."""
    if not begun:
        shutil.rmtree(out / WORK)
        (out / FOLDER).rmdir()
    elif not (out / WORK / "job.json").is_file():
        shutil.rmtree(out / WORK)


def _is_whole(out: Path, item: tuple[str, dict[str, Any]]) -> bool:
    name, record = item
    return (out / name).is_file() and (out / name).stat().st_size == record["bytes"]


def _file(unit: int) -> str:
    return f"{unit:05d}.parquet"
