"""What is printed is what was said: no part of a text is taken for markup or an emoji."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ito_ray.data.tally import Account
from ito_ray.runtime.console import Stages
from ito_ray.runtime.nodes import Finding

ODD = ("runs [v2]", "[/]", "[bold]x[/bold]", "a :cat: b", "[red", "\\[x]")


@pytest.mark.parametrize("markup", [True, False])
@pytest.mark.parametrize("text", ODD)
def test_names_are_printed_as_they_are(text: str, markup: bool) -> None:
    stream = io.StringIO()
    stages = Stages(Console(file=stream, width=200, markup=markup), 1)
    with stages.stage(text):
        stages.say(text)
        stages.findings([Finding("output", text, text)])
        stages.table({text: Account(3, 2, {text: 1}, 0, 1.0)})
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[:2] == [f"▸ 1/1 {text}", text]
    assert lines[3].split() == ["output", *text.split(), *text.split()]
    assert lines[5].startswith(text) and lines[5].endswith(f"1 {text}")
