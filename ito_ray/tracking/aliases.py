"""Which version is candidate, champion and previous, and how that changes: one move at a time, whoever asks.

MLflow overwrites aliases and tags without looking, in SQL and over REST, so neither can decide who was first. Creating
a registered model can: its name is the primary key, and the database refuses the second. So the lock of `NAME` is a
registered model `NAME-promotion-lock` that is there for the moment of the move. Under it the champion is read again: a
decision that was made against another champion is void.

A move is two aliases, and a kill may come between them. It leaves both on one version; whoever has the lock next, and
`unlock`, which is needed after a kill, point `previous` to the version that the champion had followed.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode

from ito_ray.errors import TrackingError
from ito_ray.tracking.run import Store, refusals

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
LOCK = "-promotion-lock"
TAKEN = {ErrorCode.Name(RESOURCE_ALREADY_EXISTS), ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)}
"""What a registry says when the lock is there. "Does not exist": MLflow's SQL store was refused by the database, looked
whom it had met, and found it just gone."""
WAIT_SECONDS = 30.0
"""A move takes less than a second."""
REPLACED = "ito.replaced"
"""Version tag of a champion: the version that it followed."""
GATE, PROMOTED_AT, ROLLED_BACK = "ito.gate", "ito.promoted_at", "ito.rolled_back"


class ChampionMovedError(TrackingError):
    """Somebody else changed the champion since the decision was prepared."""


@dataclass(frozen=True)
class Registry:
    """One registered model in one store."""

    client: MlflowClient
    store: Store
    name: str

    def aliases(self) -> dict[str, str]:
        """{alias: version} now; empty when there is no such model."""
        with refusals(f"show the model {self.name!r}", self.store):
            try:
                found = self.client.get_registered_model(self.name).aliases
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    raise
                return {}
        return {alias: str(version) for alias, version in dict(found).items()}

    def version(self, version: str) -> ModelVersion:
        """TrackingError when there is no such version."""
        with refusals(f"have version {version} of {self.name!r}", self.store):
            return self.client.get_model_version(self.name, version)

    def versions(self) -> list[ModelVersion]:
        """All versions, newest first.

        Raises:
            TrackingError: no such model; the message lists those that there are.
        """
        with refusals(f"list the versions of {self.name!r}", self.store):
            found = list(self.client.search_model_versions(f"name = {quoted(self.name)}", max_results=1000))
            if not found:
                models = self.client.search_registered_models(max_results=10)
                names = ", ".join(model.name for model in models if not model.name.endswith(LOCK)) or "none"
                raise TrackingError(
                    f"--name {self.name}: {self.store.address} has no version of such a model; it has: {names}."
                )
        return sorted(found, key=lambda one: -int(one.version))

    def set_alias(self, alias: str, version: str) -> None:
        """Point the alias to the version."""
        with refusals(f"move {self.name}@{alias} to version {version}", self.store):
            self.client.set_registered_model_alias(self.name, alias, version)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with refusals(f"tag version {version} of {self.name!r}", self.store):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version, key, value)


def crown(registry: Registry, version: str, *, expected: str | None, tags: Mapping[str, str]) -> None:
    """Make `version` champion and its predecessor `previous`, if the champion is still the expected one.

    Args:
        version: the new champion.
        expected: the champion that the decision was made against; None = there was none.
        tags: set on the version together with when, and whom it follows.

    Raises:
        ChampionMovedError: the champion is another one by now; nothing was changed.
        TrackingError: the lock cannot be had, or the registry refuses.
    """
    with locked(registry):
        _mend(registry)
        now = registry.aliases().get(CHAMPION)
        if now != expected:
            raise ChampionMovedError(
                f"The champion of {registry.name} is version {now or 'none'} by now, but version {version} was "
                f"compared with {f'version {expected}' if expected else 'none'}: another promotion was faster. Run "
                "promote again to compare with the new champion."
            )
        registry.tag(version, {PROMOTED_AT: utc_now(), REPLACED: expected or "", **tags})
        if expected:
            registry.set_alias(PREVIOUS, expected)
        registry.set_alias(CHAMPION, version)


def crown_first(registry: Registry, version: str) -> bool:
    """Make `version` champion if there is none; whether it is champion now."""
    now = registry.aliases().get(CHAMPION)
    if now is None:
        try:
            crown(registry, version, expected=None, tags={GATE: "first version: checked, nothing to beat"})
        except ChampionMovedError:
            return registry.aliases().get(CHAMPION) == version
        return True
    return now == version


def rollback(registry: Registry, reason: str) -> tuple[str, str]:
    """Make `previous` champion again; `previous` becomes the one that this one had followed.

    Args:
        reason: kept in the tag `ito.rolled_back` of the version that is taken back.

    Returns:
        (version that was champion, version that is).

    Raises:
        TrackingError: no such model, no champion, no previous, or the registry refuses.
    """
    registry.versions()  # refuses a model that is not there before the lock is asked for
    with locked(registry):
        _mend(registry)
        aliases = registry.aliases()
        bad, good = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if bad is None:
            raise TrackingError(f"{registry.name} has no champion, so there is nothing to roll back: promote one.")
        if good is None or good == bad:
            raise TrackingError(
                f"{registry.name} has no previous champion: version {bad} is the first, or everything before it was "
                "rolled back already. Register and promote another version."
            )
        registry.tag(bad, {ROLLED_BACK: f"{utc_now()} to version {good}: {reason}"})
        registry.set_alias(CHAMPION, good)
        _mend(registry)
    return bad, good


def _mend(registry: Registry) -> None:
    """Where champion and previous are one version, point `previous` to the one before it, if it was not rolled back."""
    aliases = registry.aliases()
    champion = aliases.get(CHAMPION)
    if champion is None or aliases.get(PREVIOUS) != champion:
        return
    tags = {str(one.version): dict(one.tags) for one in registry.versions()}
    before = tags.get(champion, {}).get(REPLACED, "")
    if before in tags and before != champion and ROLLED_BACK not in tags[before]:
        registry.set_alias(PREVIOUS, before)
        return
    with refusals(f"take back the alias {PREVIOUS} of {registry.name!r}", registry.store):
        registry.client.delete_registered_model_alias(registry.name, PREVIOUS)


@contextmanager
def locked(registry: Registry, *, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of this model; nobody else holds it meanwhile.

    Raises:
        TrackingError: somebody holds it for longer than `wait` seconds: who, since when, and how to remove it.
    """
    lock, token = f"{registry.name}{LOCK}", uuid.uuid4().hex
    tags = {"ito.lock.token": token, "ito.lock.holder": f"process {os.getpid()} on {platform.node()}"}
    until = time.monotonic() + wait
    while True:
        try:
            registry.client.create_registered_model(lock, tags, f"Taken at {utc_now()} while an alias moves.")
            break
        except MlflowException as error:
            if error.error_code not in TAKEN:
                raise TrackingError(
                    f"The registry {registry.store.address} does not lock {registry.name!r}: {error.message}"
                ) from error
        if time.monotonic() > until:
            raise TrackingError(_held(registry, lock, wait))
        time.sleep(0.1)
    try:
        yield
    finally:
        # Only our own: somebody may have removed it with `unlock` and another have taken it since.
        with suppress(MlflowException):
            if registry.client.get_registered_model(lock).tags.get("ito.lock.token") == token:
                registry.client.delete_registered_model(lock)


