"""The fusion block is torch's own pre-norm layer; its first rows do not depend on whether others are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ito_ray.config.schema import FusionConfig, ImageTowerConfig
from ito_ray.models.fusion import Block, Fusion
from ito_ray.models.image_tower import ImageTower

D, HEADS = 16, 2


def _torchs(block: Block) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(D, HEADS, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True).double()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([block.query.weight, block.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([block.query.bias, block.key_value.bias]),
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            **{f"linear1.{key}": value for key, value in block.mlp[0].state_dict().items()},
            **{f"linear2.{key}": value for key, value in block.mlp[2].state_dict().items()},
            **{f"norm1.{key}": value for key, value in block.norm_attention.state_dict().items()},
            **{f"norm2.{key}": value for key, value in block.norm_mlp.state_dict().items()},
        }
    )
    return layer


def test_block_is_torchs_pre_norm_layer() -> None:
    torch.manual_seed(0)
    block = Block(D, HEADS, 4.0).double()
    tokens_BSD = torch.randn(3, 7, D, dtype=torch.float64)
    valid_BS = torch.arange(7)[None] < torch.tensor([7, 4, 2])[:, None]
    expected = _torchs(block)(tokens_BSD, src_key_padding_mask=~valid_BS)
    torch.testing.assert_close(block(tokens_BSD, valid_BS), expected)
    torch.testing.assert_close(block(tokens_BSD, valid_BS, rows=1), expected[:, :1])


@pytest.mark.parametrize(("width", "expected"), [(128, torch.float32), (256, torch.bfloat16)])
def test_narrow_fusion_leaves_autocast_on_cpus(width: int, expected: torch.dtype) -> None:
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    tower = ImageTower(ImageTowerConfig(name="vit_tiny_patch16_224", size=32, kwargs=kwargs), width)
    fusion = Fusion(FusionConfig(heads=4), tower, context=6, embed_dim=width)
    seen: list[torch.dtype] = []

    def record(_: nn.Module, __: object, output: Tensor) -> None:
        seen.append(output.dtype)

    for block in fusion.blocks:
        assert isinstance(block, Block)
        block.out.register_forward_hook(record)
    with torch.autocast("cpu", torch.bfloat16):
        fused_BD = fusion(torch.randn(3, 5, width), torch.randn(3, 6, width), torch.ones(3, 6, dtype=torch.bool))
    assert seen == [expected, expected]
    assert fused_BD.dtype == torch.float32
