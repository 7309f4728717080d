"""The dual encoder: what is trained, and what ships.

Shapes: B samples, C channels, H×W pixels, T text tokens, D shared width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ito_ray.config.schema import ModelConfig
from ito_ray.models.image_tower import ImageTower
from ito_ray.models.precision import at_least_float32
from ito_ray.models.text_tower import TextTower

MAX_LOGIT_SCALE = math.log(100)
"""s = exp(logit_scale) is clamped to 100, as in CLIP."""


def unit(embedding_BD: Tensor) -> Tensor:
    """L2-normalised, in at least float32."""
    return F.normalize(at_least_float32(embedding_BD), dim=-1)


class DualEncoder(nn.Module):
    """Image tower f, text tower g and the logit scale.

    Args:
        cfg: both towers and D.
        tokenizer: the text tower's Hugging Face fast tokenizer.
        began: as in `ImageTower`.

    Raises:
        ConfigError: a tower that cannot be built.
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Any, *, began: bool = False) -> None:
        super().__init__()
        self.image = ImageTower(cfg.image, cfg.embed_dim, began=began)
        self.text = TextTower(cfg.text, tokenizer, cfg.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """L2-normalised (B,D) of normalised float pixels."""
        return unit(self.image(image_BCHW).embedding_BD)

    def encode_text(self, ids_BT: Tensor, length_B: Tensor) -> Tensor:
        """L2-normalised (B,D) of int64 token ids, the first `length_B` of each row valid."""
        return unit(self.text(ids_BT, length_B).embedding_BD)
