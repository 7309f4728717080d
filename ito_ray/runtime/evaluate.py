"""Evaluation shared among Ray workers: each opens the encoder once and embeds pieces of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray.util import ActorPool

from ito_ray.config.schema import Config
from ito_ray.data.tally import Tally
from ito_ray.evaluation.encoder import Encoder
from ito_ray.evaluation.sources import Source, read
from ito_ray.evaluation.subject import Task
from ito_ray.runtime.cluster import connect, user_mistake
from ito_ray.runtime.encoders import open_encoder

T = TypeVar("T")


class _Worker:
    """Holds the encoder."""

    def __init__(self, address: str, batch: int, name: str) -> None:
        self._encoder = open_encoder(address, batch=batch, name=name)

    def embed(self, source: Source, task: Task[T], piece: int, limit: int | None, max_pixels: int) -> tuple[T, Tally]:
        """One piece of the source, through the task."""
        reader = read(source, limit=limit, max_pixels=max_pixels, piece=piece)
        return task(self._encoder, reader), reader.tally


@dataclass
class RayPasses:
    """`subject.Passes` over a pool of Ray actors.

    Args:
        address: of the encoder; a folder must be on a disk that all nodes share.
        cfg: `eval.batch` is used.
        workers: actors, one CPU each, or one GPU where the cluster has them.
        name: of the encoder in reports.
    """

    address: str
    cfg: Config
    workers: int
    name: str

    def __post_init__(self) -> None:
        if Path(self.address).is_dir():  # workers may start in another folder
            self.address = str(Path(self.address).absolute())
        connect(verbose=False)
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= self.workers else 0
        actor = cast(Any, ray.remote(num_cpus=1, num_gpus=gpus)(_Worker))
        self._pool = ActorPool(
            [actor.remote(self.address, self.cfg.eval.batch, self.name) for _ in range(self.workers)]
        )

    def __call__(
        self, encoder: Encoder, source: Source, task: Task[T], *, limit: int | None, max_pixels: int
    ) -> list[tuple[T, Tally]]:
        """What the task makes of every piece, in the source's order.

        With a limit the pieces are read one after the other, since only then is known how many samples are left.
        """
        shared = ray.put(source)
        with _mistakes():
            if limit is None:
                jobs = list(range(source.pieces))
                found: Iterator[Any] = self._pool.map(
                    lambda actor, piece: actor.embed.remote(shared, task, piece, None, max_pixels), jobs
                )
                return list(found)
            parts: list[tuple[T, Tally]] = []
            for piece in range(source.pieces):
                if limit <= 0:
                    break
                self._pool.submit(
                    lambda actor, at: actor.embed.remote(shared, task, at[0], at[1], max_pixels), (piece, limit)
                )
                parts.append(cast(Any, self._pool.get_next()))
                limit -= parts[-1][1].delivered
            return parts


@contextmanager
def _mistakes() -> Iterator[None]:
    """A user's mistake in a worker is raised as it is, without Ray's traceback around it."""
    try:
        yield
    except Exception as error:
        known = user_mistake(error)
        if known is None:
            raise
        raise known from None
