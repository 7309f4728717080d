"""A checkpoint that is taken over: what Ray Train finds, what it says of itself, and that the donor keeps its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from safetensors.torch import load_file

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, DataError
from ito_ray.runtime.desk import Takeover
from ito_ray.runtime.shelf import name_of
from ito_ray.runtime.takeover import take_over
from ito_ray.training import checkpoint
from ito_ray.training.learner import build_learner
from ito_ray.training.manifest import damage
from ito_ray.training.state import IN_FLIGHT, State, read_state
from tests.tiny import tiny_config, tiny_method

STEP = 30
VIEWS = {"crop_scale": [0.4, 0.9], "jitter": [0.1, 0.1, 0.1, 0.0], "jitter_p": 0.1, "gray_p": 0.1, "flip_p": 0.1}
OTHER: dict[str, Any] = {
    "method": {"fusion_weight": 5.0, "alignment_weights": [1.0, 0.5], "mask_duplicates": True},
    "optim": {"lr": 2e-3, "weight_decay": 0.2, "betas": [0.8, 0.9], "eps": 1e-8, "grad_clip": 1.0},
    "data": {"views": VIEWS},
}


def _donor(folder: Path, cfg: Config) -> Path:
    """A checkpoint of a run that was evaluated here, and has metrics that MLflow may not know."""
    held = folder / name_of(STEP)
    held.mkdir(parents=True)
    position = {"version": 2, "complete": [[0, 3]], "open": {}, "seen": {"0": 48}}
    metrics = [(STEP, {"train/loss/total": 1.0, "eval/heldout/r1": 0.5})]
    state = State(STEP, position, cfg.model_dump(mode="json"), "plan", metrics, {"a": 1}, [(STEP, 0.5)], True)
    checkpoint.save(held, build_learner(cfg, tiny_method(cfg).float()), state)
    return held


def _takeover(tmp: Path, donor: Path, **changes: Any) -> Takeover:
    cfg = overlay(tiny_config(), changes, source="test")
    cfg = cfg.model_copy(update={"name": "from-step-00000030", "output": str(tmp / "p001-s0")})
    return Takeover(STEP, str(donor), cfg, {})


def test_every_setting_in_flight_leaves_the_tensors_alike() -> None:
    cfg, other = tiny_config(), overlay(tiny_config(), OTHER, source="test")
    for name in IN_FLIGHT:
        section, _, field = name.rpartition(".")
        one, two = cfg.model_dump(), other.model_dump()
        for part in section.split("."):
            one, two = one[part], two[part]
        assert one[field] != two[field], f"{name} is not tried"
    shapes = [{key: value.shape for key, value in tiny_method(one).state_dict().items()} for one in (cfg, other)]
    assert shapes[0] == shapes[1]


def test_the_run_goes_on_from_the_donors_weights_with_its_own_settings(tmp_path: Path) -> None:
    donor = _donor(tmp_path / "p000-s0" / "held", tiny_config())
    before = {path.name: path.read_bytes() for path in donor.iterdir()}
    (tmp_path / "p001-s0" / ".from-step-00000030" / "junk").mkdir(parents=True)  # a kill left this
    takeover = _takeover(tmp_path, donor, **OTHER)
    take_over(takeover)

    run = tmp_path / "p001-s0" / "from-step-00000030"
    found = ray.train.Result.from_path(str(run)).checkpoint
    assert found is not None and Path(found.path) == run / name_of(STEP)
    assert damage(run / name_of(STEP)) == "" and damage(donor) == ""
    assert {path.name: path.read_bytes() for path in donor.iterdir()} == before, "the donor's is as it was"
    assert (run / name_of(STEP) / "method.safetensors").samefile(donor / "method.safetensors")
    theirs = read_state(donor)
    config = takeover.cfg.model_dump(mode="json")
    assert read_state(run / name_of(STEP)) == replace(theirs, config=config, metrics=[], curve=[], evaluating=False)

    learner = build_learner(takeover.cfg, tiny_method(takeover.cfg, seed=5).float())
    checkpoint.load(run / name_of(STEP), learner)
    weights = load_file(donor / "method.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in learner.method.state_dict().items())
    assert {group["weight_decay"] for group in learner.optimizer.param_groups} == {0.0, 0.2}, "its own optimiser"

    mark = run / name_of(STEP) / "mark"
    mark.touch()
    take_over(takeover)
    assert mark.exists(), "what was taken over is not taken again"


def test_what_is_gone_damaged_or_of_another_model_is_not_taken_over(tmp_path: Path) -> None:
    donor = _donor(tmp_path / "p000-s0" / "held", tiny_config())
    with pytest.raises(ConfigError, match=r"method\.fusion"):
        take_over(_takeover(tmp_path, donor, method={"fusion": {"readout": "mean"}}))
    with pytest.raises(ConfigError, match=r"data\.captions=2"):
        take_over(_takeover(tmp_path, donor, data={"captions": 2}))
    weights = donor / "method.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot be taken over: method.safetensors has"):
        take_over(_takeover(tmp_path, donor))
    with pytest.raises(DataError, match="cannot be taken over: it is gone"):
        take_over(_takeover(tmp_path, tmp_path / "nowhere"))
    assert not (tmp_path / "p001-s0" / "from-step-00000030").exists()
