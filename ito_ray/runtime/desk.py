"""Where a sweep's driver and its trials meet; light to import, since it is a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from ito_ray.config.schema import Config
from ito_ray.runtime.launch import TokenizerFiles


@dataclass(frozen=True)
class Takeover:
    """From a step on, a trial goes on from a checkpoint, another trial's or its own, with other settings."""

    step: int
    """Steps that the checkpoint has taken."""
    checkpoint: str
    """Its folder."""
    cfg: Config
    """What is trained from there on, in a run folder of its own."""
    settings: dict[str, float]
    """Numbers among the settings, for their curves."""


Word = str | Takeover
"""The sweep's, on an evaluation: "" goes on, any other text is why the trial stops."""


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
    settings: dict[str, float] = field(default_factory=dict)
    """Numbers that may change in flight, for their curves."""
    shelf: str = ""
    """Folder where the trial holds each checkpoint that was evaluated, for others to take over; "" = it holds none."""
    takeover: Takeover | None = None
    """The last one that the sweep knows of: where the trial goes on if it was interrupted."""


@ray.remote(num_cpus=0)
class Desk:
    """Where trials fetch their orders and the sweep's word on each evaluation."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._words: dict[tuple[str, int], Word] = {}

    def place(self, trial: str, order: Order) -> None:
        """Leave the order for a trial."""
        self._orders[trial] = order

    def order(self, trial: str) -> Order:
        """Fetch it."""
        return self._orders[trial]

    def decide(self, trial: str, step: int, word: Word) -> None:
        """Leave the word on the evaluation at `step`."""
        self._words[trial, step] = word

    def word(self, trial: str, step: int) -> Word:
        """Fetch it; the sweep leaves it before Ray Tune lets the trial's report return."""
        return self._words[trial, step]
