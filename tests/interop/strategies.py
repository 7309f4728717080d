"""Random folders, tars, tables and Parquet files: mostly what is good, with everything beside it that people have."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from tests.data.makers import encoded, picture, png
from tests.interop.pairs import PAIRS

IMAGES = st.one_of(
    st.integers(0, 5).map(picture),
    st.integers(0, 5).map(lambda number: picture(number, kind="JPEG")),
    st.sampled_from(
        [
            b"",
            b"<!DOCTYPE html><html>404</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            b"%PDF-1.7",
            b"\x00" * 600,
            picture(1)[:300],
            picture(2, kind="JPEG")[:-200],
            png(1, 30_000, data=bytes(4 * 30_000)),
            png(20_000, 20_000),
            png(0, 5),
            encoded(Image.new("LA", (9, 9), (200, 90))),
            encoded(Image.new("I;16", (9, 9), 40_000)),
        ]
    ),
    st.binary(max_size=40),
)
TEXTS = st.one_of(
    st.sampled_from([pair.caption for pair in PAIRS]),
    st.text(max_size=30),
    st.sampled_from(
        ["", "  \n", "\ud83d", "good \ud83d half", "a\x00b", "&nbsp;", "x" * 200_000, "<|endoftext|>", "[SEP]", "[/b]"]
    ),
)
NAMES = st.one_of(
    st.integers(0, 30).map(lambda number: f"s{number:03d}"),
    st.sampled_from(
        [
            "at 10.07",
            "at 10.08",
            "photos [2024]",
            "set{1,2}",
            "a::b",
            "50%20",
            "c#d",
            "e?f",
            "._s001",
            ".hidden",
            "__MACOSX",
            "Thumbs",
            "ü",
            "-x",
            "~",
            "x" * 120,
            "tab\there",
        ]
    ),
)
IMAGE_ENDINGS = st.sampled_from(["png", "jpg", "JPG", "jpeg", "webp", "seg.png"])
OTHER_ENDINGS = st.sampled_from(["json", "cls", "npy", "url", "txt.bak", "db"])


@dataclass(frozen=True)
class File:
    """A member of a tar or a file of a folder."""

    name: str
    content: bytes


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def samples(draw: st.DrawFn) -> list[File]:
    """The files of one key: an image and a caption as a rule, and what else may lie there."""
    name = draw(NAMES)
    folder = draw(st.sampled_from(["", "", "", "sub/", "__MACOSX/", ".ipynb_checkpoints/"]))
    files = []
    if draw(st.integers(0, 9)):
        files.append(File(f"{folder}{name}.{draw(IMAGE_ENDINGS)}", draw(IMAGES)))
    if draw(st.integers(0, 9)):
        files.append(File(f"{folder}{name}.txt", draw(st.one_of(TEXTS.map(_raw), st.binary(max_size=20)))))
    if not draw(st.integers(0, 3)):
        document = {"caption": draw(TEXTS), "n": draw(st.sampled_from([1, float("nan"), None, "x", 10**30]))}
        files.append(File(f"{folder}{name}.json", json.dumps(document).encode()))
    if not draw(st.integers(0, 5)):
        files.append(File(f"{folder}{name}.{draw(OTHER_ENDINGS)}", draw(st.binary(max_size=20))))
    return files


FILES = st.lists(samples(), max_size=12).map(lambda found: [file for files in found for file in files])


@st.composite
def tars(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name, bytes): sorted or not, whole, cut, damaged, compressed or under a wrong name."""
    files = draw(FILES)
    if draw(st.booleans()):
        files = draw(st.permutations(files))
    buffer = io.BytesIO()
    kind = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            if not draw(st.integers(0, 15)):
                info.type, info.linkname = draw(st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE])), files[0].name
                archive.addfile(info)
                continue
            info.size = len(file.content)
            archive.addfile(info, io.BytesIO(file.content))
    content = buffer.getvalue()
    match draw(st.integers(0, 7)):
        case 0:
            content = content[: draw(st.integers(0, len(content)))]
        case 1:
            at = draw(st.integers(0, len(content) - 1))
            content = content[:at] + draw(st.binary(min_size=1, max_size=600)) + content[at:]
        case 2:
            return draw(st.sampled_from(["a.tar.gz", "a.tgz", "a.tar"])), gzip.compress(content, 1)
    return "a.tar", content


