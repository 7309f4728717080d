"""Recipe, then YAML file, then command line: each laid over the one before, the whole validated once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from ito_ray.config.recipes import RECIPES, recipe
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Options:
    """What is said about a launch and is not part of the run's configuration."""

    recipe: str = "icons_cpu"
    """Where the configuration starts: a function of ito_ray/config/recipes.py."""
    config: Path | None = None
    """A YAML file laid over the recipe; any subset of the fields."""
    print_config: bool = False
    """Print the resolved configuration as YAML and stop."""
    verbose: bool = False
    """Let Ray's own log lines through."""


AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse(args: Sequence[str] | None, *, prog: str, description: str) -> tuple[Config, Options]:
    """`parse_with` for a command that has no options of its own."""
    return parse_with(Options, args, prog=prog, description=description)


def parse_with(
    kind: type[AnyOptions], args: Sequence[str] | None, *, prog: str, description: str
) -> tuple[Config, AnyOptions]:
    """Read the command line of a pipeline.

    Args:
        kind: the options beside the configuration's fields; a dataclass whose fields all have defaults.
        args: the words after the program's name; None takes sys.argv's.
        prog: shown in --help.
        description: what the pipeline does, with an example; shown in --help.

    Raises:
        ConfigError: unknown recipe, unreadable YAML, unknown key (the nearest is named), or values that do not fit.
        SystemExit: --help, or a word that is no option (code 2).
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=Options.recipe)
    first.add_argument("--config", type=Path, default=None)
    known, _ = first.parse_known_args(args)
    base = recipe(known.recipe)
    if known.config is not None:
        base = overlay(base, read_yaml(known.config), source=str(known.config))
    listed = f"{description}\n\nRecipes: {', '.join(RECIPES)}."
    flat = tyro.conf.arg(name="")
    command = make_dataclass("Command", [("options", Annotated[kind, flat]), ("settings", Annotated[Config, flat])])
    default = command(kind(recipe=known.recipe, config=known.config), base)
    try:
        parsed = cast(Any, tyro.cli(command, prog=prog, description=listed, args=args, default=default))
    except ValidationError as error:
        raise _explain(error, "command line") from error
    return parsed.settings, parsed.options


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: holds {type(content).__name__}, but must hold sections such as `train:`.")
    return content


def overlay(base: Config, changes: dict[str, Any], *, source: str) -> Config:
    """`base` with nested `changes` laid over it; `source` names their origin in errors.

    Raises:
        ConfigError: unknown keys (the nearest is named) or values that do not fit.
    """

    def merged(model: BaseModel, over: dict[str, Any]) -> dict[str, Any]:
        values = {name: getattr(model, name) for name in type(model).model_fields}
        for name, value in over.items():
            section = values.get(name)
            values[name] = (
                merged(section, value) if isinstance(section, BaseModel) and isinstance(value, dict) else value
            )
        return values

    try:
        return Config.model_validate(merged(base, changes))
    except ValidationError as error:
        raise _explain(error, source) from error


def to_yaml(cfg: Config) -> str:
    """The whole configuration; `--config` reads it back to the same."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, source: str) -> ConfigError:
    """One sentence a problem, with the path of the field and, for unknown keys, the nearest that exists."""
    sentences = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            sentences.append(str(cause))
        elif problem["type"] == "extra_forbidden":
            sentences.append(_not_a_field(path))
        else:
            sentences.append(f"{path}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}.")
    return ConfigError(f"{source}: " + " ".join(sentences))


def require_field(path: str, *, source: str) -> None:
    """Refuse a dotted path that names no field of the configuration.

    Raises:
        ConfigError: naming the nearest that exists.
    """
    if path not in _all_keys(Config):
        raise ConfigError(f"{source}: {_not_a_field(path)}")


def _not_a_field(path: str) -> str:
    return f"{path} is not a field.{did_you_mean(path, _all_keys(Config), cutoff=0.5)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys
