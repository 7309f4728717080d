"""How every command ends: nothing but a sentence for what a user can mend, and a true exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from ito_ray.errors import ItoError
from ito_ray.redact import redact


def exit_code(run: Callable[[], object], *, stopped: str = "Stopped.") -> int:
    """The number that `run` returns, 0 for anything else; 2 for a user's mistake, 130 for Ctrl-C, 1 for a bug.

    A bug's traceback is printed as Python would, without passwords and tokens: other libraries' errors quote addresses.

    Args:
        stopped: printed after Ctrl-C: what the same command would do again.
    """
    try:
        code = run()
        return code if isinstance(code, int) else 0
    except ItoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1
