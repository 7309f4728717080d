"""Tables of picture files and captions as other people's tools write them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl

from tests.interop.pairs import PAIRS, by_name, write_images

ANSI = "cp1252"
"""What Excel writes for "CSV" in western Europe; what it cannot write becomes a question mark."""


def _rows(folder: Path) -> list[dict[str, str]]:
    paths = write_images(folder / "images")
    return [{"image": f"images/{path.name}", "caption": pair.caption} for path, pair in zip(paths, PAIRS, strict=True)]


def _separated(path: Path, separator: str, encoding: str) -> Path:
    """Python's dialect `excel`: lines end in CR LF, cells with the separator or a quote are quoted."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["image", "caption"], dialect="excel", delimiter=separator)
    writer.writeheader()
    writer.writerows(_rows(path.parent))
    path.write_bytes(text.getvalue().encode(encoding, "replace"))
    return path


def excel_csv_utf8(folder: Path) -> Path:
    """ "CSV UTF-8 (comma delimited)": with a byte order mark."""
    return _separated(folder / "pairs.csv", ",", "utf-8-sig")


def excel_csv_semicolon(folder: Path) -> Path:
    """The same where the comma is the decimal sign."""
    return _separated(folder / "pairs.csv", ";", "utf-8-sig")


def excel_csv_ansi(folder: Path) -> Path:
    """ "CSV" there: semicolons and the machine's own code page."""
    return _separated(folder / "pairs.csv", ";", ANSI)


def excel_unicode_text(folder: Path) -> Path:
    """ "Unicode Text" renamed to .tsv: UTF-16 with tabs."""
    return _separated(folder / "pairs.tsv", "\t", "utf-16")


def excel_sep_line(folder: Path) -> Path:
    """A first line that tells Excel the separator."""
    path = _separated(folder / "pairs.csv", ";", "utf-8")
    path.write_bytes(b"sep=;\r\n" + path.read_bytes())
    return path


def tabs_in_csv(folder: Path) -> Path:
    """open_clip's default separator, under the name .csv."""
    return _separated(folder / "pairs.csv", "\t", "utf-8")


def unquoted_tsv(folder: Path) -> Path:
    """Conceptual Captions and most shell scripts: no quoting at all, so a quote is a character."""
    lines = ["image\tcaption", *(f"{row['image']}\t{row['caption']}" for row in _rows(folder))]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "pairs.tsv"


def flickr30k(folder: Path) -> Path:
    """Kaggle's results.csv: `image_name| comment_number| comment`, without quoting; no caption may have a pipe."""
    lines = ["image_name| comment_number| comment"]
    lines += [f"{row['image']}| 0| {row['caption'].replace('|', '/')}" for row in _rows(folder)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "results.csv"


def pandas_csv(folder: Path) -> Path:
    pd.DataFrame(_rows(folder)).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def pandas_csv_with_index(folder: Path) -> Path:
    """The index is a column without a name."""
    pd.DataFrame(_rows(folder)).to_csv(folder / "pairs.csv")
    return folder / "pairs.csv"


def pandas_csv_gzip(folder: Path) -> Path:
    pd.DataFrame(_rows(folder)).to_csv(folder / "pairs.csv.gz", index=False)
    return folder / "pairs.csv.gz"


def pandas_json_lines(folder: Path) -> Path:
    pd.DataFrame(_rows(folder)).to_json(folder / "pairs.jsonl", orient="records", lines=True)
    return folder / "pairs.jsonl"


def pandas_parquet_table(folder: Path) -> Path:
    pd.DataFrame(_rows(folder)).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def pandas_missing_cells(folder: Path) -> Path:
    """A column that only some rows fill: NaN in pandas, null in Parquet."""
    rows: list[dict[str, object]] = [{**row} for row in _rows(folder)]
    for row in rows[::2]:
        row["score"] = 0.5
    pd.DataFrame(rows).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def json_lists_in_cells(folder: Path) -> Path:
    """A JSON list of captions in a cell of a CSV."""
    rows = [{"image": row["image"], "captions": json.dumps([row["caption"]])} for row in _rows(folder)]
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def later_columns(folder: Path) -> Path:
    """JSON lines of which only later ones have the caption under its usual name, and another field."""
    lines = [json.dumps(row) for row in _rows(folder)]
    first = json.dumps({"image": "images/none.png", "note": "no caption yet"})
    (folder / "pairs.jsonl").write_text("\n".join([first, *lines]) + "\n", "utf-8")
    return folder / "pairs.jsonl"


def polars_csv(folder: Path) -> Path:
    pl.DataFrame(_rows(folder)).write_csv(folder / "pairs.csv")
    return folder / "pairs.csv"


def polars_json_lines(folder: Path) -> Path:
    pl.DataFrame(_rows(folder)).write_ndjson(folder / "pairs.ndjson")
    return folder / "pairs.ndjson"


def duckdb_csv(folder: Path) -> Path:
    return _duckdb(folder, "pairs.csv", "HEADER, DELIMITER ','")


def duckdb_json(folder: Path) -> Path:
    return _duckdb(folder, "pairs.jsonl", "FORMAT json")


def _duckdb(folder: Path, name: str, options: str) -> Path:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE pairs (image VARCHAR, caption VARCHAR)")
        connection.executemany("INSERT INTO pairs VALUES ($image, $caption)", _rows(folder))
        connection.execute(f"COPY pairs TO '{folder / name}' ({options})")
    return folder / name


WRITERS = by_name(
    excel_csv_utf8,
    excel_csv_semicolon,
    excel_csv_ansi,
    excel_unicode_text,
    excel_sep_line,
    tabs_in_csv,
    unquoted_tsv,
    flickr30k,
    pandas_csv,
    pandas_csv_with_index,
    pandas_csv_gzip,
    pandas_json_lines,
    pandas_parquet_table,
    pandas_missing_cells,
    json_lists_in_cells,
    later_columns,
    polars_csv,
    polars_json_lines,
    duckdb_csv,
    duckdb_json,
)
