"""The exported folder encodes what the trained towers encode, for every kind of tower."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from ito_ray.config.schema import ImageTowerConfig, TextTowerConfig
from ito_ray.errors import ExportError
from ito_ray.export.checks import check_folder
from ito_ray.export.parity import probe_images
from ito_ray.export.sentence_transformer import export_sentence_transformer
from tests.export.tiny import BERT, FUSION, VIT, build, export, wordpiece

TEXTS = ["a photo of a red bird", "green boats " * 30, "", "https://example.org/cat.jpg"]
IMAGES = {
    "vit with class token": VIT,
    "vit with registers, no class token": ImageTowerConfig(
        name="vit_medium_patch16_reg4_gap_256", size=32, kwargs={"embed_dim": 48, "depth": 1, "num_heads": 3}
    ),
    "attention pooling": ImageTowerConfig(
        name="vit_base_patch16_siglip_224", size=32, kwargs={"embed_dim": 48, "depth": 1, "num_heads": 3}
    ),
    "NHWC map": ImageTowerConfig(
        name="swin_tiny_patch4_window7_224", size=56, kwargs={"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]}
    ),
    "NCHW map with batch norm": ImageTowerConfig(name="resnet10t", size=64),
}
CLIP = TextTowerConfig(kind="clip", width=32, layers=1, heads=2, context=12, pool="last")


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_image_towers(tmp_path: Path, image: ImageTowerConfig) -> None:
    made = export(tmp_path, image=image)
    stock = SentenceTransformer(str(made.folder), device="cpu", local_files_only=True)
    pictures = probe_images(seed=1)
    np.testing.assert_allclose(stock.encode(pictures), made.encoder.encode_images(pictures), atol=1e-6)
    check_folder(made.folder, towers=made.reference.towers, forbidden=FUSION)


@pytest.mark.parametrize("text", [BERT, BERT.model_copy(update={"pool": "cls"}), CLIP], ids=["mean", "cls", "clip"])
def test_text_towers(tmp_path: Path, text: TextTowerConfig) -> None:
    made = export(tmp_path, text=text)
    stock = SentenceTransformer(str(made.folder), device="cpu", local_files_only=True)
    inputs: list[Any] = [{"text": one} for one in TEXTS]
    np.testing.assert_allclose(stock.encode(inputs), made.encoder.encode_texts(TEXTS), atol=1e-6)
    check_folder(made.folder, towers=made.reference.towers, forbidden=FUSION)


def test_pretrained_text_tower_with_pooler(tmp_path: Path) -> None:
    source = tmp_path / "pretrained"
    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40
    )
    BertModel(config).save_pretrained(source)
    wordpiece(16).save_pretrained(source)
    text = TextTowerConfig(kind="pretrained", source=str(source), context=16, pool="mean")
    made = export(tmp_path, text=text)
    stock = SentenceTransformer(str(made.folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(stock.encode([TEXTS[0]]), made.encoder.encode_texts(TEXTS[:1]), atol=1e-6)
    check_folder(made.folder, towers=made.reference.towers, forbidden=FUSION)


def test_folder_is_complete_public_and_free_of_paths(tmp_path: Path) -> None:
    made = export(tmp_path)
    facts = json.loads((made.folder / "ito.json").read_text())
    assert facts["logit_scale"] == pytest.approx(1 / 0.07)
    assert facts["embed_dim"] == 24
    for path in made.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sentence_transformer", "tokenizer"]


def test_export_replaces_and_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model, encoder, tokenizer = build(tmp_path / "tokenizer", VIT, BERT)
    model.train()
    folder = tmp_path / "out"
    export_sentence_transformer(model, tokenizer, folder)
    (folder / "leftover.txt").write_text("from an older export")
    with torch.no_grad():
        model.text.proj.weight.mul_(-1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_sentence_transformer(model, tokenizer, folder)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not (folder / "leftover.txt").exists()
    stock = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(stock.encode(["a bird"]), encoder.encode_texts(["a bird"]), atol=1e-6)


def test_bfloat16_weights_ship_as_float32(tmp_path: Path) -> None:
    model, encoder, tokenizer = build(tmp_path / "tokenizer", VIT, BERT)
    folder = export_sentence_transformer(model.bfloat16(), tokenizer, tmp_path / "out")
    stock = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.float()
    np.testing.assert_allclose(stock.encode(["a bird"]), encoder.encode_texts(["a bird"]), atol=1e-6)


def test_export_opens_no_connection_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    export(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_tower_changed_after_its_making_is_refused(tmp_path: Path) -> None:
    model, _, tokenizer = build(tmp_path / "tokenizer", VIT, BERT)
    model.image.net.blocks = model.image.net.blocks[:1]
    with pytest.raises(ExportError, match=r"model\.image\.name=vit_tiny_patch16_224"):
        export_sentence_transformer(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
