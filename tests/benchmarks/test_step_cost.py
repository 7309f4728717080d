"""The benchmark compares like with like: same losses on both sides, captions of the stated length, paired ratios."""

from __future__ import annotations

import io
import statistics

import pytest
import torch
from rich.console import Console

from benchmarks import variants
from benchmarks.captions import captions, padded_ids
from benchmarks.peak import measure_in_fresh_process
from benchmarks.step_cost import check_losses, count_flops, table, time_steps
from benchmarks.summary import Measured, ratios, summary
from benchmarks.variants import BACKBONES, TITLES, Setting, build
from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.models.dual_encoder import DualEncoder

TINY = ModelConfig(
    image=ImageTowerConfig(
        name="vit_base_patch16_clip_224", size=32, kwargs={"embed_dim": 32, "depth": 2, "num_heads": 2}
    ),
    text=TextTowerConfig(kind="clip", width=32, layers=2, heads=2),
    embed_dim=64,
)
SETTING = Setting("tiny", batch=5, bf16=False, device="cpu", threads=1)


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(variants.BACKBONES, "tiny", TINY)


def test_variants_that_must_agree_have_one_loss() -> None:
    steps = build(SETTING, TITLES)
    check_losses(steps, tolerance=1e-4)
    before = {name: float(step.forward().detach()) for name, step in steps.items()}
    for step in steps.values():
        step()
    assert {name: float(step.forward().detach()) for name, step in steps.items()} == before, "a step moved the weights"
    broken = {**steps, "clip": steps["align"]}
    with pytest.raises(RuntimeError, match="OpenCLIP: CLIP gives the loss"):
        check_losses(broken, tolerance=1e-4)


def test_flops_of_a_step_and_only_what_it_uses() -> None:
    steps = build(SETTING, TITLES)
    flops = {name: count_flops(step) for name, step in steps.items()}
    assert flops["clip"] < flops["open_clip"]  # captions are not padded to the context
    assert flops["clip"] < flops["align"] < flops["ito"] < flops["naive_ito"]
    seconds = time_steps({name: steps[name] for name in ("open_clip", "ito")}, repeats=2, device="cpu")
    assert {name: len(each) for name, each in seconds.items()} == {"open_clip": 2, "ito": 2}


@pytest.mark.slow
def test_peak_memory_is_gradients_and_activations() -> None:
    """At least every gradient, and the inputs of the image blocks of both views; weights and moments come on top."""
    peak = measure_in_fresh_process(Setting("vit_small", batch=4, bf16=False, device="cpu", threads=1), "align")
    encoder = DualEncoder(BACKBONES["vit_small"], clip_tokenizer(77))
    gradients = 4 * sum(parameter.numel() for parameter in encoder.parameters())
    inputs = 2 * 4 * 50 * 256 * 4 * 6  # views × pairs × tokens × width × float32 × blocks
    assert gradients + inputs < peak["step"] < 3 * gradients
    assert peak["whole"] > peak["step"] + 3 * gradients


def test_captions_are_as_long_as_cc3ms() -> None:
    lengths = [len(text.split()) for text in captions(4000, seed=0)]
    assert statistics.mean(lengths) == pytest.approx(10.4, abs=0.3)
    assert statistics.stdev(lengths) == pytest.approx(4.3, abs=0.3)
    assert min(lengths) == 3
    assert captions(5, seed=1) == captions(5, seed=1) != captions(5, seed=2)


def test_ids_end_with_the_end_token_at_their_length() -> None:
    ids_BT, length_B = padded_ids(captions(20, seed=0), context=77)
    assert ids_BT.shape == (20, 77)
    assert (ids_BT[torch.arange(20), length_B - 1] == 49_407).all()
    assert all(int(row[length:].abs().sum()) == 0 for row, length in zip(ids_BT, length_B.tolist(), strict=True))


def test_ratios_are_taken_repeat_by_repeat() -> None:
    assert ratios([2.0, 30.0, 5.0], [1.0, 10.0, 2.0]) == (2.5, 2.0, 3.0)


def test_summary_has_the_headline_clock() -> None:
    base = Measured((1.0, 1.0), (2.0, 2.0), flops=10, step_bytes=100, whole_bytes=300)
    own = Measured((1.5, 1.7), (5.0, 7.0), flops=18, step_bytes=150, whole_bytes=330)
    fields = summary({"open_clip": base, "ito": own}, headline="cpu")
    assert fields["ito_time_ratio"] == fields["ito_cpu_time_ratio"] == pytest.approx(1.6)
    assert fields["ito_wall_time_ratio"] == 3.0
    assert fields["ito_time_spread"] == [1.5, 1.7]
    assert (fields["ito_flop_ratio"], fields["ito_memory_ratio"]) == (1.8, 1.5)


def test_table_shows_the_reference_in_units_and_the_rest_as_multiples() -> None:
    base = Measured((1.0, 1.0), (2.0, 2.0), flops=10**12, step_bytes=2**30, whole_bytes=2**31)
    own = Measured((1.5, 1.7), (5.0, 7.0), flops=18 * 10**11, step_bytes=2**30, whole_bytes=2**31)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(SETTING, {"open_clip": base, "ito": own}))
    shown = console.export_text()
    assert "1.00 s" in shown and "1.00 TFLOP" in shown and "2.00 GiB" in shown
    assert "1.60 (1.50–1.70)" in shown and "3.00 (2.50–3.50)" in shown and "1.80" in shown
