"""The loop, without Ray: same seed same curve, resumed equals undisturbed, schedule and groups as documented."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_weight_decay

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config, OptimConfig
from ito_ray.errors import ConfigError
from ito_ray.training import checkpoint, loop
from ito_ray.training.halt import Halt
from ito_ray.training.learner import build_learner
from ito_ray.training.optimizer import build_optimizer, learning_rate
from ito_ray.training.state import State, read_state, require_same_run
from tests.tiny import CONTEXT, SIZE, VOCABULARY, tiny_config, tiny_method

GOLDEN = Path(__file__).parent / "golden_curve.json"
STEPS = 30


def _config(**train: object) -> Config:
    return tiny_config(train={"steps": STEPS, "log_every": 1, "checkpoint_every": 10, **train})


def colours(cfg: Config, first_step: int = 0) -> Iterator[loop.Arrays]:
    """Pictures whose colour is the first word: something to learn, a pure function of the step."""
    step = first_step
    while True:
        rng = np.random.default_rng((7, step))
        pairs, views = cfg.train.global_batch, cfg.data.views.count
        word = rng.integers(4, VOCABULARY, pairs)
        noise = rng.integers(0, 40, (pairs, views, SIZE, SIZE, 3))
        views_BVHWC = (noise + 5 * word[:, None, None, None, None]).clip(0, 255).astype(np.uint8)
        lengths = rng.integers(3, CONTEXT, (pairs, 1)).astype(np.int32)
        ids = np.broadcast_to(word[:, None, None], (pairs, 1, CONTEXT)).astype(np.int32)
        yield {"views": views_BVHWC, "ids": ids, "lengths": lengths}
        step += 1


def _train(
    cfg: Config, folder: Path, *, resume: bool = False, stop_after: int | None = None, halt: Mapping[int, Halt] = {}
) -> list[dict[str, float]]:
    """Losses by step; checkpoints go to `folder`. `stop_after` raises after that checkpoint, like a kill."""
    torch.set_num_threads(1)
    method = tiny_method(cfg).float()
    method.encoder.image.to(memory_format=torch.channels_last)  # as a worker does
    learner = build_learner(cfg, method)
    first = 0
    if resume:
        checkpoint.load(folder, learner)
        first = read_state(folder).step
    curve: list[dict[str, float]] = []

    def save(done: int) -> None:
        checkpoint.save(folder, learner, State(done, {}, cfg.model_dump(mode="json"), "plan", [], {}))
        if done == stop_after:
            raise KeyboardInterrupt

    hooks = loop.Hooks(
        lambda _, metrics: curve.append(metrics), lambda _: True, save, halt=lambda done: halt.get(done, "")
    )
    loop.train(cfg, learner, colours(cfg, first), torch.device("cpu"), hooks, first)
    return curve


def test_golden_curve(tmp_path: Path) -> None:
    """The first 30 steps, to 1e-4. A change of the science changes it on purpose: rerun with the values it prints."""
    curve = [metrics["loss/total"] for metrics in _train(_config(), tmp_path)]
    golden = json.loads(GOLDEN.read_text())
    assert curve == pytest.approx(golden, rel=2e-5), json.dumps([round(loss, 6) for loss in curve])
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.5, "it learns"


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "moving_average": {"train": {"ema": 0.9}},
    "micro_batches": {"train": {"micro_batch": 2}},
    "kernels": {"model": {"image": {"name": "resnet10t", "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8}}}},
    "hidden_captions": {"method": {"fusion": {"caption_drop": 0.5}}, "train": {"micro_batch": 4}},
    "schedule": {"method": {"fusion_schedule": "rising", "fusion": {"temperature": "own"}}},
    **{name: {"optim": {"name": name}} for name in ("lion", "muon", "adafactorbv", "nadamw", "adopt")},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_undisturbed(name: str, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    cfg = overlay(_config(), RESUMED[name], source="test")
    straight = _train(cfg, whole)
    with pytest.raises(KeyboardInterrupt):
        _train(cfg, part, stop_after=20)
    resumed = _train(cfg, part, resume=True)
    assert [m["loss/total"] for m in resumed] == [m["loss/total"] for m in straight[20:]]
    tensors = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(tensors) == (3 if cfg.train.ema else 2)
    for file in tensors:
        one, other = load_file(whole / file), load_file(part / file)
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_stopped_out_of_turn_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """A checkpoint between two that are due, then one at which training ends."""
    cfg = _config()
    straight = _train(cfg, tmp_path)
    first = _train(cfg, tmp_path, halt={13: "checkpoint", 17: "stop"})
    assert len(first) == 17 and read_state(tmp_path).step == 17
    again = _train(cfg, tmp_path, resume=True)
    assert [m["loss/total"] for m in (*first, *again)] == [m["loss/total"] for m in straight]


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_stands_before_or_after_the_evaluation_of_its_step(first: bool) -> None:
    cfg = overlay(_config(), {"train": {"steps": 6, "checkpoint_every": 2}, "eval": {"every": 3}}, source="test")
    done: list[str] = []

    def evaluate(step: int) -> bool:
        done.append(f"evaluate {step}")
        return step < 6

    def save(step: int) -> None:
        done.append(f"save {step}")

    hooks = loop.Hooks(lambda *_: None, evaluate, save, at_end=True, checkpoint_first=first)
    loop.train(cfg, build_learner(cfg, tiny_method(cfg).float()), colours(cfg), torch.device("cpu"), hooks)
    last = ["save 6", "evaluate 6"] if first else ["evaluate 6", "save 6"]
    assert done == ["save 2", "evaluate 3", "save 4", *last], "once a step, also where training was ended"


def test_logged_terms_add_up(tmp_path: Path) -> None:
    for metrics in _train(_config(), tmp_path):
        assert metrics["loss/total"] == pytest.approx(metrics["loss/align"] + 2.0 * metrics["loss/fusion"], rel=1e-5)
        assert metrics["fusion_weight"] == 2.0
        assert 1.0 <= metrics["logit_scale"] <= 100.0
        assert 0.0 <= metrics["data_wait_share"] <= 1.0


@pytest.mark.parametrize(("schedule", "first", "last"), [("rising", 0.0, 29 / 30), ("falling", 1.0, 1 / 30)])
def test_the_weight_of_the_fusion_follows_its_schedule(
    schedule: str, first: float, last: float, tmp_path: Path
) -> None:
    cfg = overlay(_config(), {"method": {"fusion_schedule": schedule}}, source="test")
    curve = _train(cfg, tmp_path)
    shares = np.linspace(first, last, STEPS)
    assert [metrics["fusion_weight"] for metrics in curve] == pytest.approx(2.0 * shares, abs=1e-6)
    for metrics in curve:
        expected = metrics["loss/align"] + metrics["fusion_weight"] * metrics["loss/fusion"]
        assert metrics["loss/total"] == pytest.approx(expected, rel=1e-5)


def test_what_is_not_finite_stops_before_the_checkpoint(tmp_path: Path) -> None:
    """The loss breaks at step 1; the loop looks at it only where it would write, at step 10."""
    cfg = _config(log_every=30)
    cfg = cfg.model_copy(update={"optim": OptimConfig(lr=1e12, warmup_steps=0)})
    with pytest.raises(ConfigError, match=r"loss/total.*not finite at step 1;.*Lower optim\.lr=1e\+12"):
        _train(cfg, tmp_path)
    assert not list(tmp_path.iterdir())


def test_micro_batches_train_the_same(tmp_path: Path) -> None:
    whole = [metrics["loss/total"] for metrics in _train(_config(), tmp_path)]
    for train in ({"micro_batch": 2}, {"micro_batch": 5, "workers": "1..2"}):  # of 8 pairs: four times 2, twice 4
        cached = [metrics["loss/total"] for metrics in _train(_config(**train), tmp_path)]
        assert cached == pytest.approx(whole, rel=2e-5)


def test_checkpoint_folder_holds_no_pickle(tmp_path: Path) -> None:
    _train(_config(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "method.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_schedule_is_warm_up_then_cosine() -> None:
    cfg = OptimConfig(lr=2.0, warmup_steps=10)
    rates = [learning_rate(step, 110, cfg) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[109] == pytest.approx(0.0, abs=1e-3)


def test_no_decay_on_norms_biases_positions_and_scale() -> None:
    method = tiny_method(tiny_config())
    decayed, plain = build_optimizer(method, OptimConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert decayed_names | plain_names == set(names.values())
    for name in (
        "encoder.logit_scale",
        "encoder.image.net.pos_embed",
        "encoder.image.net.cls_token",
        "fusion.norm.weight",
    ):
        assert name in plain_names, name
    assert not any("bias" in name or "norm" in name.lower() for name in decayed_names)
    assert "encoder.image.proj.weight" in decayed_names


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("vit_small_patch16_224", ["cls_token", "pos_embed"]),
        ("vit_small_patch16_dinov3", ["cls_token", "reg_token"]),
        ("deit_tiny_distilled_patch16_224", ["cls_token", "dist_token", "pos_embed"]),
        ("vit_base_patch16_siglip_224", ["pos_embed", "attn_pool.latent"]),
        ("swin_tiny_patch4_window7_224", ["layers.0.blocks.0.attn.relative_position_bias_table"]),
        ("swinv2_tiny_window8_256", ["layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.cpb_mlp.0.weight"]),
        ("beit_base_patch16_224", ["cls_token", "blocks.3.attn.relative_position_bias_table"]),
        ("tiny_vit_5m_224", ["stages.1.blocks.0.attn.attention_biases"]),
        ("mvitv2_tiny", ["stages.0.blocks.0.attn.rel_pos_h"]),
        ("xcit_nano_12_p16_224", ["cls_token", "pos_embed.token_projection.weight"]),
        ("convnext_tiny", []),
    ],
)
def test_no_decay_on_what_timm_spares(name: str, spared: list[str]) -> None:
    with torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    encoder = torch.nn.ModuleDict({"image": torch.nn.ModuleDict({"net": net})})
    decayed, plain = build_optimizer(encoder, OptimConfig(weight_decay=0.3)).param_groups
    names = {id(parameter): name.removeprefix("image.net.") for name, parameter in encoder.named_parameters()}
    decayed_names, plain_names = ({names[id(one)] for one in group["params"]} for group in (decayed, plain))
    assert set(spared) <= plain_names
    by_timm = param_groups_weight_decay(net, 0.3, no_weight_decay_list=getattr(net, "no_weight_decay", set)())
    theirs = {names[id(one)] for group in by_timm if group["weight_decay"] for one in group["params"]}
    missed = {name for name in theirs if name == "attn_pool.latent" or name.endswith("attn.temperature")}
    assert decayed_names == theirs - missed, (
        "all that timm decays, but for a token, and what a module inside the model names"
    )
    assert all(weight.ndim > 1 for weight in decayed["params"]) and len(decayed_names) > 10


def test_another_model_is_not_resumed(tmp_path: Path) -> None:
    cfg = _config()
    state = State(10, {}, cfg.model_dump(mode="json"), "plan", [], {})
    require_same_run(state, tiny_config(train={"steps": 99, "log_every": 5}, optim={"lr": 5e-4}), "plan", tmp_path)
    before_a_field_came = cfg.model_dump(mode="json")
    del before_a_field_came["method"]["fusion"]["caption_drop"]
    require_same_run(State(10, {}, before_a_field_came, "plan", [], {}), cfg, "plan", tmp_path)
    with pytest.raises(ConfigError, match=r"method\.fusion_weight=7"):
        require_same_run(state, tiny_config(method={"fusion_weight": 7.0}), "plan", tmp_path)
    with pytest.raises(ConfigError, match=r"train\.ema=0\.9"):
        require_same_run(state, _config(ema=0.9), "plan", tmp_path)
    with pytest.raises(ConfigError, match="restore the shards to resume"):
        require_same_run(state, cfg, "another plan", tmp_path)
