"""Sources of every kind with the same pictures, and a job run from end to end without Ray."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.decode import decode_rgb
from ito_ray.data.plan import Piece
from ito_ray.data.prepare.job import Job, alone, open_job
from ito_ray.data.prepare.options import Output
from ito_ray.data.rows import Row, read_piece
from tests.data.makers import picture

KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}


def caption(number: int, which: int = 0) -> str:
    return f"caption {which} of picture {number}, with “quotes”, a comma"


def write_pictures(folder: Path, count: int, *, size: int = 24) -> list[Path]:
    """Pictures in all formats, dealt over two subfolders."""
    paths = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        path = folder / f"part{number % 2}" / f"img.{number:04d}.{KINDS[kind]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, size=size, kind=kind))
        paths.append(path)
    return paths


def write_csv(path: Path, rows: list[dict[str, Any]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_coco(path: Path, pictures: list[Path], root: Path) -> Path:
    """Two captions a picture."""
    images = [{"id": 100 + n, "file_name": str(p.relative_to(root)), "height": 24} for n, p in enumerate(pictures)]
    notes = [
        {"id": 2 * n + which, "image_id": 100 + n, "caption": caption(n, which)}
        for which in (0, 1)
        for n in range(len(pictures))
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return path


def run(options: Output) -> dict[str, Any]:
    """What runtime/prepare.py does, in this process."""
    with alone(options.out):
        job = open_job(options)
        if not isinstance(job, Job):
            return job
        for piece in job.pieces_to_inspect():
            job.inspect(piece)
        if not job.is_planned:
            job.plan()
        for number in job.shards_to_write():
            job.write(number)
        return job.finish()


def read_back(out: Path) -> dict[str, Row]:
    """All rows of all shards by key; each must be good."""
    rows = {}
    for path in sorted([*out.rglob("*.tar"), *out.rglob("*[0-9].parquet")]):
        for row in read_piece(Piece(str(path), 0, 1), ColumnsConfig()):
            assert row.bad is None, row
            assert row.key not in rows
            rows[row.key] = row
    return rows


def pixels(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(decode_rgb(data, max_pixels=10**6))


def shards_of(out: Path) -> dict[str, bytes]:
    """Everything that a job made, by path, but the manifest, which names the request."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
