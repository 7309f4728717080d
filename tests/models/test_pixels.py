"""Pixels are normalised as the weights were trained with, from the configuration to what is encoded and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import OPENAI_MEAN, OPENAI_STD, Channels, Config, ImageTowerConfig
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.image_tower import ImageTower
from ito_ray.models.pixels import normalisation, said, with_pixels
from ito_ray.training.state import State, image_of, write_state
from tests.tiny import Vocabulary, tiny_config

VIT = "vit_tiny_patch16_224"
HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = (OPENAI_MEAN, OPENAI_STD)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("vit_base_patch16_224", (HALF, HALF)),
        ("vit_base_patch16_224.augreg_in1k", (HALF, HALF)),
        ("vit_base_patch16_siglip_224.webli", (HALF, HALF)),
        ("vit_base_patch16_clip_224.openai", OPENAI),
        ("vit_base_patch16_dinov3.lvd1689m", IMAGENET),
        ("deit_tiny_patch16_224", IMAGENET),
        ("convnext_tiny.in12k", IMAGENET),
        ("beit_base_patch16_224", (HALF, HALF)),
    ],
)
def test_the_default_is_that_of_the_weights(name: str, own: tuple[Channels, Channels]) -> None:
    assert normalisation(ImageTowerConfig(name=name, pretrained=True)) == own
    assert normalisation(ImageTowerConfig(name=name, weights="model.safetensors", locked=True)) == own
    assert normalisation(ImageTowerConfig(name=name)) == OPENAI, "from scratch"
    given = ImageTowerConfig(name=name, pretrained=True, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert normalisation(given) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    one = ImageTowerConfig(name=name, pretrained=True, mean=(0.1, 0.2, 0.3))
    assert normalisation(one) == ((0.1, 0.2, 0.3), own[1])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of the tiny ViT, whose name has weights with 0.5 in timm's registry."""
    known: Any = timm.get_pretrained_cfg(VIT)
    assert known.mean == HALF
    path = tmp_path / "model.safetensors"
    save_file(ImageTower(tiny_config().model.image, 8).net.state_dict(), path)
    return path


def _image(weights: Path, **changes: Any) -> Config:
    return tiny_config(model={"image": {"weights": str(weights), **changes}})


def test_what_is_encoded_is_normalised_so(weights: Path) -> None:
    """One grey picture: half of 255 is 0 in every channel with 0.5, and is not with OpenAI's values."""
    seen: list[torch.Tensor] = []
    cfg = _image(weights)
    encoder = DualEncoder(cfg.model, Vocabulary())
    handle = encoder.image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = Image.fromarray(np.full((32, 32, 3), 204, np.uint8))
    TowerEncoder(encoder, None, "cpu").encode_images([grey])
    handle.remove()
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], (204 / 255 - 0.5) / 0.5))
    assert (encoder.image.cfg.mean, encoder.image.cfg.std) == (HALF, HALF), "what the exports write"


def test_a_locked_tower_takes_no_other_values(weights: Path) -> None:
    message = (
        r"model\.image\.mean=\(0\.481455, 0\.457827, 0\.408211\) and std=.*, but the weights of "
        r"vit_tiny_patch16_224 were trained with mean=\(0\.5, 0\.5, 0\.5\) and std=\(0\.5, 0\.5, 0\.5\)"
    )
    foreign = _image(weights, locked=True, mean=OPENAI_MEAN, std=OPENAI_STD)
    with pytest.raises(ConfigError, match=message):
        DualEncoder(foreign.model, Vocabulary())
    with pytest.raises(ConfigError, match=r"std=\(0\.25, 0\.25, 0\.25\)"):
        DualEncoder(_image(weights, locked=True, open_layers=1, std=(0.25,) * 3).model, Vocabulary())
    DualEncoder(_image(weights, locked=True).model, Vocabulary())
    DualEncoder(_image(weights, locked=True, mean=HALF, std=HALF).model, Vocabulary())
    open_tower = DualEncoder(_image(weights, mean=OPENAI_MEAN, std=OPENAI_STD).model, Vocabulary())
    assert open_tower.image.mean == OPENAI_MEAN, "a tower that learns may learn other pixels"
    assert DualEncoder(foreign.model, Vocabulary(), began=True).image.mean == OPENAI_MEAN, "what has begun goes on"


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_that_timm_does_not_have_are_a_sentence(pretrained: bool) -> None:
    cfg = overlay(Config(), {"model": {"image": {"name": f"{VIT}.nope", "pretrained": pretrained}}}, source="a file")
    with pytest.raises(ConfigError, match=rf"model\.image\.name={VIT}\.nope: .*Known: .*{VIT}\.augreg_in21k"):
        ImageTower(with_pixels(cfg).model.image, 8)


def test_what_lies_beside_the_weights_knows_best(weights: Path) -> None:
    about = {"architecture": VIT, "pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}
    beside = weights.with_name("config.json")
    beside.write_text(json.dumps(about))
    assert ImageTower(_image(weights).model.image, 8).mean == IMAGENET[0]
    others: list[Any] = [
        {**about, "architecture": "resnet50"},
        {"architecture": VIT},
        [],
        {**about, "pretrained_cfg": 1},
    ]
    for other in others:
        beside.write_text(json.dumps(other))
        assert ImageTower(_image(weights).model.image, 8).mean == HALF, other
    beside.write_text("no JSON")
    assert ImageTower(_image(weights).model.image, 8).mean == HALF


def test_the_saved_configuration_has_the_values(weights: Path) -> None:
    cfg = with_pixels(_image(weights))
    assert (cfg.model.image.mean, cfg.model.image.std) == (HALF, HALF)
    assert cfg.model_dump(mode="json")["model"]["image"]["mean"] == [0.5, 0.5, 0.5]
    assert "mean:\n    - 0.5" in to_yaml(cfg)
    assert with_pixels(cfg) == cfg
    assert with_pixels(tiny_config()).model.image.mean == OPENAI_MEAN
    assert said(cfg.model.image) == "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5), the weights' own"
    loaded = overlay(Config(), {"model": {"image": {"name": "test_vit", "pretrained": True}}}, source="a file")
    assert with_pixels(loaded).model.image.mean == HALF, "a recipe's default is not a value that was given"


def test_a_run_of_the_version_before_goes_on_with_its_values(weights: Path, tmp_path: Path) -> None:
    """It wrote OpenAI's values whatever the weights."""
    saved = {**_image(weights).model_dump(mode="json")["model"]["image"], "mean": OPENAI_MEAN, "std": OPENAI_STD}
    run = tmp_path / "run"
    assert image_of(run) is None
    for step, image in ((1, {}), (2, saved), (3, None)):
        folder = run / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_state(folder, State(step, {}, {"model": {"image": image}}, "plan", [], {}))
    (folder / "state.json").write_text("cut off")
    before = image_of(run)
    assert before is not None, "that of the newest that can be read"
    cfg = with_pixels(_image(weights), before)
    assert (cfg.model.image.mean, cfg.model.image.std) == OPENAI
    assert cfg.model_dump(mode="json")["model"]["image"] == before, "so that it is the same run"
    assert with_pixels(_image(weights, mean=HALF), before).model.image.mean == HALF, "which another value is not"
