"""Tables of anything: every input is written or dropped with a reason, or one sentence says why none can be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.data.prepare import fetch
from ito_ray.data.prepare.options import Table
from ito_ray.errors import ItoError
from ito_ray.evaluation.sources import open_labelled, open_pairs, read
from tests.data.makers import picture
from tests.data.prepare.makers import run

PATHS = ["0.png", "1.png", "2.png", "3.png", "loop", "pipe.png", "folder.png", "empty.png", "none.png", "x" * 300]
PATHS += ["a\0b", "/dev/zero", ".", "..", "/", "a::b", "zip://a::http://x/y", "file:///etc/passwd", "http://", "s3://"]
PATHS += ["memory://x", "[1].png", "{a}.png", "%00", "\ud83d", "é", "*", "http://[::1", "http://127.0.0.1:1/a.png"]
TEXTS = [
    "",
    " ",
    '"',
    '"a',
    'a"',
    '""',
    "\\",
    '\\"',
    ",",
    ";",
    "\t",
    "|",
    "\n",
    "\r",
    '["a", "b"]',
    "['a' 'b']",
    "[",
    "[]",
]
TEXTS += ["\u2028", "\x1c", "\ufeff", "sep=;", "cap " * 9000, "<html>", "NaN", "0.png", "a, b; c"]
VALUES: list[Any] = [None, 1, 1.5, float("nan"), True, [], ["a", None, 3], {"a": 1}, 10**400]
COLUMNS = ["image", "caption", "captions", "text", "key", "url", "label", "", "IMAGE", " image"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(number))
    (folder / "loop").symlink_to("loop")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    return folder


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Ending and content of a file."""
    columns = draw(st.permutations(["image", "caption", *draw(st.lists(st.sampled_from(COLUMNS), max_size=2))]))
    cells = st.sampled_from([*PATHS[:4] * 5, *PATHS, *TEXTS])
    ending = draw(st.sampled_from([".csv", ".tsv", ".txt", ".jsonl", ".json"]))
    if ending.startswith(".json"):
        cells = cells | st.sampled_from(VALUES)
    rows = draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=6))
    if ending.startswith(".json"):
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        text = json.dumps(objects) if draw(st.booleans()) else "\n".join(map(json.dumps, objects))
    else:
        separator, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
        text = end.join(separator.join(row) for row in [columns, *rows])
    data = bytearray(text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-16-be"])), "surrogatepass"))
    for place, byte in draw(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=2)):
        if data:
            data[int(place * len(data))] = byte
    return ending, bytes(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tables())
def test_inputs_are_written_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, table: tuple[str, bytes]
) -> None:
    ending, data = table
    folder = tmp_path_factory.mktemp("table")
    path = folder / f"t{ending}"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "RETRY_SECONDS", ())
        try:
            manifest = run(Table(table=path, images=pictures, out=folder / "out"))
            assert manifest["inputs"] == sum(manifest["written"].values()) + sum(manifest["dropped"].values())
        except ItoError as error:
            assert "\n" not in str(error)
        cfg = Config(data=DataConfig(heldout=(str(path),)), eval=EvalConfig(zero_shot=(str(path),)))
        for kind in ("pairs", "classes"):
            try:
                source = open_pairs(cfg) if kind == "pairs" else open_labelled(cfg, (str(path),), "x").source
            except ItoError:
                continue
            reader = read(source, limit=None, max_pixels=10**6)
            assert len(list(reader)) == reader.tally.read - sum(reader.tally.dropped.values())
