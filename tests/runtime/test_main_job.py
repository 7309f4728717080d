"""The main job, from shards to the registry, on real Ray, real MLflow and real processes, killed on the way.

Two sources, bad samples, micro-batches and evaluations beside training; killed while two workers share the weights,
resumed by one with whole copies: every sample once, every row accounted for, one unbroken curve, and the best model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.artifacts import list_artifacts
from rich.console import Console

from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import Config
from ito_ray.data.plan import ShardPlan
from ito_ray.data.position import ROW_BITS, ROW_PLACE_BITS, Position, members, within
from ito_ray.data.rows import read_piece
from ito_ray.data.tokens import load_tokenizer, tokenize
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import FolderEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.export.card import read_origin
from ito_ray.export.checks import check_manifest
from ito_ray.runtime import job, trainer
from ito_ray.runtime.console import Stages
from ito_ray.runtime.encoders import open_checkpoint
from ito_ray.runtime.preflight import plan_data
from ito_ray.runtime.snapshot import COPY
from ito_ray.tracking.registry import download, load
from ito_ray.training.state import read_state
from tests.data.makers import picture, write_tar
from tests.runtime import recorded
from tests.runtime.shards import caption, sample, small_config, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
REPOSITORY = Path(__file__).parents[2]
STEPS, CUT, BATCH, EVERY = 50, 20, 16, 10
BEST = "heldout/r5_image_to_text"
BAD = ("bad0", "bad1")


def _config(tmp: Path, workers: int) -> Config:
    if not (tmp / "big").exists():
        write_shards(tmp / "big", 96, 4)
        (tmp / "rare").mkdir()
        broken = [(key, {"png": b"not a picture", "txt": b"a caption"}) for key in BAD]
        write_tar(tmp / "rare" / "rare.tar", [*(sample(number) for number in range(96, 120)), *broken])
    data = {
        "train": [f"big={tmp / 'big'}", f"rare={tmp / 'rare'}"],
        "weights": {"big": 3, "rare": 1},
        "max_bad_fraction": 0.1,
    }
    train: dict[str, Any] = {"steps": STEPS, "global_batch": BATCH, "workers": workers, "checkpoint_every": 5}
    train |= {"micro_batch": 4, "parallel": "fsdp" if workers > 1 else "ddp", "cpus_per_worker": 0.25}
    text = {"vocab_size": 200}  # enough to tell all captions apart
    live = {"every": EVERY, "cpus": 0.5, "best": BEST}
    changes = {"eval": live, "tracking": {"model_name": "small"}}
    return small_config(tmp, data=data, train=train, model={"text": text}, **changes)


def _arguments(cfg: Config, tmp: Path, stop: int) -> list[str]:
    (tmp / "config.yaml").write_text(to_yaml(cfg))
    (tmp / "record").mkdir(exist_ok=True)
    return [str(tmp / "record"), str(stop), "0", "--config", str(tmp / "config.yaml")]


def _killed_between_checkpoints(cfg: Config, tmp: Path) -> None:
    """In a process and a Ray of its own, which die with it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    command = [sys.executable, "-m", "tests.runtime.recorded", *_arguments(cfg, tmp, stop=CUT + 2)]
    with (tmp / "log-2.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + 400
    listed = Path(cfg.output) / cfg.name / COPY  # whole at any time, unlike Ray's own list
    while not listed.is_file() or f"step-{CUT:08d}" not in listed.read_text():
        assert process.poll() is None and time.monotonic() < deadline, (tmp / "log-2.txt").read_text()[-2000:]
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _recorded(tmp: Path, workers: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    files = list((tmp / "record").glob(f"{workers}-*.jsonl"))
    assert len(files) == workers
    for path in files:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        steps = [line for line in lines if first <= line["step"] <= last]
        assert [line["step"] for line in steps] == list(range(first, last + 1))
        yield from steps


def _keys_by_pass(records: list[dict[str, Any]], plan: ShardPlan, names: dict[tuple[int, ...], str]) -> dict[Any, Any]:
    """(source, pass) → how often each key was trained on; keys by the captions that the model was given."""
    turns: Counter[int] = Counter()
    number: dict[tuple[int, int], tuple[int, int]] = {}
    for entry in range(max(uid for line in records for uid in line["uid"]) >> ROW_BITS | 15):
        for slot, piece in enumerate(plan.entry(entry)):
            number[entry, slot] = piece.source, turns[piece.source] // plan.sources[piece.source].pieces
            turns[piece.source] += 1
    found: dict[Any, Any] = defaultdict(Counter)
    for line in records:
        for uid, ids in zip(line["uid"], line["ids"], strict=True):
            slot = (uid & ((1 << ROW_BITS) - 1)) >> ROW_PLACE_BITS
            found[number[uid >> ROW_BITS, slot]][names[tuple(ids)]] += 1
    return found


def _whole_passes(position: Position, plan: ShardPlan) -> dict[int, int]:
    """Passes of each source that lie wholly in complete entries."""
    first_open = position.complete[0][1] if within(position.complete, 0) else 0
    pieces = Counter(piece.source for entry in range(first_open) for piece in plan.entry(entry))
    return {number: pieces[number] // source.pieces for number, source in enumerate(plan.sources)}


def test_killed_with_two_workers_and_resumed_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _killed_between_checkpoints(_config(tmp_path, workers=2), tmp_path)
    cfg = _config(tmp_path, workers=1)
    started = time.time()
    assert recorded.main(_arguments(cfg, tmp_path, stop=0)) == 0
    printed = capsys.readouterr().out
    assert "image_unreadable" in printed, "the table of the run's end"

    records = [*_recorded(tmp_path, 2, 1, CUT), *_recorded(tmp_path, 1, CUT + 1, STEPS)]
    uids = [uid for line in records for uid in line["uid"]]
    assert len(uids) == len(set(uids)) == STEPS * BATCH

    newest = trainer.latest_checkpoint(cfg)
    assert newest is not None
    state = read_state(newest)
    position, plan = Position.from_json(state.position), plan_data(cfg).plan
    tokenizer = load_tokenizer(str(tmp_path / "runs" / cfg.name / "tokenizer"))
    ids = tokenize(tokenizer, [caption(number) for number in range(120)], cfg.model.text.context).ids
    padded = [(*row, *[tokenizer.pad_token_id] * (cfg.model.text.context - len(row))) for row in ids.tolist()]
    names = {row: f"s{number:05d}" for number, row in enumerate(padded)}
    assert len(names) == 120, "captions tell the samples apart"
    found = _keys_by_pass(records, plan, names)
    whole = _whole_passes(position, plan)
    assert whole[0] >= 2 and whole[1] >= 3, "a small source is passed more often"
    for source, keys in ((0, range(96)), (1, range(96, 120))):
        for number in range(whole[source]):
            assert found[source, number] == Counter(f"s{key:05d}" for key in keys), (source, number)

    _every_row_is_accounted_for(cfg, tmp_path, found, position, plan)
    resumed = min(line["time"] for line in _recorded(tmp_path, 1, CUT + 1, STEPS)) - started
    size = len((newest / "state.json").read_bytes())
    print(f"state {size} bytes, of which position {len(json.dumps(state.position))}; resumed in {resumed:.1f} s")
    assert len(json.dumps(state.position)) < 4000

    outcome = _run(cfg)
    _one_run_with_one_unbroken_curve(outcome)
    _the_best_evaluation_is_what_was_kept_and_shipped(cfg, outcome)
    _the_registered_model_is_the_trained_one(outcome)
    _its_card_says_what_the_run_measured(outcome)
    with pytest.raises(ConfigError, match=r"model\.embed_dim=32"):
        _run(overlay(cfg, {"model": {"embed_dim": 32}}, source="test"))


def _run(cfg: Config) -> job.Outcome:
    """The same job once more, which has nothing left to do."""
    return job.run(cfg, recipe="test", stages=Stages(Console(quiet=True), job.STAGES))


def _one_run_with_one_unbroken_curve(outcome: job.Outcome) -> None:
    client = outcome.run.client
    (run,) = client.search_runs([outcome.run.experiment_id])
    assert run.info.status == "FINISHED"
    curve = client.get_metric_history(run.info.run_id, "train/loss/total")
    assert sorted(point.step for point in curve) == list(range(1, STEPS + 1))
    assert {"train/loss/align", "train/loss/fusion", "train/logit_scale", "train/data_wait_share"} <= set(
        run.data.metrics
    )
    machine = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert sorted(point.step for point in machine) == list(range(1, STEPS + 1))
    half_way = client.get_metric_history(run.info.run_id, "eval/heldout/r1_text_to_image")
    assert sorted(point.step for point in half_way) == list(range(EVERY, STEPS + 1, EVERY))
    assert "eval/evaluator_lost" not in run.data.metrics, "all by the evaluator"
    final = {name: run.data.metrics[f"final/{name}"] for name in outcome.report.metrics()}
    assert outcome.report.metrics() == final, "evaluating the exported encoder again gives the same numbers"
    pictures = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {f"evaluation/{name}" for name in ("index.html", "gallery.png", "map.png")} <= pictures


def _the_best_evaluation_is_what_was_kept_and_shipped(cfg: Config, outcome: job.Outcome) -> None:
    """The evaluator's numbers are, to the last bit, those of the checkpoint measured here."""
    client, run_id = outcome.run.client, outcome.run.run_id
    curve = {point.step: point.value for point in client.get_metric_history(run_id, f"eval/{BEST}")}
    chosen = outcome.chosen
    assert chosen.step == max(curve, key=lambda step: (curve[step], -step))
    assert BEST in chosen.why and client.get_run(run_id).data.tags["ito.shipped"] == chosen.why
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = open_checkpoint(chosen.folder, batch=cfg.eval.batch)
        here = evaluate(encoder, cfg, limit=cfg.eval.max_samples).metrics()
    finally:
        torch.set_num_threads(threads)
    told = {name: client.get_metric_history(run_id, f"eval/{name}") for name in here}
    assert here == {name: next(one.value for one in points if one.step == chosen.step) for name, points in told.items()}


def _the_registered_model_is_the_trained_one(outcome: job.Outcome) -> None:
    assert outcome.registered.version == "1", "running again registered nothing"
    assert outcome.verified.max_abs_difference <= 1e-5
    texts, images = ["a red thing", "an old thing"], [picture(1), picture(2)]
    model: Any = load(outcome.registered.uri, outcome.run.store)
    folder = FolderEncoder(outcome.encoder)
    by_text = np.array(model.predict(pd.DataFrame({"text": texts}))["embedding"].tolist(), np.float32)
    by_image = np.array(model.predict(pd.DataFrame({"image": images}))["embedding"].tolist(), np.float32)
    np.testing.assert_allclose(by_text, folder.encode_texts(texts), atol=1e-6)
    assert by_image.shape == by_text.shape


def _its_card_says_what_the_run_measured(outcome: job.Outcome) -> None:
    known = read_origin(download(outcome.registered.uri, outcome.run.store))
    assert known.metrics == outcome.report.metrics()
    assert known.training["steps"] == f"{outcome.chosen.step} of {BATCH} pairs"
    assert known.training["checkpoint"] == outcome.chosen.why
    assert (known.recipe, known.git) == (outcome.training.recipe, outcome.training.git)
    assert known.recipe and str(known.data).endswith("/rare") and known.data_licence is None
    assert known.data_pairs_read == outcome.training.rows_delivered
    card = (outcome.encoder / "README.md").read_text()
    assert "| licence | unknown |" in card and str(outcome.encoder.parent) not in card
    assert check_manifest(outcome.encoder) == "sentence_transformer"


def _every_row_is_accounted_for(
    cfg: Config, tmp: Path, found: dict[Any, Any], position: Position, plan: ShardPlan
) -> None:
    training = json.loads((tmp / "runs" / cfg.name / "training.json").read_text())
    for number, name in enumerate(plan.names):
        account = training["sources"][name]
        dropped = sum(count for key, count in account.items() if key.startswith("dropped/"))
        assert account["read"] == account["delivered"] + dropped + account["pending"]
        trained = sum(count.total() for (source, _), count in found.items() if source == number)
        assert account["delivered"] == trained == position.seen[number], name
    assert training["rows_delivered"] == STEPS * BATCH

    quarantined = pq.read_table(tmp / "runs" / cfg.name / "quarantine.parquet").to_pylist()
    assert (
        len(quarantined)
        == training["sources"]["rare"]["dropped/image_unreadable"]
        == sum(training["rows_dropped"].values())
    )
    assert {row["key"] for row in quarantined} == set(BAD)
    assert {(row["source"], row["shard"]) for row in quarantined} == {("rare", str(tmp / "rare" / "rare.tar"))}
    settled = [piece for entry in members(position.complete) for piece in plan.entry(entry)]
    least = sum(row.key in BAD for piece in settled for row in read_piece(piece, cfg.data.columns))
    assert len(quarantined) >= least > 2

    store = f"sqlite:///{tmp / 'runs' / 'mlflow' / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["1"])
    for name in plan.names:
        told = {key: value for key, value in run.data.metrics.items() if key.startswith(f"data/{name}/")}
        assert {f"data/{name}/{key}": value for key, value in training["sources"][name].items()}.items() <= told.items()
    assert run.data.metrics["data/rare/fraction"] == pytest.approx(0.25, abs=0.05)
    artifacts = list_artifacts(run_id=run.info.run_id, tracking_uri=store)
    assert "quarantine.parquet" in {entry.path for entry in artifacts}
