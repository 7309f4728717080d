"""The same weights in OpenCLIP's names and in ours: CLIP's ViT and text Transformer, both directions, exact.

OpenCLIP itself is not needed. Gradients have the shapes of their weights, so they convert as well.

Shapes: W width, D shared width, N image positions with [CLS] first.
Source of the names: OpenCLIP 3.3, https://github.com/mlfoundations/open_clip, classes CLIP and VisionTransformer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ito_ray.errors import ExportError
from ito_ray.models.dual_encoder import DualEncoder

Form = Literal["same", "transposed", "token", "positions", "stacked"]
"""How ours becomes theirs: as it is; (D,W) → (W,D); (1,1,W) → (W,); (1,N,W) → (N,W); q, k, v → one (3·W,…)."""


class _Pair(NamedTuple):
    theirs: str
    ours: tuple[str, ...]
    form: Form = "same"


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a `DualEncoder` → state dict of an `open_clip.CLIP`.

    Raises:
        ExportError: names that CLIP's towers do not have, or names missing. What names cannot show (activation,
            heads, pooling) is checked by `open_clip_config`.
    """
    pairs = list(_pairs(_depth(state, "image.net.blocks."), _depth(state, "text.net.encoder.layers.")))
    _refuse_others(state, {name for pair in pairs for name in pair.ours}, "This dual encoder")
    return {pair.theirs: _theirs([state[name] for name in pair.ours], pair.form) for pair in pairs}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of an `open_clip.CLIP` with ViT and GELU → state dict of a `DualEncoder`.

    The counterpart is `ImageTowerConfig(name="vit_…_clip_…")` with `TextTowerConfig(kind="clip", pool="last")`.
    OpenAI's own weights want QuickGELU, which no name shows: they load and give wrong embeddings.

    Raises:
        ExportError: names that CLIP's towers do not have, or names missing.
    """
    depths = _depth(state, "visual.transformer.resblocks."), _depth(state, "transformer.resblocks.")
    pairs = list(_pairs(*depths))
    _refuse_others(state, {pair.theirs for pair in pairs}, "This OpenCLIP model")
    return {
        name: tensor
        for pair in pairs
        for name, tensor in zip(pair.ours, _ours(state[pair.theirs], pair.form), strict=True)
    }


def open_clip_config(encoder: DualEncoder) -> dict[str, Any]:
    """The model config (embed_dim, vision_cfg, text_cfg) with which OpenCLIP builds the counterpart of `encoder`.

    Raises:
        ExportError: the pair of towers has no counterpart; the reason is named.
    """
    for reason, wrong in chain(
        clip_image_obstacles(encoder), clip_text_obstacles(encoder), _end_obstacle(encoder)
    ):  # each assumes those before it
        if wrong:
            raise ExportError(
                f"This dual encoder has no counterpart in OpenCLIP: {reason}. Take a vit_…_clip_… without quickgelu "
                "and model.text.kind=clip with pool=last, or export in another format."
            )
    net, text = encoder.image.net, encoder.text.net.config
    return {
        "embed_dim": encoder.image.proj.out_features,
        "vision_cfg": {
            "image_size": encoder.image.cfg.size,
            "patch_size": net.patch_embed.patch_size[0],
            "width": net.embed_dim,
            "layers": len(net.blocks),
            "head_width": net.blocks[0].attn.head_dim,
            "mlp_ratio": net.blocks[0].mlp.fc1.out_features / net.embed_dim,
            "norm_kwargs": {"eps": net.norm.eps},
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
        },
    }


def clip_image_obstacles(encoder: DualEncoder) -> Iterator[tuple[str, bool]]:
    """Reasons why an image tower is not CLIP's pre-norm ViT, and whether each holds; each assumes those before it."""
    net, name = encoder.image.net, f"model.image.name={encoder.image.cfg.name}"
    yield f"{name} is not a Vision Transformer", not isinstance(net, VisionTransformer)
    yield f"{name} has no norm before its blocks", not isinstance(net.norm_pre, nn.LayerNorm)
    yield f"{name} pools by {net.global_pool}, not by [CLS]", net.global_pool != "token" or net.cls_token is None
    yield f"{name} has register tokens", net.reg_token is not None
    yield f"{name} has a bias on its patches", net.patch_embed.proj.bias is not None
    block = net.blocks[0]
    yield f"{name} has the activation {type(block.mlp.act).__name__}, not GELU", type(block.mlp.act) is not nn.GELU
    plain = all(isinstance(part, nn.Identity) for part in (block.ls1, block.attn.q_norm, block.mlp.norm, net.fc_norm))
    yield f"{name} has layer scales or further norms", not plain
    size = net.patch_embed.img_size
    yield f"{name} takes pictures of {size[0]}×{size[1]}, not square ones", size[0] != size[1]


