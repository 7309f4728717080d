"""Refuse at start what would fail or hang later, and gather what the run needs to know of its data and cluster."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ito_ray.config.schema import Config
from ito_ray.data.plan import ShardPlan, make_plan
from ito_ray.data.rows import read_patiently
from ito_ray.data.shards import Shard, list_shards
from ito_ray.data.tokens import adopt_tokenizer, clip_tokenizer, load_tokenizer, train_wordpiece
from ito_ray.errors import ClusterError, ConfigError, DataError
from ito_ray.evaluation.sources import open_labelled, open_pairs
from ito_ray.models.pretrained import pretrained_folder
from ito_ray.runtime.elastic import nodes_up
from ito_ray.runtime.room import largest, placeable

ENTRIES_PROBED = 8
"""Entries of the plan that are searched for a readable sample before the run is refused."""
ENTRIES_MEASURED = 2
"""Entries whose rows are counted, to know how many entries the run needs."""
VOCABULARY_CAPTIONS = 100_000
"""Captions that a vocabulary is trained on."""


@dataclass(frozen=True)
class TrainingData:
    """The training shards as planned."""

    shards: tuple[Shard, ...]
    plan: ShardPlan
    rows_per_entry: float
    """Mean of the entries that were probed."""


def plan_data(cfg: Config) -> TrainingData:
    """List the shards, plan them, and make sure that samples come out.

    Raises:
        DataError: nothing matches, or no sample can be read.
    """
    sources = cfg.data.sources or {"train": ()}
    shards = {name: list_shards(patterns, field="data.train") for name, patterns in sources.items()}
    if cfg.data.heldout:
        open_pairs(cfg)
    if cfg.eval.zero_shot:
        open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")
    weights = cfg.data.weights or dict.fromkeys(shards, 1.0)
    plan = make_plan(shards, weights, rows_per_task=cfg.data.rows_per_task, mix=cfg.data.mix, seed=cfg.train.seed)
    good, probed, reasons = 0, 0, dict[str, str]()
    while probed < min(ENTRIES_PROBED, plan.entries_per_pass) and (probed < ENTRIES_MEASURED or not good):
        for piece in plan.entry(probed):
            for row in read_patiently(piece, cfg.data.columns):
                good += row.bad is None
                if row.bad is not None:
                    reasons.setdefault(row.bad, f"{piece.url}#{row.key}")
        probed += 1
    if good:
        return TrainingData(tuple(itertools.chain(*shards.values())), plan, good / probed)
    found = ", ".join(f"{reason} ({example})" for reason, example in list(reasons.items())[:3]) or "no samples at all"
    raise DataError(f"data.train={list(cfg.data.train)}: not one readable sample in the first shards: {found}.")


def require_resources(cfg: Config) -> None:
    """Refuse what the cluster can never schedule; Ray would wait for ever.

    Raises:
        ClusterError: too few CPUs beside the workers for Ray Data, too few GPUs, or no node with the wanted labels,
            also after `train.wait_minutes`.
    """
    if cfg.train.wait_minutes and (_lacking(cfg) or (cfg.eval.cpus and no_room_for_evaluator(cfg))):
        _wait_for_nodes(cfg)
    if reason := _lacking(cfg):
        raise ClusterError(f"{reason} Where an autoscaler adds nodes, --train.wait-minutes 15 waits for them.")


def _lacking(cfg: Config) -> str:
    """What the nodes that are up do not have, and what to do; empty if nothing."""
    for field, labels in (("data.node_labels", cfg.data.node_labels), ("train.node_labels", cfg.train.node_labels)):
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0.0) >= 1]
        if labels and not any(labels.items() <= node["Labels"].items() for node in nodes):
            label = ",".join(f"{key}={value}" for key, value in labels.items())
            return (
                f"{field}={labels} is on none of the cluster's {len(nodes)} nodes with CPUs: start one with "
                f"`ray start --labels {label}`, or correct the field."
            )
    total = ray.cluster_resources()
    workers = cfg.train.workers.least
    wanted = workers * cfg.train.cpus_per_worker
    cpus = total.get("CPU", 0.0)
    if wanted + 1 > cpus:
        return (
            f"{_named(cfg)} × train.cpus_per_worker={cfg.train.cpus_per_worker:g} leave "
            f"{cpus - wanted:g} of the cluster's {cpus:g} CPUs, but Ray Data needs at least one: lower one of them "
            "or add nodes."
        )
    if cfg.train.gpu and total.get("GPU", 0.0) < workers:
        return (
            f"{_named(cfg)} with train.gpu need as many GPUs, but the cluster has "
            f"{total.get('GPU', 0.0):g}: lower train.workers, add nodes, or set --train.no-gpu."
        )
    if cfg.train.workers.elastic and not starting_with(cfg):
        return (
            f"No set of nodes has room for {workers} workers of train.cpus_per_worker={cfg.train.cpus_per_worker:g} "
            f"beside a CPU for Ray Data, the least of train.workers={cfg.train.workers}: lower one or add nodes."
        )
    return ""


def _named(cfg: Config) -> str:
    """What must have room at the start, as a user knows it."""
    workers = cfg.train.workers
    return f"the least of train.workers={workers}, {workers.least}," if workers.elastic else f"train.workers={workers}"


def starting_with(cfg: Config) -> int:
    """The number of workers that the nodes that are up have room for; 0 if for too few."""
    return largest(cfg.train.sizes, placeable(cfg, nodes_up(), evaluator=has_evaluator(cfg)))


def require_evaluation(cfg: Config) -> None:
    """Refuse what the run would only fail for at its first evaluation, or at its end.

    Raises:
        ConfigError: nothing to evaluate on, or an `eval.best` that the evaluations do not give.
    """
    from ito_ray.training.selection import criterion  # torch: not for a trial's driver

    if not cfg.data.heldout and not cfg.eval.zero_shot:
        raise ConfigError(
            "data.heldout and eval.zero_shot are both empty, so nothing could be said of what is trained: give shards "
            "of at least one of them."
        )
    criterion(cfg)


def require_room(cfg: Config, weight_bytes: int) -> None:
    """Refuse a disk that holds not even a checkpoint's weights, the exported model and its registered copy.

    Raises:
        ClusterError: how much is free, and how much that is at least.
    """
    output = Path(cfg.output).absolute()
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    free, least = shutil.disk_usage(there).free, 3 * weight_bytes
    if free < least:
        raise ClusterError(
            f"output={cfg.output} has {free / 1e6:,.0f} MB free, but a checkpoint, the exported model and its "
            f"registered copy take {least / 1e6:,.0f} MB at least: make room, or give another output."
        )


def has_evaluator(cfg: Config) -> bool:
    """Whether evaluations during training are made beside it, and there is room for that."""
    return bool(cfg.eval.cpus and cfg.eval.every) and not no_room_for_evaluator(cfg)


def no_room_for_evaluator(cfg: Config) -> str:
    """What the cluster lacks for an evaluator beside training and a CPU for Ray Data; empty if nothing."""
    total, wanted = ray.cluster_resources(), cfg.eval.cpus
    free = total.get("CPU", 0.0) - cfg.train.workers.least * cfg.train.cpus_per_worker - 1
    gpus = total.get("GPU", 0.0) - cfg.train.workers.least * cfg.train.gpu
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    roomiest = max((node.get("CPU", 0.0) for node in nodes if node.get("GPU", 0.0) >= cfg.eval.gpu), default=0.0)
    if cfg.eval.gpu and gpus < 1:
        return "eval.gpu wants a GPU beside those of the training workers, and there is none"
    if wanted > min(free, roomiest):
        return (
            f"eval.cpus={wanted:g} on one node, but beside training and a CPU for Ray Data the cluster has {free:g}, "
            f"and its largest node {roomiest:g} in all"
        )
    return ""


def _wait_for_nodes(cfg: Config) -> None:
    """Ask for all that the run must hold at once, so that an autoscaler sees it, and let go of it again."""
    bundle = {"CPU": cfg.train.cpus_per_worker} | ({"GPU": 1.0} if cfg.train.gpu else {})
    evaluator = [{"CPU": cfg.eval.cpus} | ({"GPU": 1.0} if cfg.eval.gpu else {})] if cfg.eval.cpus else []
    asked = placement_group(
        [bundle] * cfg.train.workers.least + [{"CPU": 1.0}] + evaluator,
        bundle_label_selector=[cfg.train.node_labels] * cfg.train.workers.least
        + [cfg.data.node_labels]
        + [{} for _ in evaluator],
    )
    try:
        asked.wait(60 * cfg.train.wait_minutes)
    finally:
        remove_placement_group(asked)


def prepare_tokenizer(cfg: Config, plan: ShardPlan, folder: Path) -> Any:
    """The text tower's tokenizer, kept in `folder` from the first start on so that a resumed run has the same.

    Raises:
        ConfigError: a pretrained tokenizer that cannot be loaded.
    """
    if folder.is_dir():
        return load_tokenizer(str(folder))
    text = cfg.model.text
    if text.kind == "scratch":
        captions = itertools.islice(_captions(cfg, plan), VOCABULARY_CAPTIONS)
        tokenizer = train_wordpiece(captions, text.vocab_size, text.context)
    elif text.kind == "clip":
        tokenizer = clip_tokenizer(text.context)
    else:
        try:
            tokenizer = adopt_tokenizer(pretrained_folder(text.source))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.text.source={text.source} has no tokenizer that can be loaded: {error}"
            ) from error
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)  # a kill left it
    tokenizer.save_pretrained(partial)
    partial.replace(folder)  # whole or not there: with half of it words would have other numbers, or none
    return load_tokenizer(str(folder))


def _captions(cfg: Config, plan: ShardPlan) -> Iterator[str]:
    for entry in range(plan.entries_per_pass):
        for piece in plan.entry(entry):
            for row in read_patiently(piece, cfg.data.columns):
                yield from row.captions
