"""The command line: what it prints without starting anything, and what it refuses."""

from __future__ import annotations

import pytest

from ito_ray.config.recipes import icons_cpu
from tune.search import main

FRONT = ("--against", "step_seconds", "--scheduler", "none", "--searcher", "nsga2")
PBT = ("--scheduler", "pbt", "--searcher", "random")


def test_the_space_is_printed_as_the_command_line_changes_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--space", "ito_weights", "--print-space", "--fix", "method.fusion.readout=mean"]
    assert main([*words, "--axis", "optim.lr=1e-4..1e-2:log"]) == 0
    printed = capsys.readouterr().out
    assert "method.fusion_weight" in printed and "0..8" in printed
    assert "0.0001..0.01:log" in printed
    assert [line.split() for line in printed.splitlines() if "readout" in line] == [
        ["method.fusion.readout", "mean", "fixed"]
    ]


def test_the_recipe_is_printed_with_its_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-config", "--train.steps", "200"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 200" in printed and icons_cpu().model.image.name in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space", "ito_weigths"], "Did you mean ito_weights"),
        (["--axis", "optim.lrr=1..2", "--print-space"], "optim.lrr is not a field. Did you mean optim.lr?"),
        (["--points", "0"], "--points is 0"),
        (["--against", "step_seconds"], "--against needs --scheduler none"),
        (["--against", "step_seconds", "--scheduler", "none"], "take nsga2"),
        (["--searcher", "nsga2"], "give --against"),
        (["--searcher", "random", "--warm-start", "early"], "learns from no score"),
        ([*FRONT, "--test", "t.tar"], "--against gives a front and confirms none"),
        (["--register", "--confirm", "1"], "--register needs --confirm 2"),
        (["--data.heldout", "--eval.zero-shot"], "needs validation data"),
        (["--budget.money", "3"], "there are no prices"),
        (["--test", "t.tar", "--confirm", "0"], "--confirm 1 or more"),
        (["--scheduler", "pbt"], "give --searcher random, or grid"),
        ([*PBT, "--points", "1"], "needs --points 2 or more (now 1)"),
        ([*PBT, "--seeds", "2"], "needs --seeds 1 (now 2)"),
        ([*PBT, "--register"], "leave it out with --scheduler pbt"),
        ([*PBT, "--space", "ito_weights"], "cannot change method.fusion.readout in flight"),
        ([*PBT, "--space", "ito_lambda"], "keep both above 0, e.g. --axis method.fusion_weight=0.25..8:log"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told
