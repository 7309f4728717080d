"""Manifests and compose file against the schemas of Kubernetes and of Compose, which two test packages carry."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = "1.31"


def _resources() -> dict[str, dict[str, Any]]:
    """Everything that Kubernetes itself knows: resources, and the pods that KubeRay makes."""
    found: dict[str, dict[str, Any]] = {}
    for path in (DEPLOY / "mlflow" / "kubernetes.yaml", DEPLOY / "kuberay" / "storage.yaml"):
        for one in yaml.safe_load_all(path.read_text("utf-8")):
            found[f"{one['kind']}-{one['metadata']['name']}"] = one
    cluster = yaml.safe_load((DEPLOY / "kuberay" / "raycluster.yaml").read_text("utf-8"))
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        name = group.get("groupName", "head")
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        found[f"Pod-{name}"] = pod
    return found


RESOURCES = _resources()


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_valid(name: str) -> None:
    kubernetes_validate.validate(RESOURCES[name], KUBERNETES, strict=True)


def test_a_wrong_resource_is_noticed() -> None:
    pod = copy.deepcopy(RESOURCES["Pod-train"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_compose_file_is_valid_and_a_wrong_one_is_not() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    compose = yaml.safe_load((DEPLOY / "mlflow" / "compose.yaml").read_text("utf-8"))
    jsonschema.validate(compose, schema)
    compose["services"]["mlflow"]["enviroment"] = {}
    with pytest.raises(jsonschema.ValidationError, match="enviroment"):
        jsonschema.validate(compose, schema)
