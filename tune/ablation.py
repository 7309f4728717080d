"""The paper's ablation: `python -m tune.ablation run icons --data demo/ablation/icons`, then `report`.

It stands here and not in pipelines/, because it is a sweep, and pipelines may not import tune.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ito_ray.errors import ConfigError
from pipelines.command import console, exit_code
from tune.axes import parse_fixed
from tune.options import require_optuna
from tune.studies import STUDIES, Study, study

DESCRIPTION = """Run the paper's ablation on equal data with an equal recipe, several seeds each, and write its page.

  python -m tune.ablation run icons --data demo/ablation/icons
  python -m tune.ablation report demo/runs/icons

The same command again goes on where it was stopped. docs/results.md has what was found."""


@dataclass(frozen=True)
class Run:
    """Train every arm with every seed, and measure each once on the test sets."""

    study: Annotated[str, tyro.conf.Positional]
    """A function of tune/studies.py."""
    data: Path
    """Its folder of shards; what is missing is refused with the command that makes it."""
    output: Path = Path("demo/runs")
    """The study's folder is made in it, and the MLflow store unless --fix tracking.uri=… names another."""
    seeds: int = 3
    """Of each arm; may grow when the study goes on."""
    arms: tuple[str, ...] = ()
    """These alone for now; all when there is none."""
    fix: tuple[str, ...] = field(default=())
    """Change a field of all arms: train.steps=1600 optim.warmup_steps=400."""
    concurrent: int = 0
    """Trials side by side; 0 = as many as fit. With --fix train.wait_minutes=15, as many as fit when the cluster has
    grown: it is asked for room for so many."""
    data_cpus: float = 0.5
    """CPUs that each trial leaves to Ray Data."""


@dataclass(frozen=True)
class Report:
    """Write tables and figures of studies into a page, between marks that stand in it; the words around them stay."""

    studies: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of studies, <output>/<study>, or their books."""
    page: Path = Path("docs/results.md")
    """Has the lines `<!-- study NAME -->` and `<!-- end of NAME -->` for each."""
    images: Path = Path("docs/images")
    """Folder for the figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    resume = f"Stopped. To resume: python -m tune.ablation {shlex.join(words)}"
    return exit_code(lambda: _do(words), stopped=resume)


def _do(words: Sequence[str]) -> None:
    description = f"{DESCRIPTION}\n\nStudies: {', '.join(STUDIES)}."
    command = tyro.extras.subcommand_cli_from_dict(
        {"run": Run, "report": Report}, prog="python -m tune.ablation", description=description, args=words
    )
    if isinstance(command, Run):
        _run(command, console())
    else:
        from tune.results_page import write_page  # matplotlib and scipy take a second that --help should not

        for path in command.studies:
            print(write_page(path, command.page, command.images))


def _run(command: Run, out: Console) -> None:
    chosen = checked(command)
    from ito_ray.runtime.console import Stages  # torch, ray, mlflow and optuna take seconds that --help should not
    from tune import study_run

    size = study_run.Size(command.seeds, command.arms or tuple(chosen.arms), command.concurrent, command.data_cpus)
    folder = study_run.run(chosen, command.output, size, Stages(out, 1 + command.seeds))
    out.print(f"Next: python -m tune.ablation report {folder}", soft_wrap=True)


def checked(command: Run) -> Study:
    """The study as the command line changes it.

    Raises:
        ConfigError: naming the option.
        DataError: data that are not there.
    """
    require_optuna()
    for name, least in (("seeds", 1), ("concurrent", 0), ("data_cpus", 0)):
        if (value := getattr(command, name)) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}: give {least} or more.")
    chosen = study(command.study, command.data).changed(dict(map(parse_fixed, command.fix)))
    if unknown := [arm for arm in command.arms if arm not in chosen.arms]:
        raise ConfigError(f"--arms {unknown[0]}: there are {', '.join(chosen.arms)}.")
    chosen.require_data(command.data)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
