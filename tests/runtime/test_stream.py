"""The stream on a real Ray: every sample once a pass, same seed same stream, bad ones counted, too many refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray

from benchmarks.faults import problems_of_samples
from ito_ray.config.schema import Config
from ito_ray.data import quarantine
from ito_ray.data.position import Position, members
from ito_ray.data.tokens import train_wordpiece
from ito_ray.runtime import trainer
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.preflight import TrainingData, plan_data
from ito_ray.runtime.stream import EntryReader, entries_needed, next_entries, open_stream
from ito_ray.runtime.trainer import start_monitor
from ito_ray.training.state import read_state
from tests.data.makers import write_tar
from tests.runtime.recorded import recording
from tests.runtime.shards import caption, sample, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def _tokenizer(folder: Path) -> TokenizerFiles:
    train_wordpiece((caption(number) for number in range(96)), 80, 12).save_pretrained(folder)
    return TokenizerFiles.read(folder)


def _reader(cfg: Config, data: TrainingData, tmp: Path, taken: dict[int, frozenset[int]] | None = None) -> EntryReader:
    monitor = start_monitor(cfg, data.plan, None)
    return EntryReader(data.plan, cfg, _tokenizer(tmp / "tokenizer"), monitor, taken or {})


def _read(reader: EntryReader, position: Position, entries: int) -> list[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    stream = open_stream(reader, next_entries(position, entries))
    return [dict(batch) for batch in cast(Any, stream).iter_batches(batch_size=None, batch_format="numpy")]


def test_a_pass_has_every_sample_once_and_the_next_is_another_order(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    data = plan_data(cfg)
    blocks = _read(_reader(cfg, data, tmp_path), Position(), 2 * data.plan.entries_per_pass)
    ids = [tuple(row) for block in blocks for row in block["ids"][:, 0].tolist()]
    assert len(ids) == 2 * 96
    assert set(Counter(ids[:96]).values()) == {1}, "captions are unique, so their ids tell the samples apart"
    assert sorted(ids[:96]) == sorted(ids[96:])
    assert ids[:96] != ids[96:]
    uids = [uid for block in blocks for uid in block["uid"].tolist()]
    assert len(set(uids)) == len(uids)
    assert blocks[0]["views"].dtype == np.uint8


def test_same_seed_same_stream_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    data = plan_data(cfg)
    entries = data.plan.entries_per_pass
    first, second = (_read(_reader(cfg, data, tmp_path), Position(), entries) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])

    position = Position()
    for block in first[:2]:
        position.take(block["uid"], block["entry_rows"], block["source"])
    position.take(first[2]["uid"][::2], first[2]["entry_rows"][::2], first[2]["source"][::2])
    position.merge([position.local])
    taken = {entry: frozenset(rows) for entry, (_, rows) in position.open.items()}
    rest = _read(_reader(cfg, data, tmp_path, taken), position, entries - len(list(members(position.complete))))
    left = {uid: view for block in rest for uid, view in zip(block["uid"].tolist(), block["views"], strict=True)}
    expected = {uid: view for block in first for uid, view in zip(block["uid"].tolist(), block["views"], strict=True)}
    gone = {uid for block in first[:2] for uid in block["uid"].tolist()} | set(first[2]["uid"][::2].tolist())
    assert set(left) == set(expected) - gone
    for uid, view in left.items():
        np.testing.assert_array_equal(view, expected[uid])
    assert {int(rows) for rows in rest[0]["entry_rows"]} == {int(first[2]["entry_rows"][0])}


def _with_bad_rows(folder: Path, good: int, bad: int) -> Path:
    folder.mkdir()
    broken = [(f"bad{number}", {"png": b"not a picture", "txt": b"a caption"}) for number in range(bad)]
    write_tar(folder / "mixed.tar", [*(sample(number) for number in range(good)), *broken])
    return folder


def test_bad_samples_are_counted_by_reason(tmp_path: Path) -> None:
    folder = _with_bad_rows(tmp_path / "mixed", good=45, bad=3)
    cfg = small_config(tmp_path, data={"train": [str(folder)], "max_bad_fraction": 0.1})
    data = plan_data(cfg)
    reader = _reader(cfg, data, tmp_path)
    blocks = _read(reader, Position(), data.plan.entries_per_pass)
    tally = ray.get(reader.monitor.drain.remote(0)).tallies[0]
    assert (tally.read, tally.delivered, tally.dropped) == (48, 45, {"image_unreadable": 3})
    assert sum(len(block["uid"]) for block in blocks) == 45
    assert len(tally.examples["image_unreadable"]) == 2


def test_too_many_bad_samples_stop_the_stream_with_a_sentence(tmp_path: Path) -> None:
    folder = _with_bad_rows(tmp_path / "mixed", good=40, bad=10)
    cfg = small_config(tmp_path, data={"train": [str(folder)], "max_bad_fraction": 0.1})
    data = plan_data(cfg)
    reader = _reader(cfg, data, tmp_path)
    with pytest.raises(Exception, match=r"1\d of \d\d samples are bad"):
        _read(reader, Position(), 4 * data.plan.entries_per_pass)
    reason = ray.get(reader.monitor.fatal.remote())
    for part in ("data.max_bad_fraction=0.1", "image_unreadable 1", "mixed.tar#bad"):
        assert part in reason


def test_a_retried_task_does_not_count_twice(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    reader = _reader(cfg, plan_data(cfg), tmp_path)
    for _ in range(2):
        reader({"id": np.array([1])})
    tally = ray.get(reader.monitor.drain.remote(0)).tallies[0]
    assert tally.read == tally.delivered > 0
    assert tally.read < 96


def test_a_shard_that_vanishes_is_dropped_as_such_and_the_rest_goes_on(tmp_path: Path) -> None:
    cfg = small_config(tmp_path, data={"max_bad_fraction": 0.5})
    data = plan_data(cfg)
    gone = tmp_path / "train" / "part-002.tar"
    gone.unlink()
    reader = _reader(cfg, data, tmp_path)
    blocks = _read(reader, Position(), data.plan.entries_per_pass)
    tally = ray.get(reader.monitor.drain.remote(0)).tallies[0]
    assert sum(len(block["uid"]) for block in blocks) == tally.delivered == 72
    assert tally.dropped == {"shard_unreadable": 24}
    ray.get(reader.monitor.flush.remote())
    rows = quarantine.read(tmp_path / "runs" / cfg.name / "quarantine").to_pylist()
    assert {(row["source"], row["shard"], row["reason"]) for row in rows} == {("train", str(gone), "shard_unreadable")}
    assert len(rows) == 24 and "part-002.tar" in rows[0]["detail"]


@pytest.mark.cluster
def test_a_run_of_more_entries_than_one_stream_holds_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a failure, every sample of the passes once; the streams end at a step that all ranks share."""
    monkeypatch.setattr(trainer, "ENTRIES_AT_ONCE", 24)
    steps, passes = 24, 2  # of the four that are in the steps: some of the last samples are still held back
    cfg = small_config(tmp_path, train={"steps": steps, "max_failures": 0, "checkpoint_every": 100})
    data = plan_data(cfg)
    assert data.plan.entries_per_pass == 6 and entries_needed(cfg, data.rows_per_entry) > 24
    said: list[str] = []
    logged: list[int] = []
    record = tmp_path / "record"
    record.mkdir()
    with recording(record, pace=0.6):  # the driver looks twice a second whether the stream ends soon
        listener = trainer.Listener(lambda step, _: logged.append(step), tell=said.append)
        trained = trainer.fit(cfg, data, _tokenizer(tmp_path / "tokenizer"), listener)
    assert len(said) >= 1 and all("a stream of 24 blocks is read at step" in one for one in said), said
    assert read_state(trained.checkpoint).step == steps
    assert set(logged) >= set(range(1, steps + 1)), "those of the last checkpoint may come twice"
    assert problems_of_samples(cfg, record, data.plan, trained.checkpoint, passes) == []
