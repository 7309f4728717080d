"""What the driver hands out leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ito_ray.data.tokens import tokenize, train_wordpiece
from ito_ray.runtime.launch import TokenizerFiles


def test_a_tokenizer_that_was_handed_out_is_the_same_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train_wordpiece(["a red heart", "a blue star"], 60, 8)
    made.save_pretrained(tmp_path / "tokenizer")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    files = TokenizerFiles.read(tmp_path / "tokenizer")
    loaded = files.load()
    assert list(scratch.iterdir()) == []
    texts = ["a red star", "blue"]
    assert tokenize(loaded, texts, 8).ids.tolist() == tokenize(made, texts, 8).ids.tolist()
    assert files.load() is loaded, "once a process"
