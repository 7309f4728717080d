"""The main job measured on own data, a table and a folder a class: trained, registered, and promoted on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import ItoError
from ito_ray.runtime import cluster, job, preflight
from ito_ray.runtime.console import Stages
from ito_ray.tracking.provenance import evaluation_sets
from pipelines.register import main
from tests.data.makers import picture
from tests.runtime.shards import WORDS, caption, small_config

GATE = [
    "--gate.min-gain",
    "-1",
    "--gate.min-items",
    "1",
    "--gate.max-latency-ratio",
    "99",
    "--gate.latency-rounds",
    "1",
]


def _own(tmp: Path, **changes: Any) -> Config:
    """Pictures in a folder a class, and a table with their captions."""
    rows = ["image,caption"]
    for number in range(24):
        folder = tmp / "photos" / WORDS[number % 8]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
        rows.append(f"photos/{folder.name}/{number}.png,{caption(number)}")
    (tmp / "pairs.csv").write_text("\n".join(rows) + "\n")
    measured = {"zero_shot": [str(tmp / "photos")], "classes": ""}
    base = small_config(tmp, data={"heldout": [str(tmp / "pairs.csv")]}, eval=measured, train={"steps": 4})
    return overlay(base, {"tracking": {"model_name": "own.v1"}, **changes}, source="test")


def _run(cfg: Config) -> job.Outcome:
    return job.run(cfg, recipe="tiny", stages=Stages(Console(quiet=True), job.STAGES))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_tables_and_class_folders_reach_registry_and_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = _own(tmp_path)
    first = _run(cfg)
    assert first.registered.uri == "models:/own.v1@champion"
    assert _run(cfg).registered == first.registered, "the same command again"
    client = first.run.client
    given = client.get_run(first.run.run_id).inputs
    inputs = given.dataset_inputs if given else []
    found = {one.dataset.name: one.dataset.digest for one in inputs if one.tags[0].value == "evaluation"}
    assert found == {kind: one.digest for kind, one in evaluation_sets(cfg).items()} and len(found) == 2
    second = _run(_own(tmp_path, name="second", train={"steps": 4, "seed": 7}))
    assert second.registered.version == "2"
    where = ["--tracking-uri", first.run.store.uri, "--name", "own.v1"]
    data = ["--heldout", *cfg.data.heldout, "--zero-shot", *cfg.eval.zero_shot]
    assert main(["promote", *where, *data, *GATE, "--gate.max-group-fall", "1"]) in (0, 1)
    said = capsys.readouterr().out
    assert "zero_shot/top1" in said and "heldout/r1_text_to_image" in said and "decision.json" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking": {"model_name": "a/b"}}, "a/b"),
        ({"tracking": {"alias": "v1"}}, "none that MLflow takes"),
        ({"eval": {"classes": "other.txt"}}, "None of the 24 labelled samples"),
        ({"eval": {"templates": "gone.txt"}}, r"gone\.txt"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_a_cluster_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("bird\nfish\n")
    monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("a cluster was started"))
    monkeypatch.setattr(preflight, "prepare_tokenizer", lambda *_: pytest.fail("a vocabulary was made"))
    with pytest.raises(ItoError, match=message):
        _run(_own(tmp_path, **changes))
