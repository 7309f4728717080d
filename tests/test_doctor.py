"""The doctor's command: tables, files beside them, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.doctor import main
from tests.data.makers import good_tar, picture, write_tar


def test_shards_are_described_and_pictured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good_tar(tmp_path / "a.tar", 40)
    out = tmp_path / "pictures"
    files = ["--json", str(tmp_path / "found.json"), "--pictures", str(out)]
    code = main(["--data", f"web={tmp_path}", "--global-batch", "16", "--workers", "2", *files])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert json.loads((tmp_path / "found.json").read_text())["steps_per_pass"] == 2
    assert {path.name for path in out.iterdir()} == {"contact.png", "contact.html"}
    for part in ("Steps in a pass", "2 of 16", "short side, px", "pipelines.train --recipe icons_cpu --data.train"):
        assert part in printed


def test_too_many_bad_samples_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "a.tar", [("a", {"png": picture(0), "txt": b"[red]x"}), ("b", {"png": b"x", "txt": b"y"})])
    assert main(["--data", str(tmp_path)]) == 1
    assert "image_unreadable" in capsys.readouterr().out


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--data", str(tmp_path / "none.tar")], ["--data", str(tmp_path), "--limit", "-1"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: --")
