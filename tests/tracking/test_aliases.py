"""Candidate, champion, previous in a real SQLite registry; two processes that promote at once; the way back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from ito_ray.errors import TrackingError
from ito_ray.tracking.aliases import (
    ChampionMovedError,
    Registry,
    crown,
    crown_first,
    locked,
    rollback,
    unlock,
)
from ito_ray.tracking.run import Store, open_client, resolve_store

ROUNDS = 8
RACER = """
import sys, time
from pathlib import Path
from ito_ray.tracking.aliases import ChampionMovedError, Registry, crown
from ito_ray.tracking.run import open_client, resolve_store
uri, version, other, meeting, rounds = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5])
store = resolve_store(uri, ".")
client = open_client(store)
won = []
for round in range(rounds):
    (meeting / f"{round}-{version}").touch()
    late = time.monotonic() + 60
    while not (meeting / f"{round}-{other}").exists():
        assert time.monotonic() < late, "the other one died"
        time.sleep(0.0005)
    try:
        crown(Registry(client, store, f"race-{round}"), version, expected="1", tags={})
        won.append("1")
    except ChampionMovedError:
        won.append("0")
print("".join(won))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return resolve_store("", str(tmp_path_factory.mktemp("runs")))


def model(store: Store, name: str, versions: int = 3) -> Registry:
    """A model with versions that nobody loads."""
    client = open_client(store)
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, "s3://nowhere/model")
    return Registry(client, store, name)


def test_the_first_version_needs_no_decision(store: Store) -> None:
    registry = model(store, "first")
    assert registry.aliases() == {}
    assert crown_first(registry, "2")
    assert registry.aliases() == {"champion": "2"}
    assert crown_first(registry, "2")
    assert not crown_first(registry, "3")
    assert registry.aliases() == {"champion": "2"}


def test_a_promotion_keeps_the_way_back(store: Store) -> None:
    registry = model(store, "promoted")
    crown_first(registry, "1")
    crown(registry, "2", expected="1", tags={"ito.gate": "promoted"})
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    tags = registry.version("2").tags
    assert (tags["ito.replaced"], tags["ito.gate"]) == ("1", "promoted")
    assert tags["ito.promoted_at"].endswith("+00:00")
    crown(registry, "3", expected="2", tags={})
    assert rollback(registry, "slow on phones") == ("3", "2")
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert registry.version("3").tags["ito.rolled_back"].endswith("to version 2: slow on phones")
    assert rollback(registry, "worse still") == ("2", "1")
    assert registry.aliases() == {"champion": "1"}
    with pytest.raises(TrackingError, match="no previous champion: version 1 is the first"):
        rollback(registry, "again")


