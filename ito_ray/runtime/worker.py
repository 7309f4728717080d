"""What runs in every Ray Train worker: build, restore, then hand over to training/loop.py."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from ito_ray.config.schema import Config
from ito_ray.data.position import Position
from ito_ray.errors import ItoError
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime.halt import Word
from ito_ray.runtime.launch import Launch
from ito_ray.runtime.live import LiveEvaluation
from ito_ray.runtime.shelf import name_of
from ito_ray.runtime.stream import Arrays, rank_batches
from ito_ray.runtime.system import system_metrics
from ito_ray.training import checkpoint, loop, parallel
from ito_ray.training.learner import Learner, build_learner
from ito_ray.training.selection import stopped_early
from ito_ray.training.state import State, read_state


def train_worker(launch: Launch, blocks: Iterator[Arrays]) -> None:
    """Train to the end; `blocks` are of `rank_blocks`."""
    if ray.train.get_context().get_world_rank() == 0:
        launch.monitor.started.remote()
    try:
        _train(launch, blocks)
    except ItoError as error:
        ray.get(launch.monitor.stop.remote(str(error)))
        raise


def _train(launch: Launch, blocks: Iterator[Arrays]) -> None:
    cfg = launch.cfg
    rank, workers = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(cfg.train.threads)
    launch.go_to_folder()

    tokenizer = launch.tokenizer.load()
    learner = _build(cfg, tokenizer, device)
    state = _resume(launch, learner)
    step, position = (state.step, Position.from_json(state.position)) if state else (0, Position())
    if cfg.train.parallel != "fsdp":
        learner.model = ray.train.torch.prepare_model(learner.method)
    live = LiveEvaluation(launch, learner, tokenizer, device, state)
    if state and stopped_early(cfg, state):
        return
    if state and state.evaluating:
        if not launch.judged:
            live.begin(step)
        elif not live.evaluate(step):
            return

    def log(kind: str, done: int, metrics: dict[str, float]) -> None:
        launch.monitor.log.remote(done, {f"{kind}/{name}": value for name, value in metrics.items()})

    def report(done: int, metrics: dict[str, float]) -> None:
        log("train", done, metrics)
        log("system", done, system_metrics(device))

    def save(done: int) -> None:
        started = time.perf_counter()
        position.merge(parallel.of_all_ranks(position.local))
        state = None
        if rank == 0:
            curve, evaluating = live.before_checkpoint(done, last=live.stopped or done == cfg.train.steps)
            evaluating = evaluating or (launch.judged and loop.evaluation_due(cfg, done, at_end=True))
            log("data", done, position.fractions(launch.sources))
            consumed = position.to_json()
            open_entries = list(position.open)
            kept = ray.get(launch.monitor.settle.remote(name_of(done), consumed["complete"], open_entries))
            made_with = cfg.model_dump(mode="json")
            state = State(
                done,
                consumed,
                made_with,
                launch.plan,
                kept.metrics,
                kept.tallies,
                curve,
                evaluating,
                live.stopped,
                kept.open,
            )
            # Before any rank writes there: what a worker that was killed had begun.
            shutil.rmtree(Path(launch.folder, cfg.output, cfg.name, name_of(done)), ignore_errors=True)
        _save(done, learner, state)
        live.after_checkpoint(done)
        if rank == 0:
            log("checkpoint", done, {"seconds": time.perf_counter() - started})

    if rank == 0:
        log("train", step, {"workers": float(workers)})
    batches = rank_batches(blocks, cfg, position, rank=rank, workers=workers)
    hooks = loop.Hooks(
        report,
        live.evaluate,
        save,
        halt=Word(launch.monitor, workers),
        at_end=launch.judged or live.chooses,
        with_checkpoint=live.chooses,
        checkpoint_first=launch.judged,
    )
    loop.train(cfg, learner, batches, device, hooks, first_step=step)


def _build(cfg: Config, tokenizer: Any, device: torch.device) -> Learner:
    """What is trained, as at the first step; the same weights on every rank."""
    torch.manual_seed(cfg.train.seed)
    method = build_method(cfg, DualEncoder(cfg.model, tokenizer, began=True)).to(device)
    if cfg.train.parallel == "fsdp":
        parallel.shard(method, device)
    else:  # FSDP takes no such weights
        method.encoder.image.to(memory_format=torch.channels_last)  # what the uint8 pixels are already
    return build_learner(cfg, method)


def _resume(launch: Launch, learner: Learner) -> State | None:
    """Load the checkpoint that this start goes on from, if there is one, and what it knows."""
    latest = ray.train.get_checkpoint()
    assert ray.get(launch.monitor.checkpoint.remote()) == (latest.path if latest else ""), "where the stream goes on"
    if not latest:
        return None
    with latest.as_directory() as folder:
        state = read_state(Path(folder))
        checkpoint.load(Path(folder), learner)
    return state


def _save(done: int, learner: Learner, state: State | None) -> None:
    """Every rank writes its part, if it has one; Ray Train moves them together to the run's storage."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), learner, state)
        kept = ray.train.Checkpoint.from_directory(folder) if any(Path(folder).iterdir()) else None
        ray.train.report({"step": done}, checkpoint=kept, checkpoint_dir_name=name_of(done))
