"""What runs in every Ray Train worker: build, restore, then hand over to training/loop.py."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from ito_ray.data.position import Position, Taken
from ito_ray.data.tokens import load_tokenizer
from ito_ray.errors import ItoError, UnreadableError
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime.launch import Launch
from ito_ray.runtime.stream import rank_batches
from ito_ray.training import checkpoint, loop, parallel
from ito_ray.training.learner import Learner, build_learner
from ito_ray.training.state import State, read_state

ASK_EVERY_SECONDS = 0.2


def train_worker(given: dict[str, Any]) -> None:
    """Ray Train's entry point; `given["launch"]` is a Launch."""
    launch: Launch = given["launch"]
    if ray.get(launch.monitor.fatal.remote()):
        return  # Ray Train restarted us, but what went wrong does not mend itself; the driver tells the user
    if ray.train.get_context().get_world_rank() == 0:
        launch.monitor.started.remote()
    try:
        _train(launch)
    except ItoError as error:
        ray.get(launch.monitor.stop.remote(str(error)))
        raise


def _train(launch: Launch) -> None:
    cfg = launch.cfg
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    torch.set_num_threads(cfg.train.threads)
    if Path(launch.folder).is_dir():  # Ray Train starts its workers in a folder of their own
        os.chdir(launch.folder)

    tokenizer = load_tokenizer(launch.tokenizer.folder())
    torch.manual_seed(cfg.train.seed)
    method = build_method(cfg, DualEncoder(cfg.model, tokenizer)).to(device)
    sharded = cfg.train.parallel == "fsdp"
    if sharded:
        parallel.shard(method, device)
    else:  # FSDP takes no such weights
        method.encoder.image.to(memory_format=torch.channels_last)  # what the uint8 pixels are already
    learner = build_learner(cfg, method)

    step, position = 0, Position()
    latest = ray.train.get_checkpoint()
    assert ray.get(launch.monitor.checkpoint.remote()) == (latest.path if latest else ""), "where the stream goes on"
    if latest:
        with latest.as_directory() as folder:
            state = read_state(Path(folder))
            checkpoint.load(Path(folder), learner)
        step, position = state.step, Position.from_json(state.position)
    if not sharded:
        learner.model = ray.train.torch.prepare_model(method)

    def log(kind: str, done: int, metrics: dict[str, float]) -> None:
        launch.monitor.log.remote(done, {f"{kind}/{name}": value for name, value in metrics.items()})

    def report(done: int, metrics: dict[str, float]) -> None:
        log("train", done, metrics)

    def run_evaluation(done: int) -> bool:
        shipped = learner.shipped
        if sharded:  # a collective, after which rank 0 alone makes a whole copy
            weights = {name: parallel.whole(value) for name, value in shipped.state_dict().items()}
            if rank == 0:
                shipped = DualEncoder(cfg.model, tokenizer).to(device)
                shipped.load_state_dict(weights)
        if rank == 0:  # the others wait in the next collective
            encoder = TowerEncoder(shipped, tokenizer, device, cfg.eval.batch)
            try:
                found = evaluate(encoder, cfg, limit=cfg.eval.max_samples).metrics()
            except UnreadableError:
                if launch.judged:  # a sweep cannot judge without a number
                    raise
                found = {"unreadable": 1.0}  # a store that fails for a while costs a point of the curve, not the run
            log("eval", done, found)
        return not launch.judged or _goes_on(launch, done)

    def save(done: int) -> None:
        started = time.perf_counter()
        position.merge(_of_all_ranks(position.local))
        state = None
        if rank == 0:
            log("data", done, position.fractions(launch.sources))
            consumed = position.to_json()
            kept = ray.get(launch.monitor.settle.remote(_name(done), consumed["complete"]))
            state = State(done, consumed, cfg.model_dump(mode="json"), launch.plan, kept.metrics, kept.tallies)
        if rank == 0:  # before any rank writes there: what a worker that was killed had begun
            shutil.rmtree(Path(launch.folder, cfg.output, cfg.name, _name(done)), ignore_errors=True)
        _save(done, learner, state)
        if rank == 0:
            log("checkpoint", done, {"seconds": time.perf_counter() - started})

    batches = rank_batches(ray.train.get_dataset_shard("train"), cfg, position, rank=rank)
    hooks = loop.Hooks(report, run_evaluation, save, at_end=launch.judged)
    loop.train(cfg, learner, batches, device, hooks, first_step=step)


def _goes_on(launch: Launch, done: int) -> bool:
    """The judge's word on the evaluation after `done` steps. Every rank asks for itself, and all hear the same."""
    while (answer := ray.get(launch.monitor.goes_on.remote(done))) is None:
        time.sleep(ASK_EVERY_SECONDS)
    return bool(answer)


def _of_all_ranks(taken: Taken) -> list[Taken]:
    """Every rank's `taken`, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [taken]
    gathered = [Taken() for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, taken)
    return gathered


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _save(done: int, learner: Learner, state: State | None) -> None:
    """Every rank writes its part, if it has one; Ray Train moves them together to the run's storage."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), learner, state)
        kept = ray.train.Checkpoint.from_directory(folder) if any(Path(folder).iterdir()) else None
        ray.train.report({"step": done}, checkpoint=kept, checkpoint_dir_name=_name(done))
