"""The test split: kept from the search, and read once when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.shards import list_shards
from ito_ray.data.tokens import load_tokenizer
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime import trainer
from ito_ray.training import checkpoint
from tune.book import TEST, Book, Trial
from tune.trials import TrialMaker


def require_separate_test(test: Sequence[str], cfg: Config) -> None:
    """
    Raises:
        ConfigError: a test shard that the search trains on or judges by.
    """
    if not test:
        return
    wanted = {shard.url for shard in list_shards(test, field="--test")}
    used = {
        "data.train": [pattern for patterns in cfg.data.sources.values() for pattern in patterns],
        "data.heldout": cfg.data.heldout,
        "eval.zero_shot": cfg.eval.zero_shot,
    }
    for field, patterns in used.items():
        shared = wanted & {shard.url for shard in list_shards(patterns, field=field)} if patterns else set()
        if shared:
            raise ConfigError(
                f"--test and {field} share {min(shared)}: a test split that the search sees is no test. Give each its "
                "own shards, e.g. --data.heldout heldout-00000.tar --test heldout-00001.tar."
            )


def measure_test(book: Book, maker: TrialMaker, patterns: Sequence[str]) -> None:
    """Measure the confirmed points on the test split, each once, and write the scores into the book.

    Raises:
        ConfigError: another split was read before.
    """
    known = book.notes.get(TEST, {"shards": list(patterns), "scores": {}})
    if known["shards"] != list(patterns):
        raise ConfigError(
            f"--test {' '.join(patterns)}: this sweep was tested on {' '.join(known['shards'])} before; a second "
            "look at other data would let you choose the one you like. Give the same, or another --name."
        )
    changes = {"data": {"heldout": list(patterns)}, "eval": {"zero_shot": []}}
    scores = {
        str(point): [measure(maker, one, changes, source="--test") for one in trials if one.state == "finished"]
        for point, trials in book.points("confirm").items()
        if str(point) not in known["scores"]
    }
    if scores:
        book.note(TEST, {"shards": list(patterns), "scores": {**known["scores"], **scores}})


def measure(maker: TrialMaker, trial: Trial, changes: dict[str, Any], *, source: str) -> dict[str, float]:
    """The numbers of a trial that has finished and keeps its weights.

    Args:
        changes: laid over its configuration: the test sets.
        source: where they come from, for messages.
    """
    cfg = maker.present(trial)
    order = maker.order(trial)
    own = Path(cfg.output) / cfg.name / "tokenizer"
    tokenizer = load_tokenizer(order.tokenizer.folder() if order.tokenizer else str(own))
    encoder = DualEncoder(cfg.model, tokenizer)
    newest = trainer.latest_checkpoint(cfg)
    assert newest is not None, f"{trial.job.key} has finished and keeps its weights"
    checkpoint.load_encoder(newest, encoder)
    encoder.eval()
    tested = overlay(cfg, changes, source=source)
    return evaluate(TowerEncoder(encoder, tokenizer, torch.device("cpu"), cfg.eval.batch), tested).metrics()
