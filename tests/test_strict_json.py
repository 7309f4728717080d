"""JSON that others can read, whatever the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ito_ray import strict_json
from ito_ray.config.schema import ColumnsConfig
from ito_ray.data.job_folder import write_json
from ito_ray.data.plan import Piece
from ito_ray.data.rows import read_piece
from ito_ray.data.write import Sample, write_shard
from ito_ray.evaluation.report import Measure, Report
from ito_ray.training.state import State, read_state, write_state
from tests.data.makers import picture


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_are_null() -> None:
    value = {"a": [math.nan, 1.5, {"b": -math.inf}], "c": "NaN", "d": (math.inf,)}
    text = strict_json.dumps(value, sort_keys=True)
    assert json.loads(text, parse_constant=_refuse) == {"a": [None, 1.5, {"b": None}], "c": "NaN", "d": [None]}
    assert strict_json.dumps({"é": 1}, ensure_ascii=False) == '{"é": 1}'
    with pytest.raises(TypeError):
        strict_json.dumps(object())


def test_documents_and_shards_hold_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"value": math.nan})
    assert json.loads((tmp_path / "manifest.json").read_text(), parse_constant=_refuse) == {"value": None}
    sample = Sample("k", picture(0), ("x",), {"score": math.nan})
    write_shard([sample], tmp_path / "a.tar", format="tar")
    write_shard([sample], tmp_path / "a.parquet", format="parquet")
    for name in ("a.tar", "a.parquet"):
        (row,) = read_piece(Piece(str(tmp_path / name), 0, 1), ColumnsConfig())
        assert row.meta == {"score": None}
    (meta,) = pq.read_table(tmp_path / "a.parquet")["meta"].to_pylist()
    assert json.loads(meta, parse_constant=_refuse) == {"score": None}


def test_a_report_holds_no_nan() -> None:
    report = Report("e", (Measure("m", "M", math.nan, "rank"),))
    assert json.loads(report.to_json(), parse_constant=_refuse)["metrics"] == {"m": None}


def test_a_checkpoint_gives_back_what_was_not_finite(tmp_path: Path) -> None:
    metrics = [(1, {"loss": math.nan, "lr": 0.5})]
    state = State(1, {}, {}, "", metrics, {}, curve=[(1, math.inf), (2, 0.25)])
    path = write_state(tmp_path, state)
    json.loads(path.read_text(), parse_constant=_refuse)
    found = read_state(tmp_path)
    assert math.isnan(found.metrics[0][1]["loss"])
    assert found.metrics[0][1]["lr"] == 0.5
    assert math.isnan(found.curve[0][1])
    assert found.curve[1] == (2, 0.25)
