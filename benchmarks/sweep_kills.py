"""Kill a sweep's driver at random moments, run it to its end, and count what is lost or there twice.

    python -m benchmarks.sweep_kills --kills 10 -- --recipe icons_cpu --space ito_lambda --points 12 --name kills \
        --train.steps 60 --optim.warmup-steps 20 --train.checkpoint-every 20 --output demo/kills

What stands after `--` is the command line of tune.search.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from mlflow import MlflowClient
from rich.console import Console

from ito_ray.config.load import parse_with
from ito_ray.errors import ConfigError
from ito_ray.tracking.run import resolve_store
from pipelines.command import exit_code
from tune.book import Book
from tune.options import SearchOptions, space_of

BOOK = "book.jsonl"


@dataclass(frozen=True)
class Arguments:
    """How often, and when."""

    kills: int = 10
    earliest: float = 5.0
    """Seconds after the start."""
    latest: float = 90.0
    seed: int = 0


def run(arguments: Arguments, words: Sequence[str], console: Console) -> int:
    """0 when every kill was survived."""
    if "--name" not in words:
        raise ConfigError("Give the sweep a --name of its own, so that the kills hit no other.")
    source = random.Random(arguments.seed)
    command = [sys.executable, "-m", "tune.search", *words]
    landed = 0
    for number in range(arguments.kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = source.uniform(arguments.earliest, arguments.latest)
        try:
            code = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            landed += 1
            console.print(f"kill {number + 1}: after {moment:.1f} s")
            time.sleep(2.0)  # Ray's processes notice and leave
            continue
        console.print(f"the sweep had ended with {code} before kill {number + 1}")
        break
    code = subprocess.run(command, check=False).returncode
    problems = [f"exit code {code}"] if code else []
    problems += _problems(words)
    console.print(f"{landed} kills; {'; '.join(problems) or 'every trial once, all ended, one parent run'}")
    return 1 if problems else 0


def _problems(words: Sequence[str]) -> list[str]:
    cfg, options = parse_with(SearchOptions, words, prog="tune.search", description="")
    name = f"{cfg.name}-{space_of(options, cfg).name}"
    from tune.session import sweep_folder

    book = Book(sweep_folder(cfg, space_of(options, cfg)) / BOOK, read_only=True)
    client = MlflowClient(resolve_store(cfg.tracking.uri, cfg.output).uri)
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    query = f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'"
    children = Counter(str(run.info.run_name) for run in client.search_runs([experiment.experiment_id], query))
    found = [f"{len(parents)} parent runs"] if len(parents) != 1 else []
    found += [f"{key} has {count} runs" for key, count in children.items() if count != 1]
    found += [f"{key} has no run" for key in book.trials if key not in children]
    found += [f"{key} is no trial of the book" for key in children if key not in book.trials]
    found += [f"{key} is still open" for key, trial in book.trials.items() if trial.state == "open"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.sweep_kills", description=__doc__, args=given[:cut])
    return exit_code(lambda: run(parsed, given[cut + 1 :], Console(highlight=False)))


if __name__ == "__main__":
    sys.exit(main())
