"""Lock a tower, as LiT does: its weights and running statistics stay, the last n layers excepted.

Source: Zhai et al., LiT, https://arxiv.org/abs/2111.07991.
"""

from __future__ import annotations

from typing import Any, Self

from timm.models import group_parameters
from torch import nn

from ito_ray.models.blocks import repeated_blocks


def lock_image_net(net: Any, open_layers: int) -> None:
    """Freeze a timm model but for its last layers, as timm itself counts them (blocks; a final norm is one's own).

    Args:
        net: the timm model.
        open_layers: how many of its parameter groups stay trainable, the last ones.
    """
    groups: dict[int, list[str]] = group_parameters(net, net.group_matcher())
    ordered = [groups[index] for index in sorted(groups)]
    _lock(net, {name for group in ordered[max(0, len(ordered) - open_layers) :] for name in group})


def lock_text_net(net: nn.Module, open_layers: int) -> None:
    """Freeze a Hugging Face text model but for its last `open_layers` layers and what comes after them."""
    prefix, layers = repeated_blocks(net)
    names = [name for name, _ in net.named_parameters()]
    first_of_layers = next(i for i, name in enumerate(names) if name.startswith(f"{prefix}."))
    closed = {f"{prefix}.{i}." for i in range(len(layers) - open_layers)}
    after = names[first_of_layers:] if open_layers else []
    _lock(net, {name for name in after if not any(name.startswith(layer) for layer in closed)})


class LockableTower(nn.Module):
    """A tower whose locked part never trains: no dropout, no moving of running statistics.

    Args:
        locked: whether part of `net` will be locked.
    """

    net: Any
    """The model below the projection."""

    def __init__(self, *, locked: bool) -> None:
        super().__init__()
        self._locked = locked

    def train(self, mode: bool = True) -> Self:
        """As in torch, but modules whose weights are all locked stay in evaluation mode."""
        super().train(mode)
        for module in self.net.modules() if self._locked else ():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self


def _lock(net: nn.Module, still_open: set[str]) -> None:
    """Only ever locks: what was locked for another reason (an unused pooler) stays so."""
    for name, parameter in net.named_parameters():
        if name not in still_open:
            parameter.requires_grad_(False)
