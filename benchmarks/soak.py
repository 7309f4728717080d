"""Hit a long training run again and again, each time when it has recovered, and prove at its end that all is there.

    python -m benchmarks.soak                       # each fault 20 times
    python -m benchmarks.soak --quick               # once
    python -m benchmarks.soak --fault "controller killed" --times 5 --json soak.json

A fault does not cost a run of its own, as in benchmarks.chaos, and it meets a run that has been through others. Those
that need the same surroundings (benchmarks/catalogue.py) come in a drawn order, in runs of at most 35. Recovered means:
there is a checkpoint of a step that those who were hit had not reached. The next fault hits some drawn steps later.
Survived means recovered, and the run proven at its end as in benchmarks.chaos. What can only happen at a run's end is
left to that.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import FAULTS, Around, Needs, surroundings
from benchmarks.command import PACE, Command
from benchmarks.faults import Scene, newest_step, redone, seconds_lost
from benchmarks.proof import TOLERANCE, curve, last_loss, problems_at_end, spread
from ito_ray.errors import ConfigError
from ito_ray.runtime.shelf import step_of
from pipelines.command import exit_code

EVERY = 8
"""Steps between two checkpoints."""
HITS_A_RUN = 35
STEPS_A_HIT = 14
"""Eight or sixteen, by where between two checkpoints the fault hits: eleven on average."""
LEAST_STEPS = 240
"""Of a run with few faults: up to step 100 the loss falls from 9 to 3.5, and other batches move that fall by steps."""
LAST_SHARE = 5
"""The mean loss of the last fifth of the steps is compared: ten of them would say little of a long run."""
SOAKED = tuple(name for name, fault in FAULTS.items() if fault.repeats)


@dataclass(frozen=True)
class Arguments:
    """What to try, and how often."""

    fault: tuple[str, ...] = ()
    """Names of faults; all when there is none."""
    times: int = 20
    quick: bool = False
    """Each fault once."""
    seed: int = 0
    """Of their order and moments."""
    json: Path | None = None
    """Also write the numbers there, after each run."""


@dataclass(frozen=True)
class Planned:
    """A fault that is to come."""

    fault: str
    after: int
    """Steps since the run has recovered from the one before."""


@dataclass
class Hit:
    """A fault that came."""

    fault: str
    moment: float
    step: int
    recovered: bool = False
    redone: int = 0
    seconds_lost: float = float("nan")


@dataclass
class Soaked:
    """A run that has ended."""

    steps: int
    hits: list[Hit]
    loss: float
    undisturbed: float
    problems: list[str] = field(default_factory=list)


def plan(faults: Sequence[str], times: int, seed: int) -> list[Planned]:
    """Each fault so many times, in a drawn order but for its surroundings, at drawn distances."""
    draw = random.Random(seed)
    order = [fault for fault in faults for _ in range(times)]
    draw.shuffle(order)
    known = [fault.needs for fault in FAULTS.values()]
    order.sort(key=lambda fault: known.index(FAULTS[fault].needs))
    return [Planned(fault, draw.randint(1, EVERY)) for fault in order]


def steps_beside(fault: str) -> int:
    """Steps that are taken while it lasts."""
    return math.ceil(FAULTS[fault].beside / PACE)


def steps_for(planned: Sequence[Planned]) -> int:
    """Steps of a run that is hit so: two checkpoints before the first, room to recover from the last."""
    return max(LEAST_STEPS, 4 * EVERY + sum(STEPS_A_HIT + steps_beside(one.fault) for one in planned))


def account(record: Path, hits: Sequence[Hit]) -> None:
    """What each cost, by what the ranks recorded until the next."""
    for hit, before in zip(hits, [*(one.moment for one in hits[1:]), float("inf")], strict=True):
        hit.redone = redone(record, hit.moment, before)
        hit.seconds_lost = seconds_lost(record, hit.moment, before)


def _recovers(command: Command, scene: Scene, hit: Hit, known: set[Path]) -> None:
    """Wait for a checkpoint of a step that those who were hit had not reached; `known` are their records."""

    now = scene.step()

    def recovered() -> bool:
        reached = newest_step(known) if FAULTS[hit.fault].restarts else now
        newest = scene.newest()
        return newest is not None and step_of(newest) > reached

    command.wait(recovered, f"a new checkpoint after {hit.fault!r} at step {hit.step}")
    hit.recovered = True


def hit_again(
    around: Around,
    planned: Sequence[Planned],
    draw: random.Random,
    hits: list[Hit],
    tell: Callable[[Hit, float], None],
) -> None:
    """Hit the run until all faults have come, or its end is too near to recover from another.

    Args:
        hits: gets each fault when it comes; the last has not recovered if this raises.
        tell: called after each with the seconds until the run had recovered.
    """
    command = around.command
    scene = command.scene(draw)
    room = command.cfg.train.steps - 2 * EVERY

    def stands() -> bool:
        newest = scene.newest()
        return newest is not None and step_of(newest) >= 2 * EVERY

    command.wait(stands, "the first two checkpoints")
    for one in planned:
        step = scene.step() + one.after
        if step + steps_beside(one.fault) > room:
            return
        command.wait(partial(_reached, scene, step), f"step {step}")
        command.note_descendants()
        known, moment = set(command.record.glob("*.jsonl")), time.time()
        hits.append(Hit(one.fault, moment, scene.step()))
        FAULTS[one.fault].hit(around, scene)
        scene = command.scene(draw)  # of the command that runs now
        _recovers(command, scene, hits[-1], known)
        command.note_descendants()
        tell(hits[-1], time.time() - moment)


def _reached(scene: Scene, step: int) -> bool:
    return scene.step() >= step


@dataclass(frozen=True)
class End:
    """How a run ended."""

    loss: float
    problems: list[str]


def train(steps: int, failures: int) -> dict[str, object]:
    """The run's section of that name."""
    return {"steps": steps, "checkpoint_every": EVERY, "keep_checkpoints": 3, "max_failures": failures}


