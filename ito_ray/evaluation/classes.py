"""Class names and prompts from text files."""

from __future__ import annotations

from collections import Counter

from ito_ray.data.shards import open_fs
from ito_ray.errors import ConfigError


def read_class_table(path: str, field: str = "eval.classes") -> dict[str, str]:
    """Class as the samples have it → class as the prompts say it, in the file's order; blank lines do not count.

    A line is a name, or what the samples say, a tab, and the name: `n01440764<TAB>tench`. Names may be equal.

    Raises:
        ConfigError: no such file, no name in it, or a class twice.
    """
    pairs = [[part.strip() for part in line.split("\t", 1)] for line in _lines(path, field)]
    twice = [name for name, count in Counter(pair[0] for pair in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"{field}={path} has {twice[0]!r} more than once: keep one line for each class.")
    return {pair[0]: pair[-1] for pair in pairs}


def read_numbered(path: str, field: str = "eval.classes") -> dict[str, str]:
    """Number of a class → its name: the line of that number, counted from 0, blank ones too; names may be equal.

    In a file of `what<TAB>name` the name is what follows the tab.

    Raises:
        ConfigError: no such file, or no name in it.
    """
    lines = _text(path, field).splitlines()
    if not any(line.strip() for line in lines):
        raise ConfigError(f"{field}={path} has no line: write one entry a line.")
    return {str(number): line.strip().rpartition("\t")[2].strip() for number, line in enumerate(lines)}


def read_classes(path: str) -> tuple[str, ...]:
    """Class names for the prompts, in order; see `read_class_table`.

    Raises:
        ConfigError: no file given, or see `read_class_table`.
    """
    if not path:
        raise ConfigError(
            "eval.classes is empty, but eval.zero_shot is given: name a text file with one class name a line."
        )
    return tuple(read_class_table(path).values())


def read_templates(path: str) -> tuple[str, ...]:
    """Prompts, one a line, each with {} for the class name; the bare name when no file is given.

    CLIP_benchmark's `{c}` is understood too.

    Raises:
        ConfigError: no such file, no prompt in it, or a prompt without {}.
    """
    if not path:
        return ("{}",)
    templates = tuple(line.replace("{c}", "{}") for line in _lines(path, "eval.templates"))
    for template in templates:
        if "{}" not in template:
            raise ConfigError(
                f"eval.templates={path} has the prompt {template!r} without {{}}: write {{}} where the class name goes."
            )
    return templates


def _lines(path: str, field: str) -> tuple[str, ...]:
    lines = tuple(line.strip() for line in _text(path, field).splitlines() if line.strip())
    if not lines:
        raise ConfigError(f"{field}={path} has no line: write one entry a line.")
    return lines


def _text(path: str, field: str) -> str:
    try:
        fs, inner = open_fs(path)
        with fs.open(inner, "rb") as file:
            text: str = file.read().decode("utf-8-sig")
            return text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field}={path} cannot be read as UTF-8 text ({error}): give a text file.") from error
