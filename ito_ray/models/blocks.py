"""Where a net repeats itself: what is locked layer by layer, and sharded block by block."""

from __future__ import annotations

from torch import nn


def repeated_blocks(net: nn.Module) -> tuple[str, list[nn.Module]]:
    """The longest list of like modules of a net, and its name; ("", []) where nothing is repeated."""
    found = [
        (name, list(module.children()))
        for name, module in net.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module.children()}) == 1
    ]
    return max(found, key=lambda pair: len(pair[1]), default=("", []))
