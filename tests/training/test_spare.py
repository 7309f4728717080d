"""Weights taken at a step give, wherever and whenever they are measured, the numbers that they gave then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ito_ray.config.schema import Config
from ito_ray.data.tokens import train_wordpiece
from ito_ray.errors import UnreadableError
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training import spare
from ito_ray.training.learner import Learner, build_learner
from tests.runtime.shards import caption, small_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spare")


def _learner(cfg: Config, tokenizer: Any) -> Learner:
    torch.manual_seed(0)
    method = build_method(cfg, DualEncoder(cfg.model, tokenizer))
    method.encoder.image.to(memory_format=torch.channels_last)
    return build_learner(cfg, method)


def _step(learner: Learner, done: int) -> None:
    with torch.no_grad():
        for parameter in learner.method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    learner.averaged(done)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_measured_later_equals_measured_then(ema: float, folder: Path) -> None:
    torch.set_num_threads(1)
    image = {"name": "resnet10t", "size": 32, "kwargs": {"channels": [16, 16, 32, 32], "stem_width": 8}}
    cfg = small_config(folder, train={"ema": ema}, model={"image": image}, eval={"max_samples": 20})
    tokenizer = train_wordpiece([caption(number) for number in range(64)], 60, cfg.model.text.context)
    learner = _learner(cfg, tokenizer)
    elsewhere = spare.Spare(cfg, tokenizer, CPU)
    then, taken = [], []
    for done in (1, 2, 3):
        _step(learner, done)
        then.append(spare.measure(learner.shipped, cfg, tokenizer, CPU))
        taken.append(spare.take(learner.shipped))
    _step(learner, 4)
    assert len({tuple(numbers.items()) for numbers in then}) == 3, "steps can be told apart"
    assert then[0]["heldout/pairs"] == 20
    later = [elsewhere.measure(weights) for weights in reversed(taken)]
    assert later[::-1] == then


def test_a_store_that_fails_costs_a_point_unless_it_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise UnreadableError("the disk is gone")

    cfg = small_config(folder)
    tokenizer = train_wordpiece([caption(number) for number in range(64)], 60, cfg.model.text.context)
    monkeypatch.setattr(spare, "evaluate", failing)
    encoder = DualEncoder(cfg.model, tokenizer)
    assert spare.measure(encoder, cfg, tokenizer, CPU) == {spare.UNREADABLE: 1.0}
    with pytest.raises(UnreadableError):
        spare.measure(encoder, cfg, tokenizer, CPU, needed=True)
