"""Copies of checkpoints go out by one thread of the driver while training goes on; no step waits for them."""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path

from ito_ray.config.schema import Config
from ito_ray.redact import redact
from ito_ray.runtime.shelf import hold
from ito_ray.runtime.trainer import Tell
from ito_ray.training.manifest import damage, write_manifest
from ito_ray.training.stored import TOKENIZER, Copies, open_copies

HOLDING = ".copying"
"""Folder in the run's, where what is on its way is linked: Ray Train may remove the original meanwhile."""
RETRY_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for a store that takes nothing."""


class Uploads:
    """The way of a run's checkpoints to `train.checkpoint_store`; does nothing where that is empty.

    Only the newest is on its way: where checkpoints come faster than the store takes them, some are passed over.
    """

    def __init__(self, cfg: Config, tell: Tell, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._run, self._keep = Path(cfg.output).absolute() / cfg.name, cfg.train.keep_checkpoints
        self._tell, self._retry_seconds = tell, retry_seconds
        self._changed = threading.Condition()
        self._offered: Path | None = None
        self._waiting: Path | None = None
        """The newest that has not arrived."""
        self._error = ""
        self._closed = False
        self._moved = 0.0
        self._copies = open_copies(cfg)
        if self._copies is not None:
            worker = threading.Thread(target=self._work, args=(self._copies,), name="ito-copies", daemon=True)
            worker.start()

    def offer(self, checkpoint: Path) -> None:
        """Copy this one as soon as may be, unless a newer one comes; nobody waits."""
        with self._changed:
            if self._copies is not None and checkpoint != self._offered:
                self._offered = self._waiting = checkpoint
                self._changed.notify_all()

    def finish(self, seconds: float = math.inf) -> bool:
        """Wait until the newest has arrived, as long as anything moves; whether it has.

        Args:
            seconds: at most so long, whatever moves.
        """
        begun = time.monotonic()
        with self._changed:
            self._closed = True
            self._changed.notify_all()  # not after the pause
            while self._waiting is not None:
                ends = min(begun + seconds, max(begun, self._moved) + PATIENCE_SECONDS)
                if (left := ends - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
            return True

    def complaint(self) -> str:
        """What is not copied, why, and what to do; "" if all is."""
        with self._changed:
            waiting = self._waiting
        if self._copies is None or waiting is None:
            return ""
        return (
            f"{self._copies.address} has no copy of {waiting.name} ({self._error or 'it takes longer'}), which "
            f"lies in {self._run} alone. When the store answers again run the same command: it copies it."
        )

    def _work(self, copies: Copies) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait(pause)
                self._changed.wait_for(lambda: self._waiting is not None)
                checkpoint = self._waiting
            assert checkpoint is not None
            try:
                self._copy(copies, checkpoint)
            except Exception as error:  # of a disk or a store: it may pass, and training must not end
                if checkpoint.is_dir():  # else Ray Train has removed it, and a newer one comes
                    self._failed(copies, error)
                    pause = min(self._retry_seconds, 1.0) if self._closed else self._retry_seconds
                    continue
            else:
                if self._error:
                    self._tell(f"{copies.address} takes copies again")
                self._error = ""
            pause = 0.0
            with self._changed:
                if self._waiting == checkpoint:
                    self._waiting = None
                self._changed.notify_all()

    def _failed(self, copies: Copies, error: Exception) -> None:
        said, self._error = self._error, redact(f"{type(error).__name__}: {error}".splitlines()[0])
        if not said:
            self._tell(
                f"no copy of a checkpoint can be made in {copies.address} ({self._error}): training goes on, trying "
                f"again every {self._retry_seconds:g} s with the newest"
            )

    def _copy(self, copies: Copies, checkpoint: Path) -> None:
        holding = self._run / HOLDING
        shutil.rmtree(holding, ignore_errors=True)
        try:
            hold(checkpoint, holding)
            if wrong := damage(holding / checkpoint.name):
                self._tell(f"checkpoint {checkpoint.name} is damaged ({wrong}) and not copied")
                return
            if (self._run / "tokenizer").is_dir():
                hold(self._run / "tokenizer", holding)
                write_manifest(sorted((holding / "tokenizer").iterdir()))
                copies.put(holding / "tokenizer", TOKENIZER, self._note)
            copies.put(holding / checkpoint.name, checkpoint.name, self._note)
            copies.prune(checkpoint.name, self._keep)
        finally:
            shutil.rmtree(holding, ignore_errors=True)

    def _note(self) -> None:
        self._moved = time.monotonic()
