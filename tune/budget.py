"""What a sweep may use: steps, samples, wall time or money, whichever is gone first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ito_ray.errors import ConfigError
from tune.book import Spent


@dataclass(frozen=True)
class Budget:
    """0 = no limit. Counted over all sessions of a sweep; the confirmation of the winner comes after it."""

    steps: int = 0
    """Training steps, of all trials together."""
    samples: int = 0
    """Training samples."""
    hours: float = 0.0
    """Of wall time while the sweep runs."""
    money: float = 0.0
    """In the unit of `prices`."""
    prices: Annotated[dict[str, float], tyro.conf.arg(metavar="RESOURCE PRICE")] = field(default_factory=dict)
    """An hour of one unit of each of the nodes' resources, e.g. CPU 0.04 GPU 1.2; all nodes that are up are paid."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: naming the option.
        """
        for name in ("steps", "samples", "hours", "money"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"--budget.{name} is {getattr(self, name):g}: give a positive number, or 0 for no limit."
                )
        if self.money and not any(self.prices.values()):
            raise ConfigError(
                f"--budget.money is {self.money:g}, but there are no prices: give e.g. --budget.prices CPU 0.04."
            )

    def gone(self, spent: Spent) -> str:
        """Which limit is reached, for people; "" while there is something left."""
        return next((text for share, text in self._limits(spent) if share >= 1), "")

    def left(self, spent: Spent) -> str:
        """How much of the scarcest is used, for the table; "" without a budget."""
        limits = self._limits(spent)
        return "{1}, {0:.0%} used".format(*max(limits)) if limits else ""

    def share(self, spent: Spent) -> float:
        """Of the scarcest, used."""
        return max((share for share, _ in self._limits(spent)), default=0.0)

    def _limits(self, spent: Spent) -> list[tuple[float, str]]:
        limits = (
            (spent.steps, self.steps, "budget of {:,} steps"),
            (spent.samples, self.samples, "budget of {:,} samples"),
            (spent.seconds / 3600, self.hours, "budget of {:g} hours"),
            (spent.money, self.money, "budget of {:g} in money"),
        )
        return [(used / limit, text.format(limit)) for used, limit, text in limits if limit]

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return bool(self._limits(Spent()))

    def rate(self, nodes: Iterable[Mapping[str, float]]) -> float:
        """What these nodes cost a second.

        Args:
            nodes: the resources of each.
        """
        hourly = sum(node.get(name, 0.0) * price for node in nodes for name, price in self.prices.items())
        return hourly / 3600
