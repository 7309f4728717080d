"""Any timm net, any text model: pooled vector as timm or Hugging Face has it, tokens where the picture has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from ito_ray.config.schema import FusionConfig, ImageTowerConfig, TextTowerConfig
from ito_ray.errors import ConfigError
from ito_ray.methods.ito import Ito
from ito_ray.models.fusion import Fusion, sincos_positions
from ito_ray.models.image_tower import ImageTower, pixels_to_input
from ito_ray.models.text_tower import TextTower
from tests.tiny import Vocabulary, tiny_config, tiny_method

THIN = {"depth": 1, "embed_dim": 48, "num_heads": 2}
NETS = [  # name, size, kwargs, tokens, prefix, has [CLS]
    pytest.param("vit_tiny_patch16_224", 32, THIN, 5, 1, True, id="vit with CLS"),
    pytest.param("vit_small_patch14_reg4_dinov2", 28, THIN, 9, 5, True, id="vit with CLS and registers"),
    pytest.param("vit_base_patch16_siglip_224", 32, THIN, 4, 0, False, id="vit without CLS, attention pool"),
    pytest.param("resnet10t", 64, {"channels": [8, 8, 16, 16]}, 4, 0, False, id="resnet, NCHW"),
    pytest.param("convnext_atto", 64, {}, 4, 0, False, id="convnext, NCHW"),
    pytest.param("mobilenetv4_conv_small_050", 64, {}, 4, 0, False, id="mobilenet, wide head"),
    pytest.param(
        "swin_tiny_patch4_window7_224",
        56,
        {"window_size": 7, "depths": (1, 1), "num_heads": (2, 2)},
        49,
        0,
        False,
        id="swin, NHWC",
    ),
]


@pytest.mark.parametrize(("name", "size", "kwargs", "tokens", "prefix", "has_cls"), NETS)
def test_pooled_vector_is_timms_and_tokens_fuse(
    name: str, size: int, kwargs: dict[str, object], tokens: int, prefix: int, has_cls: bool
) -> None:
    tower = ImageTower(ImageTowerConfig(name=name, size=size, kwargs=kwargs), embed_dim=16).eval()
    image_BCHW = torch.randn(2, 3, size, size)
    found = tower(image_BCHW)
    torch.testing.assert_close(found.embedding_BD, tower.proj(tower.net(image_BCHW)))
    assert found.tokens_BNQ.shape == (2, tokens, tower.token_width)
    assert (found.prefix, tower.has_cls) == (prefix, has_cls)
    assert found.grid[0] * found.grid[1] == tokens - prefix

    fusion = Fusion(FusionConfig(heads=2), tower, context=8, embed_dim=16).eval()
    sequence_BND = fusion.image_sequence(tower, found)
    assert sequence_BND.shape == (2, tokens + (not has_cls), 16)
    fused_BD = fusion(sequence_BND, torch.randn(2, 8, 16), torch.ones(2, 8, dtype=torch.bool))
    torch.testing.assert_close(fused_BD.norm(dim=1), torch.ones(2))


def test_tokens_of_a_map_keep_their_place() -> None:
    """Token r·columns + c of a convolutional net is what it sees at row r, column c."""
    tower = ImageTower(ImageTowerConfig(name="resnet10t", size=64, kwargs={"channels": [8, 8, 16, 16]}), 16).eval()
    image_BCHW = torch.randn(1, 3, 64, 64)
    map_BCHW = tower.net.forward_features(image_BCHW)
    torch.testing.assert_close(tower(image_BCHW).tokens_BNQ[0, 1], map_BCHW[0, :, 0, 1])


def test_sincos_positions_are_unique_and_separate_rows_from_columns() -> None:
    positions = sincos_positions(5, 7, 32)
    assert len({tuple(one) for one in positions.tolist()}) == 35
    grid = positions.view(5, 7, 32)
    assert (grid[:, 0, :16] == grid[:, 6, :16]).all()
    assert (grid[0, :, 16:] == grid[4, :, 16:]).all()


def test_pixels_to_input_is_normalisation_without_a_copy() -> None:
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    found = pixels_to_input(pixels, mean, std)
    expected = (pixels.permute(0, 3, 1, 2).float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_unknown_net_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        ImageTower(ImageTowerConfig(name="resnet_18"), 16)


def test_arguments_that_a_net_refuses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.image\.kwargs"):
        ImageTower(ImageTowerConfig(name="resnet10t", kwargs={"no_such": 1}), 16)


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", ["scratch", "clip"])
def test_text_pools_valid_tokens_only(kind: str, pool: str) -> None:
    cfg = TextTowerConfig.model_validate(
        {"kind": kind, "width": 32, "layers": 1, "heads": 2, "context": 12, "vocab_size": 40, "pool": pool}
    )
    tower = TextTower(cfg, Vocabulary(), 16).eval()
    ids, lengths = torch.randint(4, 40, (3, 9)), torch.tensor([3, 9, 5])
    together = tower(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = tower(ids[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together.embedding_BD[row], alone.embedding_BD[0], rtol=1e-4, atol=1e-5)
        hidden = alone.tokens_BTQ[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pool]
        torch.testing.assert_close(alone.embedding_BD[0], tower.proj(pooled), rtol=1e-4, atol=1e-5)
    assert together.valid_BT.sum(1).tolist() == lengths.tolist()


def test_a_missing_text_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.text\.source"):
        TextTower(TextTowerConfig(kind="pretrained", source=str(tmp_path / "nothing")), Vocabulary(), 16)


def test_an_untrained_net_of_this_name_exists_in_timm() -> None:
    """The recipes' nets are timm's."""
    from ito_ray.config.recipes import RECIPES

    for recipe in RECIPES.values():
        assert timm.is_model(recipe().model.image.name)


def test_dropped_patches_keep_their_places() -> None:
    """The fusion sees each kept patch with the position that it had in the picture."""
    cfg = tiny_config(model={"image": {"size": 32, "patch_drop": 0.5}})
    method = tiny_method(cfg).train()
    assert isinstance(method, Ito) and method.fusion is not None
    tower = method.encoder.image
    features = tower(torch.randn(3, 3, 32, 32).double())
    kept_BM = features.kept_BM
    assert kept_BM is not None and features.grid == (4, 4)
    assert [len(set(row.tolist())) for row in kept_BM] == [8, 8, 8]
    sequence = method.fusion.image_sequence(tower, features)
    positions = sequence - tower.proj(features.tokens_BNQ)
    expected = sincos_positions(4, 4, cfg.model.embed_dim).double()
    for row, places in zip(positions, kept_BM, strict=True):
        torch.testing.assert_close(row[1:], expected[places])
        torch.testing.assert_close(row[0], torch.zeros_like(row[0]))
    assert tower.eval()(torch.randn(1, 3, 32, 32).double()).tokens_BNQ.shape[1] == 17, "only in training"


def test_a_net_without_patches_cannot_drop_them() -> None:
    cfg = ImageTowerConfig(name="resnet10t", size=32, patch_drop=0.5)
    with pytest.raises(ConfigError, match="has no patches to drop"):
        ImageTower(cfg, 16)
