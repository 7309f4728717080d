"""The command line of a sweep, beside the configuration's fields. Light: --help must not wait for Ray or Optuna."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Literal

from ito_ray.config.load import Options
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from tune.axes import Space, parse_axis, parse_fixed
from tune.budget import Budget
from tune.explore import require_in_flight
from tune.spaces import space

R1 = ("heldout/r1_image_to_text", "heldout/r1_text_to_image")

LEAST = {"points": 1, "seeds": 1, "confirm": 0, "concurrent": 0, "factor": 2, "grid_points": 2}


@dataclass(frozen=True)
class SearchOptions(Options):
    """What is searched, how, and with how much."""

    space: str = "ito_weights"
    """A function of tune/spaces.py."""
    axis: tuple[str, ...] = ()
    """Change or add axes: method.fusion_weight=0.5..4:log model.embed_dim=[64,128]."""
    fix: tuple[str, ...] = ()
    """Take fields out of the space: method.fusion.readout=cls."""
    print_space: bool = False
    """Show the space and stop."""
    points: int = 16
    """Settings that are tried, the recipe's own first; pbt: members of the population."""
    searcher: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """tpe: multivariate; nsga2: for two objectives; grid: every combination."""
    grid_points: int = 4
    """Values of each range in a grid."""
    scheduler: Literal["asha", "hyperband", "pbt", "none"] = "asha"
    """Stops trials that are behind: asynchronous successive halving, the same in three brackets, or not at all. pbt:
    no trial stops, those behind go on from the checkpoints of those ahead, with other settings."""
    factor: int = 3
    """One trial in so many goes on from each rung; pbt: one in so many copies one in so many."""
    seeds: int = 1
    """Trials of each point, each with another seed; judged by their mean."""
    confirm: int = 3
    """Fresh seeds on which the best point and the recipe are compared at the end; 0 = not at all."""
    objective: tuple[str, ...] = R1
    """Metrics of the evaluation whose mean is to be large. They are measured on data.heldout and eval.zero_shot."""
    against: str = ""
    """A second number that is to be small, e.g. step_seconds: the result is a front."""
    test: tuple[str, ...] = ()
    """Shards of pairs that the search never reads; the confirmed ones are measured on them once, at the end."""
    concurrent: int = 0
    """Trials side by side; 0 = as many as fit. With --train.wait-minutes, as many as fit when the cluster has grown:
    it is asked for room for so many."""
    data_cpus: float = 1.0
    """CPUs that each trial leaves to Ray Data."""
    budget: Budget = field(default_factory=Budget)
    warm_start: tuple[str, ...] = ()
    """Names of earlier sweeps in the same MLflow experiment to learn from."""
    register: bool = False
    """Train the winner with the main job and register it under the alias `candidate`."""


def require_optuna() -> None:
    """
    Raises:
        ConfigError: the extra `tune` is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('Sweeps need Optuna, which is not installed: pip install "ito_ray[tune]".')


def check(options: SearchOptions, cfg: Config) -> None:
    """Refuse what does not fit together.

    Raises:
        ConfigError: naming the option.
    """
    require_optuna()
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give {least} or more.")
    options.budget.check()
    if options.data_cpus < 0:
        raise ConfigError(f"--data-cpus is {options.data_cpus:g}: give 0 or more.")
    if not cfg.data.heldout and not cfg.eval.zero_shot:
        raise ConfigError("data.heldout and eval.zero_shot are both empty: a sweep needs validation data to judge by.")
    if not options.objective:
        raise ConfigError("--objective is empty: name at least one metric of the evaluation.")
    if options.scheduler == "pbt":
        _check_population(options, cfg)
    if options.against and options.scheduler != "none":
        raise ConfigError("--against needs --scheduler none: stopping early compares one objective only.")
    if options.against and options.register:
        raise ConfigError("--register needs one winner, but --against gives a front: register a point of it yourself.")
    if options.against and options.searcher == "tpe":
        raise ConfigError("--searcher tpe looks for one best point, but --against gives two objectives: take nsga2.")
    if not options.against and options.searcher == "nsga2":
        raise ConfigError("--searcher nsga2 looks for a front of two objectives: give --against, or take tpe.")
    if options.warm_start and options.searcher not in ("tpe", "nsga2"):
        raise ConfigError(
            f"--searcher {options.searcher} learns from no score, so --warm-start would do nothing: take tpe, or leave "
            "it out."
        )
    if options.test and options.against:
        raise ConfigError(
            "--test is read for confirmed points, but --against gives a front and confirms none: leave it out."
        )
    if options.register and options.confirm < 2:
        raise ConfigError(
            f"--register needs --confirm 2 or more to know that the winner is one (now {options.confirm})."
        )
    if options.test and options.confirm < 1:
        raise ConfigError("--test is read for the confirmed points only: give --confirm 1 or more.")


def _check_population(options: SearchOptions, cfg: Config) -> None:
    if options.searcher not in ("random", "grid"):
        raise ConfigError(
            f"--scheduler pbt draws only the first settings, and --searcher {options.searcher} would take scores of "
            "settings that changed in flight for theirs: give --searcher random, or grid."
        )
    if options.points < 2:
        raise ConfigError(f"--scheduler pbt needs --points 2 or more (now {options.points}): nobody copies alone.")
    if options.seeds != 1:
        raise ConfigError(
            f"--scheduler pbt needs --seeds 1 (now {options.seeds}): members share the order of the data, so that one "
            "can go on where another stood."
        )
    if options.register:
        raise ConfigError(
            "--register trains the winner with the main job, which knows no settings that change in flight: leave it "
            "out with --scheduler pbt. The trials that confirm a schedule keep their weights."
        )
    require_in_flight(space_of(options, cfg), cfg)


def space_of(options: SearchOptions, cfg: Config) -> Space:
    """The space as the command line changes it."""
    axes, fixed = dict(map(parse_axis, options.axis)), dict(map(parse_fixed, options.fix))
    return space(options.space, cfg).changed(axes, fixed)
