"""Embeddings and an index of small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ito_ray.search.index import Index, build
from tests.data.makers import picture, write_tar
from tests.embeddings.makers import run

NASTY = '<script>document.title="hacked"</script> & "quotes"'


def write_embeddings(tmp: Path, count: int = 30, **options: Any) -> Path:
    """`count` pictures in two tars; the caption of k007 is markup."""
    tmp.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        rows = range(shard, count, 2)
        samples = [
            (f"k{n:03d}", {"png": picture(n), "txt": (NASTY if n == 7 else f"picture number {n}").encode()})
            for n in rows
        ]
        write_tar(tmp / f"part-{shard}.tar", samples)
    run(tmp / "embeddings", *sorted(tmp.glob("*.tar")), **{"thumbnail": 16, **options})
    return tmp / "embeddings"


def make_index(tmp: Path, count: int = 30, **options: Any) -> Index:
    """An exact index over `write_embeddings`."""
    return build(write_embeddings(tmp, count, **options), tmp / "index")
