"""One local Ray for all tests that need one, and no network for any."""

from __future__ import annotations

import os
import signal
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
os.environ.pop("MLFLOW_TRACKING_URI", None)  # a developer's own server is none for tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script: Ctrl-C is tested too
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, so that two processes (`-n 2 --dist loadfile`) end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name not in ("tune", "runtime"))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine, as the pipelines start it."""
    import ray

    from ito_ray.runtime.cluster import connect

    connect(verbose=False)
    yield
    ray.shutdown()
