"""The Grafana dashboard asks for what the code registers and Ray exports, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray.dashboard.modules.metrics.dashboards as rays
from ray.util.metrics import Counter, Metric

from ito_ray.data.tally import Tally
from ito_ray.runtime.metrics import RunMetrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


@pytest.fixture(name="recorded")
def _recorded(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """What was recorded, by name and values of the tags."""
    found: dict[tuple[str, ...], float] = {}

    def note(self: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        labels = {**self.info["default_tags"], **(tags or {})}
        assert set(labels) == set(self.info["tag_keys"])
        key = (self.info["name"], *(labels[name] for name in self.info["tag_keys"]))
        found[key] = found.get(key, 0.0) + value if isinstance(self, Counter) else value

    monkeypatch.setattr(Metric, "_record", note)
    return found


def _dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return board


def _exported(metric: Metric) -> str:
    return f"ray_{metric.info['name']}" + ("_total" if isinstance(metric, Counter) else "")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    expressions = [target["expr"] for panel in _dashboard()["panels"] for target in panel["targets"]]
    named = set(re.findall(r"\bray_\w+", " ".join(expressions)))
    ours = {name for name in named if name.startswith("ray_ito_")}
    assert ours == {_exported(metric) for metric in RunMetrics("run", ()).registered}
    known = "".join(path.read_text("utf-8") for path in Path(str(rays.__file__)).parent.glob("*.py"))
    assert [name for name in named - ours if f"{name}{{" not in known] == [], "Ray's own dashboards have them"


def test_legends_and_groups_use_tags_that_the_metric_has() -> None:
    tags = {_exported(metric): set(metric.info["tag_keys"]) for metric in RunMetrics("run", ()).registered}
    for panel in _dashboard()["panels"]:
        for target in panel["targets"]:
            (names, *_) = re.findall(r"ray_ito_\w+", target["expr"]) or [""]
            if names:
                used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                used |= {word for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in by.split(", ")}
                assert used <= tags[names], panel["title"]


def test_panels_lie_beside_each_other_and_each_says_how_to_read_it() -> None:
    panels = _dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels)


def test_what_is_recorded(recorded: dict[tuple[str, ...], float]) -> None:
    metrics = RunMetrics("mine", ("web", "icons"))
    metrics.started()
    metrics.reported(20, {"train/samples_per_second": 150.0, "train/data_wait_share": 0.25, "train/loss/total": 3.5})
    metrics.reported(20, {"checkpoint/seconds": 1.5})
    metrics.rows({0: Tally(10, 8, {"bad_json": 2}), 1: Tally(5, 5)})
    metrics.rows({0: Tally(10, 9, {"bad_json": 1})})
    assert recorded == {
        ("ito_worker_starts", "mine"): 1,
        ("ito_step", "mine"): 20,
        ("ito_samples_per_second", "mine"): 150.0,
        ("ito_data_wait_share", "mine"): 0.25,
        ("ito_loss", "mine"): 3.5,
        ("ito_checkpoint_seconds", "mine"): 1.5,
        ("ito_rows_read", "mine", "web"): 20,
        ("ito_rows_read", "mine", "icons"): 5,
        ("ito_rows_dropped", "mine", "web", "bad_json"): 3,
    }
