"""`ray up` files pass Ray's own schema, KubeRay's manifests what Ray's autoscaler reads of them, and all agree."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
CLOUDS = [REPOSITORY / "cluster.yaml", DEPLOY / "gcp.yaml"]
RAY_UP = [*CLOUDS, DEPLOY / "on-premise.yaml"]
NODE_TYPES = {
    "data": ({"pool": "data", "market": "spot"}, {"CPU": 16}),
    "train": ({"pool": "train", "market": "spot"}, {"CPU": 8, "GPU": 1}),
    "train-on-demand": ({"pool": "train", "market": "on-demand"}, {"CPU": 8, "GPU": 1}),
}
"""Labels and resources that every file with node types gives them."""


def _read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return config


def _validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def _kuberay() -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((DEPLOY / "kuberay" / "raycluster.yaml").read_text("utf-8"))
    return cluster


def _autoscaling(cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of a RayCluster; it validates it, too."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return found


def _pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_files_are_valid(path: Path) -> None:
    _validate(_read(path))


@pytest.mark.parametrize("section", [(), ("docker",), ("available_node_types", "train")])
def test_a_typo_is_refused(section: tuple[str, ...]) -> None:
    config = _read(CLOUDS[0])
    inner = config
    for name in section:
        inner = inner[name]
    inner["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        _validate(config)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_clouds_have_the_same_node_types(path: Path) -> None:
    types = dict(_read(path)["available_node_types"])
    assert types.pop("head")["resources"] == {"CPU": 0}, "no work on the head"
    assert {name: (one["labels"], one["resources"]) for name, one in types.items()} == NODE_TYPES
    assert all(one["min_workers"] == 0 for one in types.values()), "nothing is paid for while nothing runs"
    assert types["train"]["priority"] > types["train-on-demand"]["priority"], "spot is tried first"
    for name, one in types.items():
        asked = str(one["node_config"]).lower()
        assert ("spot" in asked) == (one["labels"]["market"] == "spot"), name


def test_kuberay_has_the_same_node_types() -> None:
    config = _autoscaling(_kuberay())
    types = dict(config["available_node_types"])
    assert types.pop("headgroup")["resources"]["CPU"] == 0
    found = {
        name: (one["labels"], {key: value for key, value in one["resources"].items() if key != "memory"})
        for name, one in types.items()
    }
    assert found == NODE_TYPES
    assert types["train"]["priority"] > types["train-on-demand"]["priority"]
    assert config["idle_timeout_minutes"] == _read(CLOUDS[0])["idle_timeout_minutes"]


def test_a_broken_raycluster_is_noticed() -> None:
    cluster = _kuberay()
    del cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    with pytest.raises(KeyError, match="maxReplicas"):
        _autoscaling(cluster)
    cluster = _kuberay()
    cluster["spec"]["workerGroupSpecs"][0]["labels"]["pool"] = "not a label!"
    with pytest.raises(ValueError, match="not a label!"):
        _autoscaling(cluster)


def test_rayjob_brings_the_same_cluster() -> None:
    job = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text("utf-8"))
    cluster = _kuberay()
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert (job["apiVersion"], cluster["apiVersion"]) == ("ray.io/v1", "ray.io/v1")
    assert job["metadata"]["namespace"] == cluster["metadata"]["namespace"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_pods_find_their_volumes_and_have_what_ray_counts_on() -> None:
    spec = _kuberay()["spec"]
    claims = list(yaml.safe_load_all((DEPLOY / "kuberay" / "storage.yaml").read_text("utf-8")))
    claimed = {one["metadata"]["name"] for one in claims if one["kind"] == "PersistentVolumeClaim"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert {"/mnt/shared", "/dev/shm"} == {mount["mountPath"] for mount in container["volumeMounts"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] in claimed
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray takes the limit as given"
        assert pod["restartPolicy"] == "Never", "autoscaler v2 replaces pods"
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if gpu else "-cpu")


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_every_node_gets_shared_storage_the_token_and_time_to_stop(path: Path) -> None:
    config = _read(path)
    options = " ".join(config["docker"]["run_options"])
    for wanted in ("-v /mnt/shared:/mnt/shared", "RAY_AUTH_MODE=token", "RAY_JOB_STOP_WAIT_TIME_S=60", "--shm-size="):
        assert wanted in options
    assert list(config["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])


def test_versions_are_those_of_the_constraints() -> None:
    ray, mlflow = _pinned("ray"), _pinned("mlflow")
    files = [REPOSITORY / "cluster.yaml", *(path for path in DEPLOY.rglob("*") if path.is_file())]
    text = "\n".join(path.read_text("utf-8") for path in files)
    assert set(re.findall(r"ito-ray:([\d.]+)-", text)) == {ray}
    assert set(re.findall(r"ito-mlflow:([\d.]+)", text)) == {mlflow}
    assert re.findall(r"^ARG RAY_VERSION=(\S+)$", text, re.MULTILINE) == [ray]
    assert _kuberay()["spec"]["rayVersion"] == ray


def test_the_image_copies_what_exists_and_installs_extras_that_exist() -> None:
    import tomllib

    lines = (DEPLOY / "Dockerfile").read_text("utf-8")
    sources = [
        word for line in re.findall(r"^COPY --chown=ray (.+) \S+$", lines, re.MULTILINE) for word in line.split()
    ]
    assert {"constraints.txt", "pyproject.toml", "ito_ray", "pipelines"} <= set(sources)
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert [source for source in sources if f"!{source}" not in allowed] == []
    extras = re.findall(r"\.\[([\w,]+)\]", lines)
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras[0].split(",")) <= set(known)
    assert lines.count("-c constraints.txt") == lines.count("pip install"), "everything is pinned"
