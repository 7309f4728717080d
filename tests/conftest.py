"""One local Ray for all tests that need one, and no network for any."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine, as the pipelines start it."""
    import ray

    from ito_ray.runtime.cluster import connect

    connect(verbose=False)
    yield
    ray.shutdown()
