"""The model in memory and the exported folder, against one sample at a time with timm's own transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.data.tokens import train_wordpiece
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import MOST_ELONGATED, FolderEncoder, TowerEncoder, shortened
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.models.dual_encoder import DualEncoder
from tests.evaluation.shapes import COLOURS, SHAPES, draw

TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES] + ["a", "https://example.org/cat.jpg"]
IMAGES = [draw("red", "circle", size=40), draw("blue", "cross", size=70).resize((90, 50)), draw("teal", "bar")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[DualEncoder, TowerEncoder, Path]:
    torch.manual_seed(0)
    tokenizer = train_wordpiece(TEXTS, vocab_size=200, context=12)
    cfg = ModelConfig(
        image=ImageTowerConfig(name="resnet10t", size=32),
        text=TextTowerConfig(kind="scratch", width=32, layers=1, heads=2, context=12, pool="mean"),
        embed_dim=16,
    )
    model = DualEncoder(cfg, tokenizer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return model, TowerEncoder(model, tokenizer, "cpu", batch=5), folder


def test_images_equal_timm_one_at_a_time(parts: tuple[DualEncoder, TowerEncoder, Path]) -> None:
    model, encoder, _ = parts
    tower = model.image
    transform = create_transform(
        (3, 32, 32), is_training=False, mean=tower.mean, std=tower.std, interpolation="bicubic", crop_pct=1.0
    )
    found = encoder.encode_images(IMAGES * 3)
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model.encode_image(transform(image)[None]) for image in IMAGES * 3]).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_texts_do_not_depend_on_their_batch(parts: tuple[DualEncoder, TowerEncoder, Path]) -> None:
    _, encoder, _ = parts
    found = encoder.encode_texts(TEXTS)
    expected = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_every_module_keeps_its_mode_and_its_statistics(parts: tuple[DualEncoder, TowerEncoder, Path]) -> None:
    model, encoder, _ = parts
    model.train()
    model.text.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encoder.encode_images(IMAGES)
    encoder.encode_texts(TEXTS[:2])
    assert model.image.training
    assert not model.text.training
    assert not any(module.training for module in model.text.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_the_exported_folder_encodes_like_the_model(
    parts: tuple[DualEncoder, TowerEncoder, Path], tmp_path: Path
) -> None:
    model, encoder, tokenizer = parts
    folder = export_sentence_transformer(model, tokenizer, tmp_path / "exported")
    exported = FolderEncoder(folder, batch=4, device="cpu")
    assert exported.name == "exported"
    np.testing.assert_allclose(exported.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    gray = [image.convert("L") for image in IMAGES]
    np.testing.assert_allclose(
        exported.encode_images(gray), encoder.encode_images([image.convert("RGB") for image in gray]), atol=1e-5
    )


def test_a_line_of_one_pixel_and_odd_modes_are_encoded_as_by_the_model(
    parts: tuple[DualEncoder, TowerEncoder, Path], tmp_path: Path
) -> None:
    model, encoder, tokenizer = parts
    exported = FolderEncoder(export_sentence_transformer(model, tokenizer, tmp_path / "e"), device="cpu")
    half = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    deep = Image.fromarray(np.full((40, 40), 0x5AFF, np.uint16))
    seen = [Image.new("RGB", (40, 30), "white"), Image.new("RGB", (40, 40), (0x5A,) * 3)]
    line = Image.fromarray(np.arange(90_000, dtype=np.uint8).reshape(30_000, 1, 3))
    np.testing.assert_allclose(
        exported.encode_images([half, deep, line]), encoder.encode_images([*seen, line]), atol=1e-5
    )


@pytest.mark.parametrize("shape", [(3, 300), (300, 3), (301, 3), (5, 90_000), (90_000, 5)])
def test_others_preprocessing_gets_the_middle_of_a_line(shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape)
    image.putpixel((shape[0] // 2, shape[1] // 2), (255, 0, 0))
    short = shortened(image)
    assert short.size == tuple(min(side, MOST_ELONGATED * min(shape)) for side in shape)
    assert short.getpixel((short.width // 2, short.height // 2)) == (255, 0, 0)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a SentenceTransformer folder \(it has no modules.json\)"):
        FolderEncoder(tmp_path)
