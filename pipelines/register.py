"""The model registry: register, promote, rollback, list, unlock."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ito_ray.config.gate import Gate
from ito_ray.config.schema import Config
from ito_ray.errors import ExportError
from pipelines.command import console, exit_code
from pipelines.evaluate import Measured

if TYPE_CHECKING:
    from ito_ray.tracking.aliases import Registry
    from ito_ray.tracking.promote import Outcome

DESCRIPTION = """The registry of encoders, in an MLflow server or SQLite file (--tracking-uri sqlite:///…/mlflow.db).

Aliases: `candidate` is the newest version, `champion` the one that people load, `previous` the champion before it.

  python -m pipelines.register register --folder RUN/sentence_transformer --tracking-uri URI
  python -m pipelines.register promote --tracking-uri URI --recipe icons_cpu
  python -m pipelines.register rollback --tracking-uri URI --reason 'worse on mobile uploads'
  python -m pipelines.register list --tracking-uri URI"""
REFUSED = 1
"""Exit code of a candidate that did not pass."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    tracking_uri: str = ""
    """MLflow server, or sqlite:///path/to/mlflow.db; default: MLFLOW_TRACKING_URI, else the SQLite file in runs/mlflow.
    A token belongs into MLFLOW_TRACKING_TOKEN."""
    name: str = "ito-dual-encoder"
    """Registered model."""

    def registry(self) -> Registry:
        """The model in an existing store."""
        from ito_ray.tracking.address import find_store
        from ito_ray.tracking.aliases import Registry
        from ito_ray.tracking.run import open_client

        store = find_store(self.tracking_uri, Config().output)
        return Registry(open_client(store), store, self.name)


@dataclass(frozen=True, kw_only=True)
class Register(_Model):
    """Register an exported SentenceTransformer folder.

    The folder must hold nothing but the two towers, and must encode like the trained model to 1e-5: the reference file
    that training wrote beside it, <folder>.reference.safetensors, is what it is compared with, in a process of its own.
    The new version becomes `candidate`; the first one of a model becomes `champion`, since there is nothing to beat.
    """

    folder: Path
    """The exported SentenceTransformer folder."""
    alias: str = "candidate"
    """Another alias that moves to the new version as well."""
    experiment: str = "ito"
    """Experiment that shows the logged model; created when missing."""
    reference: Path | None = None
    """What the trained model encoded; default: <folder>.reference.safetensors beside the folder."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the version, e.g. --tags dataset cc12m owner vision-team."""

    def run(self, console: Console) -> int:
        """Check, compare, register; prints where the model is now."""
        # Imported here and below, so that --help and a wrong option answer at once.
        from ito_ray.export.parity import Reference, reference_path, verify
        from ito_ray.tracking.registry import find, register, require_registrable
        from ito_ray.tracking.run import resolve_store

        start = time.perf_counter()
        if not (self.folder / "modules.json").is_file():
            raise ExportError(
                f"--folder {self.folder} is not a SentenceTransformer folder (it has no modules.json): give the one "
                "that training exported."
            )
        store = resolve_store(self.tracking_uri, Config().output)
        require_registrable(
            store, experiment=self.experiment, model_name=self.name, alias=self.alias, run=self.folder.name
        )
        reference = Reference.load(self.reference or reference_path(self.folder))
        verified = verify(self.folder, reference)
        console.print(
            f"checked: two towers, no pickle; largest difference to the trained model "
            f"{verified.max_abs_difference:.2g} ({time.perf_counter() - start:.0f} s)",
            soft_wrap=True,
        )
        if known := find(verified.digest, store=store, model_name=self.name):
            console.print(f"registered before: {known.uri}, version {known.version}", soft_wrap=True)
            return 0
        made = register(
            verified,
            store=store,
            experiment=self.experiment,
            model_name=self.name,
            alias=self.alias,
            tags=self.tags,
        )
        console.print(f"registered: {made.uri}, version {made.version}", soft_wrap=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class Promote(_Model, Measured):
    """Let the gate decide whether the candidate becomes champion.

    Measures candidate and champion on the same data and prints every criterion with its numbers. Exit code 0: promoted;
    1: refused, with a sentence for each criterion that failed. The decision is kept in MLflow, as a run with
    decision.json.
    """

    version: str = ""
    """The version to promote; without it, the candidate."""
    gate: Gate = field(default_factory=Gate)

    def run(self, console: Console) -> int:
        """Measure, decide, print."""
        from transformers.utils import logging

        from ito_ray.tracking.promote import promote

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        outcome = promote(
            self.registry(),
            self.config(),
            self.gate,
            version=self.version,
            limit=self.limit,
            say=lambda text: console.print(f"    {text}"),
        )
        console.print(_criteria(outcome))
        for sentence in outcome.refusals:
            console.print(f"refused: {sentence}", soft_wrap=True)
        if outcome.promoted:
            console.print(f"promoted: models:/{self.name}@champion is version {outcome.version}", soft_wrap=True)
        console.print(f"The decision: MLflow run {outcome.run_id}, decision.json", soft_wrap=True)
        return 0 if outcome.promoted else REFUSED


@dataclass(frozen=True, kw_only=True)
class Rollback(_Model):
    """Make the previous champion the champion again."""

    reason: str
    """Why; kept in the tag ito.rolled_back of the version that is taken back."""

    def run(self, console: Console) -> int:
        """Move the aliases, print what moved."""
        from ito_ray.tracking.aliases import rollback

        bad, good = rollback(self.registry(), self.reason)
        console.print(f"rolled back: models:/{self.name}@champion is version {good} again, not {bad}", soft_wrap=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class List(_Model):
    """Show the versions with their aliases, tags and headline metrics."""

    def run(self, console: Console) -> int:
        """Print the table."""
        from ito_ray.tracking.versions import overview

        table = Table("version", "aliases", "made", "gate", "run", "from", "metrics", header_style="bold")
        for row in overview(self.registry()):
            table.add_row(*row)
        console.print(table)
        return 0


@dataclass(frozen=True, kw_only=True)
class Unlock(_Model):
    """Remove the lock that a promotion leaves behind when it is killed while it moves the aliases."""

    def run(self, console: Console) -> int:
        """Remove it, say so."""
        from ito_ray.tracking.aliases import unlock

        found = unlock(self.registry())
        console.print(f"{self.name}: {'the lock is removed' if found else 'there was no lock'}")
        return 0


def _criteria(outcome: Outcome) -> Table:
    against = f"against version {outcome.champion}" if outcome.champion else "without a champion"
    table = Table(header_style="bold", title=f"Version {outcome.version} {against}")
    table.add_column("criterion", no_wrap=True)
    for header in ("", "measured", "required"):
        table.add_column(header)
    marks = {True: Text("passed", "green"), False: Text("failed", "red"), None: Text("–")}
    for one in outcome.decision.criteria:
        table.add_row(one.name, marks[one.passed], one.sentence if one.passed is None else one.measured, one.required)
    return table


def _run(arguments: Sequence[str] | None) -> int:
    command: Register | Promote | Rollback | List | Unlock = tyro.extras.subcommand_cli_from_dict(
        {"register": Register, "promote": Promote, "rollback": Rollback, "list": List, "unlock": Unlock},
        prog="python -m pipelines.register",
        description=DESCRIPTION,
        args=arguments,
    )
    return command.run(console())


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when done, 1 when the gate refused, 2 when something that the user can mend is wrong."""
    return exit_code(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
