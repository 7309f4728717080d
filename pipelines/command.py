"""How every command ends: nothing but a sentence for what a user can mend, and a true exit code."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from ito_ray.errors import ItoError
from ito_ray.redact import remember
from pipelines.streams import safe_streams

LOG_WIDTH = 140
"""Columns where there is no terminal, as in the log of a job; rich would break lines at 80."""


def console() -> Console:
    """What commands print to: as wide as the terminal, or wide enough for a log.

    Texts are printed as they are: `[v2]` in a path is no markup, `:cat:` no emoji. Styles are given as such.
    """
    width = None if sys.stdout.isatty() else LOG_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def exit_code(run: Callable[[], object], *, stopped: str = "Stopped.") -> int:
    """The number that `run` returns, 0 for anything else; 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.

    1 for a bug. Its traceback is printed as Python would, without passwords and tokens: other libraries' errors quote
    addresses. A reader of the output who leaves, as `head` does, changes nothing.

    Args:
        run: the whole command, from reading its options on.
        stopped: printed after Ctrl-C or SIGTERM: what the same command would do again.
    """
    for word in sys.argv:
        remember(word)
    with safe_streams():
        return _exit_code(run, stopped)


def _exit_code(run: Callable[[], object], stopped: str) -> int:
    terminated = threading.Event()
    try:
        with _sigterm_as_interrupt(terminated):
            code = run()
        return code if isinstance(code, int) else 0
    except ItoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated.is_set() else signal.SIGINT)
    except Exception:
        print(traceback.format_exc(), end="", file=sys.stderr)
        return 1


@contextmanager
def _sigterm_as_interrupt(terminated: threading.Event) -> Iterator[None]:
    """A scheduler or `ray job stop` wants what Ctrl-C wants; a second SIGTERM must not cut off what the first began.

    Args:
        terminated: set by SIGTERM. The exception cannot tell: Ray, waiting, raises a KeyboardInterrupt of its own.
    """

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminated.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
