"""Evaluation shared among Ray workers finds what one process finds; a worker's mistakes come as sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import DataError
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.subject import Subject
from ito_ray.runtime.encoders import open_encoder
from ito_ray.runtime.evaluate import RayPasses
from tests.evaluation.clip_like import write_clip
from tests.evaluation.shapes import SHAPES, write_shape_shards

pytestmark = pytest.mark.slow
EVALUATORS = ["retrieval", "geometry", "zero_shot", "knn", "robustness"]


@pytest.mark.usefixtures("local_ray")
def test_shared_work_gives_the_same_numbers(tmp_path: Path) -> None:
    folder = str(write_clip(tmp_path / "model").sentence_transformer)
    write_shape_shards(tmp_path / "heldout", 25, per_shard=10)
    write_shape_shards(tmp_path / "labelled", 30, per_shard=8, seed=1000)
    (tmp_path / "heldout" / "part-00009.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "classes.txt").write_text("\n".join(SHAPES), encoding="utf-8")
    cfg = Config(
        data=DataConfig(heldout=(str(tmp_path / "heldout"),)),
        eval=EvalConfig(
            zero_shot=(str(tmp_path / "labelled"),), classes=str(tmp_path / "classes.txt"), batch=4, captions=2
        ),
    )
    encoder = open_encoder(folder, batch=4, name="tiny")
    shared: Any = RayPasses(folder, cfg, workers=2, name="tiny")
    alone, together = (
        Subject(encoder, cfg, captions=2, thumbnail=16),
        Subject(encoder, cfg, captions=2, thumbnail=16, passes=shared),
    )
    np.testing.assert_allclose(together.pairs.image, alone.pairs.image, atol=1e-6)
    np.testing.assert_allclose(together.pairs.text, alone.pairs.text, atol=1e-6)
    assert together.pairs.keys == alone.pairs.keys
    assert together.pairs.thumbnails == alone.pairs.thumbnails
    np.testing.assert_array_equal(together.labelled.labels, alone.labelled.labels)
    assert together.dropped == alone.dropped == {"not_a_tar": 1}
    for limit in (None, 13):
        one = evaluate(encoder, cfg, evaluators=EVALUATORS, limit=limit).metrics()
        other = evaluate(encoder, cfg, evaluators=EVALUATORS, limit=limit, passes=shared).metrics()
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
        assert one["heldout/pairs"] == (limit or 25)

    (tmp_path / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"None of the 30 labelled samples"):
        evaluate(encoder, cfg, evaluators=["zero_shot"], passes=shared)
