"""The tracking server's files: what refers to something finds it, and no secret is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "mlflow"


def _manifests() -> dict[tuple[str, str], dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def _containers() -> dict[str, dict[str, Any]]:
    pods = [one["spec"]["template"]["spec"] for one in _manifests().values() if "template" in one["spec"]]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


def _compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    return read


def test_services_find_their_pods_and_ports() -> None:
    manifests = _manifests()
    for (kind, name), one in manifests.items():
        assert one["metadata"]["namespace"] == "ito"
        if kind == "NetworkPolicy":
            (rule,) = one["spec"]["ingress"]
            assert one["spec"]["podSelector"]["matchLabels"] == manifests["Service", name]["spec"]["selector"]
            assert rule["ports"] == manifests["Service", name]["spec"]["ports"]
        elif kind != "Service":
            assert ("NetworkPolicy", name) in manifests, "there is no log-in"
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"] == labels
            service = manifests["Service", one["spec"].get("serviceName", name)]
            assert service["spec"]["selector"] == labels
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]


def test_passwords_come_from_secrets_and_the_environment_only() -> None:
    for container in _containers().values():
        for one in container["env"]:
            if re.search("PASSWORD|SECRET|KEY", one["name"]):
                assert set(one) == {"name", "valueFrom"} and "secretKeyRef" in one["valueFrom"]
    for service in _compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert value is None or str(value).startswith("${"), name


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_the_server_starts_with_options_that_mlflow_has(kind: str) -> None:
    """And with a database address that carries no password: libpq takes it from PGPASSWORD."""
    from mlflow.cli import cli

    if kind == "compose":
        server = _compose()["services"]["mlflow"]
        words, environment = server["command"], server["environment"]
    else:
        server = _containers()["mlflow"]
        words, environment = [*server["command"], *server["args"]], [one["name"] for one in server["env"]]
    assert words[:2] == ["mlflow", "server"] and "PGPASSWORD" in environment
    parsed = cli.commands["server"].make_context("server", words[2:], resilient_parsing=True).params
    assert re.fullmatch(r"postgresql://mlflow@[\w-]+/mlflow", parsed["backend_store_uri"])
    assert parsed["host"] == "0.0.0.0" and parsed["allowed_hosts"], "by default it answers to localhost only"
    assert parsed["artifacts_destination"]


def test_compose_refers_to_what_it_has() -> None:
    compose = _compose()
    services = compose["services"]
    built = services["mlflow"]["build"]
    assert (FOLDER / built["context"] / built["dockerfile"]).resolve() == (FOLDER / "Dockerfile").resolve()
    assert set(services["mlflow"]["depends_on"]) <= set(services)
    used = {volume.split(":")[0] for volume in services["postgres"]["volumes"]}
    assert used == set(compose["volumes"])


def test_only_this_machine_reaches_what_has_no_login() -> None:
    services = _compose()["services"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in services["postgres"]


def test_no_image_runs_as_root() -> None:
    for path in (FOLDER / "Dockerfile", FOLDER.parent / "Dockerfile"):
        users = re.findall(r"^USER (\S+)$", path.read_text("utf-8"), re.MULTILINE)
        assert users and users[-1] not in ("root", "0"), path
