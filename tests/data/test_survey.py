"""The survey counts what is there, and advises where a number asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ito_ray.config.schema import DataConfig
from ito_ray.data.survey import Reach, Survey, advice, numbers, views_ms
from ito_ray.errors import DataError
from tests.data.makers import encoded, noise, picture, write_tar

CFG = DataConfig(rows_per_task=16, mix=2)


def _survey(folder: Path, *, limit: int = 0, batch: int = 8) -> tuple[Survey, dict[str, Any], int]:
    reach = Reach.of([str(folder)], limit=limit)
    survey = Survey(CFG)
    entries = 0
    for rows in reach.rows(CFG):
        for row in rows:
            survey.add(row)
        entries += 1
    return survey, numbers(survey, reach, entries, global_batch=batch), entries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "shards"
    out.mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    textured = Image.fromarray(coarse).resize((120, 80), Image.Resampling.BICUBIC)
    meta = json.dumps({"captions": ["a second one"], "artist": "me"}).encode()
    rows = [(f"k{n}", {"png": picture(n, size=20 + n), "txt": f"word number {n}".encode()}) for n in range(30)]
    rows += [
        ("copy", {"png": picture(7, size=27), "txt": b"a copy"}),
        ("big", {"png": encoded(textured), "txt": b"one", "json": meta}),
        ("like", {"jpg": encoded(textured.resize((90, 60)), "JPEG", quality=90), "txt": b"one"}),
        ("bad", {"png": b"no picture", "txt": b"x"}),
        ("mute", {"png": picture(1)}),
    ]
    write_tar(out / "a.tar", rows)
    write_tar(out / "b.tar", [("k1", {"png": encoded(Image.fromarray(noise(50, 200))), "txt": b"again"})])
    return out


def test_numbers_are_those_of_the_shards(folder: Path) -> None:
    survey, found, _ = _survey(folder)
    assert found["complete"]
    assert (found["read"], found["good"]) == (36, 34)
    assert found["dropped"] == {"image_unreadable": 1, "missing_caption": 1}
    assert "a.tar#bad: " in found["examples"]["image_unreadable"][0]
    assert found["images"]["formats"] == {"PNG": 33, "JPEG": 1}
    assert found["images"]["width"][0] == 20
    assert found["images"]["height"][-1] == 200
    assert found["images"]["aspect"][-1] == 4
    assert found["captions"]["per_sample"] == [1, 1, 1, 1, 2]
    assert found["captions"]["first_words"][2] == 3
    assert found["captions"]["first_repeated"] == 1
    assert found["meta_fields"] == {"artist": 1}
    assert found["duplicates"]["keys"] == 1
    assert found["duplicates"]["examples"]["exact"] == ["copy = k7"]
    assert "like ≈ big" in found["duplicates"]["examples"]["similar"]
    assert found["steps_per_pass"] == 34 // 8
    assert found["shards"]["kinds"] == {"tar": 2}
    assert views_ms(survey, size=16) > 0
    assert json.dumps(found, allow_nan=False)


def test_a_part_of_the_shards_stands_for_all(tmp_path: Path) -> None:
    for shard in range(4):
        rows = range(shard * 100, shard * 100 + 100)
        write_tar(tmp_path / f"{shard}.tar", [(f"k{n}", {"png": picture(n % 9), "txt": b"x"}) for n in rows])
    survey, found, entries = _survey(tmp_path, limit=150)
    assert not found["complete"]
    assert entries < Reach.of([str(tmp_path)], limit=0).entries
    assert 150 <= found["read"] < 300
    assert 350 <= found["samples_estimated"] <= 450
    assert len(survey.pairs) == 24
    assert len({pair.key for pair in survey.pairs}) == 24


def test_advice_follows_from_the_numbers(folder: Path) -> None:
    _, found, _ = _survey(folder, batch=64)
    said = "\n".join(advice(found, CFG.model_copy(update={"mix": 4}), workers=2))
    for part in ("5.6% of the samples are bad", "global batch of 64", "2 shards, and each task", "keys come again"):
        assert part in said
    assert "3 data tasks for 2 workers" in said
    fine = {**found, "good": 34, "read": 34, "steps_per_pass": 9, "samples_estimated": 10_000}
    fine |= {"duplicates": {"exact": 0, "similar": 0, "keys": 0}, "captions": {"first_repeated": 0}}
    fine |= {"shards": {"count": 4, "bytes": 400, "largest": 110}}
    assert advice(fine, CFG, workers=2) == []


def test_no_shards_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data: nothing matches"):
        Reach.of([str(tmp_path / "*.tar")], limit=0)
