"""What a candidate must show to become champion; `ito_ray.tracking.gate` decides by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ito_ray.config.section import PositiveFloat, PositiveInt, Probability, Section
from ito_ray.errors import ConfigError

TOP1 = "zero_shot/top1"


class Gate(Section):
    """What a candidate must show."""

    metrics: tuple[str, ...] = ()
    """Shares that must all be better. Empty: R@1 both ways on held-out pairs, top 1 on a zero-shot set."""
    min_gain: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.0
    """The whole 95 % interval of the gain (paired bootstrap) must lie above this. Below 0: may be worse by so much."""
    min_items: PositiveInt = 100
    """Fewer queries, images or classes decide nothing."""
    max_group_fall: Probability = 0.05
    """No group of zero-shot classes may lose more top-1 accuracy than this."""
    groups: Path | None = None
    """JSON file {"group": ["class", …]}; without it every class is a group."""
    min_group_images: PositiveInt = 20
    """Smaller groups are judged together."""
    max_latency_ratio: PositiveFloat = 1.1
    """Median time per image, and per text, relative to the champion's, measured in turns."""
    latency_rounds: PositiveInt = 15
    """Rounds in which both models are measured in turns."""
    latency_batch: PositiveInt = 8
    """Items per call while measuring."""
    max_size_ratio: PositiveFloat = 1.1
    """Bytes of the folder relative to the champion's."""

    def chosen(self, measured: Sequence[str]) -> tuple[str, ...]:
        """The metrics to compare, of those that are measured.

        Raises:
            ConfigError: one that is not.
        """
        for name in self.metrics:
            if name not in measured:
                raise ConfigError(
                    f"gate.metrics={name} is not measured on the data given: choose from {', '.join(measured)}."
                )
        default = [name for name in measured if name.startswith("heldout/r1_") or name == TOP1]
        return self.metrics or tuple(default)
