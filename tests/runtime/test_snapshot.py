"""Ray Train's list of checkpoints survives a kill in the midst of its being written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ito_ray.runtime.snapshot import COPY, SNAPSHOT, keep, mend

WHOLE = '{"ray_version": "2.60.0", "checkpoint_results": []}'


@pytest.mark.parametrize("left", ["", WHOLE[:20]])
def test_half_a_list_is_replaced_by_the_last_whole_one(left: str, tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text(WHOLE)
    keep(tmp_path)
    (tmp_path / SNAPSHOT).write_text(left)
    mend(tmp_path)
    assert (tmp_path / SNAPSHOT).read_text() == WHOLE


def test_half_of_the_first_list_is_no_list(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text("")
    mend(tmp_path)
    assert not (tmp_path / SNAPSHOT).exists()
    mend(tmp_path)


def test_a_whole_list_is_left_alone_and_kept_anew(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text(WHOLE)
    keep(tmp_path)
    newer = WHOLE.replace("[]", '["step-2"]')
    (tmp_path / SNAPSHOT).write_text(newer)
    mend(tmp_path)
    assert (tmp_path / SNAPSHOT).read_text() == newer
    keep(tmp_path)
    assert (tmp_path / COPY).read_text() == newer
