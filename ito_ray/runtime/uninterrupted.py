"""Work of a task that must not be cut off half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold an interrupt back until the block has ended.

    Ray cancels a task by interrupting its process, and gives that process to other tasks later. Where an import of
    torch was cut off, none can succeed again in it: every later task would fail (docs/log.md).

    Raises:
        KeyboardInterrupt: at the end of the block, when one came within it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # interrupts go to the main thread
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