def clip_text_obstacles(encoder: DualEncoder) -> Iterator[tuple[str, bool]]:
    """The same of the text tower."""
    cfg = encoder.text.cfg
    yield f"model.text.kind={cfg.kind} is not CLIP's text Transformer", cfg.kind != "clip"
    yield f"model.text.pool={cfg.pool}: CLIP reads the end token", cfg.pool != "last"


def _end_obstacle(encoder: DualEncoder) -> Iterator[tuple[str, bool]]:
    config = encoder.text.net.config
    end = f"its tokenizer's end token is {config.eos_token_id}: OpenCLIP takes the highest id of a text for the end"
    yield end, config.eos_token_id != config.vocab_size - 1


def _pairs(image_layers: int, text_layers: int) -> Iterator[_Pair]:
    yield _Pair("logit_scale", ("logit_scale",))
    yield _Pair("visual.class_embedding", ("image.net.cls_token",), "token")
    yield _Pair("visual.positional_embedding", ("image.net.pos_embed",), "positions")
    yield _Pair("visual.conv1.weight", ("image.net.patch_embed.proj.weight",))
    yield _Pair("visual.proj", ("image.proj.weight",), "transposed")
    yield _Pair("token_embedding.weight", ("text.net.embeddings.token_embedding.weight",))
    yield _Pair("positional_embedding", ("text.net.embeddings.position_embedding.weight",))
    yield _Pair("text_projection", ("text.proj.weight",), "transposed")
    for kind in ("weight", "bias"):
        yield _Pair(f"visual.ln_pre.{kind}", (f"image.net.norm_pre.{kind}",))
        yield _Pair(f"visual.ln_post.{kind}", (f"image.net.norm.{kind}",))
        yield _Pair(f"ln_final.{kind}", (f"text.net.final_layer_norm.{kind}",))
        for layer in range(image_layers):
            ours, theirs = f"image.net.blocks.{layer}", f"visual.transformer.resblocks.{layer}"
            yield _Pair(f"{theirs}.attn.in_proj_{kind}", (f"{ours}.attn.qkv.{kind}",))
            yield _Pair(f"{theirs}.attn.out_proj.{kind}", (f"{ours}.attn.proj.{kind}",))
            yield from _rest_of_block(theirs, ours, ("norm1", "norm2"), kind)
        for layer in range(text_layers):
            ours, theirs = f"text.net.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            query_key_value = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            yield _Pair(f"{theirs}.attn.in_proj_{kind}", query_key_value, "stacked")
            yield _Pair(f"{theirs}.attn.out_proj.{kind}", (f"{ours}.self_attn.out_proj.{kind}",))
            yield from _rest_of_block(theirs, ours, ("layer_norm1", "layer_norm2"), kind)


def _rest_of_block(theirs: str, ours: str, norms: tuple[str, str], kind: str) -> Iterator[_Pair]:
    for their_part, our_part in zip(
        ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"), (*norms, "mlp.fc1", "mlp.fc2"), strict=True
    ):
        yield _Pair(f"{theirs}.{their_part}.{kind}", (f"{ours}.{our_part}.{kind}",))


def _theirs(tensors: list[Tensor], form: Form) -> Tensor:
    if form == "stacked":
        return torch.cat(tensors)
    (tensor,) = tensors
    if form == "transposed":
        return tensor.T.contiguous()
    if form == "token":
        return tensor[0, 0]
    return tensor[0] if form == "positions" else tensor


def _ours(tensor: Tensor, form: Form) -> tuple[Tensor, ...]:
    if form == "stacked":
        return tuple(part.clone() for part in tensor.chunk(3))  # safetensors refuses views of one storage
    if form == "transposed":
        return (tensor.T.contiguous(),)
    if form == "token":
        return (tensor[None, None],)
    return (tensor[None] if form == "positions" else tensor,)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _refuse_others(state: Mapping[str, Tensor], expected: set[str], what: str) -> None:
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        found = [
            f"{words} {names[0]} ({len(names)} such)"
            for words, names in (("lacks", missing), ("has", unknown))
            if names
        ]
        raise ExportError(
            f"{what} is not CLIP's pre-norm ViT with CLIP's text Transformer: it {' and '.join(found)}. Only such "
            "pairs have a counterpart (vit_…_clip_… with model.text.kind=clip)."
        )
