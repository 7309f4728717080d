"""The smallest real model: a ViT of two blocks, a BERT of one layer, D = 16; and batches for it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.methods import Batch, Method, build_method
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training.step import MakeBatch

SIZE, CONTEXT, VOCABULARY = 16, 12, 40
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


METHODS: dict[str, dict[str, Any]] = {
    "clip": {"method": {"name": "clip"}, "data": {"views": {"count": 1}}},
    "siglip": {"method": {"name": "siglip"}, "data": {"views": {"count": 1}}},
    "ito": {},
    "ito_three_views_two_captions": {"data": {"views": {"count": 3}, "captions": 2}},
    "ito_alignment_only": {"method": {"fusion_weight": 0.0}},
    "ito_own_temperature": {"method": {"fusion": {"temperature": "own"}}},
    "ito_weighted": {"method": {"alignment_weights": [0.5, 2.0], "fusion": {"readout": "mean"}}},
}
"""Every method, and ITO's variants, as changes of `tiny_config`."""


class Vocabulary:
    """As much of a tokenizer as a tower asks for."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 3

    def __len__(self) -> int:
        return VOCABULARY


def tiny_config(**changes: Any) -> Config:
    """A configuration of the smallest model; `changes` are nested sections."""
    base = overlay(
        Config(),
        {
            "model": {
                "embed_dim": 16,
                "image": {"name": "vit_tiny_patch16_224", "size": SIZE, "kwargs": VIT},
                "text": {
                    "kind": "scratch",
                    "width": 32,
                    "layers": 1,
                    "heads": 2,
                    "context": CONTEXT,
                    "vocab_size": VOCABULARY,
                    "pool": "mean",
                },
            },
            "method": {"fusion": {"layers": 2, "heads": 2}},
            "optim": {"warmup_steps": 2, "lr": 1e-3},
            "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
        },
        source="test",
    )
    return overlay(base, changes, source="test")


def tiny_method(cfg: Config, seed: int = 0) -> Method:
    """The method of `cfg` around a fresh tiny encoder in float64; equal for equal seeds."""
    torch.manual_seed(seed)
    return build_method(cfg, DualEncoder(cfg.model, Vocabulary())).double()


def random_batch(pairs: int, views: int = 2, captions: int = 1, seed: int = 1) -> Batch:
    """Random pixels and ids with captions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, CONTEXT + 1, (captions, pairs), generator=generator)
    ids = torch.randint(4, VOCABULARY, (captions, pairs, int(lengths.max())), generator=generator)
    return Batch(torch.randn(views, pairs, 3, SIZE, SIZE, generator=generator).double(), ids, lengths)


def pieces(batch: Batch, size: int) -> list[MakeBatch]:
    """`batch` in micro-batches of `size`, each with its captions cut to its own longest."""
    return [partial(_slice, batch, slice(start, start + size)) for start in range(0, batch.length_CB.shape[1], size)]


def _slice(batch: Batch, part: slice) -> Batch:
    length_CB = batch.length_CB[:, part]
    ids_CBT = batch.ids_CBT[:, part, : int(length_CB.max())]
    return dataclasses.replace(batch, image_VBCHW=batch.image_VBCHW[:, part], ids_CBT=ids_CBT, length_CB=length_CB)
