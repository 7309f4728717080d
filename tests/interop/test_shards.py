"""Shards of other people's tools: prepare, doctor, train, evaluate and embed read the same pairs out of all of them."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config, ViewsConfig
from ito_ray.data.plan import make_plan
from ito_ray.data.prepare.options import Shards
from ito_ray.data.preprocess import clean_text
from ito_ray.data.rows import read_patiently
from ito_ray.data.samples import SampleSpec, make_block
from ito_ray.data.shards import list_shards
from ito_ray.data.survey import Reach, Survey
from ito_ray.data.tokens import tokenize, train_wordpiece
from ito_ray.evaluation.sources import open_pairs, read
from tests.data.prepare.makers import pixels, read_back
from tests.data.prepare.makers import run as prepare
from tests.embeddings.makers import HashEncoder, table
from tests.embeddings.makers import run as embed
from tests.interop.pairs import PAIRS, assert_same
from tests.interop.shards import IMG2DATASET, WRITERS

CONTEXT, SIZE = 32, 16
LOST = {"img2dataset_parquet": {"missing_image": 1}}
"""img2dataset keeps a row for the address that gave no image; everything else that is written is a pair."""
EXPECTED = {clean_text(pair.caption): pixels(pair.image) for pair in PAIRS}


@dataclass(frozen=True)
class Given:
    """The address that a user gives, and the rows there that hold no pair, by reason."""

    address: str
    lost: dict[str, int]

    @property
    def rows(self) -> int:
        return len(PAIRS) + sum(self.lost.values())


@pytest.fixture(scope="module", params=WRITERS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    if request.param.startswith("img2dataset") and not IMG2DATASET.is_file():
        pytest.skip("img2dataset is not installed: make test installs it")
    if request.param == "bsd_tar" and not shutil.which("bsdtar"):
        pytest.skip("bsdtar is not installed: apt-get install libarchive-tools")
    address = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    return Given(str(address), LOST.get(request.param, {}))


def _config(address: str) -> Config:
    return overlay(Config(), {"data": {"train": [address], "heldout": [address]}}, source="test")


def test_prepare_writes_every_pair(given: Given, tmp_path: Path) -> None:
    manifest = prepare(Shards(shards=(given.address,), out=tmp_path / "out"))
    assert manifest["dropped"] == given.lost
    assert (manifest["inputs"], manifest["totals"]["samples"]) == (given.rows, len(PAIRS))
    rows = read_back(tmp_path / "out").values()
    assert_same({row.captions[0]: pixels(row.image) for row in rows}, EXPECTED)


def test_doctor_counts_every_pair(given: Given) -> None:
    cfg = _config(given.address)
    survey = Survey(cfg.data)
    for row in itertools.chain.from_iterable(Reach.of([given.address], limit=0).rows(cfg.data)):
        survey.add(row)
    assert survey.tally.dropped == given.lost
    assert (survey.tally.read, survey.tally.delivered) == (given.rows, len(PAIRS))
    assert {caption for pair in survey.pairs for caption in pair.captions} == set(EXPECTED)


def test_train_is_given_every_pair(given: Given) -> None:
    """The blocks of one pass hold the ids of every caption; the rows that they are made of, every pair."""
    tokenizer = train_wordpiece(EXPECTED, 500, CONTEXT)
    spec = SampleSpec(ViewsConfig(count=1), 1, SIZE, 10**6, tokenizer, CONTEXT)
    cfg = _config(given.address)
    shards = {"train": list_shards([given.address], field="data.train")}
    plan = make_plan(shards, {"train": 1.0}, rows_per_task=8, mix=2, seed=0)
    ids: set[tuple[int, ...]] = set()
    pairs: dict[str, np.ndarray] = {}
    lost: set[str] = set()
    for entry in range(plan.entries_per_pass):
        pieces = [(piece, read_patiently(piece, cfg.data.columns)) for piece in plan.entry(entry)]
        pairs |= {row.captions[0]: pixels(row.image) for _, rows in pieces for row in rows if row.bad is None}
        block, report = make_block(pieces, spec, seed=0, entry=entry)
        lost |= set(report.tallies[0].dropped)
        ids |= {tuple(row[: lengths[0]]) for (row,), lengths in zip(block["ids"], block["lengths"], strict=True)}
    tokens = tokenize(tokenizer, list(EXPECTED), CONTEXT)
    assert ids == {tuple(row[:length]) for row, length in zip(tokens.ids, tokens.lengths, strict=True)}
    assert lost == set(given.lost)
    assert_same(pairs, EXPECTED)


def test_evaluate_reads_every_pair(given: Given) -> None:
    reader = read(open_pairs(_config(given.address)), limit=None, max_pixels=10**6)
    assert_same({pair.captions[0]: np.asarray(pair.image) for pair in reader}, EXPECTED)
    assert reader.tally.dropped == given.lost
    assert (reader.tally.read, reader.tally.delivered) == (given.rows, len(PAIRS))


def test_embed_gives_each_pair_its_vector(given: Given, tmp_path: Path) -> None:
    manifest = embed(tmp_path / "out", given.address, what="both", encoder=HashEncoder())
    assert manifest["dropped"] == given.lost
    assert (manifest["read"], manifest["embedded"]) == (given.rows, len(PAIRS))
    made = table(tmp_path / "out").to_pylist()
    texts = {row["caption"]: row["embedding"] for row in made if row["kind"] == "text"}
    assert set(texts) == set(EXPECTED)
    for caption, vector in texts.items():
        np.testing.assert_array_equal(np.float32(vector), HashEncoder().encode_texts([caption])[0])
