"""The benchmark compares like with like: same embeddings in all programs and kinds of work, ratios repeat by repeat."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import inference, variants
from benchmarks.inference import PROGRAMS, Programs, Seconds, build, check_embeddings, summary, table, time_programs
from tests.benchmarks.test_step_cost import TINY


@pytest.mark.slow
def test_all_programs_encode_the_same_and_hold_as_many_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(variants.BACKBONES, "tiny", TINY)
    monkeypatch.setattr(inference, "SETTLE", 0.0)
    programs = build("tiny", batch=3, threads=1, scratch=tmp_path)
    with torch.inference_mode():
        check_embeddings(programs)
        found = time_programs(programs, repeats=2)
    assert programs.parameters["torch"] == programs.parameters["open_clip"]
    assert {work: set(runs) for work, runs in found.items()} == {work: set(PROGRAMS) for work in programs.work}
    assert all(len(one.wall) == len(one.cpu) == 2 for runs in found.values() for one in runs.values())


def _constant(value: float) -> inference.Run:
    return lambda: np.full((2, 4), value, np.float32)


def test_different_embeddings_are_refused() -> None:
    runs = {name: _constant(0.5) for name in PROGRAMS}
    check_embeddings(Programs({"image": runs}, {}))
    with pytest.raises(RuntimeError, match=r"image: ONNX folder, onnxruntime is off OpenCLIP's embeddings by 0\.1"):
        check_embeddings(Programs({"image": {**runs, "onnx": _constant(0.6), "onnx_int8": _constant(0.55)}}, {}))


def test_ratios_add_both_towers_of_one_repeat() -> None:
    base = Seconds(wall=(2.0, 4.0, 2.0), cpu=(4.0, 4.0, 4.0))
    text = Seconds(wall=(2.0, 2.0, 2.0), cpu=(1.0, 1.0, 1.0))
    slow = dataclasses.replace(base, wall=(4.0, 10.0, 6.0))
    works = {
        "image": {"open_clip": base, "torch": base, "onnx": slow, "onnx_int8": base},
        "text": {"open_clip": text, "torch": text, "onnx": text, "onnx_int8": base},
    }
    found = {**works, "images as used": works["image"], "texts as used": works["text"]}
    fields = summary(found, {"open_clip": 100, "torch": 100})
    assert fields["parameter_ratio"] == fields["torch_latency_ratio"] == 1.0
    assert fields["onnx_latency_ratio"] == 2.0  # of 6/4, 12/6 and 8/4
    assert fields["onnx_latency_spread"] == [1.5, 2.0]
    assert fields["onnx_image_latency_ratio"] == 2.5
    assert fields["onnx_cpu_latency_ratio"] == fields["onnx_text_latency_ratio"] == 1.0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table("title", found, fields))
    shown = console.export_text()
    assert "2000.0 ms" in shown and "6000.0 ms  2.50 (2.00–3.00)" in shown and "2.000, CPU time 1.000" in shown
