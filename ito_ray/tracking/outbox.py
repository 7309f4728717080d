"""What a run has to tell MLflow, delivered in order by one thread; while the server is away it waits on disk.

Each item is written to a journal in the run's folder before anything else, so neither a server that is away nor a kill
loses it, and nobody who logs ever waits. A process that continues the run delivers what the one before it left.
Delivering twice does no harm: a curve keeps its first value of a step, and a file replaces itself. A file that is there
no more is passed over with a warning: nothing behind it would ever arrive.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ito_ray import strict_json
from ito_ray.errors import TrackingError
from ito_ray.redact import redact
from ito_ray.tracking.run import Status, TrackedRun

JOURNAL = "tracking.jsonl"
RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for a server that is away."""
POLL_SECONDS = 0.1
STEPS_PER_CALL = 100

_log = logging.getLogger(__name__)

Item = dict[str, Any]
"""{"metrics", "step", "time"}, {"file", "folder"} or {"status"}."""


class Outbox:
    """The way of a run's metrics and files to MLflow."""

    def __init__(self, run: TrackedRun, journal: Path, *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Start delivering, first what is in the journal.

        Args:
            run: where to.
            journal: a JSON line an item; is there only while something waits.
            retry_seconds: pause after a failed delivery.
        """
        # MLflow would try one call for minutes and not notice that the server is back; we try again ourselves.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        self._run, self._journal, self._retry_seconds = run, journal, retry_seconds
        self._changed = threading.Condition()
        self._items: deque[Item] = deque(item for item in _read(journal) if "status" not in item)  # it goes on
        self._error = ""
        threading.Thread(target=self._deliver, name="ito-outbox", daemon=True).start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        values = {name: float(value) for name, value in metrics.items()}
        self._put({"metrics": values, "step": step, "time": int(time.time() * 1000)})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file, which must stay where it is, in the run's artifacts below `folder`."""
        self._put({"file": str(path.absolute()), "folder": folder})

    def finish(self, status: Status = "FINISHED", *, patience: float = PATIENCE_SECONDS) -> bool:
        """Mark the run as ended, after all else; whether everything has arrived within `patience` seconds."""
        self._put({"status": status})
        with self._changed:
            return self._changed.wait_for(lambda: not self._items, patience)

    def require_delivered(self, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until everything has arrived, as long as it takes while nothing fails.

        Raises:
            TrackingError: the server is still away after `patience` seconds; says what waits where, and why.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            while not self._changed.wait_for(lambda: not self._items, POLL_SECONDS):
                if self._error and time.monotonic() > deadline:
                    break
            else:
                return
        raise TrackingError(self.complaint())

    def complaint(self) -> str:
        """What could not be delivered, why, and how to deliver it."""
        with self._changed:
            steps = sum("metrics" in item for item in self._items)
            files = sum("file" in item for item in self._items)
        return (
            f"{self._run.store.address} did not take {steps} entries of metrics and {files} files "
            f"({self._error or 'no answer'}); they are kept in {self._journal}. When it answers again run the same "
            "command: it delivers them."
        )

    @property
    def trouble(self) -> str:
        """Why nothing is delivered at the moment; empty if all is well."""
        return self._error

    def _put(self, item: Item) -> None:
        with self._changed:
            with suppress(OSError):  # a full disk: the item still waits in memory
                self._journal.parent.mkdir(parents=True, exist_ok=True)
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(
                        "\n" + strict_json.dumps(item) + "\n"
                    )  # a kill or a full disk may have cut the line before
            self._items.append(item)
            self._changed.notify_all()

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items))
                count = next((n for n, item in enumerate(self._items) if "metrics" not in item), len(self._items))
                batch = [self._items[n] for n in range(min(count, STEPS_PER_CALL) or 1)]
            try:
                self._send(batch)
            except Exception as error:  # of HTTP, of a database, of MLflow: it may pass, and training must not end
                cause = error.__cause__ or error  # the complaint has the store's address already
                self._error = redact(f"{type(cause).__name__}: {cause}".splitlines()[0])
                time.sleep(self._retry_seconds)
                continue
            with self._changed:
                self._error = ""
                for _ in batch:
                    self._items.popleft()
                if not self._items:
                    with suppress(OSError):
                        self._journal.unlink(missing_ok=True)
                self._changed.notify_all()
            if "status" in batch[0]:
                return

    def _send(self, batch: list[Item]) -> None:
        first = batch[0]
        if "metrics" in first:
            self._run.log_steps([(item["step"], item["time"], item["metrics"]) for item in batch])
        elif "file" in first:
            self._send_file(Path(first["file"]), first["folder"])
        else:
            self._run.finish(first["status"])

    def _send_file(self, path: Path, folder: str) -> None:
        try:
            path.open("rb").close()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            _log.warning("%s does not get %s: %s", self._run.store.address, path, error.strerror)
        else:
            self._run.log_file(path, folder)


def _read(journal: Path) -> list[Item]:
    """The items of a journal; a kill or a full disk may have cut some short, which is told."""
    if not journal.is_file():
        return []
    found = []
    for line in filter(None, journal.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            item = {**json.loads(line)}
            if "metrics" in item:
                item["metrics"] = strict_json.numbers(item["metrics"])
            found.append(item)
        except (ValueError, TypeError, AttributeError):
            _log.warning("%s: a line was cut short when it was written, and what it told is lost.", journal)
    return found
