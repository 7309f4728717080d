"""One job on disk: what is done is on file, so that a killed one goes on; at the end the manifest.

out/manifest.json, dropped.parquet, train/train-00000.tar, …, val/…
out/.prepare/     only until the end: job.json, listing.parquet, inspected/, plan.parquet, made/
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ito_ray.data import job_folder
from ito_ray.data.job_folder import difference, known, read_json, remove_partials, write_json, write_parquet
from ito_ray.data.prepare.inspect import fit, inspect
from ito_ray.data.prepare.options import Output, digest
from ito_ray.data.prepare.plan import account, place
from ito_ray.data.prepare.source import Source, safe_key
from ito_ray.data.rows import BadSample, Row, one_sample
from ito_ray.data.write import PARTIAL, Sample, write_shard
from ito_ray.errors import DataError, ItoError, UnreadableError
from ito_ray.redact import without_secrets

MANIFEST, DROPPED, WORK = "manifest.json", "dropped.parquet", ".prepare"
VERSION = 1
_PLAN = pa.schema(
    [
        ("name", pa.string()),
        ("piece", pa.int32()),
        ("place", pa.int32()),
        ("key", pa.string()),
        ("digest", pa.binary(32)),
    ]
)
_DROPPED = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("url", pa.string())])


@dataclass(frozen=True)
class Job:
    """Picklable: it goes to every task. All methods may be called again after a kill."""

    out: Path
    options: Output
    source: Source
    digest: str

    @property
    def _work(self) -> Path:
        return self.out / WORK

    def pieces_to_inspect(self) -> list[int]:
        """Pieces of the source that are not inspected yet."""
        done = {path.name for path in (self._work / "inspected").glob("*.parquet")}
        return [piece for piece in range(self.source.pieces) if _piece_name(piece) not in done]

    def inspect(self, piece: int) -> int:
        """Look at every input of the piece and keep what was found; how many there were."""
        look = self.options.dedup == "perceptual"
        rows = self.source.read(piece)
        table = inspect(piece, rows, self.options.filters, self.options.picture, look=look)
        write_parquet(table, self._work / "inspected" / _piece_name(piece))
        return int(table.num_rows)

    def plan(self) -> dict[str, Any]:
        """Place what was inspected; the account for the manifest.

        Raises:
            DataError: nothing is left.
        """
        paths = [self._work / "inspected" / _piece_name(piece) for piece in range(self.source.pieces)]
        inspected = pa.concat_tables([pq.read_table(path) for path in paths])
        placement = place(inspected, self.options.rules(self.source))
        balance = account(inspected, placement)
        chosen = [number for number, reason in enumerate(placement.reasons) if reason is not None]
        lost = inspected.select(["key", "url"]).take(pa.array(chosen, pa.int64()))
        reasons = [placement.reasons[number] or ("", "") for number in chosen]
        columns = [lost["key"], [reason for reason, _ in reasons], [detail for _, detail in reasons], lost["url"]]
        write_parquet(pa.table(columns, schema=_DROPPED), self.out / DROPPED)
        if not placement.names:
            counts = ", ".join(f"{reason} {count}" for reason, count in balance["dropped"].items())
            raise DataError(f"None of the {balance['inputs']} inputs is left ({counts}): see {self.out / DROPPED}.")
        partial = self._work / f"plan.{uuid.uuid4().hex}{PARTIAL}"
        with pq.ParquetWriter(partial, _PLAN) as writer:
            for name, rows in zip(placement.names, placement.rows, strict=True):
                part = inspected.select(_PLAN.names[1:]).take(rows)
                table = part.add_column(0, "name", pa.array([name] * part.num_rows, pa.string()))
                writer.write_table(table.cast(_PLAN), row_group_size=part.num_rows)
        partial.replace(self._work / "plan.parquet")
        for folder in {self.out / Path(name).parent for name in placement.names}:
            folder.mkdir(exist_ok=True)
        write_json(self._work / "account.json", {**balance, "shards": list(placement.names)})
        return balance

    @property
    def is_planned(self) -> bool:
        """Whether `plan` is done."""
        return (self._work / "account.json").is_file()

    def shards(self) -> list[str]:
        """Names of all planned shards, relative to the folder."""
        names: list[str] = read_json(self._work / "account.json")["shards"]
        return names

    def shards_to_write(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        names = self.shards()
        return [number for number, name in enumerate(names) if not (self._made(name) and (self.out / name).is_file())]

    def write(self, number: int) -> int:
        """Write one shard; how many samples it has.

        Raises:
            DataError: a picture is not what it was when it was inspected.
        """
        plan = pq.ParquetFile(self._work / "plan.parquet").read_row_group(number).to_pylist()
        name = plan[0]["name"]
        places: dict[int, dict[int, int]] = defaultdict(dict)
        for order, entry in enumerate(plan):
            places[entry["piece"]][entry["place"]] = order
        samples: dict[int, Sample] = {}
        for piece, wanted in sorted(places.items()):
            for at, row in self.source.read(piece, wanted.keys()):
                samples[wanted[at]] = self._sample(row, plan[wanted[at]])
        if len(samples) < len(plan):
            raise _changed(f"piece {min(places)} of the source holds fewer inputs")
        path = self.out / name
        write_shard([samples[order] for order in range(len(plan))], path, format=self.options.format)
        with path.open("rb") as file:
            made = hashlib.file_digest(file, "sha256").hexdigest()
        record = {"samples": len(plan), "bytes": path.stat().st_size, "sha256": made}
        write_json(self._record(name), record)
        return len(plan)

    def finish(self) -> dict[str, Any]:
        """Write the manifest and remove what only the work needed; the manifest."""
        balance = read_json(self._work / "account.json")
        shards = {name: read_json(self._record(name)) for name in balance.pop("shards")}
        assert sum(shard["samples"] for shard in shards.values()) == sum(balance["written"].values())
        totals = {field: sum(shard[field] for shard in shards.values()) for field in ("samples", "bytes")}
        manifest = {
            "version": VERSION,
            "digest": self.digest,
            "request": self.options.request(),
            "source": dict(self.source.notes),
            **balance,
            "totals": {"shards": len(shards), **totals},
            "shards": shards,
        }
        write_json(self.out / MANIFEST, manifest)
        shutil.rmtree(self._work)
        remove_partials(self.out)
        return manifest

    def _sample(self, row: Row, planned: dict[str, Any]) -> Sample:
        image, key = row.image, safe_key(row.key)
        if row.bad is not None:
            raise UnreadableError(
                f"{row.url} ({row.key}) could be read when it was inspected, and now not any more ({row.bad}: "
                f"{row.detail}): run the same command again, it goes on where it stopped."
            )
        if image is None or key != planned["key"] or hashlib.sha256(image).digest() != planned["digest"]:
            raise _changed(f"{row.url} ({row.key})")
        try:
            with one_sample():
                image, extension = fit(image, self.options.picture)
        except BadSample as error:
            raise DataError(
                f"{row.url} ({row.key}) was good when it was inspected and cannot be written ({error.reason}: "
                f"{error.detail}): leave it out with --where, in a new folder."
            ) from error
        return Sample(key, image, self.options.filters.fitting(row.captions), row.meta, extension)

    def _record(self, name: str) -> Path:
        return self._work / "made" / f"{Path(name).name}.json"

    def _made(self, name: str) -> bool:
        return self._record(name).is_file()


def alone(out: Path) -> AbstractContextManager[None]:
    """Keep other processes out of the folder. Raises DataError when one is at work there, or when it is a file."""
    return job_folder.alone(out, lock=f"{WORK}.lock", works="prepares --out")


def open_job(options: Output) -> Job | dict[str, Any]:
    """Begin the job or go on with it; its manifest when it is complete.

    Raises:
        DataError: `out` holds something else, or another job.
    """
    out, request = options.out.absolute(), options.request()
    manifest = known(out / MANIFEST)
    begun = known(out / WORK / "job.json")
    if not manifest and not begun and out.exists() and any(not path.name.startswith(WORK) for path in out.iterdir()):
        raise DataError(f"--out {out} is not empty and was not made by prepare: give a new folder or empty it.")
    for found in (manifest, begun):
        if found and without_secrets(found.get("request")) != request:
            raise DataError(
                f"--out {out} holds another job ({difference(found.get('request'), request)}): "
                "give a new folder or remove it."
            )
    for folder in ("inspected", "made"):
        (out / WORK / folder).mkdir(parents=True, exist_ok=True)
    try:
        source = options.open(out / WORK)
    except ItoError:
        if not begun:
            shutil.rmtree(out / WORK)
        raise
    job = Job(out, options, source, digest(options, source))
    for found in (manifest, begun):
        if found and found["digest"] != job.digest:
            raise DataError(f"The inputs have changed since --out {out} was made: give a new folder or remove it.")
    if manifest and all(_is_whole(out / name, shard) for name, shard in manifest["shards"].items()):
        shutil.rmtree(out / WORK)
        return manifest
    write_json(out / WORK / "job.json", {"version": VERSION, "digest": job.digest, "request": request})
    return job


def _piece_name(piece: int) -> str:
    return f"{piece:07d}.parquet"


def _changed(what: str) -> DataError:
    return DataError(
        f"{what} is not what it was when it was inspected: let the source rest, remove the folder and run again."
    )


def _is_whole(path: Path, shard: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == shard["bytes"]


def reasons_of(manifest: dict[str, Any]) -> Sequence[tuple[str, int]]:
    """Lines of the account: written by split, dropped by reason."""
    written = [(f"written to {split}/", count) for split, count in manifest["written"].items() if count]
    return [*written, *((f"dropped: {reason}", count) for reason, count in manifest["dropped"].items())]
