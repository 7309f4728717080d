"""One run over the shards of every tool at once, measured on a table and a folder a class, from start to registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from ito_ray.runtime import job
from ito_ray.runtime.console import Stages
from tests.interop.pairs import PAIRS, write_images
from tests.interop.shards import IMG2DATASET, WRITERS
from tests.interop.tables import excel_csv_semicolon
from tests.runtime.shards import small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
STEPS, BATCH = 20, 16


def test_shards_of_every_tool_train_one_model(tmp_path: Path) -> None:
    needs = {"img2dataset": IMG2DATASET.is_file(), "bsd": shutil.which("bsdtar") is not None}
    sources = {}
    for name, write in WRITERS.items():
        if needs.get(name.partition("_")[0], True):
            (tmp_path / name).mkdir()
            sources[name] = write(tmp_path / name)
    (tmp_path / "table").mkdir()
    for number in range(2):
        write_images(tmp_path / "classes" / f"class {number}")
    cfg = small_config(
        tmp_path,
        data={
            "train": [f"{name}={path}" for name, path in sources.items()],
            "weights": dict.fromkeys(sources, 1.0),
            "heldout": [str(excel_csv_semicolon(tmp_path / "table"))],
            "max_bad_fraction": 0.05,
        },
        train={"steps": STEPS, "global_batch": BATCH},
        eval={"zero_shot": [str(tmp_path / "classes")], "classes": ""},
    )
    outcome = job.run(cfg, recipe="test", stages=Stages(Console(quiet=True), job.STAGES))
    training = outcome.training
    assert training.rows_delivered == STEPS * BATCH
    assert set(training.rows_dropped) <= {"missing_image"}, "img2dataset's address that gave no image"
    assert set(training.sources) == set(sources)
    for name, account in training.sources.items():
        dropped = sum(count for reason, count in account.items() if reason.startswith("dropped/"))
        assert account["read"] == account["delivered"] + dropped + account["pending"], name
        assert account["delivered"] >= len(PAIRS), f"{name}: not one pass in {account['delivered']:.0f} samples"
    assert outcome.report.metrics()["heldout/pairs"] == len(PAIRS)
    assert outcome.registered.version == "1"
