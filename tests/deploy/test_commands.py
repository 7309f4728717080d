"""Every command in README, docs, manifests and docstrings is one that this project understands."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import tyro
import yaml

REPOSITORY = Path(__file__).parents[2]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "cluster.yaml",
        "docs/*.md",
        "deploy/**/*",
        "pipelines/*.py",
        "benchmarks/*.py",
        "tune/*.py",
        "ito_ray/config/*.py",
    )
    for path in REPOSITORY.glob(pattern)
    if path.is_file()
)


class _Parsed(BaseException):
    """The command line was understood; nothing else shall be done."""


def commands(text: str) -> Iterator[list[str]]:
    """Words of every `python -m pipelines.…`, `… benchmarks.…`, `… tune.…` and `make submit ARGS=…` in a text."""
    text = re.sub(r"^[ \t]*#[ \t]?", "", text, flags=re.MULTILINE)  # commands in comments
    text = re.sub(r"\\\n[ \t]*", " ", text)
    for found in re.finditer(r"python -m ((?:pipelines|benchmarks|tune)\.[a-z_]+)([^\n`]*)", text):
        yield [found[1], *_words(found[2])]
    for found in re.finditer(r"make submit ARGS='([^']*)'", text):
        module, *words = _words(found[1])
        yield [f"pipelines.{module}", *words]


def _words(line: str) -> list[str]:
    """As a shell splits them; brackets around what may be left out, and ellipses, are the author's."""
    line = re.split(r"\s#|[;)]", line)[0]
    words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    return [word for word in words if word != "…"]


def check(words: list[str]) -> None:
    """Have its module read a command, and do no more.

    Raises:
        SystemExit: it does not understand it.
    """

    def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*given: Any, **named: Any) -> None:
            parse(*given, **named)
            raise _Parsed

        return stop

    module = importlib.import_module(words[0])
    parsers: list[tuple[Any, str]] = [(tyro, "cli"), (tyro.extras, "subcommand_cli_from_dict")]
    if "argparse" in vars(module):  # it hands the rest on to CLIP_benchmark's own command line
        parsers = [(argparse.ArgumentParser, "parse_known_args")]
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in parsers:
            patched.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            code = module.main(words[1:])
        except _Parsed:
            return
    raise SystemExit(code)


def _read(path: Path) -> str:
    """A file; of Python its longer texts, of the job's manifest the entrypoint, which is folded over lines."""
    text = path.read_text("utf-8")
    if path.name == "rayjob.yaml":
        return str(yaml.safe_load(text)["spec"]["entrypoint"])
    if path.suffix == ".py":
        strings = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        return "\n".join(string for string in strings if isinstance(string, str) and "\n" in string)
    return text


def _collected() -> list[Any]:
    found = []
    for path in TEXTS:
        text = _read(path)
        for number, words in enumerate(commands(text)):
            where = f"{path.relative_to(REPOSITORY)}-{number}"
            if not any("…" in word for word in words):  # what a process of ours is told, shortened
                found.append(pytest.param(words, id=where))
    return found


COLLECTED = _collected()


@pytest.mark.parametrize("words", COLLECTED)
def test_commands_in_texts_are_understood(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "--config" in words:  # the reader's own file
        mine = tmp_path / "mine.yaml"
        mine.write_text("train: {log_every: 10}\n")
        words[words.index("--config") + 1] = str(mine)
    if len(words) == 1:
        importlib.import_module(words[0])  # named in a sentence
        return
    try:
        check(words)
    except SystemExit as refused:
        pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err or refused}")


def test_enough_was_found_and_a_wrong_one_is_noticed() -> None:
    places = {str(parameter.id).rsplit("-", 1)[0] for parameter in COLLECTED}
    assert {"README.md", "docs/data.md", "docs/operations.md", "deploy/kuberay/rayjob.yaml"} <= places
    (words,) = commands("see `python -m pipelines.train --train.worker 4` or\n")
    assert words == ["pipelines.train", "--train.worker", "4"]
    with pytest.raises(SystemExit):
        check(words)
    (words,) = commands("    # python -m benchmarks.ingest --quick \\\n    #     --minutes 3   # some comment\n")
    assert words == ["benchmarks.ingest", "--quick", "--minutes", "3"]
    (words,) = commands("make submit ARGS='doctor --limit 3' JOB=--no-wait")
    assert words == ["pipelines.doctor", "--limit", "3"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_rays_own_commands_are_understood(path: Path) -> None:
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import start, up

    text = re.sub(r"\\\n[ \t#]*", " ", path.read_text("utf-8"))
    known: dict[str, click.Command] = {"up": up, "start": start, "job submit": submit}
    for found in re.finditer(r"\bray (up|start|job submit) ([^\n`;]*)", text):
        words = [word for word in shlex.split(found[2].split("  ")[0], comments=True) if word not in ("…", "$(JOB)")]
        if "--labels" in words and words[-1] == "--labels":
            continue  # an f-string's
        parsed = known[found[1]].make_context(found[1], words, resilient_parsing=True)
        assert "--" not in words or parsed.params["entrypoint"], f"nothing to run: {found[0]}"
        if found[1] == "up":
            assert (REPOSITORY / str(parsed.params["cluster_config_file"])).is_file(), found[0]


def test_make_targets_that_texts_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join(path.read_text("utf-8") for path in TEXTS if path.suffix == ".md")
    named = set(re.findall(r"(?:^|`|\n)make ([a-z-]+)", text))
    assert {"demo", "test", "submit"} <= named <= targets
