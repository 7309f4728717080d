"""A cancelled task leaves no half import behind, which would make every later task of its process fail."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import threading
import time

import pytest

from ito_ray.runtime.uninterrupted import uninterrupted

CHILD = """
import _thread, sys
from contextlib import nullcontext
from ito_ray.runtime.uninterrupted import uninterrupted

class Canceller:
    def find_spec(self, name, path, target=None):
        if name == "torch.xpu.graphs":  # late in torch's own import
            sys.meta_path.remove(self)
            _thread.interrupt_main()

sys.meta_path.insert(0, Canceller())
try:
    with {guard}():
        import torch
except KeyboardInterrupt:
    print("cancelled")
import torch
print(torch.nn.__name__)
"""


def test_an_interrupt_comes_when_the_block_has_ended() -> None:
    before, done = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        _thread.interrupt_main()
        time.sleep(0.01)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is before
    with uninterrupted():
        pass


def test_an_error_within_is_the_one_that_is_seen() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ImportError, match="absent"), uninterrupted():
        raise ImportError("absent")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_not_interrupted_anyway() -> None:
    done: list[bool] = []

    def work() -> None:
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.slow
@pytest.mark.parametrize(("guard", "code"), [("uninterrupted", 0), ("nullcontext", 1)])
def test_torch_can_be_imported_after_a_cancelled_task(guard: str, code: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(guard=guard)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == code, child.stderr
    assert ("partially initialized" in child.stderr) == (guard == "nullcontext"), child.stderr
    assert child.stdout.split() == (["cancelled", "torch.nn"] if code == 0 else ["cancelled"])
