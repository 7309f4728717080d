"""One local Ray for all tests that need one, and no network for any."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # a report waits for the next check: 2 s each by default
)
hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("busy")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With two processes (`-n 2 --dist loadgroup`) all tests on Ray stay in one, and each file's fixtures too."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("ray" if folder == "runtime" else item.path.stem))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine, as the pipelines start it."""
    import ray

    from ito_ray.runtime.cluster import connect

    connect(verbose=False)
    yield
    ray.shutdown()
