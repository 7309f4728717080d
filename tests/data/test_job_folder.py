"""A folder that nobody else works in, whatever becomes of it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ito_ray.data.job_folder import alone
from ito_ray.errors import DataError

LOCK = "driver.lock"


def test_whoever_opened_the_lock_before_its_holder_left_keeps_all_others_out(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with alone(tmp_path, lock=LOCK, works="trains in"):
        early = os.open(tmp_path / LOCK, os.O_RDWR)
    try:
        fcntl.flock(early, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(DataError, match="Another process"), alone(tmp_path, lock=LOCK, works="trains in"):
            pass
    finally:
        os.close(early)
    with alone(tmp_path, lock=LOCK, works="trains in"):
        pass


def test_another_process_is_refused_and_an_empty_folder_removed(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    with alone(out, lock=LOCK, works="trains in"):
        with pytest.raises(DataError, match="Another process trains in"), alone(out, lock=LOCK, works="trains in"):
            pass
        assert (out / LOCK).is_file()
    assert not out.exists() and out.parent.is_dir()


@pytest.mark.parametrize("out", [Path("/sys/kernel"), Path("/proc/self/new")])
def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(out: Path) -> None:
    """Root may write in any folder, but nobody makes files in /sys and /proc."""
    with (
        pytest.raises(DataError, match=f"^{out} cannot be written: .*Make it writable"),
        alone(out, lock=LOCK, works="trains in"),
    ):
        pass


def test_why_the_work_ended_is_told_where_the_lock_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="why"), alone(tmp_path, lock=LOCK, works="trains in"):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).mkdir()  # stands for a disk that can only be read by now
        raise ValueError("why")
