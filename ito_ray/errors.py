"""What a user can cause. Everything else is a bug and keeps its traceback.

A message is one or two sentences: the field or file, the value received, what is allowed, what to do.
The pipelines print it without a traceback and exit with code 2.
"""

import difflib
from collections.abc import Iterable

from ito_ray.redact import redact


class ItoError(Exception):
    """Base of all errors that a user can cause and mend; its message never shows a password or token."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ConfigError(ItoError, ValueError):
    """A configuration that cannot run: wrong type, unknown key, or parts that do not fit together."""


class DataError(ItoError, ValueError):
    """Shards that cannot be read, or too many bad samples in them."""


class UnreadableError(DataError):
    """A disk or store that went on failing; it may answer later."""


class ExportError(ItoError, ValueError):
    """A model that must not leave: parity broken, fusion or pickle inside, unsupported towers."""


class ClusterError(ItoError, RuntimeError):
    """The Ray cluster cannot run what the configuration asks for."""


class TrackingError(ItoError, RuntimeError):
    """The tracking server or the model registry does not have what was asked for."""


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: " Did you mean …?", or "" where none is near.

    Args:
        cutoff: how alike the two must be at least, 0…1.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]}?" if near else ""
