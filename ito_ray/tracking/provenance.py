"""Where a run comes from: code, library versions, data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ito_ray.config.schema import Config
from ito_ray.data.shards import file_name
from ito_ray.evaluation.sources import open_labelled, open_pairs
from ito_ray.redact import redact

PACKAGES = ("torch", "timm", "transformers", "tokenizers", "sentence-transformers", "ray", "mlflow", "numpy", "pillow")


@dataclass(frozen=True)
class DatasetIdentity:
    """Which data a run was trained or measured on."""

    name: str
    digest: str
    """Changes when a file is added, removed or changes its size; at most 36 characters (MLflow's limit)."""
    source: tuple[str, ...]
    """The patterns of the configuration, without passwords and signatures."""
    shards: int
    """Files, where there are no shards."""
    bytes: int


def dataset_identity(name: str, patterns: Sequence[str], shards: Iterable[tuple[str, int]]) -> DatasetIdentity:
    """Identity of the shards [(url, size in bytes), …]; independent of their order and of the folder they lie in."""
    return _identity(name, patterns, [(file_name(url), size) for url, size in shards])


def evaluation_sets(cfg: Config) -> dict[str, DatasetIdentity]:
    """What `cfg` measures on: {"heldout": …, "zero_shot": …}, those that are given.

    Raises:
        ConfigError, DataError: what `evaluate` would raise for data that are not there or not understood.
    """
    sets = {}
    if cfg.data.heldout:
        sets["heldout"] = _identity("heldout", cfg.data.heldout, open_pairs(cfg).files())
    if cfg.eval.zero_shot:
        labelled = open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")
        sets["zero_shot"] = _identity("zero_shot", cfg.eval.zero_shot, labelled.source.files())
    return sets


def _identity(name: str, patterns: Sequence[str], files: Iterable[tuple[str, int]]) -> DatasetIdentity:
    pairs = sorted(files)
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
    return DatasetIdentity(name, digest, tuple(map(redact, patterns)), len(pairs), sum(size for _, size in pairs))


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: Path | None = None) -> str:
    """Commit hash of the checkout that holds `folder` (default: this file), "-dirty" when tracked files changed.

    "unknown" outside a checkout, so that an installed wheel trains as well.
    """
    place = folder or Path(__file__).parent
    try:
        commit = _git(place, "rev-parse", "HEAD")
        changed = _git(place, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
