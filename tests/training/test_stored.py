"""Copies of checkpoints in a second place: whole or not there, verified, pruned; with whom a run goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ito_ray.config.load import overlay
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.runtime import snapshot, trainer
from ito_ray.runtime.restore import restore
from ito_ray.runtime.shelf import name_of
from ito_ray.runtime.upload import HOLDING, Uploads
from ito_ray.training import stored
from ito_ray.training.manifest import damage, write_manifest
from ito_ray.training.stored import Copies, open_copies
from tests.tiny import tiny_config


def _config(tmp: Path, store: str = "") -> Config:
    changes = {"output": str(tmp / "runs"), "train": {"checkpoint_store": store or str(tmp / "copies")}}
    return overlay(tiny_config(), changes, source="test")


def _copies(tmp: Path) -> Copies:
    copies = open_copies(_config(tmp))
    assert copies is not None
    return copies


def _checkpoint(tmp: Path, step: int, *, listed: bool = False) -> Path:
    """Files of random bytes with a true manifest in the run's folder."""
    folder = tmp / "runs" / "run" / name_of(step)
    folder.mkdir(parents=True)
    files = [folder / "method.safetensors", folder / "optimizer.safetensors", folder / "state.json"]
    for file in files:
        file.write_bytes(os.urandom(1000))
    write_manifest(files)
    if listed:
        snapshot.add(folder.parent, folder.name)
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _waits(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_fetched_is_what_was_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK_BYTES", 300)
    copies, folder, moved = _copies(tmp_path), _checkpoint(tmp_path, 3), []
    copies.put(folder, folder.name, lambda: moved.append(1))
    assert copies.get(folder.name, tmp_path / "got") == ""
    assert _content(tmp_path / "got") == _content(folder)
    assert len(moved) >= 12 and copies.whole() == [folder.name]


def test_a_copy_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    copies, folder = _copies(tmp_path), _checkpoint(tmp_path, 3)
    copies.put(folder, folder.name)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "copies").rglob("*")}
    copies.put(folder, folder.name)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copies").rglob("*")} == made
    os.truncate(tmp_path / "copies" / "run" / folder.name / "state.json", 10)
    copies.put(folder, folder.name)
    assert copies.get(folder.name, tmp_path / "got") == "", "half a last file is no copy"


@pytest.mark.parametrize("fails_at", range(4))
def test_an_upload_that_is_cut_off_is_never_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    copies, old, new = _copies(tmp_path), _checkpoint(tmp_path, 3), _checkpoint(tmp_path, 4)
    copies.put(old, old.name)
    send, sent = Copies._send, list[str]()

    def cut(self: Copies, path: Path, name: str, moved: Callable[[], None]) -> None:
        if len(sent) >= fails_at:
            raise OSError("the store is away")
        sent.append(path.name)
        send(self, path, name, moved)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "FILES_AT_ONCE", 1)
        patch.setattr(Copies, "_send", cut)
        with pytest.raises(OSError, match="away"):
            copies.put(new, new.name)
    assert "state.json" not in sent and copies.whole() == [old.name]
    copies.put(new, new.name)
    assert copies.whole() == [new.name, old.name] and copies.get(new.name, tmp_path / "got") == ""


@pytest.mark.parametrize("fails_at", range(3))
def test_a_removal_that_is_cut_off_leaves_no_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    copies, folder = _copies(tmp_path), _checkpoint(tmp_path, 3)
    copies.put(folder, folder.name)
    there = tmp_path / "copies" / "run" / folder.name
    for last in ("state.json", "manifest.json", "method.safetensors")[: fails_at + 1]:  # the order of `remove`
        (there / last).unlink()
    assert copies.whole() == []
    copies.put(folder, folder.name)
    assert copies.get(folder.name, tmp_path / "got") == ""


