"""Any timm model as an image tower: pooled vector and tokens from one forward pass.

Shapes: B images, C channels, H×W pixels, N tokens (prefix tokens first), P pooled width, Q token width, D shared width.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import PatchDropoutWithIndices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ito_ray.config.schema import ImageTowerConfig
from ito_ray.errors import ConfigError
from ito_ray.models.init import init_clip_vit
from ito_ray.models.locking import LockableTower, lock_image_net
from ito_ray.models.pixels import normalisation, registered, require_own_pixels, resolved
from ito_ray.models.recompute import make_lean


@dataclass(frozen=True)
class ImageFeatures:
    """What one forward pass gives."""

    embedding_BD: Tensor
    """Projected pooled vector, not normalised."""
    tokens_BNQ: Tensor
    """The net's last tokens or map positions, not projected."""
    prefix: int
    """How many of the N tokens have no place in the picture ([CLS], registers); [CLS] comes first."""
    grid: tuple[int, int]
    """Rows and columns of the other tokens."""
    kept_BM: Tensor | None = None
    """int64: which places of the grid the other tokens have, where patches were dropped."""


def _create(cfg: ImageTowerConfig) -> tuple[nn.Module, dict[str, Any]]:
    kwargs: dict[str, Any] = {"img_size": cfg.size, **cfg.kwargs}
    if not timm.is_model(cfg.name.split(".")[0]):
        near = difflib.get_close_matches(cfg.name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ": see timm.list_models()."
        raise ConfigError(f"model.image.name={cfg.name} is not a timm model{hint}")
    registered(cfg.name)
    try:
        return timm.create_model(cfg.name, pretrained=cfg.pretrained, num_classes=0, **kwargs), kwargs
    except TypeError as error:
        if "img_size" not in str(error):
            raise ConfigError(f"model.image.kwargs={cfg.kwargs}: {cfg.name} refuses them: {error}") from error
    kwargs.pop("img_size")  # convolutional nets take any size and have no such argument
    try:
        return timm.create_model(cfg.name, pretrained=cfg.pretrained, num_classes=0, **kwargs), kwargs
    except TypeError as error:
        raise ConfigError(f"model.image.kwargs={cfg.kwargs}: {cfg.name} refuses them: {error}") from error


def _load_weights(net: nn.Module, cfg: ImageTowerConfig) -> None:
    try:
        weights = load_file(cfg.weights)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"model.image.weights={cfg.weights} is no safetensors file that can be read: {error}"
        ) from error
    wanted = net.state_dict()
    wrong = sorted(name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape)
    if wrong:
        raise ConfigError(
            f"model.image.weights={cfg.weights} has not the weights of {cfg.name} at {cfg.size} px: {wrong[0]} and "
            f"{len(wrong) - 1} others are missing or have another shape. Give timm's own file for this model and size."
        )
    net.load_state_dict({name: weights[name] for name in wanted})  # a head for classes may be left over


class _PatchDrop(nn.Module):
    """timm's patch dropout (FLIP, https://arxiv.org/abs/2212.00794), remembering what it kept for the fusion."""

    def __init__(self, share: float, prefix: int) -> None:
        super().__init__()
        self.drop = PatchDropoutWithIndices(share, prefix)
        self.kept_BM: Tensor | None = None

    def forward(self, tokens_BNQ: Tensor) -> Tensor:
        rest_BNQ: Tensor
        rest_BNQ, self.kept_BM = self.drop(tokens_BNQ)
        return rest_BNQ


def _has_pre_norm(net: Any) -> bool:
    """Whether a Vision Transformer has a LayerNorm before its first block, as CLIP's have."""
    return isinstance(net.norm_pre, nn.LayerNorm)


class ImageTower(LockableTower):
    """A timm model and its bias-free projection to the shared space.

    Args:
        cfg: which model; `kwargs` go to timm.create_model as they are.
        embed_dim: D.
        began: whether the run has begun: what an earlier version allowed, or the driver has checked, goes on.

    Raises:
        ConfigError: an unknown model name (the nearest are named), arguments that the model refuses, or a locked tower
            with other pixels than those of its weights.
    """

    def __init__(self, cfg: ImageTowerConfig, embed_dim: int, *, began: bool = False) -> None:
        super().__init__(locked=cfg.locked)
        self.net, self.create_kwargs = _create(cfg)
        if not began:
            require_own_pixels(cfg)
        self.cfg = resolved(cfg)
        self.mean, self.std = normalisation(cfg)
        if not cfg.pretrained and isinstance(self.net, VisionTransformer) and _has_pre_norm(self.net):
            init_clip_vit(self.net)
        make_lean(self.net)
        self.pooled_width = int(self.net.head_hidden_size)
        self.token_width = int(self.net.num_features)
        if cfg.patch_drop:
            self._drop_patches()
        if cfg.weights:
            _load_weights(self.net, cfg)
        if cfg.locked:
            lock_image_net(self.net, cfg.open_layers)
        self.proj = nn.Linear(self.pooled_width, embed_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=self.pooled_width**-0.5)

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is a [CLS] token."""
        return getattr(self.net, "cls_token", None) is not None

    def recompute_activations(self) -> None:
        """Keep one activation a block and compute the others again in the backward pass.

        Raises:
            ConfigError: timm has no such thing for this model.
        """
        try:
            self.net.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"train.gradient_checkpointing=true, but timm has none for model.image.name={self.cfg.name}: set it to "
                "false, or use train.micro_batch to save memory."
            ) from error

    def forward(self, image_BCHW: Tensor) -> ImageFeatures:
        """Embed normalised pixels, float (B,3,H,W)."""
        features = self.net.forward_features(image_BCHW)
        embedding_BD = self.proj(self.net.forward_head(features, pre_logits=True))
        if features.ndim == 3:  # a Transformer's (B,N,Q)
            prefix = int(getattr(self.net, "num_prefix_tokens", 0))
            kept_BM = self.net.patch_drop.kept_BM if self.cfg.patch_drop else None
            grid = self._grid(features.shape[1] - prefix)
            return ImageFeatures(embedding_BD, features, prefix, grid, kept_BM)
        if getattr(self.net, "output_fmt", "NCHW") != "NHWC":
            features = features.permute(0, 2, 3, 1)
        rows, columns = features.shape[1:3]
        return ImageFeatures(embedding_BD, features.flatten(1, 2), 0, (rows, columns))

    def _drop_patches(self) -> None:
        if not isinstance(getattr(self.net, "patch_drop", None), nn.Module):
            raise ConfigError(
                f"model.image.patch_drop={self.cfg.patch_drop:g}, but {self.cfg.name} has no patches to drop: set it "
                "to 0 or take a ViT."
            )
        self.net.patch_drop = _PatchDrop(self.cfg.patch_drop, self.net.num_prefix_tokens)

    def _grid(self, tokens: int) -> tuple[int, int]:
        side = int(tokens**0.5)
        patches = getattr(self.net, "patch_embed", None)
        rows, columns = getattr(patches, "grid_size", None) or (side, side)
        assert self.cfg.patch_drop or rows * columns == tokens, f"{tokens} tokens do not fill a {rows}×{columns} grid"
        return rows, columns


def pixels_to_input(pixels_BHWC: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (…,H,W,3) → normalised float32 (…,3,H,W), a channels-last view: no copy to transpose.

    Args:
        pixels_BHWC: uint8, any leading dimensions.
        mean, std: float32 (3,), in units of 0…1.
    """
    scaled = (pixels_BHWC.float() / 255 - mean) / std
    return torch.movedim(scaled, -1, -3)
