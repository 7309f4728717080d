"""A sweep: `python -m tune.search --space ito_weights --recipe icons_cpu`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ito_ray.config.load import parse_with, to_yaml
from pipelines.command import console, exit_code
from tune.axes import Space
from tune.options import SearchOptions, check, space_of
from tune.spaces import SPACES

DESCRIPTION = """Search the settings of a recipe with Ray Tune and Optuna, and confirm the best on fresh seeds.

  python -m tune.search --space ito_weights --recipe icons_cpu --points 16 --train.steps 200
  python -m tune.search --space ito_weights --print-space

Running the same command again resumes the sweep. docs/sweeps.md tells the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the sweep; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    resume = f"Stopped. To resume: python -m tune.search {shlex.join(words)}"
    return exit_code(lambda: _run(words), stopped=resume)


def _run(words: Sequence[str]) -> None:
    description = f"{DESCRIPTION}\n\nSpaces: {', '.join(SPACES)}."
    cfg, options = parse_with(SearchOptions, words, prog="python -m tune.search", description=description)
    if options.print_config:
        print(to_yaml(cfg), end="")
        return
    space = space_of(options, cfg)
    out = console()
    if options.print_space:
        space.check(cfg)
        _print_space(space, out)
        return
    check(options, cfg)
    from ito_ray.runtime.console import Stages  # torch, ray, mlflow and optuna take seconds that --help should not
    from tune import session

    result = session.run(cfg, options, space, Stages(out, session.STAGES))
    out.print(f"Report   {result.report}", soft_wrap=True)
    if result.registered:
        out.print(f"Winner   {result.registered}", soft_wrap=True)
    out.print(f"Next: mlflow ui --backend-store-uri {result.tracked.store.address}", soft_wrap=True)


def _print_space(space: Space, out: Console) -> None:
    table = Table("field", "values", "", title=space.name, title_justify="left", box=None, pad_edge=False)
    for row in space.rows():
        table.add_row(*row)
    out.print(table)


if __name__ == "__main__":
    sys.exit(main())
