"""Ray Train's list of checkpoints survives a kill in the midst of its being written, and damaged checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import ray.train

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, DataError
from ito_ray.runtime.snapshot import COPY, SNAPSHOT, keep, mend, set_aside
from ito_ray.runtime.trainer import latest_checkpoint
from ito_ray.training.manifest import write_manifest
from ito_ray.training.state import State, write_state

WHOLE = '{"ray_version": "2.60.0", "checkpoint_results": []}'
NAMES = ("step-00000010", "step-00000020", "step-00000030")


@pytest.mark.parametrize("left", ["", WHOLE[:20]])
def test_half_a_list_is_replaced_by_the_last_whole_one(left: str, tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text(WHOLE)
    keep(tmp_path)
    (tmp_path / SNAPSHOT).write_text(left)
    assert mend(tmp_path) == []
    assert (tmp_path / SNAPSHOT).read_text() == WHOLE


def test_half_of_the_first_list_is_no_list(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text("")
    mend(tmp_path)
    assert not (tmp_path / SNAPSHOT).exists()
    mend(tmp_path)


def test_a_whole_list_is_left_alone_and_kept_anew(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text(WHOLE)
    keep(tmp_path)
    newer = WHOLE.replace("}", ', "current_report_index": 2}')
    (tmp_path / SNAPSHOT).write_text(newer)
    mend(tmp_path)
    assert (tmp_path / SNAPSHOT).read_text() == newer
    keep(tmp_path)
    assert (tmp_path / COPY).read_text() == newer


def _list(run: Path) -> None:
    """Three checkpoints, ordered by a score: the newest is the first."""
    states = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"step": name}} for name in NAMES]
    for name in NAMES:
        (run / name).mkdir(parents=True)
    document = {
        "ray_version": ray.__version__,
        "checkpoint_results": [states[2], states[0], states[1]],
        "checkpoint_report_indices": [2, 0, 1],
        "latest_checkpoint_result": states[2],
        "pending_training_results": [states[2]],
        "pending_validation_specs": [False],
        "current_report_index": 3,
        "validated_checkpoint_dir_names": list(NAMES),
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (run / SNAPSHOT).write_text(json.dumps(document))
    keep(run)


def _newest(run: Path) -> str:
    """As Ray Train finds it, which refuses a list that does not fit the folders."""
    found = ray.train.Result.from_path(str(run)).checkpoint
    assert found is not None
    return Path(found.path).name


def test_ray_train_resumes_from_the_one_before_a_damaged_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _list(run)
    assert _newest(run) == NAMES[2]
    assert set_aside(run / NAMES[2]).name == f"damaged-{NAMES[2]}"
    assert _newest(run) == NAMES[1], "the newest of the others, not the last on the list"
    assert (run / COPY).read_text() == (run / SNAPSHOT).read_text()
    (run / NAMES[2]).mkdir()  # taken again, and damaged again
    assert set_aside(run / NAMES[1]).is_dir()
    (run / NAMES[1]).mkdir()
    assert _newest(run) == NAMES[0]
    set_aside(run / NAMES[0])
    assert not (run / SNAPSHOT).exists() and not (run / COPY).exists(), "Ray Train starts from the beginning"


def test_a_second_damaged_checkpoint_of_the_same_name_is_kept_too(tmp_path: Path) -> None:
    _list(tmp_path)
    (tmp_path / f"damaged-{NAMES[1]}").mkdir()
    assert set_aside(tmp_path / NAMES[1]).name == f"damaged-2-{NAMES[1]}"


def test_a_checkpoint_that_is_gone_is_taken_off_the_list(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _list(run)
    (run / NAMES[2]).rmdir()
    assert mend(run) == [NAMES[2]]
    assert mend(run) == []
    assert _newest(run) == NAMES[1]


def _checkpoints(run: Path) -> Config:
    """The three, with files."""
    _list(run)
    for number, name in enumerate(NAMES, start=1):
        weights = run / name / "method.safetensors"
        weights.write_bytes(bytes([number] * 100))
        write_manifest([write_state(run / name, State(10 * number, {}, {}, "plan", [], {})), weights])
    return Config(name=run.name, output=str(run.parent))


def test_the_newest_good_checkpoint_is_chosen_and_the_others_are_told_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cfg = _checkpoints(run)
    told: list[str] = []
    assert latest_checkpoint(cfg, told.append) == run / NAMES[2] and not told
    os.truncate(run / NAMES[2] / "method.safetensors", 50)
    (run / NAMES[1] / "state.json").unlink()
    assert latest_checkpoint(cfg, told.append) == run / NAMES[0]
    assert len(told) == 2
    assert f"{NAMES[2]} is damaged (method.safetensors has 50 bytes instead of 100)" in told[0]
    assert f"set aside as damaged-{NAMES[1]}" in told[1]
    shutil.rmtree(run / NAMES[0])
    assert latest_checkpoint(cfg, told.append) is None
    assert told[2] == f"checkpoint {NAMES[0]} is gone from {run}"


def test_what_cannot_be_read_now_or_by_this_version_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    cfg = _checkpoints(run)
    state = run / NAMES[2] / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 2}))
    (run / NAMES[2] / "manifest.json").unlink()  # it had none
    with pytest.raises(ConfigError, match="checkpoint of format 2"):
        latest_checkpoint(cfg)

    def unreadable(folder: Path) -> str:
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr("ito_ray.runtime.trainer.damage", unreadable)
    with pytest.raises(DataError, match=r"cannot be read: .*Input/output error.*same command again"):
        latest_checkpoint(cfg)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == list(NAMES)
