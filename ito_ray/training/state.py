"""The part of a checkpoint that is not tensors. No torch: the process that builds the stream reads it too."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ito_ray import strict_json
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.redact import redact_all

FORMAT = 3
IN_FLIGHT = (
    "method.fusion_weight",
    "method.alignment_weights",
    "method.mask_duplicates",
    "optim.lr",
    "optim.weight_decay",
    "optim.betas",
    "optim.eps",
    "optim.grad_clip",
    "data.views.crop_scale",
    "data.views.jitter",
    "data.views.jitter_p",
    "data.views.gray_p",
    "data.views.flip_p",
)
"""What can change between two steps of a run: no tensor of a checkpoint depends on it. λ = 0 is another model."""


@dataclass(frozen=True)
class State:
    """What a checkpoint knows besides tensors."""

    step: int
    """Steps taken."""
    position: dict[str, Any]
    """Which samples of the stream were consumed (data/position.py)."""
    config: dict[str, Any]
    plan: str
    """Digest of the shard plan (`ShardPlan.digest`): the position means nothing in another one."""
    metrics: list[tuple[int, dict[str, float]]]
    """(step, values) that may not have reached the tracker yet: a driver that is killed takes them with it."""
    tallies: dict[str, Any]
    """Account of the rows of all entries that the position holds complete (data/tally.py)."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, value) of `eval.best`, of all evaluations that are in."""
    evaluating: bool = False
    """Whether the evaluation after `step` steps was under way: whoever goes on from here makes it again."""
    stopped: bool = False
    """Whether training was ended here because `eval.best` did not improve."""
    open_tallies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Account of the rows of each entry that the position holds open, by entry."""


def write_state(folder: Path, state: State) -> Path:
    """Write `state.json`."""
    document = {"format": FORMAT, **dataclasses.asdict(state)}
    path = folder / "state.json"
    path.write_text(strict_json.dumps(redact_all(document)), encoding="utf-8")
    return path


def read_state(folder: Path) -> State:
    """The JSON part of a checkpoint.

    Raises:
        ConfigError: written by another version of the format.
    """
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    _require_format(folder, document)
    metrics = [(step, strict_json.numbers(values)) for step, values in document["metrics"]]
    return State(
        document["step"],
        document["position"],
        document["config"],
        document["plan"],
        metrics,
        document["tallies"],
        [(step, strict_json.number(value)) for step, value in document.get("curve", [])],
        document.get("evaluating", False),
        document.get("stopped", False),
        document.get("open_tallies", {}),
    )


def image_of(run: Path) -> dict[str, Any] | None:
    """`model.image` of a run's newest checkpoint that can be read; None if there is none."""
    for path in sorted(run.glob("step-*/state.json"), reverse=True):
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]["model"]["image"]
            return found
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the stage that goes on from a checkpoint says what is wrong with it
    return None


def require_format(folder: Path) -> None:
    """Refuse a checkpoint of another version of the format; one whose state.json cannot be read passes.

    Raises:
        ConfigError: it is whole for the version that wrote it.
    """
    try:
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    _require_format(folder, document)


def _require_format(folder: Path, document: dict[str, Any]) -> None:
    if document.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} is a checkpoint of format {document.get('format')}, but this version reads {FORMAT}: resume "
            "with the version that wrote it, or choose another --name."
        )


def require_same_run(state: State, cfg: Config, plan: str, folder: Path) -> None:
    """Refuse to go on with a checkpoint whose data, model or method are not those of `cfg`.

    Steps, learning rate and bookkeeping may change; what the weights mean, and what else is in the checkpoint, may not.

    Raises:
        ConfigError: naming the first section that differs.
    """
    now = cfg.model_dump(mode="json")
    fixed = [(section, key) for section in ("data", "model", "method") for key in state.config[section]]
    fixed.remove(("data", "node_labels"))  # where, not what
    for section, key in [*fixed, ("optim", "name"), ("train", "ema"), ("eval", "best")]:
        before = _known(state.config[section].get(key, ""), Config().model_dump(mode="json")[section].get(key))
        if now[section].get(key) != before:
            raise ConfigError(
                f"{section}.{key}={now[section].get(key)!r}, but the run {cfg.name!r} was started with "
                f"{before!r} and has a checkpoint in {folder}: choose another --name to start afresh, or the old "
                "value to resume."
            )
    if state.plan != plan:
        raise ConfigError(
            f"The run {cfg.name!r} has a checkpoint in {folder}, but the shards of data.train, or train.seed, are not "
            "those it was started with, so its position in the data means nothing now: choose another --name to start "
            "afresh, or restore the shards to resume."
        )


def _known(before: Any, default: Any) -> Any:
    """A value of the checkpoint, with the defaults of fields that came into a subsection since it was written."""
    return {**default, **before} if isinstance(before, dict) and isinstance(default, dict) else before


def handed_over(state: State, cfg: Config, folder: Path) -> State:
    """What a checkpoint says when a run with other values of `IN_FLIGHT` goes on from it.

    Its place in the data and the account of what was read come along; metrics and curve were another run's.

    Raises:
        ConfigError: another field differs that a run may not change.
    """
    now, known = cfg.model_dump(mode="json"), copy.deepcopy(state.config)
    for name in IN_FLIGHT:
        *sections, last = name.split(".")
        before, after = known, now
        for section in sections:
            before, after = before[section], after[section]
        before[last] = after[last]
    require_same_run(dataclasses.replace(state, config=known), cfg, state.plan, folder)
    return dataclasses.replace(state, config=now, metrics=[], curve=[], evaluating=False, stopped=False)