def test_the_newest_are_kept_and_halves_are_removed(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    for step in (1, 2, 3, 4, 9):
        copies.put(_checkpoint(tmp_path, step), name_of(step))
    (tmp_path / "copies" / "run" / name_of(3) / "state.json").unlink()
    (tmp_path / "copies" / "run" / "tokenizer").mkdir()
    (tmp_path / "copies" / "run" / "tokenizer" / "manifest.json").write_text("{}")
    copies.prune(name_of(4), keep=2)
    assert sorted(path.name for path in (tmp_path / "copies" / "run").iterdir()) == [
        name_of(2),
        name_of(4),
        "tokenizer",
    ]


def test_a_run_without_checkpoints_goes_on_from_the_newest_good_copy(tmp_path: Path) -> None:
    cfg, copies, told = _config(tmp_path), _copies(tmp_path), list[str]()
    for step in (1, 2, 3, 4):
        copies.put(_checkpoint(tmp_path, step), name_of(step))
    wanted = _content(tmp_path / "runs" / "run" / name_of(2))
    shutil.rmtree(tmp_path / "runs")
    theirs = tmp_path / "copies" / "run"
    (theirs / name_of(4) / "state.json").unlink()  # half a copy
    weights = theirs / name_of(3) / "method.safetensors"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    restore(cfg, told.append)
    newest = trainer.latest_checkpoint(cfg, told.append)
    assert newest == tmp_path / "runs" / "run" / name_of(2) and _content(newest) == wanted
    assert len(told) == 2 and "step-00000003 in" in told[0] and "SHA-256" in told[0]
    assert sorted(path.name for path in newest.parent.glob("*step-*")) == [name_of(2)], "no half is left"
    restore(cfg, told.append)
    assert len(told) == 3, "the damaged one is looked at again, the good one is there"


def test_a_newer_copy_comes_after_what_the_run_has(tmp_path: Path) -> None:
    cfg, copies, told = _config(tmp_path), _copies(tmp_path), list[str]()
    for step in (1, 2, 3):
        copies.put(_checkpoint(tmp_path, step, listed=True), name_of(step))
    run = tmp_path / "runs" / "run"
    restore(cfg, told.append)
    assert told == []
    os.truncate(run / name_of(3) / "method.safetensors", 5)
    restore(cfg, told.append)
    assert trainer.latest_checkpoint(cfg, told.append) == run / name_of(3) and damage(run / name_of(3)) == ""
    assert len(told) == 2 and "set aside" in told[0] and "brought back" in told[1]
    shutil.rmtree(run / name_of(3))
    restore(cfg, told.append)
    shutil.rmtree(run / name_of(3))
    shutil.rmtree(tmp_path / "copies")
    restore(cfg, told.append)
    assert trainer.latest_checkpoint(cfg, told.append) == run / name_of(2), "what it had is still on the list"


@contextmanager
def _uploads(cfg: Config, told: list[str]) -> Iterator[Uploads]:
    uploads = Uploads(cfg, told.append, retry_seconds=0.02)
    yield uploads
    assert uploads.finish(20)


def test_the_newest_offered_arrives_with_the_tokenizer(tmp_path: Path) -> None:
    cfg, copies, told = _config(tmp_path), _copies(tmp_path), list[str]()
    (tmp_path / "runs" / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "tokenizer" / "tokenizer.json").write_text("words")
    with _uploads(cfg, told) as uploads:
        for step in (1, 2, 3, 4, 5):
            uploads.offer(_checkpoint(tmp_path, step))
            uploads.offer(tmp_path / "runs" / "run" / name_of(step))
    assert copies.whole()[0] == name_of(5) and len(copies.whole()) <= cfg.train.keep_checkpoints and told == []
    run = tmp_path / "runs" / "run"
    assert not (run / HOLDING).exists() and [path.name for path in (run / "tokenizer").iterdir()] == ["tokenizer.json"]
    shutil.rmtree(tmp_path / "runs")
    restore(cfg, told.append)
    assert _content(run / "tokenizer") == {"tokenizer.json": b"words"}


def test_a_checkpoint_that_is_removed_while_it_is_sent_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, folder, told = _config(tmp_path), _checkpoint(tmp_path, 1), list[str]()
    wanted, put = _content(folder), Copies.put

    def removed(self: Copies, source: Path, name: str, moved: Callable[[], None]) -> None:
        shutil.rmtree(folder)
        put(self, source, name, moved)

    monkeypatch.setattr(Copies, "put", removed)
    with _uploads(cfg, told) as uploads:
        uploads.offer(folder)
    assert _content(tmp_path / "copies" / "run" / name_of(1)) == wanted and told == []


def test_a_checkpoint_that_is_gone_or_damaged_is_passed_over(tmp_path: Path) -> None:
    cfg, copies, told = _config(tmp_path), _copies(tmp_path), list[str]()
    good, bad = _checkpoint(tmp_path, 1), _checkpoint(tmp_path, 2)
    os.truncate(bad / "method.safetensors", 5)
    with _uploads(cfg, told) as uploads:
        uploads.offer(good)
        _waits(copies.whole)
        uploads.offer(bad)
        _waits(lambda: told)
        uploads.offer(tmp_path / "runs" / "run" / name_of(3))
    assert copies.whole() == [good.name] and len(told) == 1 and "step-00000002 is damaged" in told[0]


def test_a_store_that_is_away_is_told_of_once_and_gets_the_newest_later(tmp_path: Path) -> None:
    cfg, copies, told = _config(tmp_path), _copies(tmp_path), list[str]()
    (tmp_path / "copies").write_text("no folder")
    uploads = Uploads(cfg, told.append, retry_seconds=0.02)
    uploads.offer(_checkpoint(tmp_path, 1))
    _waits(lambda: told)
    uploads.offer(_checkpoint(tmp_path, 2))
    assert not uploads.finish(0.2)
    assert "step-00000002" in uploads.complaint() and "run the same command" in uploads.complaint()
    assert len(told) == 1 and "training goes on" in told[0]
    (tmp_path / "copies").unlink()
    assert uploads.finish(20)
    assert copies.whole() == [name_of(2)] and len(told) == 2 and "again" in told[1]


def test_a_store_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("no folder")
    with pytest.raises(ConfigError, match=r"train\.checkpoint_store=.*copies cannot be written"):
        restore(_config(tmp_path), print)


@pytest.mark.parametrize(("store", "said"), [("runs", "lie in one another"), ("runs/run", "lie in one another")])
def test_a_store_in_the_runs_own_folder_is_refused(tmp_path: Path, store: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        restore(_config(tmp_path, str(tmp_path / store)), print)


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.checkpoint_store=ftp://host/x is no place"):
        _config(tmp_path, "ftp://host/x")


def test_without_a_store_nothing_happens(tmp_path: Path) -> None:
    cfg = overlay(_config(tmp_path), {"train": {"checkpoint_store": ""}}, source="test")
    uploads = Uploads(cfg, print)
    uploads.offer(_checkpoint(tmp_path, 1))
    assert uploads.finish(0)
    restore(cfg, print)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_keys_of_an_address_are_never_written(tmp_path: Path) -> None:
    cfg = _config(tmp_path, "s3://key:word@bucket/copies?region=us-east-1")
    assert "word" not in str(cfg.model_dump(mode="json")) and "word" not in repr(cfg)
    copies = open_copies(cfg)
    assert copies is not None and (copies.root, copies.address) == ("bucket/copies/run", "s3://bucket/copies")
