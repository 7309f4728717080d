"""The fusion module: a small Transformer over image and text tokens that exists in training only.

Shapes: B pairs, N image tokens, T text tokens, D shared width, Q token width of a tower.
Source: ITO, https://arxiv.org/abs/2603.02767, training-time multimodal fusion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ito_ray.config.schema import FusionConfig
from ito_ray.models.image_tower import ImageFeatures, ImageTower
from ito_ray.models.precision import at_least_float32
from ito_ray.models.recompute import activate_and_project
from ito_ray.models.text_tower import TextFeatures, TextTower

BF16_PAYS_FROM = 256
"""D below which bfloat16 makes the fusion's small matrix products slower on CPUs instead of faster (docs/log.md)."""


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions: float32 (rows·columns, width), half for the row, half for the column.

    Source: MAE, https://arxiv.org/abs/2111.06377, appendix A.1; `width` must be a multiple of 4.
    """
    quarter = width // 4
    frequency = 1.0 / 10_000 ** (torch.arange(quarter, dtype=torch.float32) / quarter)

    def along(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float32)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row = along(rows)[:, None].expand(rows, columns, -1)
    column = along(columns)[None].expand(rows, columns, -1)
    return torch.cat([row, column], dim=-1).reshape(rows * columns, width)


class Block(nn.Module):
    """Pre-norm Transformer block, bidirectional, no dropout.

    Args:
        width: D.
        heads: must divide D.
        mlp_ratio: hidden width of the MLP over D.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, int(mlp_ratio * width)), nn.GELU(), nn.Linear(int(mlp_ratio * width), width)
        )

    def forward(self, tokens_BSD: Tensor, valid_BS: Tensor, rows: int | None = None) -> Tensor:
        """The first `rows` rows of the block's output (all by default); keys are every valid token."""
        normed_BSD = self.norm_attention(tokens_BSD)
        query_BRD = self.query(normed_BSD[:, :rows])
        key_BSD, value_BSD = self.key_value(normed_BSD).chunk(2, dim=-1)
        query, key, value = (self._by_head(part) for part in (query_BRD, key_BSD, value_BSD))
        attended_BHRE = F.scaled_dot_product_attention(query, key, value, attn_mask=valid_BS[:, None, None])
        tokens_BRD = tokens_BSD[:, :rows] + self.out(attended_BHRE.transpose(1, 2).flatten(2))
        up, activation, down = self.mlp
        mixed_BRD: Tensor = tokens_BRD + activate_and_project(activation, down, up(self.norm_mlp(tokens_BRD)))
        return mixed_BRD

    def _by_head(self, tokens_BSD: Tensor) -> Tensor:
        return torch.unflatten(tokens_BSD, -1, (self.heads, -1)).transpose(1, 2)


class Fusion(nn.Module):
    """Concatenated image and text tokens → one L2-normalised fused vector per pair.

    Tokens go through the towers' own projections where the widths agree; a tower whose tokens are wider than its
    pooled vector (MobileNetV4, for one) gets a projection here, which is discarded with the module.
    The read-out position `cls` is the tower's [CLS] token, or, where the tower has none, its projected pooled vector.

    Args:
        cfg: depth, heads, MLP ratio, read-out.
        image: the image tower; only its widths are read.
        context: longest text in tokens.
        embed_dim: D, a multiple of 4.
    """

    def __init__(self, cfg: FusionConfig, image: ImageTower, context: int, embed_dim: int) -> None:
        super().__init__()
        self.readout = cfg.readout
        self.recompute = False
        own_projection = image.token_width != image.pooled_width
        self.image_proj = nn.Linear(image.token_width, embed_dim, bias=False) if own_projection else None
        self.text_positions = nn.Parameter(torch.empty(context, embed_dim).normal_(std=0.02))
        if cfg.readout == "token":
            self.readout_token = nn.Parameter(torch.empty(embed_dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(embed_dim, cfg.heads, cfg.mlp_ratio) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(embed_dim)

    def image_sequence(self, tower: ImageTower, features: ImageFeatures) -> Tensor:
        """Projected image tokens with positions, the read-out token first: (B,N,D), N one more without a [CLS]."""
        proj = self.image_proj if self.image_proj is not None else tower.proj
        tokens_BND: Tensor = proj(features.tokens_BNQ)
        positions_MD = sincos_positions(*features.grid, tokens_BND.shape[-1]).to(tokens_BND)
        if features.kept_BM is not None:
            positions_MD = positions_MD[features.kept_BM]
        tokens_BND = tokens_BND + F.pad(positions_MD, (0, 0, features.prefix, 0))
        if tower.has_cls:
            return tokens_BND
        return torch.cat([features.embedding_BD[:, None].to(tokens_BND), tokens_BND], dim=1)

    def text_sequence(self, tower: TextTower, features: TextFeatures) -> Tensor:
        """Projected text tokens with learned positions: (B,T,D)."""
        tokens_BTD: Tensor = tower.proj(features.tokens_BTQ)
        return tokens_BTD + self.text_positions[: tokens_BTD.shape[1]].to(tokens_BTD)

    def forward(self, image_BND: Tensor, text_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Fuse each pair: (B,D), L2-normalised, at least float32.

        Padding is masked as keys. The last block computes only the rows that the read-out reads.
        """
        device = image_BND.device.type
        slow = device == "cpu" and image_BND.shape[-1] < BF16_PAYS_FROM
        with torch.autocast(device, enabled=not slow and torch.is_autocast_enabled(device)):
            sequence_BSD = torch.cat([image_BND, text_BTD], dim=1)
            if slow:
                sequence_BSD = at_least_float32(sequence_BSD)
            valid_BS = F.pad(valid_BT, (image_BND.shape[1], 0), value=True)
            if self.readout == "token":
                token_B1D = self.readout_token.to(sequence_BSD).expand(len(sequence_BSD), 1, -1)
                sequence_BSD = torch.cat([token_B1D, sequence_BSD], dim=1)
                valid_BS = F.pad(valid_BS, (1, 0), value=True)
            for block in self.blocks[:-1]:
                sequence_BSD = self._run(block, sequence_BSD, valid_BS)
            if self.readout == "mean":
                sequence_BSD = self.norm(self._run(self.blocks[-1], sequence_BSD, valid_BS))
                weight_BS1 = valid_BS[..., None].to(sequence_BSD.dtype)
                fused_BD = (sequence_BSD * weight_BS1).sum(1) / weight_BS1.sum(1)
            else:
                fused_BD = self.norm(self._run(self.blocks[-1], sequence_BSD, valid_BS, rows=1))[:, 0]
            return F.normalize(at_least_float32(fused_BD), dim=-1)

    def _run(self, block: nn.Module, sequence_BSD: Tensor, valid_BS: Tensor, rows: int | None = None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, sequence_BSD, valid_BS, rows, use_reentrant=False)
            return again
        once: Tensor = block(sequence_BSD, valid_BS, rows)
        return once
