"""Every kind of damage to a checkpoint is found before it is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ito_ray.errors import ConfigError
from ito_ray.training import checkpoint
from ito_ray.training.learner import build_learner
from ito_ray.training.manifest import damage, write_manifest
from ito_ray.training.state import State, read_state, require_format
from tests.tiny import tiny_config, tiny_method


def _flip(path: Path) -> None:
    """One bit in the midst of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _saved(folder: Path) -> Path:
    cfg = tiny_config(train={"ema": 0.9})
    learner = build_learner(cfg, tiny_method(cfg))
    checkpoint.save(folder, learner, State(3, {}, cfg.model_dump(mode="json"), "plan", [], {}))
    return folder


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda folder: os.truncate(folder / "method.safetensors", 100), "method.safetensors has 100 bytes"),
    "one_bit": (lambda folder: _flip(folder / "ema.safetensors"), r"ema.safetensors is not what was written"),
    "state": (lambda folder: _flip(folder / "state.json"), r"state.json is not what was written"),
    "missing": (lambda folder: (folder / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "no_manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "half_a_manifest": (lambda folder: os.truncate(folder / "manifest.json", 50), "manifest.json is damaged"),
    "empty": (shutil.rmtree, "manifest.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    _saved(tmp_path)
    assert damage(tmp_path) == ""
    hurt, said = DAMAGES[name]
    hurt(tmp_path)
    assert said in damage(tmp_path)


def test_of_sharded_checkpoints_every_rank_must_be_there(tmp_path: Path) -> None:
    for rank in (1, 2):
        suffix = f"-{rank:05d}-of-00002"
        (tmp_path / f"method{suffix}.safetensors").write_bytes(bytes([rank]))
        write_manifest([tmp_path / f"method{suffix}.safetensors"], suffix)
    assert damage(tmp_path) == ""
    (tmp_path / "manifest-00002-of-00002.json").unlink()
    assert damage(tmp_path) == "1 of 2 files manifest*.json are there"


def test_another_format_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    _saved(tmp_path)
    require_format(tmp_path)
    document = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**document, "format": 2}))
    for refuse in (require_format, read_state):
        with pytest.raises(ConfigError, match="checkpoint of format 2"):
            refuse(tmp_path)
    (tmp_path / "state.json").write_text("{")
    require_format(tmp_path)
