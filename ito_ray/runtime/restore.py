"""Before training: see that copies of checkpoints can be written, and bring back what the run's folder has lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.runtime import snapshot, trainer
from ito_ray.runtime.nodes import RUNTIME_RESOURCES
from ito_ray.training.manifest import NAME as MANIFEST
from ito_ray.training.stored import TOKENIZER, Copies, open_copies


def restore(cfg: Config, tell: trainer.Tell) -> None:
    """Fetch the newest good copy, if it is newer than the newest good checkpoint of the run's folder.

    Whatever trains next then finds it there as if it had never been lost.

    Raises:
        ConfigError: `train.checkpoint_store` cannot be written or read.
    """
    copies, run = open_copies(cfg), Path(cfg.output).absolute() / cfg.name
    if copies is None:
        return
    if RUNTIME_RESOURCES in Path(copies.root).parts:
        raise ConfigError(
            f"train.checkpoint_store={copies.address} is in the job's copy of the working folder, which Ray deletes: "
            "give an absolute path."
        )
    newest = trainer.latest_checkpoint(cfg, tell)
    try:
        copies.require_writable()
        _tokenizer(copies, run, tell)
        _checkpoint(copies, run, newest, tell)
    except OSError as error:
        raise ConfigError(
            f"train.checkpoint_store={cfg.train.checkpoint_store} cannot be written and read: {error}. Check address, "
            "credentials and disk, or leave the field empty to train without copies."
        ) from error


def _tokenizer(copies: Copies, run: Path, tell: trainer.Tell) -> None:
    """The same words must have the same numbers."""
    if (run / "tokenizer").is_dir() or not copies.has_tokenizer():
        return
    partial = run / f".{TOKENIZER}"
    if wrong := copies.get(TOKENIZER, partial):
        tell(f"the copy of the tokenizer in {copies.address} is damaged ({wrong}): making it anew")
        shutil.rmtree(partial)
        return
    (partial / f"{MANIFEST}.json").unlink()  # the copy's, and no file of a tokenizer
    partial.replace(run / "tokenizer")


def _checkpoint(copies: Copies, run: Path, newest: Path | None, tell: trainer.Tell) -> None:
    for partial in run.glob(".step-*"):  # a kill left them
        shutil.rmtree(partial)
    for name in copies.whole():
        if newest is not None and name <= newest.name:
            return
        partial = run / f".{name}"
        if wrong := copies.get(name, partial):
            shutil.rmtree(partial)
            tell(f"the copy {name} in {copies.address} is damaged ({wrong}): trying the one before it")
            continue
        shutil.rmtree(run / name, ignore_errors=True)  # a kill left half of it, or it is not on the list
        partial.replace(run / name)
        snapshot.add(run, name)
        tell(f"{name} was brought back from {copies.address}, to go on from it; another --name trains afresh")
        return
