"""Exit codes are true, and SIGTERM is Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ito_ray.errors import DataError
from ito_ray.runtime.cluster import own_signals
from pipelines.command import LOG_WIDTH, console, exit_code


def _signalled(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)
    raise AssertionError("nothing happened")


def _mistaken() -> None:
    raise DataError("data.train=x: nothing there.")


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: None) == 0 and exit_code(lambda: 1) == 1
    assert exit_code(_mistaken) == 2
    assert capsys.readouterr().err == "error: data.train=x: nothing there.\n"


def test_signals_are_told_apart_and_handlers_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(lambda: _signalled(signal.SIGINT), stopped="Again.") == 130
    assert exit_code(lambda: _signalled(signal.SIGTERM), stopped="Again.") == 143
    assert capsys.readouterr().err == "\nAgain.\n\nAgain.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_disturb_the_ending() -> None:
    ended = []

    def run() -> None:
        try:
            _signalled(signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    assert exit_code(run) == 143 and ended == [True]


def test_sigterm_is_told_whatever_a_library_makes_of_it() -> None:
    """Ray, waiting for a result, raises a KeyboardInterrupt of its own in place of what a handler raised."""

    def run() -> None:
        try:
            _signalled(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    assert exit_code(run) == 143


def test_a_librarys_handlers_do_not_stay() -> None:
    """Ray's exits with the signal's number: as here, the command's code tells which it was, and then ours are back."""

    def library(sent: signal.Signals) -> None:
        with own_signals():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
            _signalled(sent)

    def mine(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, mine)
    try:
        assert exit_code(lambda: library(signal.SIGINT)) == 130
        assert exit_code(lambda: library(signal.SIGTERM)) == 143
        with own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_may_run_it() -> None:
    done = []

    def run() -> None:
        with own_signals():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]


def test_lines_of_a_log_are_not_broken_at_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert console().width == LOG_WIDTH


SAYS = """
import sys
from pipelines.command import console, exit_code
def run():
    console().print("▸ [v2] :cat: → 猫")
    print("again …")
    print("wrong", file=sys.stderr)
    return {code}
sys.exit(exit_code(run))
"""


def _say(redirect: str = "", code: int = 0, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = ["sh", "-c", f'"$0" -c "$1" {redirect}', sys.executable, SAYS.format(code=code)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **variables}, check=False)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "▸ [v2] :cat: → 猫\nagain …\n".encode()),
        ("latin-1", b"> [v2] :cat: -> \\u732b\nagain ...\n"),
        ("ascii", b"> [v2] :cat: -> \\u732b\nagain ...\n"),
    ],
)
def test_any_encoding_takes_any_text(encoding: str, said: bytes) -> None:
    done = _say(PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, b"wrong\n")


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1"])
def test_nobody_need_listen(redirect: str, code: int) -> None:
    """Closed, or on a full disk: the command goes on, and its exit code is its own."""
    done = _say(redirect, code)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert (b"wrong" in done.stderr) == ("2>&" not in redirect)
    assert (b"No space left" in done.stderr) == (redirect == "> /dev/full")


@pytest.mark.parametrize("code", [0, 2])
def test_a_reader_may_leave(code: int) -> None:
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", SAYS.format(code=code)]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (code, b"wrong\n")