CELLS = st.one_of(
    TEXTS,
    st.sampled_from(['"', '""', 'he said "no"', "a,b", "a;b", "a\tb", "line\nbreak", '["one", "two"]', "nan", "NULL"]),
)
PATHS = st.one_of(
    st.integers(0, 5).map(lambda number: f"images/{number}.png"),
    st.sampled_from(
        [
            "images/none.png",
            "images",
            "images/loop.png",
            "x" * 300,
            "a\x00b",
            "",
            "..",
            "/dev/null",
            "file:///etc/hosts",
        ]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name, bytes) of a table whose rows name pictures below images/, written by a csv writer, by hand or as JSON."""
    rows = draw(st.lists(st.tuples(PATHS, CELLS), max_size=12))
    ending = draw(st.sampled_from(["csv", "tsv", "jsonl"]))
    if ending == "jsonl":
        lines = [json.dumps({"image": path, "caption": text}) for path, text in rows]
        lines.insert(len(lines) // 2, draw(st.sampled_from(["", "{broken", "[1]", '{"image": NaN, "caption": 1}'])))
        return "t.jsonl", "\n".join(lines).encode()
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    text = io.StringIO(newline="")
    if draw(st.booleans()):
        writer = csv.writer(text, delimiter=separator, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
        writer.writerows([("image", "caption"), *rows])
    else:
        text.write("\n".join(separator.join(row) for row in [("image", "caption"), *rows]))
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    return f"t.{ending}", text.getvalue().encode(encoding, errors)


def _column(kind: pa.DataType, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[pa.DataType, Any]]:
    return st.tuples(st.just(kind), st.just(values))


_UTF8 = TEXTS.map(lambda text: text.encode("utf-8", "ignore").decode())
COLUMNS = {
    "key": st.one_of(_column(pa.string(), _UTF8), _column(pa.int64(), st.integers(0, 9))),
    "image": st.one_of(
        _column(pa.binary(), IMAGES),
        _column(pa.large_binary(), IMAGES),
        _column(
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            st.fixed_dictionaries({"bytes": IMAGES, "path": st.none()}),
        ),
        _column(pa.int32(), st.integers(0, 9)),
    ),
    "caption": st.one_of(
        _column(pa.string(), _UTF8),
        _column(pa.large_string(), _UTF8),
        _column(pa.list_(pa.string()), st.lists(_UTF8, max_size=3)),
        _column(pa.float64(), st.floats()),
        _column(pa.dictionary(pa.int32(), pa.string()), _UTF8),
    ),
    "meta": st.one_of(_column(pa.string(), _UTF8), _column(pa.large_string(), st.just('{"a": NaN}'))),
    "when": _column(pa.timestamp("us"), st.integers(-(2**62), 2**62)),
    "score": _column(pa.float32(), st.floats(width=32)),
}


@st.composite
def parquets(draw: st.DrawFn) -> tuple[int, bytes]:
    """(rows, bytes) of a Parquet file with some of the columns, of any of their types, nulls among the values."""
    count = draw(st.integers(0, 10))
    arrays = {}
    for name, columns in COLUMNS.items():
        if draw(st.integers(0, 4)):
            kind, values = draw(columns)
            cells = draw(st.lists(st.one_of(values, st.none()), min_size=count, max_size=count))
            arrays[name] = pa.array(cells, kind)
    buffer = io.BytesIO()
    table = pa.table(arrays)
    pq.write_table(table, buffer, row_group_size=max(1, draw(st.integers(1, 10))))
    return table.num_rows, buffer.getvalue()


def write_files(folder: Path, files: list[File]) -> None:
    """The files below `folder`, with what only a disk has: a link to itself, one to nothing, an empty folder."""
    folder.mkdir(parents=True)
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "folder.jpg").mkdir(exist_ok=True)
