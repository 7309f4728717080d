"""CLIP's initial weights, for both towers, as the published recipes were trained with.

timm starts a ViT with tiny truncated normals and Hugging Face a CLIPTextModel with other widths than CLIP's; both at
biases of 0. Source: the released code of CLIP (https://arxiv.org/abs/2103.00020) and OpenCLIP
(https://github.com/mlfoundations/open_clip), whose ViT keeps torch's own initialisation; tests/models/test_open_clip.py
compares every tensor with it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def init_clip_vit(net: Any) -> None:
    """A timm VisionTransformer with pre-norm, in place: torch's defaults, positions and [CLS] of std width^-½."""
    scale = net.embed_dim**-0.5
    for learned in (net.cls_token, net.pos_embed):
        if learned is not None:  # model.image.kwargs may leave them out
            nn.init.normal_(learned, std=scale)
    net.patch_embed.proj.reset_parameters()
    for block in net.blocks:
        _torch_attention(block.attn.qkv, block.attn.proj)
        block.mlp.fc1.reset_parameters()
        block.mlp.fc2.reset_parameters()


def init_clip_text(net: Any) -> None:
    """A Hugging Face CLIPTextModel, in place."""
    width, layers = net.config.hidden_size, net.config.num_hidden_layers
    normal = nn.init.normal_
    normal(net.embeddings.token_embedding.weight, std=0.02)
    normal(net.embeddings.position_embedding.weight, std=0.01)
    residual_std = width**-0.5 * (2 * layers) ** -0.5
    for block in net.encoder.layers:
        attention = block.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            normal(projection.weight, std=width**-0.5)
        normal(attention.out_proj.weight, std=residual_std)
        block.mlp.fc1.reset_parameters()  # for the biases, which keep torch's default
        block.mlp.fc2.reset_parameters()
        normal(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
        normal(block.mlp.fc2.weight, std=residual_std)


def _torch_attention(qkv: nn.Linear, out: nn.Linear) -> None:
    """As torch.nn.MultiheadAttention starts: Xavier over the stacked (3·width, width), out by default, no biases."""
    bound = math.sqrt(6 / (qkv.in_features + qkv.out_features))
    nn.init.uniform_(qkv.weight, -bound, bound)
    out.reset_parameters()
    for bias in (qkv.bias, out.bias):
        if bias is not None:
            nn.init.zeros_(bias)
