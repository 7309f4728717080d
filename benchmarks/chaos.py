"""Hit a training run at drawn moments, let it end, and prove that nothing was lost or is there twice.

    python -m benchmarks.chaos                             # every fault three times; about two minutes each
    python -m benchmarks.chaos --quick                     # once
    python -m benchmarks.chaos --fault "driver killed" --times 10 --json chaos.json

The run is the real command on a tiny model, its steps slowed down so that there is something to hit. After a fault that
ends the command the same command is given again. Survived means: exit code 0, every planned step, every sample of the
passes exactly once (told by what the ranks were given, compared with the shards), one run in MLflow with one unbroken
curve, a last loss within the noise of an undisturbed run's, whole checkpoints, and no process left.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import faults
from benchmarks.catalogue import FAULTS, Fault, surroundings
from benchmarks.proof import TOLERANCE, curve, last_loss, problems_at_end, spread
from ito_ray.errors import ConfigError
from pipelines.command import exit_code

TRAIN = {"steps": 60, "checkpoint_every": 10, "keep_checkpoints": 3}
EARLIEST, LATEST = 12, 48
"""Steps between which a fault hits."""


@dataclass(frozen=True)
class Arguments:
    """What to try, and how often."""

    fault: tuple[str, ...] = ()
    """Names of faults; all when there is none."""
    times: int = 3
    quick: bool = False
    """Each fault once."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """Also write the numbers there."""


@dataclass
class Tried:
    """What became of a run."""

    fault: str
    step: int
    """At which it was hit."""
    redone: int
    seconds_lost: float
    loss: float
    problems: list[str] = field(default_factory=list)


def attempt(name: str, folder: Path, step: int) -> Tried:
    """Run the command with one fault; "" is none."""
    fault = FAULTS[name] if name else Fault(lambda around, scene: None)
    with surroundings(fault.needs, folder, TRAIN) as around:
        command = around.command
        moment, problems, losses = 0.0, [], []
        try:
            command.start()
            scene = command.hit_at(step)
            moment = time.time()
            fault.hit(around, scene)
            command.ends_well()
            losses = curve(command)
            problems = problems_at_end(command)
        except (RuntimeError, TimeoutError, AssertionError, ValueError) as error:
            problems = [f"{type(error).__name__}: {error}"]
    loss = last_loss(losses)
    lost = faults.seconds_lost(command.record, moment) if moment else float("nan")
    return Tried(name, step, faults.redone(command.record), lost, loss, problems)


def run(arguments: Arguments, console: Console) -> int:
    """0 when everything was survived."""
    unknown = [name for name in arguments.fault if name not in FAULTS]
    if unknown:
        raise ConfigError(f"--fault {unknown[0]!r} is none of {', '.join(map(repr, FAULTS))}.")
    names = arguments.fault or tuple(FAULTS)
    draw = random.Random(arguments.seed)
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells of every list that it reads
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="ito-chaos-") as scratch:
        undisturbed = attempt("", Path(scratch, "undisturbed"), EARLIEST)
        console.print(f"undisturbed: loss {undisturbed.loss:.3f} {'; '.join(undisturbed.problems)}")
        for name in names:
            for number in range(1 if arguments.quick else arguments.times):
                folder = Path(scratch, f"{names.index(name)}-{number}")
                latest = EARLIEST if "notice" in name else LATEST  # the notice must run out before the steps do
                one = attempt(name, folder, draw.randint(EARLIEST, latest))
                noise = abs(one.loss - undisturbed.loss)
                if not one.problems and noise > TOLERANCE:
                    one.problems = [f"loss {one.loss:.3f}, undisturbed {undisturbed.loss:.3f}"]
                tried.append(one)
                console.print(
                    f"{name} at step {one.step}: {one.redone} steps redone, {one.seconds_lost:.1f} s lost, "
                    f"loss {one.loss:.3f} {'; '.join(one.problems)}",
                    soft_wrap=True,
                )
    console.print(_table(tried))
    if arguments.json:
        rows = [asdict(one) for one in (undisturbed, *tried)]
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 1 if any(one.problems for one in (undisturbed, *tried)) else 0


def _table(tried: Sequence[Tried]) -> Table:
    table = Table("fault", "tried", "survived", "steps redone", "seconds lost", "loss", box=None)
    for name in dict.fromkeys(one.fault for one in tried):
        mine = [one for one in tried if one.fault == name]
        survived = sum(not one.problems for one in mine)
        table.add_row(
            name,
            str(len(mine)),
            str(survived),
            spread([float(one.redone) for one in mine], 0),
            spread([one.seconds_lost for one in mine], 1),
            spread([one.loss for one in mine], 2),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.chaos", description=__doc__, args=arguments)
    return exit_code(lambda: run(parsed, Console(highlight=False, width=140)))


if __name__ == "__main__":
    sys.exit(main())
