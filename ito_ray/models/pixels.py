"""Mean and standard deviation that pixels are normalised with: those that the tower's weights were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from ito_ray.config.schema import OPENAI_MEAN, OPENAI_STD, Channels, Config, ImageTowerConfig
from ito_ray.errors import ConfigError

BESIDE = "config.json"
"""What the Hugging Face hub has beside timm's weights."""


def normalisation(cfg: ImageTowerConfig) -> tuple[Channels, Channels]:
    """Mean and std as `cfg` says, or those of the weights it starts from; OpenAI's without any."""
    mean, std = own_pixels(cfg) or (OPENAI_MEAN, OPENAI_STD)
    return cfg.mean or mean, cfg.std or std


def resolved(cfg: ImageTowerConfig) -> ImageTowerConfig:
    """`cfg` with the values that it leaves open."""
    mean, std = normalisation(cfg)
    return cfg.model_copy(update={"mean": mean, "std": std})


def with_pixels(cfg: Config, before: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a run with the values that it is trained with, as they are saved and exported.

    Args:
        before: `model.image` of the run's checkpoint, if it has one: a run goes on with the values it began with.
    """
    image = cfg.model.image
    known = {name: tuple(before[name]) for name in ("mean", "std") if before and before.get(name)}
    image = resolved(image.model_copy(update={name: getattr(image, name) or value for name, value in known.items()}))
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"image": image})})


def require_own_pixels(cfg: ImageTowerConfig) -> None:
    """Refuse a locked tower that would see other pixels than its weights know: nothing in it can learn them.

    Raises:
        ConfigError: naming both.
    """
    own, (mean, std) = own_pixels(cfg), normalisation(cfg)
    if cfg.locked and own is not None and (mean, std) != own:
        raise ConfigError(
            f"model.image.locked=true with model.image.mean={_said(mean)} and std={_said(std)}, but the weights of "
            f"{cfg.name} were trained with mean={_said(own[0])} and std={_said(own[1])}, and a locked tower cannot "
            "learn others: leave model.image.mean and std out, or set model.image.locked=false."
        )


def own_pixels(cfg: ImageTowerConfig) -> tuple[Channels, Channels] | None:
    """Mean and std that the weights were trained with; None if training starts from random ones.

    What lies beside a file of weights says which they are; timm's registry knows those of the name.
    """
    if not (cfg.pretrained or cfg.weights):
        return None
    beside = _beside(Path(cfg.weights), cfg.name) if cfg.weights else None
    if beside is not None:
        return beside
    known = registered(cfg.name)
    return None if known is None else (_channels(known.mean), _channels(known.std))


def registered(name: str) -> Any:
    """What timm knows of the weights of that name; None if it knows none.

    Raises:
        ConfigError: the model has no weights of that tag.
    """
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise ConfigError(f"model.image.name={name}: {error} Known: {', '.join(known) or 'none'}.") from error


def said(cfg: ImageTowerConfig) -> str:
    """The values in use and where they are from, for people."""
    own, used = own_pixels(cfg), normalisation(cfg)
    origin = "" if own is None else ", the weights' own" if used == own else ", not the weights' own"
    return f"mean {_said(used[0])}, std {_said(used[1])}{origin}"


def _beside(weights: Path, name: str) -> tuple[Channels, Channels] | None:
    """From timm's description in the folder of the weights, if it is one of this architecture."""
    try:
        content = json.loads(weights.with_name(BESIDE).read_text("utf-8"))
        about = content["pretrained_cfg"] if content["architecture"] == name.split(".")[0] else None
        return (_channels(about["mean"]), _channels(about["std"])) if about else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # some other program's file


def _channels(values: Any) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue


def _said(values: Channels) -> str:
    return "({})".format(", ".join(f"{value:g}" for value in values))
