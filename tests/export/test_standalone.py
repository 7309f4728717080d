"""What a README.md shows reads images and texts as training does, where ito_ray is not installed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor, CLIPModel

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.data.decode import decode_rgb
from ito_ray.data.preprocess import clean_text
from ito_ray.data.tokens import clip_tokenizer, load_tokenizer
from ito_ray.data.views import eval_view
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.export.hf_clip_folder import write_hf_clip
from ito_ray.export.load import load_encoder
from ito_ray.export.onnx_folder import write_onnx
from ito_ray.export.open_clip_folder import write_open_clip
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.export.standalone import standalone
from ito_ray.models.dual_encoder import DualEncoder
from tests.data.odd_images import odd_images

ODD = odd_images()
SIZE = 32
TEXTS = [
    "a red bird",
    "salt &amp;amp; pepper &quot;ｆｕｌｌ&quot;",
    "two\u200b green\u00a0 boats\ufeff",
    "a <|endoftext|> b <|startoftext|> c",
    "[SEP] [CLS] </s> [PAD]",
]
ALLOWED = {"PIL", "numpy", "onnxruntime", "tokenizers"}


class Exports:
    """A dual encoder as it was trained, and its four folders."""

    def __init__(self, parent: Path) -> None:
        tokenizer = clip_tokenizer(24)
        tokenizer.save_pretrained(parent / "tokenizer")
        torch.manual_seed(0)
        kwargs = {"embed_dim": 64, "depth": 1, "num_heads": 1, "patch_size": 8}
        cfg = ModelConfig(
            image=ImageTowerConfig(name="vit_base_patch16_clip_224", size=SIZE, kwargs=kwargs),
            text=TextTowerConfig(kind="clip", width=32, layers=1, heads=2, context=24, pool="last"),
            embed_dim=16,
        )
        model = DualEncoder(cfg, tokenizer).eval()
        self.stock = export_sentence_transformer(model, parent / "tokenizer", parent / "st")
        trained = TowerEncoder(model, load_tokenizer(parent / "tokenizer"), "cpu")
        self.images = trained.encode_images([decode_rgb(data, max_pixels=10**6) for data in ODD.values()])
        self.texts = trained.encode_texts([clean_text(text) for text in TEXTS])
        self.folders = {"sentence_transformer": self.stock}
        for name, write in (("open_clip", write_open_clip), ("hf_clip", write_hf_clip), ("onnx", write_onnx)):
            self.folders[name] = parent / name
            self.folders[name].mkdir()
            write(load_encoder(self.stock), self.stock / "text_0_Transformer", self.folders[name])

    def assert_same(self, images: Any, texts: Any) -> None:
        np.testing.assert_allclose(np.asarray(images), self.images, atol=1e-5)
        np.testing.assert_allclose(np.asarray(texts), self.texts, atol=1e-5)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def shown(folder: Path) -> dict[str, Any]:
    """The first block of code of README.md, run."""
    code = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```\n")[0]
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    packages = {str(name).split(".")[0] for name in names}
    assert packages - set(sys.stdlib_module_names) <= ALLOWED
    space: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), space)
    return space


@pytest.mark.parametrize("kind", ["sentence_transformer", "open_clip", "hf_clip", "onnx"])
def test_a_card_shows_how_training_read(kind: str, exports: Exports, tmp_path: Path) -> None:
    card = shown(exports.folders[kind])
    for name, data in ODD.items():
        trained = decode_rgb(data, max_pixels=10**6)
        (tmp_path / name).write_bytes(data)
        assert card["read_image"](tmp_path / name).tobytes() == trained.tobytes(), name
        assert (np.asarray(card["read_image"](data, size=SIZE)) == eval_view(trained, SIZE)).all(), name
    assert [card["clean_text"](text) for text in TEXTS] == [clean_text(text) for text in TEXTS]


def test_sentence_transformers_encodes_as_training(exports: Exports) -> None:
    card, model = shown(exports.stock), SentenceTransformer(str(exports.stock), device="cpu", local_files_only=True)
    images = model.encode([card["read_image"](data, size=SIZE) for data in ODD.values()])
    texts: list[Any] = [{"text": card["clean_text"](text)} for text in TEXTS]
    exports.assert_same(images, model.encode(texts))


@torch.inference_mode()
def test_open_clip_encodes_as_training(exports: Exports) -> None:
    folder = exports.folders["open_clip"]
    card, name = shown(folder), f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([preprocess(card["read_image"](data, size=SIZE)) for data in ODD.values()])
    ids = open_clip.get_tokenizer(name)([card["clean_text"](text) for text in TEXTS])
    model.eval()
    exports.assert_same(model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True))


@torch.inference_mode()
def test_transformers_encodes_as_training(exports: Exports) -> None:
    folder = exports.folders["hf_clip"]
    card = shown(folder)
    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    images = [card["read_image"](data, size=SIZE) for data in ODD.values()]
    texts = [card["clean_text"](text) for text in TEXTS]
    answer = model(**processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt"))
    exports.assert_same(answer.image_embeds, answer.text_embeds)


def test_onnxruntime_encodes_as_training(exports: Exports) -> None:
    card = shown(exports.folders["onnx"])
    encoder = card["OnnxEncoder"](exports.folders["onnx"])
    images = encoder.encode_images([card["read_image"](data) for data in ODD.values()])
    exports.assert_same(images, encoder.encode_texts(TEXTS))


def test_each_module_is_put_in_once_and_nothing_of_ours_is_imported(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        '"""Doc."""\n\nfrom __future__ import annotations\n\nfrom ito_ray.data.preprocess import (\n    clean_text,\n'
        "    read_image,\n)\nfrom ito_ray.data.preprocess import to_rgb\n\nused = clean_text, read_image, to_rgb\n"
    )
    code = standalone(tmp_path / "one.py")
    assert "ito_ray" not in code and code.count("def clean_text") == 1
    space: dict[str, Any] = {}
    exec(compile(code, "one.py", "exec"), space)
    assert [one.__name__ for one in space["used"]] == ["clean_text", "read_image", "to_rgb"]
