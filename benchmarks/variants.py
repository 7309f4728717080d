"""The five steps that are compared, on the same weights and the same batch.

Shapes: B pairs, V views, T text tokens, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from benchmarks.captions import captions, padded_ids
from benchmarks.naive import NaiveIto
from ito_ray.config.recipes import cc12m_vitb16
from ito_ray.config.schema import (
    Config,
    DataConfig,
    ImageTowerConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TextTowerConfig,
    ViewsConfig,
)
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.methods import Batch, Method, build_method
from ito_ray.methods.ito import Ito
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.open_clip import open_clip_config, to_open_clip
from ito_ray.training.optimizer import build_optimizer, set_learning_rate

TITLES = {
    "open_clip": "OpenCLIP: CLIP",
    "clip": "ito_ray: CLIP",
    "align": "ito_ray: alignment only, V=2",
    "ito": "ito_ray: ITO, V=2, λ=2",
    "naive_ito": "ITO as its paper reads, on OpenCLIP",
}
"""By the prefix of their JSON fields; the first is what the others are divided by."""
SAME_LOSS = (("open_clip", "clip"), ("naive_ito", "ito"))

BACKBONES = {
    "vit_b16": cc12m_vitb16().model,
    "vit_small": ModelConfig(
        image=ImageTowerConfig(
            name="vit_base_patch16_clip_224",
            size=112,
            kwargs={"embed_dim": 256, "depth": 6, "num_heads": 4},
        ),
        text=TextTowerConfig(kind="clip", width=256, layers=6, heads=4),
        embed_dim=256,
    ),
}


@dataclass(frozen=True)
class Setting:
    """What every variant shares."""

    backbone: str
    batch: int
    bf16: bool
    device: str
    threads: int
    """Torch's, on a CPU."""
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One variant: its loss, and the optimiser of the weights below it."""

    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    setting: Setting

    def forward(self) -> Tensor:
        """The loss, under autocast if the setting has bf16."""
        with torch.autocast(self.setting.device, torch.bfloat16, enabled=self.setting.bf16):
            return self.loss()

    def __call__(self) -> None:
        """One training step. The learning rate is 0, so that every repeat of every variant has the same weights."""
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()


def our_loss(method: Method, batch: Batch) -> Tensor:
    """The loss of a method over the whole batch."""
    return method.objective(method(batch)).loss


def build(setting: Setting, names: Iterable[str]) -> dict[str, Step]:
    """The steps called `names`, in the order of `TITLES`.

    OpenCLIP's model serves the two steps that run on it and our encoder the other three, with the same weights: what a
    step does not use gets no gradient, and AdamW passes over it.
    """
    wanted = set(names)
    torch.manual_seed(setting.seed)
    model_cfg = BACKBONES[setting.backbone]
    encoder = DualEncoder(model_cfg, clip_tokenizer(model_cfg.text.context))
    methods = {name: build_method(cfg, encoder) for name, cfg in _configs(model_cfg).items()}
    ito = methods["ito"]
    assert isinstance(ito, Ito) and ito.fusion is not None
    batch, padded_BT = make_batch(setting, model_cfg)
    steps: dict[str, Step] = {}

    if wanted & {"open_clip", "naive_ito"}:
        theirs = open_clip.CLIP(**open_clip_config(encoder), output_dict=True)
        theirs.load_state_dict(to_open_clip(encoder.state_dict()))
        naive = NaiveIto(theirs, ito.fusion, ito.fusion_weight).to(setting.device).train()
        their_optimizer = _their_optimizer(naive)
        image_BCHW, length_B = batch.image_VBCHW[0], batch.length_CB[0]
        loss = ClipLoss()
        steps["open_clip"] = Step(lambda: loss(**theirs(image_BCHW, padded_BT)), their_optimizer, setting)
        steps["naive_ito"] = Step(lambda: naive(batch.image_VBCHW, padded_BT, length_B), their_optimizer, setting)

    if wanted & set(methods):
        ito.to(setting.device).train()
        optimizer = build_optimizer(ito, OptimConfig())
        set_learning_rate(optimizer, 0.0)
        for name, method in methods.items():
            seen = replace(batch, image_VBCHW=batch.image_VBCHW[:1]) if name == "clip" else batch
            steps[name] = Step(partial(our_loss, method.train(), seen), optimizer, setting)

    return {name: steps[name] for name in TITLES if name in wanted}


def _configs(model: ModelConfig) -> dict[str, Config]:
    one, two = (DataConfig(views=ViewsConfig(count=count)) for count in (1, 2))
    return {
        "clip": Config(model=model, data=one, method=MethodConfig(name="clip")),
        "align": Config(model=model, data=two, method=MethodConfig(name="ito", fusion_weight=0.0)),
        "ito": Config(model=model, data=two, method=MethodConfig(name="ito", fusion_weight=2.0)),
    }


def make_batch(setting: Setting, model: ModelConfig) -> tuple[Batch, Tensor]:
    """Our batch, captions cut to the longest, and OpenCLIP's ids, padded to the context."""
    padded_BT, length_B = padded_ids(captions(setting.batch, setting.seed), model.text.context)
    image_VBCHW = torch.randn(2, setting.batch, 3, model.image.size, model.image.size)
    batch = Batch(
        image_VBCHW.to(setting.device),
        padded_BT[None, :, : int(length_B.max())].to(setting.device),
        length_B[None].to(setting.device),
    )
    return batch, padded_BT.to(setting.device)


def _their_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """As OpenCLIP's trainer makes it: two groups, torch's default implementation of AdamW."""
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        excluded = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (plain if excluded else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)
