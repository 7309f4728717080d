"""The best checkpoint outlives its original, whole or not at all; and what a run ships, and why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ito_ray.config.schema import Config
from ito_ray.runtime import best
from ito_ray.runtime.shelf import name_of
from ito_ray.training.manifest import write_manifest
from ito_ray.training.state import State, write_state
from tests.tiny import tiny_config

R1 = "heldout/r1_image_to_text"


def _config(**evaluation: object) -> Config:
    return tiny_config(data={"heldout": ["heldout.tar"]}, eval={"every": 5, "best": R1, **evaluation})


def _checkpoint(run: Path, step: int, curve: list[tuple[int, float]]) -> Path:
    folder = run / name_of(step)
    folder.mkdir(parents=True)
    (folder / "method.safetensors").write_bytes(b"weights of %d" % step)
    state = write_state(folder, State(step, {}, {}, "plan", [], {}, curve))
    write_manifest([folder / "method.safetensors", state])
    return folder


@pytest.mark.parametrize("links", [True, False])
def test_kept_while_the_original_goes(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError("Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    first = _checkpoint(tmp_path, 5, [(5, 0.5)])
    partial = tmp_path / best.FOLDER / ".step-00000005"  # a kill in the midst of an earlier attempt left this
    partial.mkdir(parents=True)
    (partial / "junk").touch()
    best.keep(tmp_path, {5})
    kept = tmp_path / best.FOLDER / first.name
    assert (kept / "method.safetensors").samefile(first / "method.safetensors") is links
    shutil.rmtree(first)
    best.keep(tmp_path, {5})
    assert sorted(path.name for path in kept.iterdir()) == ["manifest.json", "method.safetensors", "state.json"]
    assert (kept / "method.safetensors").read_bytes() == b"weights of 5"

    _checkpoint(tmp_path, 10, [(5, 0.5), (10, 0.6)])
    best.keep(tmp_path, {5, 10})
    assert sorted(path.name for path in kept.parent.iterdir()) == ["step-00000005", "step-00000010"]
    best.keep(tmp_path, {10})
    assert [path.name for path in kept.parent.iterdir()] == ["step-00000010"]


def test_nothing_is_made_where_nothing_is_kept(tmp_path: Path) -> None:
    best.keep(tmp_path, {5})
    best.keep(tmp_path, ())
    assert not list(tmp_path.iterdir())


def test_what_ships_and_why(tmp_path: Path) -> None:
    curve = [(5, 0.5), (10, 0.6), (15, 0.6), (20, 0.4)]
    _checkpoint(tmp_path, 10, curve[:2])
    newest = _checkpoint(tmp_path, 20, curve)
    best.keep(tmp_path, {10})
    found = f"best of 4 by {R1}, 0.6000"

    def chosen(folder: Path, **evaluation: object) -> tuple[Path, int, str]:
        found = best.choose(_config(**evaluation), folder)
        assert (found.ended, found.stopped) == (int(folder.name[5:]), "")
        return found.folder, found.step, found.why

    assert chosen(newest) == (tmp_path / "best" / "step-00000010", 10, f"after 10 of 20 steps, the {found}")
    assert chosen(newest, ship="last") == (
        newest,
        20,
        f"the last, after 20 steps, as eval.ship asks; after 10: {found}",
    )
    assert chosen(newest, best="") == (newest, 20, "the last, after 20 steps")
    os.truncate(tmp_path / "best" / "step-00000010" / "method.safetensors", 3)
    wrong = "method.safetensors has 3 bytes instead of 13"
    assert chosen(newest) == (newest, 20, f"the last, after 20 steps: the {found}, after 10, is damaged ({wrong})")
    shutil.rmtree(tmp_path / "best")
    assert chosen(newest) == (newest, 20, f"the last, after 20 steps: the {found}, after 10, is no longer in best/")
    assert chosen(_checkpoint(tmp_path, 30, []))[2] == f"the last, after 30 steps: none has a value of {R1}"
    latest = _checkpoint(tmp_path, 40, [(40, 0.7)])
    assert chosen(latest) == (latest, 40, f"the last, after 40 steps, which is the best of 1 by {R1}, 0.7000")