def _needs(planned: Planned) -> Needs:
    return FAULTS[planned.fault].needs


def soak(
    folder: Path, planned: Sequence[Planned], seed: int, undisturbed: End, tell: Callable[[Hit, float], None]
) -> Soaked:
    """One run with as many of the faults as it has steps for."""
    hits: list[Hit] = []
    with surroundings(_needs(planned[0]), folder, train(steps_for(planned), failures=len(planned))) as around:
        command = around.command
        end = _to_its_end(command, lambda: hit_again(around, planned, random.Random(seed), hits, tell))
    account(command.record, hits)
    problems = [*undisturbed.problems, *end.problems]
    if abs(end.loss - undisturbed.loss) > TOLERANCE:
        problems.append(f"loss {end.loss:.3f}, undisturbed {undisturbed.loss:.3f}")
    return Soaked(command.cfg.train.steps, hits, end.loss, undisturbed.loss, problems)


def _to_its_end(command: Command, while_it_runs: Callable[[], None] = lambda: None) -> End:
    """Give the command, and say what is wrong with what became of it."""
    try:
        command.start()
        while_it_runs()
        command.ends_well()
        losses = curve(command)
        return End(last_loss(losses, len(losses) // LAST_SHARE), problems_at_end(command))
    except (RuntimeError, TimeoutError, AssertionError, ValueError, OSError, psutil.Error) as error:
        return End(float("nan"), [f"{type(error).__name__}: {error}"])


def run(arguments: Arguments, console: Console) -> int:
    """0 when everything was survived."""
    unknown = [name for name in arguments.fault if name not in SOAKED]
    if unknown:
        raise ConfigError(f"--fault {unknown[0]!r} is none of {', '.join(map(repr, SOAKED))}.")
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells of every list that it reads
    planned = plan(arguments.fault or SOAKED, 1 if arguments.quick else arguments.times, arguments.seed)
    scratch = Path(tempfile.mkdtemp(prefix="ito-soak-"))
    runs: list[Soaked] = []
    tell = _Progress(len(planned), console)
    undisturbed: dict[int, End] = {}
    while left := planned[sum(len(one.hits) for one in runs) :]:
        share = list(itertools.takewhile(lambda one: _needs(one) == _needs(left[0]), left))[:HITS_A_RUN]
        steps = steps_for(share)
        if steps not in undisturbed:
            console.print(f"undisturbed: {steps} steps")
            with surroundings("one machine", scratch / f"undisturbed-{steps}", train(steps, failures=0), 0.0) as around:
                undisturbed[steps] = _to_its_end(around.command)
        console.print(f"run {len(runs) + 1}: {_needs(share[0])}, {steps} steps, {len(share)} of {len(left)} faults")
        one = soak(scratch / str(len(runs)), share, arguments.seed + len(runs), undisturbed[steps], tell)
        runs.append(one)
        console.print(
            f"run {len(runs)}: {one.steps} steps, {len(one.hits)} faults, loss {one.loss:.3f}, "
            f"undisturbed {one.undisturbed:.3f}: {'; '.join(one.problems) or 'proven'}",
            soft_wrap=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(each) for each in runs], indent=1), encoding="utf-8")
        if not one.hits:
            break
    console.print(table(runs))
    if any(one.problems for one in runs):
        console.print(f"The runs' folders are in {scratch}.", soft_wrap=True)
        return 1
    shutil.rmtree(scratch)
    return 0


class _Progress:
    """A line after each fault, with the time left."""

    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console, self._made, self._first = total, console, 0, 0.0

    def __call__(self, hit: Hit, seconds: float) -> None:
        self._made += 1
        self._first = self._first or hit.moment
        left = (time.time() - self._first) / self._made * (self._total - self._made)
        self._console.print(
            f"{self._made} of {self._total}: {hit.fault} at step {hit.step}, recovered after {seconds:.0f} s; "
            f"about {left / 60:.0f} min left",
            soft_wrap=True,
        )


def table(runs: Sequence[Soaked]) -> Table:
    """Fault by fault."""
    found = Table("fault", "tried", "survived", "steps redone", "seconds lost: median", "most", box=None)
    for name in SOAKED:
        mine = [(hit, not one.problems) for one in runs for hit in one.hits if hit.fault == name]
        if not mine:
            continue
        recovered = [hit for hit, _ in mine if hit.recovered]
        seconds = [hit.seconds_lost for hit in recovered]
        found.add_row(
            name,
            str(len(mine)),
            str(sum(proven and hit.recovered for hit, proven in mine)),
            spread([float(hit.redone) for hit in recovered], 0) if recovered else "",
            f"{statistics.median(seconds):.1f}" if recovered else "",
            f"{max(seconds):.1f}" if recovered else "",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.soak", description=__doc__, args=arguments)
    return exit_code(lambda: run(parsed, Console(highlight=False, width=140)))


if __name__ == "__main__":
    sys.exit(main())