def test_a_version_that_came_back_is_no_way_back_from_itself(store: Store) -> None:
    """1, 2, back to 1, 3, then 1 once more and back to 3: behind 3 there is only the 1 that was taken back."""
    registry = model(store, "circle")
    crown_first(registry, "1")
    crown(registry, "3", expected="1", tags={})
    crown(registry, "1", expected="3", tags={})
    assert rollback(registry, "no") == ("1", "3")
    assert registry.aliases() == {"champion": "3"}


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("mend", ["unlock", "rollback", "promotion"])
def test_a_kill_between_two_aliases_costs_no_way_back(store: Store, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = model(store, f"killed-{mend}", versions=4)
    crown_first(registry, "1")
    crown(registry, "2", expected="1", tags={})
    moved = Registry.set_alias

    def killed(self: Registry, alias: str, version: str) -> None:
        if alias == "champion":
            raise _Killed
        moved(self, alias, version)

    monkeypatch.setattr(Registry, "set_alias", killed)
    with pytest.raises(_Killed):
        crown(registry, "3", expected="2", tags={})
    monkeypatch.undo()
    assert registry.aliases() == {"champion": "2", "previous": "2"}, "or the kill came elsewhere"
    if mend == "unlock":
        registry.client.create_registered_model(f"killed-{mend}-promotion-lock", {"ito.lock.token": "theirs"})
        assert unlock(registry)
        assert registry.aliases() == {"champion": "2", "previous": "1"}
    elif mend == "rollback":
        assert rollback(registry, "no") == ("2", "1")
        assert registry.aliases() == {"champion": "1"}
    else:
        crown(registry, "4", expected="2", tags={})
        assert registry.aliases() == {"champion": "4", "previous": "2"}


def test_a_rollback_that_was_killed_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = model(store, "halfway")
    crown_first(registry, "1")
    crown(registry, "2", expected="1", tags={})
    crown(registry, "3", expected="2", tags={})
    moved = Registry.set_alias

    def killed(self: Registry, alias: str, version: str) -> None:
        moved(self, alias, version)
        raise _Killed

    monkeypatch.setattr(Registry, "set_alias", killed)
    with pytest.raises(_Killed):
        rollback(registry, "slow")
    monkeypatch.undo()
    assert registry.aliases() == {"champion": "2", "previous": "2"}
    assert "slow" in registry.version("3").tags["ito.rolled_back"]
    registry.client.create_registered_model("halfway-promotion-lock", {"ito.lock.token": "theirs"})
    assert unlock(registry)
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_a_decision_against_another_champion_is_void(store: Store) -> None:
    registry = model(store, "moved")
    crown_first(registry, "1")
    crown(registry, "2", expected="1", tags={})
    with pytest.raises(ChampionMovedError, match="is version 2 by now, but version 3 was compared with version 1"):
        crown(registry, "3", expected="1", tags={})
    with pytest.raises(ChampionMovedError, match="compared with none"):
        crown(registry, "3", expected=None, tags={})
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert "ito.promoted_at" not in registry.version("3").tags


def test_the_lock_is_held_by_one_and_let_go_after_an_error(store: Store) -> None:
    registry = model(store, "held", versions=1)
    told = r"being moved by process \d+ on .* since .*register unlock --name held"
    with locked(registry), pytest.raises(TrackingError, match=told), locked(registry, wait=0.3):
        pytest.fail("two at once")
    with pytest.raises(RuntimeError), locked(registry, wait=0):
        raise RuntimeError
    with locked(registry, wait=0):
        assert unlock(registry)
    assert not unlock(registry)


def test_a_lock_let_go_at_that_moment_is_taken_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow was refused by the database and looks whom it met; the other one lets go in between."""
    registry = model(store, "gone", versions=1)
    look: Any = SqlAlchemyStore.get_registered_model
    met: list[str] = []

    def look_too_late(self: SqlAlchemyStore, name: str) -> Any:
        if not met:
            met.append(name)
            assert unlock(registry)
        return look(self, name)

    registry.client.create_registered_model("gone-promotion-lock", {"ito.lock.token": "theirs"})
    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", look_too_late)
    with locked(registry, wait=5):
        assert met == ["gone-promotion-lock"]
        assert registry.client.get_registered_model(met[0]).tags["ito.lock.token"] != "theirs"


def test_the_lock_of_another_is_not_let_go(store: Store) -> None:
    """Somebody removed ours by hand, and a third took it."""
    registry = model(store, "taken", versions=1)
    with locked(registry):
        unlock(registry)
        registry.client.create_registered_model("taken-promotion-lock", {"ito.lock.token": "theirs"})
    assert unlock(registry)


def test_unknown_names_are_plain_errors(store: Store) -> None:
    model(store, "known", versions=1)
    registry = Registry(open_client(store), store, "it's unknown")
    with pytest.raises(TrackingError, match=r"--name it's unknown: .* has no version of such a model; it has: .*known"):
        rollback(registry, "x")
    empty = model(store, "empty", versions=1)
    with pytest.raises(TrackingError, match="empty has no champion"):
        rollback(empty, "x")
    with pytest.raises(TrackingError, match="does not have version 9 of 'empty'"):
        empty.version("9")
    with pytest.raises(TrackingError, match="does not move empty@champion to version 9"):
        empty.set_alias("champion", "9")


@pytest.mark.slow
def test_of_two_processes_that_promote_at_once_one_wins(tmp_path: Path) -> None:
    race(resolve_store("", str(tmp_path)), tmp_path / "meeting", ROUNDS)


def race(store: Store, meeting: Path, rounds: int) -> None:
    """Two processes decided against version 1; they meet before each round and crown at the same moment."""
    for round in range(rounds):
        crown_first(model(store, f"race-{round}"), "1")
    meeting.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri, mine, other, str(meeting), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for mine, other in (("2", "3"), ("3", "2"))
    ]
    two, three = (child.communicate(timeout=300)[0].strip() for child in children)
    assert [child.returncode for child in children] == [0, 0]
    client = open_client(store)
    winners = ["3" if flag == "0" else "2" for flag in two]
    assert [int(a) + int(b) for a, b in zip(two, three, strict=True)] == [1] * rounds
    found = [Registry(client, store, f"race-{round}").aliases() for round in range(rounds)]
    assert found == [{"champion": winner, "previous": "1"} for winner in winners]
    with pytest.raises(MlflowException):
        client.get_registered_model("race-0-promotion-lock")
