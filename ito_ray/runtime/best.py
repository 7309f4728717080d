"""The best checkpoints: kept in RUN/best while Ray Train rotates the others, and what is chosen at the end.

They are linked, so they take no room of their own until Ray Train deletes the originals, or copied where links are not
known.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ito_ray.config.schema import Config
from ito_ray.errors import DataError
from ito_ray.runtime.shelf import hold, name_of
from ito_ray.training.manifest import damage
from ito_ray.training.selection import criterion, stopped_early
from ito_ray.training.state import read_state

FOLDER = "best"


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that is exported and registered."""

    folder: Path
    step: int
    why: str
    """For people."""
    ended: int
    """Steps after which training ended."""
    stopped: str
    """Why it ended before `train.steps`; empty if it did not."""


def keep(run: Path, steps: Collection[int]) -> None:
    """Keep the checkpoints of these steps, each whole or not at all, and no others.

    Args:
        run: the run's folder.
        steps: each has its checkpoint in `run`, or is kept already. One that somebody removed is left out.
    """
    shelf, wanted = run / FOLDER, {name_of(step) for step in steps}
    for name in sorted(wanted):
        if (run / name).is_dir():
            hold(run / name, shelf)
    for old in list(shelf.iterdir()) if shelf.is_dir() else ():
        if old.name not in wanted:
            shutil.rmtree(old)


def choose(cfg: Config, newest: Path) -> Chosen:
    """What a run that has ended ships.

    Args:
        newest: its last checkpoint, which knows the curve and is whole.

    Raises:
        DataError: the best cannot be read now, whatever it holds.
    """
    state, rule = read_state(newest), criterion(cfg)
    kept = newest.parent / FOLDER

    def chosen(folder: Path, step: int, why: str) -> Chosen:
        return Chosen(folder, step, why, state.step, stopped_early(cfg, state))

    last = f"the last, after {state.step:,} steps"
    if rule is None:
        return chosen(newest, state.step, last)
    best = rule.best(state.curve)
    if best is None:
        return chosen(newest, state.step, f"{last}: none has a value of {rule.metric}")
    step, value = best
    found = f"best of {len(state.curve)} by {rule.metric}, {value:.4f}"
    if cfg.eval.ship == "last":
        return chosen(newest, state.step, f"{last}, as eval.ship asks; after {step:,}: {found}")
    if step == state.step:
        return chosen(newest, step, f"{last}, which is the {found}")
    if not (kept / name_of(step)).is_dir():
        return chosen(newest, state.step, f"{last}: the {found}, after {step:,}, is no longer in {FOLDER}/")
    try:
        wrong = damage(kept / name_of(step))
    except OSError as error:
        raise DataError(
            f"The checkpoint {kept / name_of(step)}, {found}, cannot be read: {error}. See that its disk works and run "
            "the same command again, or set eval.ship=last."
        ) from error
    if wrong:
        return chosen(newest, state.step, f"{last}: the {found}, after {step:,}, is damaged ({wrong})")
    return chosen(kept / name_of(step), step, f"after {step:,} of {state.step:,} steps, the {found}")
