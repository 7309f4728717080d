"""A tiny real dual encoder, its tokenizer, and an encoder written from timm and transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.export.parity import Reference, take_reference
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.models.dual_encoder import DualEncoder

CAPTIONS = ["a photo of a red bird", "two green boats in the harbour", "word after word", "zwölf häuser 日本"]
VIT = ImageTowerConfig(
    name="vit_tiny_patch16_224",
    size=32,
    kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
)
FUSION = {"fusion.text_positions": (16, 24), "fusion.norm.weight": (24,)}
BERT = TextTowerConfig(kind="scratch", width=32, layers=2, heads=2, context=16, vocab_size=200, pool="mean")


class NaiveEncoder:
    """Encodes one input at a time, without padding, with timm's own preprocessing."""

    def __init__(self, model: DualEncoder, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        cfg = model.image.cfg
        self.transform: Any = create_transform(
            input_size=cfg.size,
            is_training=False,
            crop_pct=1.0,
            crop_mode="center",
            interpolation="bicubic",
            mean=model.image.mean,
            std=model.image.std,
        )

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.concatenate([self.model.encode_image(self.transform(image)[None]).numpy() for image in images])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = []
        for text in texts:
            ids = self.tokenizer(text, truncation=True, max_length=self.model.text.cfg.context)["input_ids"]
            rows.append(self.model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)])).numpy())
        return np.concatenate(rows)


def wordpiece(context: int) -> Any:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        CAPTIONS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=context,
        split_special_tokens=True,
    )


def build(folder: Path, image: ImageTowerConfig, text: TextTowerConfig) -> tuple[DualEncoder, NaiveEncoder, Path]:
    torch.manual_seed(0)
    tokenizer = wordpiece(text.context)
    tokenizer.save_pretrained(folder)
    model = DualEncoder(ModelConfig(image=image, text=text, embed_dim=24), tokenizer)
    return model, NaiveEncoder(model, tokenizer), folder


class Exported(NamedTuple):
    """A model, what encodes with it, its folder and the reference taken of it."""

    model: DualEncoder
    encoder: NaiveEncoder
    folder: Path
    reference: Reference


def export(parent: Path, image: ImageTowerConfig = VIT, text: TextTowerConfig = BERT) -> Exported:
    model, encoder, tokenizer_dir = build(parent / "tokenizer", image, text)
    folder = export_sentence_transformer(model, tokenizer_dir, parent / "sentence_transformer")
    return Exported(model, encoder, folder, take_reference(model, encoder, forbidden=FUSION))
