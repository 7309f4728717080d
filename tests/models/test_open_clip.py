"""OpenCLIP's model and ours, with the same weights, are the same function with the same gradients, and start alike.

Shapes: B pairs, T text tokens, D shared width.
"""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from ito_ray.config.recipes import recipe
from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.errors import ExportError
from ito_ray.losses.contrastive import info_nce
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.open_clip import from_open_clip, open_clip_config, to_open_clip

VOCABULARY, CONTEXT = 60, 77
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2}
ODD_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 9, "mlp_ratio": 2}


class Vocabulary:
    """As much of CLIP's tokenizer as a tower asks for: the end token is the highest id."""

    def __init__(self, size: int = VOCABULARY) -> None:
        self.size = size
        self.pad_token_id = self.eos_token_id = size - 1
        self.bos_token_id = size - 2

    def __len__(self) -> int:
        return self.size


def _encoder(
    kwargs: dict[str, Any], size: int = 32, *, layers: int = 2, width: int = 32, embed_dim: int = 24
) -> DualEncoder:
    image = ImageTowerConfig(name="vit_base_patch16_clip_224", size=size, kwargs=kwargs)
    text = TextTowerConfig(kind="clip", width=width, layers=layers, heads=2, context=CONTEXT, pool="last")
    return DualEncoder(ModelConfig(image=image, text=text, embed_dim=embed_dim), Vocabulary())


def _vit_b16() -> DualEncoder:
    image = ImageTowerConfig(name="vit_base_patch16_clip_224")
    return DualEncoder(ModelConfig(image=image, text=TextTowerConfig(kind="clip")), Vocabulary(49_408))


def _open_clip(encoder: DualEncoder) -> nn.Module:
    """The model that OpenCLIP builds from our description, with random weights of its own and no bias left at 0."""
    model: nn.Module = open_clip.CLIP(**open_clip_config(encoder), output_dict=True)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return model


def _captions(pairs: int, vocabulary: int, longest: int) -> tuple[Tensor, Tensor]:
    """Ids as OpenCLIP pads them, with 0 up to 77, and the lengths."""
    length_B = torch.randint(3, longest + 1, (pairs,))
    ids_BT = torch.randint(1, vocabulary - 2, (pairs, CONTEXT))
    ids_BT[:, 0] = vocabulary - 2
    ids_BT[torch.arange(pairs), length_B - 1] = vocabulary - 1
    ids_BT[torch.arange(CONTEXT)[None] >= length_B[:, None]] = 0
    return ids_BT, length_B


