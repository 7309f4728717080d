"""Named search spaces: functions that return axes over the configuration's fields. docs/sweeps.md adds one.

`python -m tune.search --space NAME --print-space` shows one; `--axis` and `--fix` change it from the command line.
"""

from __future__ import annotations

from collections.abc import Callable

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, did_you_mean
from tune.axes import Axis, Choice, Range, Space, When, above

LAMBDA = Axis("method.fusion_weight", Range(0.0, 8.0))
"""The paper's inverted U lies inside: 43.7 at 0, 44.3 at 2, 43.2 at 6 (ImageNet zero-shot, YFCC15M)."""
WITH_FUSION = above("method.fusion_weight", 0.0)


def ito_weights(base: Config) -> Space:
    """λ, how much the later views count in the alignment, and where the fusion is read out."""
    pairs = base.data.views.count * base.data.captions
    views = tuple(Axis(f"method.alignment_weights.{pair}", Range(0.25, 4.0, log=True)) for pair in range(1, pairs))
    readout = Axis("method.fusion.readout", Choice(("cls", "mean", "token")), when=WITH_FUSION)
    return Space("ito_weights", (LAMBDA, *views, readout), {"method.alignment_weights": (1.0,) * pairs})


def ito_lambda(base: Config) -> Space:
    """λ alone: the response curve."""
    return Space("ito_lambda", (LAMBDA,))


def ito_schedule(base: Config) -> Space:
    """What can change in flight (--scheduler pbt): λ, the later views' weights, learning rate, weight decay."""
    pairs, lr, decay = base.data.views.count * base.data.captions, base.optim.lr, base.optim.weight_decay or 0.1
    return Space(
        "ito_schedule",
        (
            Axis("method.fusion_weight", Range(0.25, 8.0, log=True)),
            *(Axis(f"method.alignment_weights.{pair}", Range(0.25, 4.0, log=True)) for pair in range(1, pairs)),
            Axis("optim.lr", Range(lr / 4, lr * 4, log=True)),
            Axis("optim.weight_decay", Range(decay / 10, decay * 10, log=True)),
        ),
        {"method.alignment_weights": (1.0,) * pairs},
    )


def ito_fusion(base: Config) -> Space:
    """λ and the shape of the fusion Transformer."""
    return Space(
        "ito_fusion",
        (
            LAMBDA,
            Axis("method.fusion.layers", Choice((1, 2, 4)), when=WITH_FUSION),
            Axis("method.fusion.mlp_ratio", Choice((2.0, 4.0)), when=WITH_FUSION),
            Axis("method.fusion.readout", Choice(("cls", "mean", "token")), when=WITH_FUSION),
        ),
    )


def ito_views(base: Config) -> Space:
    """Views, captions and how strongly views are augmented; λ where there are two fused vectors to compare."""
    several = When("views × captions > 1", lambda look: look("data.views.count") * look("data.captions") > 1)
    return Space(
        "ito_views",
        (
            Axis("data.views.count", Choice((1, 2, 3))),
            Axis("data.captions", Choice((1, 2))),
            Axis("method.fusion_weight", Range(0.0, 8.0), when=several, otherwise=0.0),
            Axis("data.views.crop_scale.0", Range(0.2, 0.9)),
            Axis("data.views.jitter_p", Range(0.0, 1.0)),
            Axis("data.views.gray_p", Range(0.0, 0.4)),
        ),
        {"method.alignment_weights": ()},
    )


def optimizer(base: Config) -> Space:
    """Learning rate and weight decay around the recipe's, and warm-up."""
    lr, decay, longest = base.optim.lr, base.optim.weight_decay or 0.1, max(2, base.train.steps // 3)
    return Space(
        "optimizer",
        (
            Axis("optim.lr", Range(lr / 8, lr * 8, log=True)),
            Axis("optim.weight_decay", Range(decay / 10, decay * 10, log=True)),
            Axis("optim.warmup_steps", Range(1, longest, log=True, integer=True)),
        ),
    )


def ito_all(base: Config) -> Space:
    """Views, fusion and optimiser together: for large budgets."""
    views, fusion, rates = ito_views(base), ito_fusion(base), optimizer(base)
    shape = tuple(axis for axis in fusion.axes if axis.field != LAMBDA.field)
    return Space("ito_all", (*views.axes, *shape, *rates.axes), views.fixed)


SPACES: dict[str, Callable[[Config], Space]] = {
    space.__name__: space
    for space in (ito_weights, ito_lambda, ito_schedule, ito_fusion, ito_views, optimizer, ito_all)
}


def space(name: str, base: Config) -> Space:
    """The space called `name`, for the recipe `base`.

    Raises:
        ConfigError: no such space; the nearest is named.
    """
    if name not in SPACES:
        raise ConfigError(f"--space {name}: there are {', '.join(SPACES)}.{did_you_mean(name, SPACES)}")
    return SPACES[name](base)
