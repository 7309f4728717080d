"""Losses in blocks of rows equal the undivided ones; masked duplicates equal a loop that skips them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses import rows
from ito_ray.losses.contrastive import info_nce
from ito_ray.losses.fusion import fusion_loss
from ito_ray.losses.sigmoid import sigmoid_loss

B, K, D = 7, 3, 8
SCALE, BIAS = torch.tensor(9.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
CAPTIONS = torch.tensor([5, 6, 5, 7, 8, 6, 5])
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "info_nce": lambda x, y, s, c: info_nce(x[0], y[0], x[0], y[0], s, c),
    "sigmoid": lambda x, y, s, c: sigmoid_loss(x[0], y[0], s, BIAS, c),
    "fusion": lambda x, _, s, c: fusion_loss(x, x, s, None if c is None else c.repeat(K, 1)),
}


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        F.normalize(torch.randn(K, B, D, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
        for _ in range(2)
    )
    return x, y, SCALE.clone().requires_grad_()


def _loss_and_gradients(name: str, captions: Tensor | None = None) -> list[Tensor]:
    x, y, scale = _inputs()
    loss = LOSSES[name](x, y, scale, captions)
    return [loss, *torch.autograd.grad(loss, (x, y, scale), materialize_grads=True)]


@pytest.mark.parametrize("captions", [None, CAPTIONS], ids=["plain", "masked"])
@pytest.mark.parametrize("block", [1, 2 * B, 5 * B])
@pytest.mark.parametrize("name", LOSSES)
def test_blocks_equal_the_whole(
    name: str, block: int, captions: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _loss_and_gradients(name, captions)
    monkeypatch.setattr(rows.sum_over_rows, "__kwdefaults__", {"block": block})
    for mine, theirs in zip(_loss_and_gradients(name, captions), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_no_block_is_larger_than_told() -> None:
    heights: list[int] = []

    def some_rows(part: Tensor) -> Tensor:
        heights.append(len(part))
        return part.sum()

    total = rows.sum_over_rows(some_rows, 10, torch.arange(25.0), block=45)
    assert total == 300
    assert heights == [4, 4, 4, 4, 4, 4, 1]


def test_masked_info_nce_skips_equal_captions() -> None:
    x, y, scale = _inputs()

    def one_way(row: Tensor, column: Tensor) -> Tensor:
        terms = []
        for i in range(B):
            kept = [j for j in range(B) if j == i or CAPTIONS[j] != CAPTIONS[i]]
            logits = torch.stack([scale * row[i] @ column[j] for j in kept])
            terms.append(torch.logsumexp(logits, 0) - logits[kept.index(i)])
        return torch.stack(terms).mean()

    naive = (one_way(x[0], y[0]) + one_way(y[0], x[0])) / 2
    torch.testing.assert_close(LOSSES["info_nce"](x, y, scale, CAPTIONS), naive)


DRAWN = torch.tensor([[5, 6, 5, 7, 8, 6, 5], [1, 7, 2, 6, 8, 3, 1]])
"""Two captions a sample: 6 and 7 are drawn of sample 1 and of sample 3, in another order; 8 twice of sample 4."""


@pytest.mark.parametrize("block", [2 * B, 2**24])
@pytest.mark.parametrize("draw", [0, 1])
def test_masked_info_nce_skips_captions_that_are_equal_across_draws(
    draw: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, scale = _inputs()
    image, text = x[0], y[0]

    def one_way(row: Tensor, column: Tensor, is_wrong: Callable[[int, int], bool]) -> Tensor:
        terms = []
        for i in range(B):
            kept = [j for j in range(B) if j == i or is_wrong(i, j)]
            logits = torch.stack([scale * row[i] @ column[j] for j in kept])
            terms.append(torch.logsumexp(logits, 0) - logits[kept.index(i)])
        return torch.stack(terms).mean()

    def describes(sample: int, other: int) -> bool:
        """Whether the text of `sample` is a caption of `other`, too."""
        return bool((DRAWN[draw, sample] == DRAWN[:, other]).any())

    by_image = one_way(image, text, lambda i, j: not describes(j, i))
    by_text = one_way(text, image, lambda i, j: not describes(i, j))
    monkeypatch.setattr(rows.sum_over_rows, "__kwdefaults__", {"block": block})
    found = info_nce(image, text, image, text, scale, DRAWN[draw], DRAWN)
    torch.testing.assert_close(found, (by_image + by_text) / 2)
    assert found < info_nce(image, text, image, text, scale, DRAWN[draw]) < info_nce(image, text, image, text, scale)


def test_masked_sigmoid_skips_equal_captions() -> None:
    x, y, scale = _inputs()
    terms = [
        F.logsigmoid((1 if i == j else -1) * (scale * x[0, i] @ y[0, j] + BIAS))
        for i in range(B)
        for j in range(B)
        if i == j or CAPTIONS[i] != CAPTIONS[j]
    ]
    torch.testing.assert_close(LOSSES["sigmoid"](x, y, scale, CAPTIONS), -torch.stack(terms).sum() / B)


def test_masked_fusion_skips_equal_captions_of_other_samples() -> None:
    x, y, scale = _inputs()
    terms = []
    for k in range(K):
        for i in range(B):
            kept = [
                (j, m)
                for j in range(K)
                for m in range(B)
                if (j, m) != (k, i) and (m == i or CAPTIONS[m] != CAPTIONS[i])
            ]
            logits = torch.stack([scale * x[k, i] @ x[j, m] for j, m in kept])
            terms += [torch.logsumexp(logits, 0) - logits[kept.index((j, i))] for j in range(K) if j != k]
    torch.testing.assert_close(LOSSES["fusion"](x, y, scale, CAPTIONS), torch.stack(terms).mean())
