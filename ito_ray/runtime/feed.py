"""How the stream is dealt to the workers, and how far it may run ahead of them.

Apart from stream.py, since data tasks need not import Ray Train.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.data import ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from ito_ray.config.schema import Config


def bytes_ahead(cfg: Config, workers: int) -> float:
    """Bytes of decoded pixels that the stream may hold in the object stores, with so many workers."""
    view_bytes = cfg.data.views.count * 3 * cfg.model.image.size**2
    blocks_ahead = 2 * ray.cluster_resources().get("CPU", 0.0) + 4 * workers
    return float(blocks_ahead * cfg.data.rows_per_task * view_bytes)


def execution_options(cfg: Config, workers: int) -> ExecutionOptions:
    """In plan order, and no further ahead of training than keeps every CPU busy: decoded pixels are large."""
    limit = ExecutionResources(object_store_memory=bytes_ahead(cfg, workers))
    return ExecutionOptions(preserve_order=True, resource_limits=limit, label_selector=cfg.data.node_labels or None)


class Feed(DataConfig):
    """How Ray Train deals the stream to its workers: with options for the cluster as it is whenever they start."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self._cfg = cfg

    def configure(self, datasets: Any, world_size: int, *arguments: Any, **named: Any) -> Any:
        """Called by Ray Train at each start of the workers."""
        options = execution_options(self._cfg, world_size)
        return DataConfig(execution_options=options).configure(datasets, world_size, *arguments, **named)
