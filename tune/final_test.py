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
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.sources import open_labelled, open_pairs
from ito_ray.evaluation.subject import require_samples
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime import trainer
from ito_ray.training import checkpoint
from tune.book import TEST, Book, Trial
from tune.trials import TrialMaker


def pairs_of(test: Sequence[str]) -> dict[str, Any]:
    """What a test split changes in a configuration to be measured on it."""
    return {"data": {"heldout": list(test)}, "eval": {"zero_shot": []}}


def require_separate_test(changes: dict[str, Any], cfg: Config, *, source: str = "--test") -> None:
    """Look at the test split as `measure` will, long before it does.

    Args:
        changes: laid over the configuration: the test sets.
        source: where they come from, for messages.

    Raises:
        ConfigError: a test shard or picture that the search trains on or judges by; what `evaluate` would refuse.
        DataError: no sample to measure on.
    """
    tested = overlay(cfg, changes, source=source)
    require_samples(tested)
    wanted = frozenset[str]().union(*_judged_by(tested).values())
    trained = [pattern for patterns in cfg.data.sources.values() for pattern in patterns]
    used = {"data.train": frozenset(shard.url for shard in list_shards(trained, field="data.train"))} if trained else {}
    for field, addresses in {**used, **_judged_by(cfg)}.items():
        if shared := wanted & addresses:
            raise ConfigError(
                f"{source} and {field} share {min(shared)}: a test split that the search sees is no test. Give each "
                "its own shards, e.g. --data.heldout heldout-00000.tar --test heldout-00001.tar."
            )


def _judged_by(cfg: Config) -> dict[str, frozenset[str]]:
    found = {}
    if cfg.data.heldout:
        found["data.heldout"] = open_pairs(cfg).addresses()
    if cfg.eval.zero_shot:
        found["eval.zero_shot"] = open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot").source.addresses()
    return found


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
    changes = pairs_of(patterns)
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
    tokenizer = order.tokenizer.load() if order.tokenizer else load_tokenizer(own)
    encoder = DualEncoder(cfg.model, tokenizer, began=True)
    newest = trainer.latest_checkpoint(cfg)
    if newest is None:
        raise DataError(
            f"The trial {trial.job.key} has finished, but its checkpoint in {Path(cfg.output) / cfg.name} is gone or "
            "damaged: restore that folder and run the same command again, or give the sweep another --name."
        )
    checkpoint.load_encoder(newest, encoder)
    encoder.eval()
    tested = overlay(cfg, changes, source=source)
    return evaluate(TowerEncoder(encoder, tokenizer, torch.device("cpu"), cfg.eval.batch), tested).metrics()
