"""A tiny CLIP, untrained, as a SentenceTransformer folder and as an OpenCLIP folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.export.open_clip_folder import write_open_clip
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.models.dual_encoder import DualEncoder
from tests.evaluation.shapes import COLOURS, SHAPES

CONTEXT = 12


class Folders(NamedTuple):
    """Where it was written."""

    sentence_transformer: Path
    open_clip: Path


def tokenizer() -> Any:
    """As CLIP's, whose end token has the highest id, with the words of the drawn shapes."""
    words = ["a", "black", "number", *COLOURS, *SHAPES, *map(str, range(60))]
    entries = ["[UNK]", *dict.fromkeys(words), "[START]", "[END]"]
    core = Tokenizer(models.WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, entries.index(token)) for token in ("[START]", "[END]")]
    core.post_processor = processors.TemplateProcessing(single="[START] $A [END]", special_tokens=ends)
    special = {"bos_token": "[START]", "eos_token": "[END]", "pad_token": "[END]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=CONTEXT, **special)


def write_clip(parent: Path) -> Folders:
    """Both folders below `parent`."""
    made = tokenizer()
    made.save_pretrained(parent / "tokenizer")
    image = ImageTowerConfig(
        name="vit_base_patch16_clip_224",
        size=32,
        kwargs={"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8},
    )
    text = TextTowerConfig(kind="clip", width=32, layers=1, heads=2, context=CONTEXT, pool="last")
    torch.manual_seed(0)
    model = DualEncoder(ModelConfig(image=image, text=text, embed_dim=16), made)
    folders = Folders(parent / "sentence_transformer", parent / "open_clip")
    export_sentence_transformer(model, parent / "tokenizer", folders.sentence_transformer)
    folders.open_clip.mkdir()
    write_open_clip(model, parent / "tokenizer", folders.open_clip)
    return folders
