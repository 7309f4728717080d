"""What studies compare: arms, each a few changes of a recipe that trains ITO with two views and λ = 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ito_ray.config.schema import Config
from tune.axes import Changes

LAMBDAS = (1.0, 2.0, 4.0, 6.0)
"""λ of the paper's arms with fusion; the paper shows 0, 2 and 6."""
TWICE = "clip_twice"
BASE = "ito_2"
"""The recipe as it is."""
CLIP: Changes = {"method.name": "clip", "data.views.count": 1}
CAPTIONS: dict[str, Changes] = {
    "align_captions": {"method.fusion_weight": 0.0, "data.captions": 2},
    "ito_1_captions_drop": {
        "method.fusion_weight": 1.0,
        "data.captions": 2,
        "method.fusion.caption_drop": 0.5,
    },
}
"""As many captions as `clip_twice` reads; hiding them from the fusion is ours."""
CAPTIONS_LABELS = {
    "align_captions": "λ = 0, two captions",
    "ito_1_captions_drop": "λ = 1, two captions, half of them hidden from the fusion",
}


@dataclass(frozen=True)
class Comparison:
    """Arms, and which of them all others are compared with."""

    arms: Callable[[Config], dict[str, Changes]]
    """By name, as changes of a recipe."""
    labels: Mapping[str, str]
    """What figures and tables call each arm, in their order."""
    references: tuple[str, ...]
    cost: str
    """The arm whose cost is 1."""


def _twice_the_steps(base: Config) -> Changes:
    return {"train.steps": 2 * base.train.steps, "optim.warmup_steps": 2 * base.optim.warmup_steps}


def _paper(base: Config) -> dict[str, Changes]:
    """All take the same number of steps over the same batches, but for `clip_twice`, which takes twice as many.

    As many images then go through its image tower as through that of an arm with two views, and as many captions
    through its text tower as through that of an arm with two captions.
    """
    return {
        "clip": CLIP,
        TWICE: {**CLIP, **_twice_the_steps(base)},
        "siglip": {"method.name": "siglip", "data.views.count": 1},
        "align": {"method.fusion_weight": 0.0},
        **{f"ito_{weight:g}": {"method.fusion_weight": weight} for weight in LAMBDAS},
        **CAPTIONS,
    }


def _variants(base: Config) -> dict[str, Changes]:
    """One thing at a time; all but λ, depth, read-out and captions are ours."""
    return {
        BASE: {"method.fusion_weight": 2.0},
        "ito_1": {"method.fusion_weight": 1.0},
        "caption_drop": {"method.fusion.caption_drop": 0.5},
        "own_temperature": {"method.fusion.temperature": "own"},
        "rising": {"method.fusion_schedule": "rising"},
        "falling": {"method.fusion_schedule": "falling"},
        "masked": {"method.mask_duplicates": True},
        "two_captions": {"data.captions": 2},
        "own_captions": {"data.captions": 2, "method.alignment_weights": (1.0, 0.0, 0.0, 1.0)},
        "mean": {"method.fusion.readout": "mean"},
        "token": {"method.fusion.readout": "token"},
        "one_layer": {"method.fusion.layers": 1},
        "four_layers": {"method.fusion.layers": 4},
    }


def _spendings(base: Config) -> dict[str, Changes]:
    """The same images through the image tower, as a second view, as more pairs in a batch, or as more steps.

    CLIP then sees twice as many captions; arms with two captions of each pair see as many as that.
    """
    longer = _twice_the_steps(base)
    large = {"train.global_batch": 2 * base.train.global_batch}
    small = {"train.global_batch": base.train.global_batch // 2}
    return {
        TWICE: {**CLIP, **longer},
        "clip_large": {**CLIP, **large},
        "align": {"method.fusion_weight": 0.0},
        "align_small": {"method.fusion_weight": 0.0, **longer, **small},
        "ito_1": {"method.fusion_weight": 1.0},
        "ito_1_small": {"method.fusion_weight": 1.0, **longer, **small},
        "ito_1_captions": {"method.fusion_weight": 1.0, "data.captions": 2},
        "ito_1_captions_drop": CAPTIONS["ito_1_captions_drop"],
        "align_captions": CAPTIONS["align_captions"],
    }


PAPER = Comparison(
    _paper,
    {
        "clip": "CLIP",
        TWICE: "CLIP, twice the steps",
        "siglip": "SigLIP",
        "align": "alignment only, λ = 0",
        **{f"ito_{weight:g}": f"ITO, λ = {weight:g}" for weight in LAMBDAS},
        **CAPTIONS_LABELS,
    },
    # Does the fusion help, does ITO help, and does it at equal compute?
    ("align", "clip", TWICE),
    cost="clip",
)
"""The paper's ablation."""
VARIANTS = Comparison(
    _variants,
    {
        BASE: "ITO, λ = 2",
        "ito_1": "λ = 1",
        "caption_drop": "half the captions hidden from the fusion",
        "own_temperature": "a temperature of the fusion's own",
        "rising": "λ rising from 0 to 2",
        "falling": "λ falling from 2 to 0",
        "masked": "equal captions are no negatives",
        "two_captions": "two captions",
        "own_captions": "two captions, each view aligned with its own",
        "mean": "read-out: mean",
        "token": "read-out: a token of its own",
        "one_layer": "one layer",
        "four_layers": "four layers",
    },
    (BASE,),
    cost=BASE,
)
"""Variants of ITO beside the paper's recipe."""
SPENDINGS = Comparison(
    _spendings,
    {
        TWICE: "CLIP, twice the steps",
        "clip_large": "CLIP, twice the batch",
        "align": "alignment only, λ = 0",
        "align_small": "λ = 0, half the batch, twice the steps",
        "ito_1": "ITO, λ = 1",
        "ito_1_small": "λ = 1, half the batch, twice the steps",
        "ito_1_captions": "λ = 1, two captions",
        "ito_1_captions_drop": CAPTIONS_LABELS["ito_1_captions_drop"],
        "align_captions": CAPTIONS_LABELS["align_captions"],
    },
    (TWICE, "clip_large", "align_captions"),
    cost="clip_large",
)
"""Equal compute, spent in other ways: what does CLIP with twice the steps gain by, steps, pairs or captions?"""
