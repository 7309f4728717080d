"""Standard output and error that cannot end a command, whatever they are connected to, and that never show a secret."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from ito_ray.redact import redact

_PLAIN = {"▸": ">", "✓": "+", "✗": "x", "→": "->", "…": "...", "·": "-", "–": "-", "×": "x", "“": '"', "”": '"'}
"""What stands for our own marks where the encoding has none."""
_READABLE = "ito.readable"


@contextmanager
def safe_streams() -> Iterator[None]:
    """Within, sys.stdout and sys.stderr take any text, closed or not, in any encoding, and hide secrets in it."""
    codecs.register_error(_READABLE, _readable)
    _open_closed()
    before = sys.stdout, sys.stderr
    streams = [_Stream(stream) for stream in before]
    sys.stdout, sys.stderr = cast(list[TextIO], streams)
    try:
        yield
    finally:
        for stream in streams:
            stream.release()
        sys.stdout, sys.stderr = before


class _Stream(io.TextIOBase):
    """Writes to `inner`. Who reads may leave: the rest goes nowhere, since the work matters and not who watches."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner
        self._errors = inner.errors or "strict"
        self._reconfigure(_READABLE)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._inner.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._inner.errors

    @property
    def buffer(self) -> object:
        return self._inner.buffer

    def write(self, text: str) -> int:
        with self._anybody_reading():
            self._inner.write(redact(text))
        return len(text)

    def flush(self) -> None:
        with self._anybody_reading():
            self._inner.flush()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def fileno(self) -> int:
        return self._inner.fileno()

    def writable(self) -> bool:
        return True

    def release(self) -> None:
        """Leave `inner` as it was."""
        self.flush()
        self._reconfigure(self._errors)

    def _reconfigure(self, errors: str) -> None:
        if isinstance(self._inner, io.TextIOWrapper):
            with self._anybody_reading():
                self._inner.reconfigure(errors=errors)

    @contextmanager
    def _anybody_reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a pipe without a reader, a full disk, a terminal that is gone
            with suppress(OSError, ValueError):
                os.dup2(_nowhere(), self._inner.fileno())
            if not isinstance(error, BrokenPipeError) and self._inner is not sys.__stderr__:
                with suppress(OSError):
                    print(f"The output cannot be written any more: {error.strerror}.", file=sys.stderr)


def _open_closed() -> None:
    """Closed streams (`>&-`) lead nowhere; else the next file that is opened would take their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _nowhere()  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _nowhere() -> int:
    return os.open(os.devnull, os.O_RDWR)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """A codec's error handler: our marks in ASCII, anything else as its number, e.g. \\u732b."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in wrong), error.end
