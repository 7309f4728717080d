"""Shards train what whole copies train, and their checkpoints open on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, DataError
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training import checkpoint, loop, parallel
from ito_ray.training.learner import Learner, build_learner
from ito_ray.training.state import State
from tests.tiny import Vocabulary, tiny_config, tiny_method
from tests.training.test_training import colours

pytestmark = pytest.mark.slow

HALF, STEPS = 4, 8
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "fsdp_micro": {"parallel": "fsdp", "micro_batch": 2},
}


def _config(run: str, steps: int) -> Config:
    train = {"steps": steps, "global_batch": 12, "log_every": 1, "checkpoint_every": HALF, **RUNS[run]}
    return tiny_config(train=train, optim={"grad_clip": 0.5})


def _learner(cfg: Config) -> Learner:
    method = tiny_method(cfg).float()
    if cfg.train.parallel == "fsdp":
        parallel.shard(method, torch.device("cpu"))
        return build_learner(cfg, method)
    learner = build_learner(cfg, method)
    if dist.is_initialized():
        learner.model = DistributedDataParallel(method)
    return learner


def _share(batches: Iterator[loop.Arrays], rank: int, world: int) -> Iterator[loop.Arrays]:
    for batch in batches:
        count = len(batch["lengths"]) // world
        yield {name: array[rank * count : (rank + 1) * count] for name, array in batch.items()}


def _train(cfg: Config, folder: Path, rank: int, world: int, resume: Path | None) -> list[float]:
    learner, first = _learner(cfg), 0
    if resume:
        checkpoint.load(resume, learner)
        first = HALF
    losses: list[float] = []

    def save(done: int) -> None:
        (folder / str(done)).mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / str(done), learner, State(done, {}, {}, "plan", [], {}) if rank == 0 else None)

    hooks = loop.Hooks(lambda _, metrics: losses.append(metrics["loss/total"]), lambda _: True, save)
    batches = _share(colours(cfg, first), rank, world)
    loop.train(cfg, learner, batches, torch.device("cpu"), hooks, first)
    return losses


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world)
    curves = {}
    here = Path(folder)
    if world == 2:
        curves = {run: _train(_config(run, STEPS), here / run, rank, world, None) for run in RUNS}
    else:  # what two ranks wrote goes on with three
        for run in ("ddp", "fsdp"):
            resume = here / ("fsdp" if run == "ddp" else "ddp") / str(HALF)  # each from the other's checkpoint
            curves[run] = _train(_config(run, STEPS), here / f"{run}-of-{world}", rank, world, resume)
    if rank == 0:
        (here / f"curves-{world}.json").write_text(json.dumps(curves))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    spawn(_rank, args=(2, str(folder)), nprocs=2)
    spawn(_rank, args=(3, str(folder)), nprocs=3)
    return folder


def test_shards_give_the_losses_of_whole_copies(runs: Path) -> None:
    curves = json.loads((runs / "curves-2.json").read_text())
    assert len(curves["ddp"]) == STEPS
    assert curves["fsdp"] == pytest.approx(curves["ddp"], rel=1e-5)
    assert curves["fsdp_micro"] == pytest.approx(curves["ddp"], rel=1e-5)


def test_another_number_of_ranks_goes_on_with_the_checkpoint(runs: Path) -> None:
    straight = json.loads((runs / "curves-2.json").read_text())["ddp"][HALF:]
    resumed = json.loads((runs / "curves-3.json").read_text())
    assert resumed["ddp"] == pytest.approx(straight, rel=1e-5), "three whole copies, from two shards"
    assert resumed["fsdp"] == pytest.approx(straight, rel=1e-5), "three shards, from two whole copies"


def test_each_rank_writes_its_rows_only(runs: Path) -> None:
    def files(run: str) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (runs / run / str(STEPS)).glob("method*")}

    whole, shards = files("ddp"), files("fsdp")
    assert list(whole) == ["method.safetensors"]
    assert sorted(shards) == ["method-00001-of-00002.safetensors", "method-00002-of-00002.safetensors"]
    assert max(shards.values()) < 0.7 * whole["method.safetensors"]


def test_the_encoder_that_ships_is_the_same(runs: Path) -> None:
    cfg = _config("ddp", STEPS)
    one, other = DualEncoder(cfg.model, Vocabulary()), DualEncoder(cfg.model, Vocabulary())
    left_behind = checkpoint.load_encoder(runs / "ddp" / str(STEPS), one)
    assert checkpoint.load_encoder(runs / "fsdp" / str(STEPS), other) == left_behind
    trained = load_file(runs / "ddp" / str(STEPS) / "method.safetensors")
    for name, value in one.state_dict().items():
        assert torch.equal(value, trained[f"encoder.{name}"]), name
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_lost_piece_is_named(runs: Path, tmp_path: Path) -> None:
    for path in (runs / "fsdp" / str(STEPS)).glob("*-00001-of-00002.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="has 1 of 2 files method"):
        checkpoint.load_encoder(tmp_path, DualEncoder(_config("ddp", STEPS).model, Vocabulary()))


def test_an_average_of_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.ema=0\.9 keeps a whole second encoder"):
        tiny_config(train={"parallel": "fsdp", "ema": 0.9})
