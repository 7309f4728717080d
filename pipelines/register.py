"""Register an exported SentenceTransformer folder in an MLflow model registry.

    python -m pipelines.register --folder runs/demo/export/sentence_transformer --tracking-uri sqlite:///mlflow.db

The folder must hold nothing but the two towers, and must encode like the trained model to 1e-5: the reference file that
training wrote beside it, <folder>.reference.safetensors, is what it is compared with, in a process of its own. Then the
alias moves to the new version, and anyone may use it:

    mlflow.pyfunc.load_model("models:/ito-dual-encoder@champion").predict(table)      # columns: text, image
    SentenceTransformer(folder)                                                       # or the folder as it is
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from ito_ray.errors import ExportError
from pipelines.command import console, exit_code


@dataclass(frozen=True)
class Arguments:
    """What to register where."""

    folder: Path
    """The exported SentenceTransformer folder."""
    tracking_uri: str
    """MLflow server, or sqlite:///path/to/mlflow.db."""
    name: str = "ito-dual-encoder"
    """Registered model; created when missing."""
    alias: str = "champion"
    """Moves to the new version."""
    experiment: str = "ito"
    """Experiment that shows the logged model; created when missing."""
    reference: Path | None = None
    """What the trained model encoded; default: <folder>.reference.safetensors beside the folder."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the version, e.g. --tags dataset cc12m owner vision-team."""


def run(arguments: Arguments, console: Console) -> None:
    """Check, compare, register; prints where the model is now."""
    # Imported here, so that --help and a wrong option answer at once.
    from ito_ray.export.parity import Reference, reference_path, verify
    from ito_ray.tracking.registry import register
    from ito_ray.tracking.run import resolve_store

    start = time.perf_counter()
    if not (arguments.folder / "modules.json").is_file():
        raise ExportError(
            f"--folder {arguments.folder} is not a SentenceTransformer folder (it has no modules.json): give the one "
            "that training exported."
        )
    reference = Reference.load(arguments.reference or reference_path(arguments.folder))
    verified = verify(arguments.folder, reference)
    console.print(
        f"checked: two towers, no pickle; largest difference to the trained model {verified.max_abs_difference:.2g} "
        f"({time.perf_counter() - start:.0f} s)"
    )
    registered = register(
        verified,
        store=resolve_store(arguments.tracking_uri, "."),
        experiment=arguments.experiment,
        model_name=arguments.name,
        alias=arguments.alias,
        tags=arguments.tags,
    )
    console.print(f"registered: {registered.uri}, version {registered.version}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when registered, 2 when something that the user can mend is wrong."""
    parsed = tyro.cli(Arguments, prog="python -m pipelines.register", description=__doc__, args=arguments)
    return exit_code(lambda: run(parsed, console()))


if __name__ == "__main__":
    sys.exit(main())
