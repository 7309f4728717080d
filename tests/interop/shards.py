"""Shards as other people's tools write them; each writer returns the path that a user would name."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import webdataset
from PIL import Image

from tests.interop.pairs import PAIRS, by_name, write_folder

IMG2DATASET = Path(os.environ.get("ITO_IMG2DATASET", Path(sys.prefix + "-img2dataset") / "bin" / "img2dataset"))
"""In an environment of its own (Makefile): it needs other versions of what training needs."""


def webdataset_tar(folder: Path) -> Path:
    """`webdataset.ShardWriter`, two shards; a sample's further members have compound endings."""
    with webdataset.ShardWriter(str(folder / "pairs-%03d.tar"), maxcount=7, verbose=0) as sink:
        for number, pair in enumerate(PAIRS):
            sample = {"__key__": f"{number:06d}", "png": pair.image, "txt": pair.caption, "seg.png": PAIRS[0].image}
            sink.write({**sample, "json": {"number": number}})
    return folder


def webdataset_compressed(folder: Path) -> Path:
    """The same with `compress=True`, which writes .tar.gz."""
    with webdataset.ShardWriter(str(folder / "pairs-%03d.tar.gz"), maxcount=7, verbose=0, compress=True) as sink:
        for number, pair in enumerate(PAIRS):
            sink.write({"__key__": f"{number:06d}", "png": pair.image, "txt": pair.caption})
    return folder


def gnu_tar(folder: Path) -> Path:
    """`tar --sort=name` over files whose names have dots and spaces."""
    files = write_folder(folder / "files")
    subprocess.run(["tar", "--sort=name", "-cf", folder / "pairs.tar", "-C", files, "."], check=True)
    return folder / "pairs.tar"


def bsd_tar(folder: Path) -> Path:
    """bsdtar, the tar of macOS, with pax headers; names are given sorted."""
    files = write_folder(folder / "files")
    names = sorted(path.name for path in files.iterdir())
    subprocess.run(["bsdtar", "-cf", folder / "pairs.tar", "--format", "pax", "-C", files, *names], check=True)
    return folder / "pairs.tar"


def macos_tar(folder: Path) -> Path:
    """A tar as Finder's files give it: an AppleDouble member before each file."""
    files = write_folder(folder / "files")
    for path in list(files.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    names = [name for path in sorted(files.glob("[!.]*")) for name in (f"._{path.name}", path.name)]
    subprocess.run(["tar", "-cf", folder / "pairs.tar", "-C", files, "--", *names], check=True)
    return folder / "pairs.tar"


def _columns() -> dict[str, list[Any]]:
    return {"image": [pair.image for pair in PAIRS], "caption": [pair.caption for pair in PAIRS]}


def polars_parquet(folder: Path) -> Path:
    """polars writes large_string and large_binary."""
    pl.DataFrame(_columns()).write_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def polars_categorical(folder: Path) -> Path:
    """Captions as categories: a dictionary in Arrow."""
    frame = pl.DataFrame(_columns()).with_columns(pl.col("caption").cast(pl.Categorical))
    frame.write_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def polars_lists(folder: Path) -> Path:
    """A list of captions a row."""
    frame = pl.DataFrame({"image": _columns()["image"], "captions": [[pair.caption] for pair in PAIRS]})
    frame.write_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def duckdb_parquet(folder: Path) -> Path:
    """DuckDB's COPY, a BLOB and a VARCHAR column."""
    path = folder / "pairs.parquet"
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE pairs (image BLOB, caption VARCHAR)")
        connection.executemany("INSERT INTO pairs VALUES (?, ?)", [[pair.image, pair.caption] for pair in PAIRS])
        connection.execute(f"COPY pairs TO '{path}' (FORMAT parquet)")
    return path


def pandas_parquet(folder: Path) -> Path:
    """pandas, with an index column."""
    pd.DataFrame(_columns(), index=[f"k{number}" for number in range(len(PAIRS))]).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def datasets_parquet(folder: Path) -> Path:
    """Hugging Face `datasets`: the image is a struct of bytes and path."""
    data = datasets.Dataset.from_dict(
        {"image": [Image.open(io.BytesIO(pair.image)) for pair in PAIRS], "text": [pair.caption for pair in PAIRS]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    data.to_parquet(str(folder / "pairs.parquet"))
    return folder / "pairs.parquet"


def datasets_of_webdataset(folder: Path) -> Path:
    """A WebDataset that `datasets` loaded and exported: columns png, txt, json, __key__, __url__."""
    tars = folder / "tars"
    tars.mkdir()
    webdataset_tar(tars)
    files = sorted(map(str, tars.iterdir()))
    cache = str(folder / "cache")
    data = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", cache_dir=cache)
    (folder / "export").mkdir()
    data.to_parquet(str(folder / "export" / "pairs.parquet"))
    return folder / "export"


def img2dataset_tar(folder: Path) -> Path:
    """img2dataset's WebDataset output: each tar beside a Parquet file of metadata and a .json of statistics."""
    return img2dataset(folder, "webdataset")


def img2dataset_parquet(folder: Path) -> Path:
    """img2dataset's Parquet output."""
    return img2dataset(folder, "parquet")


def img2dataset(folder: Path, kind: str) -> Path:
    """Every address but the first answers; the first is a 404."""
    with (
        serve({f"/{number}.png": pair.image for number, pair in enumerate(PAIRS)}) as address,
        (folder / "urls.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        rows = [[f"{address}/gone.png", "lost"]]
        rows += [[f"{address}/{number}.png", pair.caption] for number, pair in enumerate(PAIRS)]
        csv.writer(file).writerows([["url", "caption"], *rows])
        file.flush()
        options = {
            "url_list": file.name,
            "input_format": "csv",
            "url_col": "url",
            "caption_col": "caption",
            "output_format": kind,
            "output_folder": folder / "out",
            "processes_count": 1,
            "thread_count": 2,
            "number_sample_per_shard": 7,
            "disable_all_reencoding": True,
        }
        subprocess.run(
            [IMG2DATASET, *(str(part) for name, value in options.items() for part in (f"--{name}", value))],
            check=True,
            capture_output=True,
            timeout=120,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"},
        )
    return folder / "out"


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[str]:
    """`files` by path over HTTP on this machine; 404 for anything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


WRITERS = by_name(
    webdataset_tar,
    webdataset_compressed,
    gnu_tar,
    bsd_tar,
    macos_tar,
    polars_parquet,
    polars_categorical,
    polars_lists,
    duckdb_parquet,
    pandas_parquet,
    datasets_parquet,
    datasets_of_webdataset,
    img2dataset_tar,
    img2dataset_parquet,
)