def _assert_same_function(encoder: DualEncoder, pairs: int, vocabulary: int, dtype: torch.dtype) -> None:
    """In double precision the gradients are equal; in single those of large sums are only close."""
    theirs, tolerance = _open_clip(encoder).to(dtype), 1e-9 if dtype == torch.float64 else 1e-3
    encoder.to(dtype)
    exact = 1e-10 if dtype == torch.float64 else 1e-5
    encoder.load_state_dict(from_open_clip(theirs.state_dict()))
    size = encoder.image.cfg.size
    image_BCHW = torch.randn(pairs, 3, size, size, dtype=dtype)
    ids_BT, length_B = _captions(pairs, vocabulary, longest=20)

    expected = theirs(image_BCHW, ids_BT)
    expected_loss = ClipLoss()(**expected)
    expected_loss.backward()
    image_BD = encoder.encode_image(image_BCHW)
    text_BD = encoder.encode_text(ids_BT[:, : int(length_B.max())], length_B)
    with torch.no_grad():
        padded_BD = encoder.encode_text(ids_BT, length_B)
    loss = info_nce(image_BD, text_BD, image_BD, text_BD, encoder.logit_scale.exp())
    loss.backward()

    torch.testing.assert_close(image_BD, expected["image_features"], rtol=0, atol=exact)
    torch.testing.assert_close(text_BD, expected["text_features"], rtol=0, atol=exact)
    torch.testing.assert_close(padded_BD, expected["text_features"], rtol=0, atol=exact)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=exact)
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    converted = to_open_clip(gradients)  # refuses if a parameter got none
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        error = (converted[name] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error < tolerance, f"{name}: gradients differ by {error:.1e} of the largest"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kwargs", "size"), [(VIT, 32), (ODD_VIT, 45)])
def test_same_weights_are_the_same_function(kwargs: dict[str, Any], size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _assert_same_function(_encoder(kwargs, size), pairs=6, vocabulary=VOCABULARY, dtype=dtype)


@pytest.mark.slow
def test_vit_b16_is_the_same_function() -> None:
    torch.manual_seed(0)
    encoder = _vit_b16()
    _assert_same_function(encoder, pairs=3, vocabulary=49_408, dtype=torch.float32)
    published = open_clip.get_model_config("ViT-B-16")
    described = open_clip_config(encoder)
    assert described["embed_dim"] == published["embed_dim"]
    for tower in ("vision_cfg", "text_cfg"):
        assert published[tower].items() <= described[tower].items()


def test_there_and_back_is_exact() -> None:
    torch.manual_seed(0)
    encoder = _encoder(ODD_VIT, 45)
    theirs = _open_clip(encoder).state_dict()
    ours = from_open_clip(theirs)
    back = to_open_clip(ours)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }
    storages = [value.untyped_storage().data_ptr() for value in ours.values()]
    assert len(set(storages)) == len(storages), "tensors share memory, which safetensors refuses to save"


def test_towers_without_counterpart_are_refused_with_the_reason() -> None:
    def reason(model: ModelConfig, tokenizer: Vocabulary) -> str:
        with pytest.raises(ExportError) as caught:
            open_clip_config(DualEncoder(model, tokenizer))
        return str(caught.value)

    text = TextTowerConfig(kind="clip", width=32, layers=1, heads=2)
    thin = {"embed_dim": 48, "depth": 1, "num_heads": 3}

    def vit(name: str, **kwargs: Any) -> ModelConfig:
        return ModelConfig(image=ImageTowerConfig(name=name, size=32, kwargs={**thin, **kwargs}), text=text)

    clip = vit("vit_base_patch16_clip_224")
    assert "resnet10t is not a Vision Transformer" in reason(
        ModelConfig(image=ImageTowerConfig(name="resnet10t"), text=text), Vocabulary()
    )
    assert "no norm before its blocks" in reason(vit("vit_base_patch16_224"), Vocabulary())
    assert "QuickGELU" in reason(vit("vit_base_patch16_clip_quickgelu_224"), Vocabulary())
    assert "layer scales" in reason(vit("vit_base_patch16_clip_224", init_values=0.1), Vocabulary())
    assert "model.text.kind=scratch" in reason(
        clip.model_copy(update={"text": text.model_copy(update={"kind": "scratch"})}), Vocabulary()
    )
    assert "model.text.pool=mean" in reason(
        clip.model_copy(update={"text": text.model_copy(update={"pool": "mean"})}), Vocabulary()
    )
    low_end = Vocabulary()
    low_end.eos_token_id = 3
    assert "end token is 3" in reason(clip, low_end)


def test_foreign_states_are_refused_by_name() -> None:
    state = _encoder(VIT).state_dict()
    with pytest.raises(ExportError, match=r"has fusion\.norm\.weight"):
        to_open_clip({**state, "fusion.norm.weight": torch.ones(3)})
    theirs = to_open_clip(state)
    del theirs["visual.ln_pre.weight"]
    with pytest.raises(ExportError, match=r"lacks visual\.ln_pre\.weight"):
        from_open_clip(theirs)


def test_initial_weights_are_distributed_as_open_clips() -> None:
    """Each tensor: the same constant, or the same mean, std and shape of distribution (by its 4th moment)."""
    torch.manual_seed(0)
    encoder = _encoder({"embed_dim": 256, "depth": 2, "num_heads": 4}, 64, width=192, layers=3, embed_dim=160)
    theirs = open_clip.CLIP(**open_clip_config(encoder)).state_dict()
    ours = to_open_clip(encoder.state_dict())
    for name, expected in theirs.items():
        found = ours[name]
        if expected.numel() < 2 or expected.std() == 0:
            assert torch.equal(found, expected), f"{name} is a constant in OpenCLIP"
            continue
        spread, count = expected.std(), expected.numel()
        tolerance = 0.02 + 4 / count**0.5  # four standard errors of a normal's std, and of its mean
        assert abs(found.std() / spread - 1) < tolerance, f"{name}: std {found.std():.4f}, not {spread:.4f}"
        assert abs(found.mean() - expected.mean()) / spread < tolerance * 1.5, f"{name}: mean {found.mean():.4f}"
        if count > 4000:  # 1.8 for a uniform distribution, 3 for a normal one
            assert abs(_kurtosis(found) - _kurtosis(expected)) < 0.4, f"{name}: another kind of distribution"


def _kurtosis(values: Tensor) -> float:
    centred = values - values.mean()
    return float(centred.pow(4).mean() / centred.pow(2).mean().pow(2))


@pytest.mark.parametrize(("name", "theirs"), [("cc12m_vitb16", "ViT-B-16"), ("datacomp1b_vitl16", "ViT-L-16")])
def test_the_papers_recipes_have_the_towers_of_openclip(name: str, theirs: str) -> None:
    with torch.device("meta"):  # sizes are all that counts
        ours = open_clip_config(DualEncoder(recipe(name).model, Vocabulary(49_408)))
    expected = open_clip.get_model_config(theirs)
    assert ours["embed_dim"] == expected["embed_dim"]
    for tower in ("vision_cfg", "text_cfg"):
        assert expected[tower] == {field: ours[tower][field] for field in expected[tower]}
