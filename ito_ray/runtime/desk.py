"""Where a sweep's driver and its trials meet; light to import, since it is a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from ito_ray.config.schema import Config
from ito_ray.runtime.launch import TokenizerFiles


@dataclass(frozen=True)
class Order:
    """What a trial shall do."""

    cfg: Config
    recipe: str
    folder: str
    """The sweep's working folder, which relative paths of the configuration start from."""
    tokenizer: TokenizerFiles | None
    """The sweep's, where the trial's text tower and captions are the same; None: make one."""
    tags: dict[str, str] = field(default_factory=dict)
    """Of the MLflow run."""


@ray.remote(num_cpus=0)
class Desk:
    """Where trials fetch their orders and the sweep's word on each evaluation."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._verdicts: dict[tuple[str, int], str] = {}

    def place(self, trial: str, order: Order) -> None:
        """Leave the order for a trial."""
        self._orders[trial] = order

    def order(self, trial: str) -> Order:
        """Fetch it."""
        return self._orders[trial]

    def decide(self, trial: str, step: int, verdict: str) -> None:
        """Leave the word on the evaluation at `step`: "" goes on, anything else is why the trial stops."""
        self._verdicts[trial, step] = verdict

    def verdict(self, trial: str, step: int) -> str:
        """Fetch it; the sweep leaves it before Ray Tune lets the trial's report return."""
        return self._verdicts[trial, step]
