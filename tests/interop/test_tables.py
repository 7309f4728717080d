"""Tables of other people's tools: every row becomes its pair, in prepare and in evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.prepare.options import Table
from ito_ray.data.preprocess import clean_text
from ito_ray.evaluation.sources import open_pairs, read
from tests.data.prepare.makers import pixels, read_back
from tests.data.prepare.makers import run as prepare
from tests.interop.pairs import PAIRS, assert_same
from tests.interop.tables import ANSI, WRITERS

LOST = {"later_columns": 1}
"""The line without a caption."""
ENCODINGS = {"excel_csv_ansi": ANSI}
"""No file says which code page it was written in."""


def _expected(writer: str) -> dict[str, np.ndarray]:
    """Captions as the tool could write them, with the picture of each."""

    def written(caption: str) -> str:
        match writer:
            case "excel_csv_ansi":
                return caption.encode(ANSI, "replace").decode(ANSI)
            case "flickr30k":
                return caption.replace("|", "/")
        return caption

    return {clean_text(written(pair.caption)): pixels(pair.image) for pair in PAIRS}


@pytest.mark.parametrize("writer", WRITERS)
def test_prepare_writes_every_row(writer: str, tmp_path: Path) -> None:
    manifest = prepare(Table(table=WRITERS[writer](tmp_path), out=tmp_path / "out", encoding=ENCODINGS.get(writer, "")))
    lost = LOST.get(writer, 0)
    assert sum(manifest["dropped"].values()) == lost, manifest["dropped"]
    assert manifest["inputs"] == manifest["source"]["rows"] == len(PAIRS) + lost
    rows = read_back(tmp_path / "out").values()
    assert_same({row.captions[0]: pixels(row.image) for row in rows}, _expected(writer))


def test_another_encoding_costs_its_rows_and_is_named(tmp_path: Path) -> None:
    manifest = prepare(Table(table=WRITERS["excel_csv_ansi"](tmp_path), out=tmp_path / "out"))
    assert manifest["dropped"] == {"caption_not_utf8": 1}
    (row,) = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert "--encoding" in row["detail"]


@pytest.mark.parametrize("writer", sorted(WRITERS.keys() - ENCODINGS))
def test_evaluate_reads_every_row(writer: str, tmp_path: Path) -> None:
    cfg = overlay(Config(), {"data": {"heldout": [str(WRITERS[writer](tmp_path))]}}, source="test")
    reader = read(open_pairs(cfg), limit=None, max_pixels=10**6)
    assert_same({pair.captions[0]: np.asarray(pair.image) for pair in reader}, _expected(writer))
    assert sum(reader.tally.dropped.values()) == LOST.get(writer, 0), reader.tally
