"""What several tests of `prepare` are given."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ito_ray.data.prepare import fetch as fetch_module
from tests.data.prepare.web_server import Web


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(fetch_module, "_servers", type(fetch_module._servers)(fetch_module._Server))
    found = Web()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