def unlock(registry: Registry) -> bool:
    """Remove the lock that a killed process left, and mend what it had begun; whether there was one."""
    with refusals(f"remove the lock of {registry.name!r}", registry.store):
        try:
            registry.client.delete_registered_model(f"{registry.name}{LOCK}")
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return False
    with locked(registry):
        _mend(registry)
    return True


def logged_model(version: ModelVersion) -> str:
    """Id of MLflow's LoggedModel behind a version, "" when there is none: its source is models:/<id>.

    SQL registries leave `version.model_id` empty.
    """
    kind, _, identity = str(version.source).partition(":/")
    return identity if kind == "models" and identity.startswith("m-") else ""


def utc_now() -> str:
    """ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _held(registry: Registry, lock: str, wait: float) -> str:
    holder = "somebody"
    with suppress(MlflowException):
        found = registry.client.get_registered_model(lock)
        since = datetime.fromtimestamp(int(found.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds")
        holder = f"{found.tags.get('ito.lock.holder', 'somebody')} since {since}"
    return (
        f"The aliases of {registry.name} are being moved by {holder}, for longer than {wait:.0f} s. If that process is "
        f"gone, remove its lock: python -m pipelines.register unlock --name {registry.name} --tracking-uri …"
    )


def quoted(name: str) -> str:
    """A name for MLflow's filters, which know both quotes and no way to write one inside itself."""
    return f'"{name}"' if "'" in name else f"'{name}'"
