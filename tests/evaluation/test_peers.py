"""Every kind of model behind the one contract, by its address."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.data.tokens import train_wordpiece
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import FolderEncoder, TowerEncoder
from ito_ray.evaluation.peers import OpenClipEncoder
from ito_ray.methods import build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.runtime.encoders import open_encoder
from ito_ray.training import checkpoint
from ito_ray.training.learner import build_learner
from ito_ray.training.state import State
from tests.evaluation.clip_like import Folders, write_clip
from tests.evaluation.shapes import SHAPES, draw
from tests.tiny import tiny_config

TEXTS = [f"a red {shape}" for shape in SHAPES]
IMAGES = [draw("red", shape, seed=i).resize((40, 30 + i)) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_both_folders_of_one_model_encode_alike(folders: Folders) -> None:
    ours = open_encoder(str(folders.sentence_transformer), batch=4, name="ours")
    theirs = open_encoder(str(folders.open_clip), batch=4)
    assert isinstance(ours, FolderEncoder)
    assert isinstance(theirs, OpenClipEncoder)
    assert (ours.name, theirs.name) == ("ours", str(folders.open_clip))
    np.testing.assert_allclose(theirs.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=1e-5)
    for image in IMAGES:  # of odd sizes: one at a time, so that nothing hides in a batch
        square = image.resize((32, 32))
        np.testing.assert_allclose(theirs.encode_images([square]), ours.encode_images([square]), atol=1e-5)
    by_name = open_encoder(f"open_clip:{folders.open_clip}", batch=4)
    np.testing.assert_array_equal(by_name.encode_images(IMAGES), theirs.encode_images(IMAGES))


def test_a_checkpoint_gives_the_encoder_without_fusion(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, vocab_size=60, context=12)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cfg = overlay(tiny_config(), {"model": {"text": {"vocab_size": 60}}, "train": {"ema": 0.5}}, source="test")
    torch.manual_seed(0)
    learner = build_learner(cfg, build_method(cfg, DualEncoder(cfg.model, tokenizer)))
    assert learner.ema is not None
    for parameter in learner.ema.module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    checkpoint.save(folder, learner, State(3, {}, cfg.model_dump(mode="json"), "", [], {}))
    found = open_encoder(str(folder), batch=4)
    expected = TowerEncoder(learner.shipped, tokenizer, "cpu", batch=4)
    np.testing.assert_allclose(found.encode_images(IMAGES), expected.encode_images(IMAGES), atol=1e-6)
    np.testing.assert_allclose(found.encode_texts(TEXTS), expected.encode_texts(TEXTS), atol=1e-6)
    with pytest.raises(ConfigError, match=r"holds no model .* It holds step-00000003: give one of them"):
        open_encoder(str(tmp_path), batch=4)
    (tmp_path / "tokenizer").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"its run's tokenizer is not beside it"):
        open_encoder(str(folder), batch=4)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", r"model=nowhere: there is no such folder\. Give a SentenceTransformer folder"),
        ("open_clip:ViT-B-99,x", r"OpenCLIP knows no model 'ViT-B-99'.*Near it: .*ViT-B-16"),
        ("open_clip:ViT-B-32", r"weights are missing; write open_clip:ViT-B-32,TAG with one of openai, laion400m_e31"),
        ("open_clip:ViT-B-32,laion9", r"'laion9' is no file and no tag"),
        (
            "open_clip:ViT-B-32,laion2b_s34b_b79k",
            r"the weights are not on this machine, and nothing is fetched unasked\. Add --download",
        ),
    ],
)
def test_wrong_addresses(address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_encoder(address, batch=4)


def test_a_damaged_folder_is_named(folders: Folders, tmp_path: Path) -> None:
    for file in folders.open_clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"")
    with pytest.raises(ConfigError, match=r"cannot be loaded by OpenCLIP"):
        open_encoder(str(tmp_path), batch=4)


def test_the_default_configuration_is_one_of_a_run() -> None:
    assert overlay(Config(), tiny_config().model_dump(mode="json"), source="test") == tiny_config()
