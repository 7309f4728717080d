"""Losses that are sums over rows of logits: a block of rows at a time, so that no whole matrix is ever held.

With several blocks the logits of each are thrown away after the forward pass and computed again in the backward
pass: the peak is one block instead of B × G, for one more matrix product. Equal to the undivided loss
(tests/losses/test_rows.py).

Shapes: R rows of one block, C columns, D captions drawn of a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST_BLOCK = 2**24
"""Logits in one block: 64 MiB of float32."""


def sum_over_rows(loss_of: Callable[..., Tensor], columns: int, *rows: Tensor, block: int = LARGEST_BLOCK) -> Tensor:
    """Σ over the rows, `block` logits at a time.

    Args:
        loss_of: takes the same slice of every tensor in `rows`, returns the sum of its rows' losses.
        columns: C, logits of one row.
        rows: tensors of equal length.
        block: largest number of logits at once.
    """
    count, height = len(rows[0]), max(1, block // columns)
    if height >= count:
        return loss_of(*rows)
    blocks = [[tensor[start : start + height] for tensor in rows] for start in range(0, count, height)]
    return torch.stack([checkpoint(loss_of, *part, use_reentrant=False) for part in blocks]).sum()


def false_negatives(caption_DR: Tensor, sample_R: Tensor, caption_DC: Tensor, sample_C: Tensor) -> Tensor:
    """Columns of other samples that have a caption of the row's: bool (R,C).

    Args:
        caption_DR, caption_DC: int64, the captions that stand for each row and each column: one of them, or all that
            were drawn of the sample (methods/base.py, `caption_identity`).
        sample_R, sample_C: int64, which sample of the global batch.
    """
    same_RC = torch.zeros(caption_DR.shape[1], caption_DC.shape[1], dtype=torch.bool, device=caption_DR.device)
    for caption_R in caption_DR:
        for caption_C in caption_DC:
            same_RC |= caption_R[:, None] == caption_C
    return same_RC & (sample_R[:, None] != sample_C)
