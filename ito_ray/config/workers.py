"""How many workers train: a number, or the least and the most of a run that grows and shrinks with its cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from pydantic import BeforeValidator, PlainSerializer

from ito_ray.errors import ConfigError

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class Workers:
    """From `least` to `most`, both included; the same number twice for a run of fixed size."""

    least: int
    most: int

    @classmethod
    def read(cls, said: Any) -> Workers:
        """What a YAML file or a command line says: 4, "4" or "1..4".

        Raises:
            ConfigError: it is neither.
        """
        if isinstance(said, cls):
            return said
        found = _RANGE.fullmatch(str(said).strip())
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most or isinstance(said, bool):
            raise ConfigError(f"train.workers={said!r}: give a number from 1 on, or the least and the most as in 1..4.")
        return cls(least, most)

    @property
    def elastic(self) -> bool:
        """Whether the size may change while the run goes on."""
        return self.least < self.most

    def dividing(self, batch: int) -> tuple[int, ...]:
        """The sizes that share `batch` samples equally, ascending."""
        return tuple(size for size in range(self.least, self.most + 1) if batch % size == 0)

    @property
    def said(self) -> str:
        """For a sentence: "4" or "1 to 4"."""
        return f"{self.least} to {self.most}" if self.elastic else str(self.most)

    def plain(self) -> int | str:
        """What `read` gives back as this."""
        return str(self) if self.elastic else self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else str(self.most)


WorkersField = Annotated[
    Workers,
    BeforeValidator(Workers.read),
    PlainSerializer(Workers.plain, return_type=int | str),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|LEAST..MOST",
        instance_from_str=lambda words: Workers.read(words[0]),
        is_instance=lambda value: isinstance(value, Workers),
        str_from_instance=lambda workers: [str(workers)],
    ),
]
"""As a field of the configuration: an integer or such a text in YAML, JSON and on the command line."""


def require_equal_shares(batch: int, workers: Workers, micro_batch: int) -> None:
    """
    Args:
        batch: `train.global_batch`.
        micro_batch: `train.micro_batch`; of a range of workers only a limit.

    Raises:
        ConfigError: a size that the configuration names cannot share the batch equally.
    """
    if workers.elastic and (batch % workers.least or batch % workers.most):
        possible = ", ".join(map(str, Workers(1, workers.most).dividing(batch)))
        raise ConfigError(
            f"train.global_batch={batch} is not divisible by both ends of train.workers={workers}: those that divide "
            f"it are {possible}; in between, others are passed over."
        )
    share, rest = divmod(batch, workers.most)
    if rest:
        raise ConfigError(
            f"train.global_batch={batch} is not divisible by train.workers={workers}: take a multiple of {workers}."
        )
    if micro_batch and not workers.elastic and share % micro_batch:
        raise ConfigError(
            f"train.micro_batch={micro_batch} does not divide the {share} pairs of one worker (train.global_batch="
            f"{batch}, train.workers={workers}): take a divisor, or 0 for the whole batch at once."
        )
