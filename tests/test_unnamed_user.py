"""A user id without a name, as `docker run --user 12345` gives."""

from __future__ import annotations

import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from ito_ray.unnamed_user import name_user


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nameless")
def test_gets_a_name_and_a_home(tmp_path: Path) -> None:
    name_user()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == tmp_path / f"ito-home-{os.getuid()}" and os.access(Path.home(), os.W_OK)
    assert Path.home().stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("nameless")
def test_keeps_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOGNAME", "someone")
    monkeypatch.setenv("HOME", str(tmp_path))
    name_user()
    assert getpass.getuser() == "someone" and Path.home() == tmp_path


@pytest.mark.usefixtures("nameless")
def test_does_not_take_a_home_that_somebody_else_has_made(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"ito-home-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    name_user()
    assert Path.home().parent == tmp_path and Path.home().name.startswith(f"ito-home-{os.getuid()}-")


def test_who_has_a_name_keeps_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda number: object())
    before = dict(os.environ)
    name_user()
    assert dict(os.environ) == before


NAMELESS = """
import pwd
def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = unknown
"""
LIBRARIES = """
import ray.train
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
default_cache_dir()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "code"), [("", 1), ("import ito_ray", 0)])
def test_libraries_can_be_imported(ours: str, code: int) -> None:
    """ray.train asks for the home folder, torch's compiler for the name; they fail without us."""
    variables = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME", "HOME")}
    command = [sys.executable, "-c", NAMELESS + ours + LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == code, done.stderr
