"""A Hugging Face text model as a text tower: from scratch, CLIP's, or a pretrained one.

Shapes: B texts, T tokens, Q hidden width, D shared width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ito_ray.config.schema import TextTowerConfig
from ito_ray.errors import ConfigError
from ito_ray.models.init import init_clip_text
from ito_ray.models.locking import LockableTower, lock_text_net
from ito_ray.models.pretrained import pretrained_folder


@dataclass(frozen=True)
class TextFeatures:
    """What one forward pass gives."""

    embedding_BD: Tensor
    """Projected pooled vector, not normalised."""
    tokens_BTQ: Tensor
    """Last hidden states, not projected; padding holds arbitrary values."""
    valid_BT: Tensor
    """bool, False on padding."""


def _from_scratch(cfg: TextTowerConfig, tokenizer: Any) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=4 * cfg.width,
        max_position_embeddings=cfg.context,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,  # contrastive pairs are never seen often enough to need it
        attention_probs_dropout_prob=0.0,
    )
    net: nn.Module = BertModel(config, add_pooling_layer=False)
    return net


def _clip(cfg: TextTowerConfig, tokenizer: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=4 * cfg.width,
        max_position_embeddings=cfg.context,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    net: nn.Module = CLIPTextModel(config)
    init_clip_text(net)
    return net


def _pretrained(cfg: TextTowerConfig) -> nn.Module:
    from transformers import AutoModel

    folder = pretrained_folder(cfg.source)
    try:
        net: Any = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.text.source={cfg.source} cannot be loaded: {reason} Give a folder with config.json, "
            "model.safetensors and a tokenizer, or a hub name while online."
        ) from error
    if getattr(net, "pooler", None) is not None:
        net.pooler.requires_grad_(False)  # never used; DDP would wait for its gradients
    return cast(nn.Module, net)


class TextTower(LockableTower):
    """A text model, its pooling and its bias-free projection to the shared space.

    Args:
        cfg: which model.
        tokenizer: a Hugging Face fast tokenizer that pads on the right; sets vocabulary and special tokens.
        embed_dim: D.

    Raises:
        ConfigError: a pretrained model that cannot be loaded.
    """

    def __init__(self, cfg: TextTowerConfig, tokenizer: Any, embed_dim: int) -> None:
        super().__init__(locked=cfg.locked)
        self.cfg = cfg
        if cfg.kind == "scratch":
            self.net = _from_scratch(cfg, tokenizer)
        elif cfg.kind == "clip":
            self.net = _clip(cfg, tokenizer)
        else:
            self.net = _pretrained(cfg)
        if cfg.locked:
            lock_text_net(self.net, cfg.open_layers)
        self.width = int(self.net.config.hidden_size)
        self.proj = nn.Linear(self.width, embed_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=self.width**-0.5)

    def recompute_activations(self) -> None:
        """Keep one activation a layer and compute the others again in the backward pass.

        Raises:
            ConfigError: Transformers has no such thing for this model.
        """
        try:
            self.net.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(
                f"train.gradient_checkpointing=true, but Transformers has none for model.text.source="
                f"{self.cfg.source}: set it to false, or use train.micro_batch to save memory."
            ) from error

    def forward(self, ids_BT: Tensor, length_B: Tensor) -> TextFeatures:
        """Embed token ids, int64 (B,T), of which the first `length_B` of each row are valid."""
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        valid_BT = positions_T[None] < length_B[:, None]
        tokens_BTQ = self.net(input_ids=ids_BT, attention_mask=valid_BT.long()).last_hidden_state
        return TextFeatures(self.proj(self._pool(tokens_BTQ, valid_BT, length_B)), tokens_BTQ, valid_BT)

    def _pool(self, tokens_BTQ: Tensor, valid_BT: Tensor, length_B: Tensor) -> Tensor:
        if self.cfg.pool == "cls":
            return tokens_BTQ[:, 0]
        if self.cfg.pool == "last":
            rows_B = torch.arange(tokens_BTQ.shape[0], device=tokens_BTQ.device)  # len() would fix B when exported
            return tokens_BTQ[rows_B, length_B - 1]
        weight_BT1 = valid_BT[..., None].to(tokens_BTQ.dtype)
        return (tokens_BTQ * weight_BT1).sum(1) / length_B[:, None].to(tokens_BTQ.dtype)
