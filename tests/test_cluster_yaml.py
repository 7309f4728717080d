"""cluster.yaml passes Ray's own schema, and a broken one does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


def _validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_cluster_yaml_is_valid() -> None:
    config = yaml.safe_load(CLUSTER.read_text())
    _validate(config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}, "no training on the head"


@pytest.mark.parametrize("path", [("max_worker",), ("available_node_types", "train", "max_worker")])
def test_a_typo_is_refused(path: tuple[str, ...]) -> None:
    config: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = 3
    with pytest.raises(Exception, match="max_worker"):
        _validate(config)
