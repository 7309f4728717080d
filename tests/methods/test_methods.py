"""The methods agree where they must: ITO without views and fusion is CLIP; padding and pass order never matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ito_ray.losses.contrastive import info_nce
from ito_ray.methods import Batch, Method
from ito_ray.methods.ito import Ito
from tests.losses.test_losses import paper_fusion_loss
from tests.tiny import CONTEXT, random_batch, tiny_config, tiny_method


def _loss_and_gradients(method: Method, batch: Batch) -> dict[str, Tensor]:
    loss = method.objective(method(batch)).loss
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def _assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-10, msg=f"{name} differs")


def test_ito_with_one_view_and_no_fusion_is_clip() -> None:
    one_view = {"views": {"count": 1}}
    ito = tiny_method(tiny_config(data=one_view, method={"name": "ito", "fusion_weight": 0.0}))
    clip = tiny_method(tiny_config(data=one_view, method={"name": "clip"}))
    batch = random_batch(6, views=1)
    _assert_same(_loss_and_gradients(ito, batch), _loss_and_gradients(clip, batch))


def test_ito_is_its_equation_written_out_view_by_view() -> None:
    """Two image passes, the paper's losses, λ between them."""
    cfg = tiny_config(method={"fusion_weight": 3.0})
    method = tiny_method(cfg)
    assert isinstance(method, Ito) and method.fusion is not None
    batch = random_batch(6)
    encoder = method.encoder
    text = encoder.text(batch.ids_CBT[0], batch.length_CB[0])
    text_BD = F.normalize(text.embedding_BD, dim=-1)
    scale = encoder.logit_scale.exp()
    align, fused = [], []
    for image_BCHW in batch.image_VBCHW:
        image = encoder.image(image_BCHW)
        image_BD = F.normalize(image.embedding_BD, dim=-1)
        align.append(info_nce(image_BD, text_BD, image_BD, text_BD, scale))
        fused.append(
            method.fusion(
                method.fusion.image_sequence(encoder.image, image),
                method.fusion.text_sequence(encoder.text, text),
                text.valid_BT,
            )
        )
    expected = sum(align) / 2 + 3.0 * paper_fusion_loss(fused[0], fused[1], scale)
    torch.testing.assert_close(method.objective(method(batch)).loss, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("readout", ["cls", "mean", "token"])
@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_padding_never_changes_a_result(readout: str, pool: str) -> None:
    cfg = tiny_config(method={"fusion": {"readout": readout}}, model={"text": {"pool": pool}})
    batch = random_batch(5)
    longer = torch.full((1, 5, CONTEXT), 7)  # any id: padding is told by the lengths alone
    longer[..., : batch.ids_CBT.shape[2]] = batch.ids_CBT
    for row, length in enumerate(batch.length_CB[0].tolist()):
        longer[0, row, length:] = 9
    padded = dataclasses.replace(batch, ids_CBT=longer)
    _assert_same(_loss_and_gradients(tiny_method(cfg), batch), _loss_and_gradients(tiny_method(cfg), padded))


def test_views_are_encoded_in_one_pass() -> None:
    method = tiny_method(tiny_config(data={"views": {"count": 3}}))
    passes: list[int] = []
    method.encoder.image.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    method(random_batch(4, views=3))
    assert passes == [12]


def test_order_of_views_does_not_matter() -> None:
    batch = random_batch(6)
    swapped = dataclasses.replace(batch, image_VBCHW=batch.image_VBCHW.flip(0))
    cfg = tiny_config()
    _assert_same(_loss_and_gradients(tiny_method(cfg), batch), _loss_and_gradients(tiny_method(cfg), swapped))


def test_alignment_weights_weigh_their_pair_alone() -> None:
    batch = random_batch(6)

    def align(weights: list[float]) -> float:
        cfg = tiny_config(method={"alignment_weights": weights, "fusion_weight": 0.0})
        method = tiny_method(cfg)
        return float(method.objective(method(batch)).loss.detach())

    first, second = align([2.0, 0.0]), align([0.0, 2.0])
    assert first != pytest.approx(second)
    assert align([1.0, 1.0]) == pytest.approx((first + second) / 2, rel=1e-5)
    assert align([0.3, 0.7]) == pytest.approx(0.15 * first + 0.35 * second, rel=1e-5)


def test_fusion_gradients_reach_both_towers() -> None:
    method = tiny_method(tiny_config())
    assert isinstance(method, Ito)
    method._align = lambda *_: torch.zeros((), dtype=torch.float64)  # type: ignore[method-assign]
    gradients = _loss_and_gradients(method, random_batch(6))
    for name in ("encoder.image.net.patch_embed.proj.weight", "encoder.text.net.embeddings.word_embeddings.weight"):
        assert gradients[name].abs().sum() > 0, name


def test_every_logit_scale_is_clamped() -> None:
    method = tiny_method(tiny_config(method={"fusion": {"temperature": "own"}}))
    assert isinstance(method, Ito) and method.fusion_logit_scale is not None
    assert method.logit_scales() == [method.encoder.logit_scale, method.fusion_logit_scale]
    method.encoder.logit_scale.data.fill_(9.0)
    method.fusion_logit_scale.data.fill_(-1.0)
    method.clamp_logit_scales()
    assert [scale.exp().item() for scale in method.logit_scales()] == pytest.approx([100, 1])


def test_a_temperature_of_its_own_is_the_shared_one_at_the_start_and_then_goes_its_way() -> None:
    batch = random_batch(6)
    shared, own = tiny_method(tiny_config()), tiny_method(tiny_config(method={"fusion": {"temperature": "own"}}))
    one, other = _loss_and_gradients(shared, batch), _loss_and_gradients(own, batch)
    of_fusion = other.pop("fusion_logit_scale")
    other["encoder.logit_scale"] = other["encoder.logit_scale"] + of_fusion  # the chain rule of one scale in two places
    _assert_same(one, other)
    assert of_fusion.abs() > 0


@pytest.mark.parametrize("readout", ["cls", "mean", "token"])
def test_a_hidden_caption_leaves_no_trace_in_its_fused_vector(readout: str) -> None:
    """Whatever the caption: the vectors of hidden ones stay as they are, all others change."""
    cfg = tiny_config(method={"fusion": {"readout": readout, "caption_drop": 0.5}}, data={"views": {"count": 3}})
    method, batch = tiny_method(cfg), random_batch(16, views=3)
    other = dataclasses.replace(batch, ids_CBT=batch.ids_CBT.flip(1), length_CB=batch.length_CB.flip(1))
    fused = []
    for one in (batch, other):
        torch.manual_seed(5)
        features = method(one)
        assert features.fused_KBD is not None
        fused.append(features.fused_KBD)
    hidden_KB = (fused[0] - fused[1]).abs().amax(-1) < 1e-12
    torch.manual_seed(5)
    assert torch.equal(hidden_KB, torch.rand(3, 16, 1)[..., 0] < 0.5)
    assert hidden_KB.any() and not hidden_KB.all(), "each fused vector is drawn by itself"


def test_nothing_is_hidden_outside_training() -> None:
    batch = random_batch(6)
    plain, dropping = tiny_method(tiny_config()), tiny_method(tiny_config(method={"fusion": {"caption_drop": 0.9}}))
    one, other = plain.eval()(batch).fused_KBD, dropping.eval()(batch).fused_KBD
    torch.testing.assert_close(one, other, rtol=0, atol=0)
