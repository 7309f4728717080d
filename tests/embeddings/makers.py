"""A tiny encoder without weights, and a job run from end to end without Ray."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ito_ray.config.schema import ColumnsConfig
from ito_ray.embeddings.job import Job, alone, open_job
from ito_ray.embeddings.model import Model
from ito_ray.embeddings.spec import Spec
from ito_ray.evaluation.encoder import Embeddings, Encoder

WIDTH = 8
SPEC = Spec("image", "float32", 0, 10**6, None)


class HashEncoder:
    """A random unit vector for each content: equal inputs, equal vectors, whatever the batch."""

    name = "hash"

    def __init__(self, width: int = WIDTH) -> None:
        self.largest = 0
        self.width = width

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        self.largest = max(self.largest, len(images))
        return np.stack([self._vector(repr(image.size).encode() + image.tobytes()) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return np.stack([self._vector(text.encode()) for text in texts])

    def _vector(self, content: bytes) -> Embeddings:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        vector = np.random.default_rng(seed).standard_normal(self.width).astype(np.float32)
        return vector / np.linalg.norm(vector)


def model(tmp: Path, checksum: str = "a" * 64) -> Model:
    return Model("models:/m@champion", "3", tmp, checksum, {"model.safetensors": "b" * 64}, None)


def open_(
    out: Path, *data: Path | str, checksum: str = "a" * 64, made_by: Model | None = None, **changes: Any
) -> Job | dict[str, Any]:
    spec = dataclasses.replace(SPEC, **changes)
    return open_job(out, tuple(map(str, data)), ColumnsConfig(), spec, made_by or model(out, checksum))


def run(
    out: Path,
    *data: Path | str,
    encoder: Encoder | None = None,
    batch: int = 4,
    seen: Callable[[int], None] = lambda unit: None,
    **changes: Any,
) -> dict[str, Any]:
    """What runtime/embed.py does, in this process; `seen` is called with each unit before it is embedded."""
    with alone(out), ThreadPoolExecutor(2) as pool:
        job = open_(out, *data, **changes)
        if not isinstance(job, Job):
            return job
        for unit in job.units_to_embed():
            seen(unit)
            job.embed(unit, encoder or HashEncoder(), batch=batch, pool=pool)
        return job.finish()


def table(out: Path) -> pa.Table:
    """All embeddings of a folder, file after file."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / "embeddings").glob("*.parquet"))])


def vectors(out: Path) -> np.ndarray:
    """(N, D) of all files."""
    return np.array(table(out)["embedding"].to_pylist(), np.float32)


def files(out: Path) -> dict[str, bytes]:
    """Everything below the folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
