"""The main job: `python -m pipelines.train --recipe icons_cpu`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ito_ray.config.load import parse, to_yaml
from pipelines.command import console, exit_code

DESCRIPTION = """Train, export, evaluate and register an image-text encoder.

Fields of the recipe are changed one by one, or with a YAML file (--config). For example:

  python -m pipelines.train --recipe icons_cpu --train.steps 200 --method.fusion-weight 4 --name lambda4

Running the same command again resumes from the newest checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the job; the exit code."""
    return exit_code(
        lambda: _run(arguments), stopped="Stopped. The same command again resumes from the newest checkpoint."
    )


def _run(arguments: Sequence[str] | None) -> None:
    cfg, options = parse(arguments, prog="python -m pipelines.train", description=DESCRIPTION)
    if options.print_config:
        print(to_yaml(cfg), end="")
        return
    from ito_ray.runtime import job  # torch, ray and mlflow take seconds that --help should not
    from ito_ray.runtime.console import Stages

    out = console()
    outcome = job.run(cfg, recipe=options.recipe, stages=Stages(out, job.STAGES), verbose=options.verbose)
    out.print(f"Encoder  {outcome.encoder}", soft_wrap=True)
    out.print(f"Gallery  {outcome.page}", soft_wrap=True)
    out.print(f"Next: mlflow ui --backend-store-uri {outcome.run.store.address}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
