"""Keep less for the backward pass: an activation function is cheaper to compute again than to remember.

An MLP of ratio 4 keeps its hidden vector twice, before the activation and after it: half of all that a Transformer
block keeps. Here the second copy is made again in the backward pass. The result and the gradients are the same bits,
and no matrix product is repeated: torch's checkpoint stops as soon as it has what was missing, before the product.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def activate_and_project(activation: nn.Module, linear: nn.Module, hidden: Tensor) -> Tensor:
    """linear(activation(hidden)), keeping `hidden` alone for the backward pass."""

    def run(hidden: Tensor) -> Tensor:
        projected: Tensor = linear(activation(hidden))
        return projected

    if not torch.is_grad_enabled():
        return run(hidden)
    kept: Tensor = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
    return kept


class LeanMlp(Mlp):
    """timm's MLP without norm and dropout, the same function and the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (…,width)."""
        return activate_and_project(self.act, self.fc2, self.fc1(x))


def make_lean(net: Any) -> None:
    """Every plain MLP inside a timm net, in place: names, weights and results stay."""
    for module in net.modules():
        if type(module) is Mlp and isinstance(module.norm, nn.Identity) and module.drop1.p == module.drop2.p == 0:
            module.__class__ = LeanMlp
