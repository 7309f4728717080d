"""An encoder's weights at one step, apart from its training, so that they can be measured elsewhere and later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from ito_ray.config.schema import Config
from ito_ray.errors import UnreadableError
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.losses.gather import rank
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.training.parallel import whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREADABLE = "unreadable"
"""In place of all metrics where the data could not be read."""


def take(encoder: DualEncoder) -> bytes:
    """A copy of all tensors as they are, whole and as safetensors; a collective for a sharded encoder.

    Returns:
        The copy on rank 0, nothing on the others.
    """
    tensors = {}
    for name, value in encoder.state_dict().items():
        full = whole(value)  # of one tensor at a time: for an encoder that does not fit on one rank
        if rank() == 0:
            tensors[name] = full.detach().cpu().contiguous()
    return safetensors.torch.save(tensors) if rank() == 0 else b""


def measure(
    encoder: DualEncoder,
    cfg: Config,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    *,
    needed: bool = False,
) -> dict[str, float]:
    """The cheap evaluators on `eval.max_samples` of each set.

    Args:
        needed: raise UnreadableError while the store of the data fails, instead of answering {UNREADABLE: 1.0}, which
            costs a point of the curve and not the run.

    Returns:
        Metrics by name.

    Raises:
        ItoError: whatever would come again.
    """
    try:
        return evaluate(
            TowerEncoder(encoder, tokenizer, device, cfg.eval.batch), cfg, limit=cfg.eval.max_samples
        ).metrics()
    except UnreadableError:
        if needed:
            raise
        return {UNREADABLE: 1.0}


class Spare:
    """A second encoder, for the weights of any step; on the device only while it measures."""

    def __init__(self, cfg: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._cfg, self._tokenizer, self._device = cfg, tokenizer, device
        self._encoder = DualEncoder(cfg.model, tokenizer, began=True)
        if cfg.train.parallel == "ddp":
            self._encoder.image.to(memory_format=torch.channels_last)  # as in training, to the last bit

    def measure(self, weights: bytes, *, needed: bool = False) -> dict[str, float]:
        """`measure` of weights that were taken from an encoder of the same configuration."""
        self._encoder.load_state_dict(safetensors.torch.load(weights))
        self._encoder.to(self._device)
        try:
            return measure(self._encoder, self._cfg, self._tokenizer, self._device, needed=needed)
        finally:
            self._encoder.cpu()
