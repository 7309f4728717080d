"""Locked towers stay, the moving average is the average, recomputed activations give the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.image_tower import ImageTower
from ito_ray.training import checkpoint
from ito_ray.training.learner import Learner, build_learner
from ito_ray.training.state import State
from ito_ray.training.step import backward
from tests.tiny import SIZE, VIT, Vocabulary, pieces, random_batch, tiny_config, tiny_method

CONV = {"name": "resnet10t", "size": SIZE, "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8}}


def _steps(learner: Learner, count: int = 2) -> list[dict[str, Tensor]]:
    """Take steps; the encoder after each."""
    seen = []
    for done in range(1, count + 1):
        learner.model.train()
        learner.optimizer.zero_grad()
        backward(learner.model, learner.method, pieces(random_batch(8, seed=done), 8), torch.manual_seed)
        learner.optimizer.step()
        learner.averaged(done)
        seen.append({name: value.clone() for name, value in learner.method.encoder.state_dict().items()})
    return seen


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of both kinds of image nets, as timm would ship them."""
    for name, image in (("vit", {}), ("conv", CONV)):
        cfg = tiny_config(model={"image": image})
        net = ImageTower(cfg.model.image, cfg.model.embed_dim).net
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("image", "open_layers", "moving"),
    [
        ("vit", 0, ()),
        ("vit", 1, ("blocks.1.", "norm.")),
        ("conv", 0, ()),
        ("conv", 1, ("layer4.",)),
    ],
)
def test_a_locked_image_tower_moves_in_its_last_layers_only(
    weights: Path, image: str, open_layers: int, moving: tuple[str, ...]
) -> None:
    lock = {"locked": True, "open_layers": open_layers, "weights": str(weights / f"{image}.safetensors")}
    cfg = tiny_config(model={"image": lock | (CONV if image == "conv" else {})})
    learner = build_learner(cfg, tiny_method(cfg))
    before = {name: value.clone() for name, value in learner.method.encoder.state_dict().items()}
    after = _steps(learner)[-1]
    for name, value in after.items():
        inside = name.removeprefix("image.net.")
        if name.startswith("image.net."):
            assert torch.equal(value, before[name]) != inside.startswith(moving), name
    assert not torch.equal(after["image.proj.weight"], before["image.proj.weight"]), "the projection always learns"


def test_a_locked_text_tower_moves_in_its_last_layers_only() -> None:
    from ito_ray.models.locking import lock_text_net

    cfg = tiny_config(model={"text": {"layers": 3}})
    net = tiny_method(cfg).encoder.text.net
    lock_text_net(net, 1)
    still_open = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert still_open == {name for name, _ in net.named_parameters() if name.startswith("encoder.layer.2.")}
    lock_text_net(net, 0)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_an_unused_pooler_stays_locked() -> None:
    """DDP would wait for its gradients."""
    from transformers import BertConfig, BertModel

    from ito_ray.models.locking import lock_text_net

    net = BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
    net.pooler.requires_grad_(False)
    lock_text_net(net, 1)
    still_open = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert still_open and all(name.startswith("encoder.layer.1.") for name in still_open)


def test_weights_of_another_net_are_refused(weights: Path) -> None:
    cfg = tiny_config(model={"image": {"weights": str(weights / "conv.safetensors")}})
    with pytest.raises(ConfigError, match=r"has not the weights of vit_tiny_patch16_224 at 16 px"):
        tiny_method(cfg)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"image": {"locked": True}}, "model.image.locked=true would keep random weights"),
        ({"text": {"locked": True}}, "would keep the random weights of model.text.kind=scratch"),
    ],
)
def test_locking_random_weights_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(model=model)


def test_the_moving_average_is_what_ships(tmp_path: Path) -> None:
    cfg = tiny_config(train={"ema": 0.9})
    learner = build_learner(cfg, tiny_method(cfg))
    seen = _steps(learner, 3)
    assert learner.ema is not None
    expected = seen[0]  # the first step is taken whole: the initial weights are forgotten
    for done, now in enumerate(seen[1:], start=2):
        decay = min(0.9, 1 - done ** (-2 / 3))
        expected = {
            name: expected[name] * decay + value * (1 - decay) if value.is_floating_point() else value
            for name, value in now.items()
        }
    checkpoint.save(tmp_path, learner, State(3, {}, cfg.model_dump(mode="json"), "plan", [], {}))
    shipped = DualEncoder(cfg.model, Vocabulary()).double()
    left_behind = checkpoint.load_encoder(tmp_path, shipped)
    for name, value in shipped.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    assert not torch.equal(shipped.image.proj.weight, seen[-1]["image.proj.weight"])
    assert left_behind and all(name.startswith("fusion.") for name in left_behind)


def _gradients(cfg: Config) -> dict[str, Tensor]:
    learner = build_learner(cfg, tiny_method(cfg))
    learner.model.train()
    backward(learner.model, learner.method, pieces(random_batch(8), 4), torch.manual_seed)
    return {name: p.grad for name, p in learner.method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("image", [{"kwargs": VIT | {"proj_drop_rate": 0.2}}, CONV], ids=["vit_with_dropout", "conv"])
def test_recomputed_activations_give_the_same_gradients(image: dict[str, Any]) -> None:
    cfg = tiny_config(model={"image": image})
    kept = _gradients(cfg)
    again = _gradients(overlay(cfg, {"train": {"gradient_checkpointing": True}}, source="test"))
    assert set(kept) == set(again)
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_a_net_without_checkpointing_is_refused() -> None:
    cfg = tiny_config(model={"image": CONV | {"name": "dla34", "kwargs": {}}}, train={"gradient_checkpointing": True})
    with pytest.raises(ConfigError, match=r"timm has none for model\.image\.name=dla34"):
        build_learner(cfg, tiny_method(cfg))
