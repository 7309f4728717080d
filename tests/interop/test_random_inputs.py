"""Whatever lies in a folder, a tar, a table or a Parquet file: inputs = written + dropped, and never a traceback."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config, ViewsConfig
from ito_ray.data.plan import Piece
from ito_ray.data.prepare.options import Folder, Output, Shards, Table
from ito_ray.data.rows import read_patiently
from ito_ray.data.samples import SampleSpec, make_block
from ito_ray.data.tokens import train_wordpiece
from ito_ray.errors import DataError, ItoError
from ito_ray.evaluation.sources import open_labelled, open_pairs, read
from pipelines import doctor as doctor_command
from pipelines import prepare as prepare_command
from tests.data.makers import picture
from tests.data.prepare.makers import read_back
from tests.data.prepare.makers import run as prepare
from tests.embeddings.makers import run as embed
from tests.interop.strategies import FILES, File, parquets, tables, tars, write_files

PIXELS = 10**6
Found = tuple[str, Path]
"""Kind of source as prepare calls it, and where it is."""
FAST = settings(max_examples=25, suppress_health_check=list(HealthCheck))
SLOW = settings(max_examples=8, suppress_health_check=list(HealthCheck))


def _folder(root: Path, files: list[File]) -> Found:
    write_files(root / "in", files)
    return "folder", root / "in"


def _file(root: Path, kind: str, name: str, content: bytes) -> Found:
    folder = root / "in"
    (folder / "images").mkdir(parents=True)
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
    (folder / "images" / "loop.png").symlink_to("loop.png")
    (folder / name).write_bytes(content)
    return kind, folder / name


Lay = Callable[[Path], Found]
SOURCES: st.SearchStrategy[Lay] = st.one_of(
    FILES.map(lambda files: lambda root: _folder(root, files)),
    tars().map(lambda made: lambda root: _file(root, "shards", *made)),
    parquets().map(lambda made: lambda root: _file(root, "shards", "a.parquet", made[1])),
    tables().map(lambda made: lambda root: _file(root, "table", *made)),
)


def _options(found: Found, out: Path) -> Output:
    kind, path = found
    match kind:
        case "folder":
            return Folder(folder=path, out=out)
        case "table":
            return Table(table=path, out=out)
    return Shards(shards=(str(path),), out=out)


@pytest.fixture(scope="module")
def spec() -> SampleSpec:
    return SampleSpec(ViewsConfig(), 1, 16, PIXELS, train_wordpiece(["some words to begin with"], 100, 12), 12)


@FAST
@given(SOURCES)
def test_prepare_accounts_for_every_input(lay: Lay) -> None:
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "out"
        try:
            manifest = prepare(_options(lay(Path(root)), out))
        except ItoError:
            return
        written = sum(manifest["written"].values())
        assert manifest["inputs"] == written + sum(manifest["dropped"].values())
        assert len(read_back(out)) == written
        json.loads((out / "manifest.json").read_text("utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@FAST
@given(parquets())
def test_every_row_of_a_parquet_file_is_an_input(made: tuple[int, bytes]) -> None:
    rows, content = made
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "out"
        try:
            assert prepare(_options(_file(Path(root), "shards", "a.parquet", content), out))["inputs"] == rows
        except DataError:  # none of them is good, or there are none
            dropped = out / "dropped.parquet"
            assert (pq.read_metadata(dropped).num_rows if dropped.exists() else 0) == rows


@FAST
@given(SOURCES)
def test_evaluation_accounts_for_every_row(lay: Lay) -> None:
    with tempfile.TemporaryDirectory() as root:
        _, path = lay(Path(root))
        given = {"data": {"heldout": [str(path)]}, "eval": {"zero_shot": [str(path.parent)]}}
        cfg = overlay(Config(), given, source="test")
        try:
            reader = read(open_pairs(cfg), limit=None, max_pixels=PIXELS)
            assert len(list(reader)) == reader.tally.delivered
        except ItoError:
            pass
        try:
            labelled = open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")
            assert all(not name.startswith((".", "__MACOSX")) for name in labelled.table)
            list(read(labelled.source, limit=None, max_pixels=PIXELS))
        except ItoError:
            pass


@FAST
@given(SOURCES, st.sampled_from(["image", "text", "both"]))
def test_embedding_accounts_for_every_row(lay: Lay, what: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        try:
            manifest = embed(Path(root) / "out", lay(Path(root))[1], what=what)
        except ItoError:
            return
        assert manifest["read"] == manifest["embedded"] + sum(manifest["dropped"].values())


@FAST
@given(st.one_of(tars(), parquets().map(lambda made: ("a.parquet", made[1]))), st.integers(1, 3))
def test_training_accounts_for_every_row_of_a_shard(spec: SampleSpec, made: tuple[str, bytes], parts: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / made[0]
        path.write_bytes(made[1])
        pieces = [Piece(str(path), part, parts) for part in range(parts)]
        rows = [(piece, read_patiently(piece, Config().data.columns)) for piece in pieces]
        block, report = make_block(rows, spec, seed=0, entry=0)
        assert report.tallies[0].read == sum(len(found) for _, found in rows)
        assert report.tallies[0].delivered == len(block["uid"])


@pytest.mark.slow
@SLOW
@given(SOURCES)
def test_prepare_and_doctor_end_with_a_sentence(local_ray: None, capsys: pytest.CaptureFixture[str], lay: Lay) -> None:
    with tempfile.TemporaryDirectory() as root:
        kind, path = lay(Path(root))
        code = prepare_command.main([kind, "--out", f"{root}/out", "--", str(path)])
        assert code in (0, 2)
        data = f"{root}/out/train" if code == 0 else str(path)
        assert doctor_command.main(["--data", data, "--json", f"{root}/found.json"]) in (0, 1, 2)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
