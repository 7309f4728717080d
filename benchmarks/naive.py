"""ITO's step as its paper's text describes it, on OpenCLIP's own model: the reference that ours is timed against.

Two passes through the image tower, text padded to the whole context, fusion over all of its positions, every row of the
last fusion layer computed, torch's own Transformer layers, the loss as its equation stands.

Shapes: B pairs, N image tokens, T text positions, D shared width, S = N + T.
Source: https://arxiv.org/abs/2603.02767
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ito_ray.models.fusion import Block, Fusion, sincos_positions


class NaiveIto(nn.Module):
    """L = ½ Σ_v CLIP loss(view v) + λ·L_fusion, around an `open_clip.CLIP` and the weights of our fusion module.

    Args:
        model: the OpenCLIP model; its image tower is told to give its tokens as well.
        fusion: read-out `cls`; its weights are copied.
        fusion_weight: λ.
    """

    def __init__(self, model: Any, fusion: Fusion, fusion_weight: float) -> None:
        super().__init__()
        self.model = model
        self.fusion_weight = fusion_weight
        self.text_positions = nn.Parameter(fusion.text_positions.detach().clone())
        blocks = [block for block in fusion.blocks if isinstance(block, Block)]
        self.blocks = nn.ModuleList(_torch_layer(block) for block in blocks)
        self.norm = nn.LayerNorm(self.text_positions.shape[1])
        self.norm.load_state_dict(fusion.norm.state_dict())

    def forward(self, image_VBCHW: Tensor, ids_BT: Tensor, length_B: Tensor) -> Tensor:
        """The loss of normalised pixels (2,B,3,H,W) and ids padded to the whole context."""
        text_BTD = self._text(ids_BT)
        text_BD = F.normalize(text_BTD[torch.arange(len(ids_BT), device=ids_BT.device), length_B - 1], dim=-1)
        padding_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] >= length_B[:, None]
        scale = self.model.logit_scale.exp()
        align, fused = [], []
        for image_BCHW in image_VBCHW:
            image_BND = self._image(image_BCHW)
            align.append(_clip_loss(F.normalize(image_BND[:, 0], dim=-1), text_BD, scale))
            fused.append(self._fuse(image_BND, text_BTD, padding_BT))
        return (align[0] + align[1]) / 2 + self.fusion_weight * _fusion_loss(fused[0], fused[1], scale)

    def _image(self, image_BCHW: Tensor) -> Tensor:
        """Projected tokens, [CLS] first."""
        visual = self.model.visual
        visual.output_tokens = True
        pooled_BD, tokens_BNW = visual(image_BCHW)
        visual.output_tokens = False
        return torch.cat([pooled_BD[:, None], tokens_BNW @ visual.proj], dim=1)

    def _text(self, ids_BT: Tensor) -> Tensor:
        """Projected tokens of all positions."""
        hidden_BTW = self.model.token_embedding(ids_BT) + self.model.positional_embedding
        hidden_BTW = self.model.ln_final(self.model.transformer(hidden_BTW, attn_mask=self.model.attn_mask))
        projected_BTD: Tensor = hidden_BTW @ self.model.text_projection
        return projected_BTD

    def _fuse(self, image_BND: Tensor, text_BTD: Tensor, padding_BT: Tensor) -> Tensor:
        rows, columns = self.model.visual.grid_size
        positions_ND = F.pad(sincos_positions(rows, columns, image_BND.shape[-1]), (0, 0, 1, 0)).to(image_BND.device)
        sequence_BSD = torch.cat([image_BND + positions_ND, text_BTD + self.text_positions], dim=1)
        padding_BS = F.pad(padding_BT, (image_BND.shape[1], 0), value=False)
        for block in self.blocks:
            sequence_BSD = block(sequence_BSD, src_key_padding_mask=padding_BS)
        return F.normalize(self.norm(sequence_BSD)[:, 0], dim=-1)


def _torch_layer(block: Block) -> nn.TransformerEncoderLayer:
    first = block.mlp[0]
    assert isinstance(first, nn.Linear)
    width, hidden = block.query.in_features, first.out_features
    layer = nn.TransformerEncoderLayer(width, block.heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
    parts = {
        "self_attn.out_proj": block.out,
        "linear1": block.mlp[0],
        "linear2": block.mlp[2],
        "norm1": block.norm_attention,
        "norm2": block.norm_mlp,
    }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for kind in ("weight", "bias"):
        query, key_value = getattr(block.query, kind), getattr(block.key_value, kind)
        state[f"self_attn.in_proj_{kind}"] = torch.cat([query, key_value])
    layer.load_state_dict(state)
    return layer


def _clip_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    logits_BB = scale * image_BD @ text_BD.T
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def _fusion_loss(one_BD: Tensor, other_BD: Tensor, scale: Tensor) -> Tensor:
    target_B = torch.arange(len(one_BD), device=one_BD.device)
    itself_BB = torch.diag(torch.full((len(one_BD),), torch.inf, device=one_BD.device))

    def side(anchor_BD: Tensor, positive_BD: Tensor) -> Tensor:
        among_its_view_BB = (scale * anchor_BD @ anchor_BD.T).float() - itself_BB
        logits_BC = torch.cat([(scale * anchor_BD @ positive_BD.T).float(), among_its_view_BB], dim=1)
        return F.cross_entropy(logits_BC, target_B)

    return (side(one_BD, other_BD) + side(other_BD, one_BD)) / 2
