"""What a person is told when training is given up: the first cause, and never Ray's hints around it."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, cast

import pytest
import ray.train
from ray.exceptions import RayTaskError, UserCodeException

from ito_ray.config.schema import Config
from ito_ray.data.plan import Piece
from ito_ray.errors import DataError
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.stream import EntryError, EntryReader
from ito_ray.runtime.trainer import _root

STORE = "s3://key:word@bucket"  # pragma: allowlist secret
HINT = "To see why, look at the log of Ray Data, or set something to True."


class _Plan:
    def entry(self, number: int) -> tuple[Piece, ...]:
        return tuple(Piece(f"{STORE}/{number}-{part}.tar", part, 2) for part in (0, 1))


class _Reader(EntryReader):
    error: Exception = TypeError("argument 'input': no text")

    def make(self, entry: int) -> Any:
        raise self.error


def _reader() -> EntryReader:
    return _Reader(cast(Any, _Plan()), Config(), cast(TokenizerFiles, None), cast(Any, None), {})


def _failed(number: int) -> EntryError:
    with pytest.raises(EntryError) as caught:
        _reader()({"id": _Number(number)})
    return caught.value


class _Number:
    def __init__(self, number: int) -> None:
        self.number = number

    def tolist(self) -> list[int]:
        return [self.number]


SAID = "TypeError: argument 'input': no text, in entry 7: s3://bucket/7-0.tar, s3://bucket/7-1.tar"


def test_a_data_task_names_its_entry_and_shards() -> None:
    assert str(_failed(7)) == SAID


def test_what_a_user_can_mend_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Reader, "error", DataError("No tokenizer."))
    with pytest.raises(DataError, match="No tokenizer"):
        _reader()({"id": _Number(7)})


def _in_task(error: Exception) -> RayTaskError:
    """As it comes from a remote task: pickled, so that its causes are only in the traceback's text."""
    text = "".join(traceback.format_exception(error))
    return RayTaskError("MapBatches()", text + HINT, pickle.loads(pickle.dumps(error)), pid=1, ip="127.0.0.1")


def _of_ray_data(error: Exception) -> RayTaskError:
    try:
        raise UserCodeException(HINT) from error
    except UserCodeException as wrapped:
        return _in_task(wrapped)


def test_the_first_cause_comes_through_all_that_ray_puts_around_it() -> None:
    failure = ray.train.WorkerGroupError(f"rank 0 failed\n{HINT}", {0: _of_ray_data(_failed(7))})
    assert _root(failure) == SAID
    assert _root(ray.train.ControllerError(_of_ray_data(_failed(7)))) == SAID
    assert _root(ray.train.WorkerGroupError(HINT, {3: _in_task(_failed(7))})) == SAID


def test_other_failures_keep_type_and_message() -> None:
    read_only = OSError(30, "Read-only file system")
    assert _root(read_only) == "[Errno 30] Read-only file system"
    assert _root(ray.train.WorkerGroupError(HINT, {0: read_only})) == "OSError: [Errno 30] Read-only file system"
    assert _root(ray.train.WorkerGroupError(HINT, {0: _of_ray_data(read_only)})) == (
        "OSError: [Errno 30] Read-only file system"
    )
    assert _root(ValueError("")) == "ValueError"
