"""Tables of separated fields (CSV, TSV, …): which dialect it is, and its rows, every line of the file accounted for.

A dialect is judged by what it explains: the lines of the file that belong to rows with as many fields as the header.
A quote that is opened and never closed costs its own line, not those up to the next quote.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from ito_ray.data.prepare.table_text import TableText
from ito_ray.errors import ConfigError, DataError

Quoting = Literal["auto", "double", "backslash", "none"]
SEPARATORS = (",", "\t", ";", "|")
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic)(#\d+)?(\?.*)?$", re.IGNORECASE)
_FLICKR = re.compile(r"\.(jpe?g|png)#\d+$", re.IGNORECASE)
_DIRECTIVE = re.compile(r'"?sep=([^"\w])"?\1*\s*$', re.IGNORECASE)
"""Excel's own first line; where Excel has saved the file again, it has as many separators as the others."""
_SAMPLE = 1000
"""Lines by which the separator is chosen; quoting is judged by all lines, since one odd caption decides it."""
_MOST_LINES = 1000
"""Longest text of one field."""


@dataclass(frozen=True)
class Dialect:
    """How a table's text is written; what is empty or `auto` is found out from the text."""

    separator: str = ""
    quoting: Quoting = "auto"
    """double: fields in quotes, those inside doubled; backslash: inside after a backslash; none: quotes are text."""
    encoding: str = ""
    names: tuple[str, ...] = ()
    """Names of the columns of a table without a header."""

    @property
    def character(self) -> str:
        """The separator itself; raises ConfigError when it is not one character."""
        found = _NAMED.get(self.separator.lower(), self.separator)
        if len(found) > 1 or found in ('"', "\n", "\r"):
            raise ConfigError(f"--separator={self.separator!r}: give one character, or {', '.join(_NAMED)}.")
        return found


@dataclass(frozen=True, slots=True)
class Fields:
    """One row as it stands: the line it begins in, how many it has, and its fields or why there are none."""

    line: int
    lines: int
    values: tuple[str, ...] = ()
    bad: str = ""


@dataclass(frozen=True)
class Delimited:
    """A table of separated fields whose dialect is known."""

    text: TableText
    separator: str
    quoting: Quoting
    names: tuple[str, ...]
    header: bool
    """Whether the first row is one of names."""
    spaced: bool = False
    """A space after each separator is no part of the field."""

    def rows(self) -> Iterator[Fields]:
        """Rows with as many fields as there are names, and those that have not, with the reason."""
        found = _fields(_body(self.text.lines()), self, len(self.names))
        return islice(found, 1 if self.header else 0, None)

    @property
    def form(self) -> str:
        """The dialect in words."""
        separator = next((name for name, sign in _NAMED.items() if sign == self.separator), self.separator)
        quoting = {"none": "quotes are text", "backslash": "backslash before quotes"}.get(self.quoting, "quoted fields")
        return f"{self.text.encoding}, separator {separator}, {quoting}"


def open_delimited(text: TableText, usual: str, dialect: Dialect, known: Collection[str]) -> Delimited:
    """Find the dialect.

    Args:
        usual: separator of files of this kind, which wins where others explain the file no better.
        known: column names in lower case by which a header is told from a row.

    Raises:
        ConfigError: an option of `dialect` cannot be.
        DataError: no header, or one that names a column twice.
    """
    csv.field_size_limit(sys.maxsize)
    separator = dialect.character or _separator(text, usual, dialect, known)
    quoting = _quoting(text, separator, dialect) if dialect.quoting == "auto" else dialect.quoting
    plain = Delimited(text, separator, quoting, dialect.names, header=not dialect.names)
    first = next(_fields(_body(text.lines()), plain, 0), None)
    if dialect.names or first is None:
        return plain
    if first.bad:
        raise DataError(f"{text.path}: line {first.line}, where the names of the columns belong: {first.bad}.")
    if not {value.strip(' "').lower() for value in first.values} & set(known) and any(map(_names_a_file, first.values)):
        return _without_header(plain, first)
    names = tuple(value.strip(' "') or f"column {number}" for number, value in enumerate(first.values, 1))
    if len(set(names)) < len(names):
        raise DataError(f"{text.path} names a column twice: {', '.join(names)}.")
    spaced = len(names) > 1 and all(value.startswith(" ") for value in first.values[1:])
    if spaced and dialect.quoting == "auto":
        quoting = _quoting(text, separator, dialect, spaced=True)  # a quote after the space may open a field now
    return Delimited(text, separator, quoting, names, header=True, spaced=spaced)


def _without_header(table: Delimited, first: Fields) -> Delimited:
    """Flickr8k and Flickr30k have `name.jpg#0<TAB>caption`; else somebody must say what the columns are."""
    if len(first.values) == 2 and _FLICKR.search(first.values[0]):
        return Delimited(table.text, table.separator, table.quoting, ("image", "caption"), header=False)
    shown = ", ".join(value[:40] for value in first.values[:6])
    raise DataError(
        f"{table.text.path} has no header, its first line is a row ({shown}): name its {len(first.values)} columns in "
        "order, e.g. --names image caption, or write a first line with names."
    )


def _separator(text: TableText, usual: str, dialect: Dialect, known: Collection[str]) -> str:
    lines = text.lines()
    directive = _DIRECTIVE.match(next(lines, ""))
    if directive:
        return directive[1]
    sample = list(islice(_body(text.lines()), _SAMPLE))
    scores = {}
    for sign in dict.fromkeys((usual, *SEPARATORS)):
        readings: tuple[Quoting, ...] = ("double", "backslash", "none")
        found = [
            list(_fields(iter(sample), Delimited(text, sign, reading, (), header=True), 0)) for reading in readings
        ]
        first = found[0][0].values if found[0] and not found[0][0].bad else ()
        if len(first) < 2 and sign != usual:
            continue
        names = {value.strip(' "').lower() for value in first} & set(known)
        explained = max(sum(row.lines for row in rows if not row.bad) for rows in found)
        scores[sign] = (len(first) > 1, len(names), explained, sign == usual)
    return max(scores, key=scores.__getitem__)


def _quoting(text: TableText, separator: str, dialect: Dialect, *, spaced: bool = False) -> Quoting:
    quotes = escapes = escaped_quotes = False
    for line in text.lines():
        quotes = quotes or '"' in line
        escaped_quotes = escaped_quotes or '\\"' in line
        escapes = escapes or escaped_quotes or f"\\{separator}" in line
    readings: list[Quoting] = ["double"]
    if escapes:
        readings.append("backslash")
    if quotes:
        readings.append("none")
    if len(readings) == 1:
        return readings[0]
    found = {}
    for reading in readings:
        table = Delimited(text, separator, reading, dialect.names, header=not dialect.names, spaced=spaced)
        rows = [row.lines for row in _fields(_body(text.lines()), table, len(dialect.names)) if not row.bad]
        found[reading] = (sum(rows), len(rows))
    most = max(explained for explained, _ in found.values())
    equal = {reading: rows for reading, (explained, rows) in found.items() if explained == most}
    # Two readings of the same lines: programs that write tabs or bars seldom quote, those that write commas do.
    if "none" in equal and separator in "\t|" and len(set(equal.values())) > 1:
        return "none"
    # Who doubles quotes would have put a field with one into quotes, where the backslash explains fewer lines.
    if "backslash" in equal and escaped_quotes and separator not in "\t|" and len(set(equal.values())) == 1:
        return "backslash"
    return next(reading for reading in readings if reading in equal)


def _body(lines: Iterator[str]) -> Iterator[str]:
    """The lines, Excel's own first one emptied, so that the others keep their numbers."""
    for number, line in enumerate(lines):
        yield "\n" if number == 0 and _DIRECTIVE.match(line) else line


class _NotClosed(csv.Error):
    """A quote that is open where a field cannot go on."""


class _Lines(Iterator[str]):
    """Lines for the csv module, which can be given back when they turn out to belong to no field."""

    def __init__(self, lines: Iterator[str], separator: str) -> None:
        self._lines = enumerate(lines, 1)
        self._separator = separator
        self._ahead: deque[tuple[int, str]] = deque()
        self.group: list[tuple[int, str]] = []
        """Those of the row that is being read."""

    def __next__(self) -> str:
        numbered = self._ahead.popleft() if self._ahead else next(self._lines)
        if self.group and (len(self.group) >= _MOST_LINES or self._is_row(numbered[1])):
            self._ahead.appendleft(numbered)
            raise _NotClosed
        self.group.append(numbered)
        return numbered[1]

    def begin(self) -> bool:
        """Go to the next line that is not blank; False at the end."""
        self.group = []
        while numbered := self._ahead.popleft() if self._ahead else next(self._lines, None):
            if numbered[1].strip(" \n"):
                self._ahead.appendleft(numbered)
                return True
        return False

    def give_back(self) -> None:
        """All lines of the row but its first."""
        self._ahead.extendleft(reversed(self.group[1:]))
        del self.group[1:]

    def _is_row(self, line: str) -> bool:
        """Whether the line, where a field goes on, has the look of the row's first one: a picture in the same place."""
        first, here = (one.split(self._separator) for one in (self.group[0][1], line))
        return any(_names_a_picture(a) and _names_a_picture(b) for a, b in zip(first, here, strict=False))


def _fields(lines: Iterator[str], table: Delimited, width: int) -> Iterator[Fields]:
    """Rows of `width` fields; 0 = as many as the first one has."""
    source = _Lines(lines, table.separator)
    reader = _reader(source, table)
    while source.begin():
        try:
            values = next(reader)
        except _NotClosed:
            bad = "a quote is opened here and not closed: what follows are other rows"
        except csv.Error as error:
            bad = f"a quote is opened here and not closed as it should be ({error})"
        else:
            while len(values) > width > 0 and not values[-1].strip():
                values.pop()
            width = width or len(values)
            bad = "" if len(values) == width else f"{len(values)} fields, the header has {width}"
        if bad:
            source.give_back()
            yield Fields(source.group[0][0], 1, bad=bad)
        else:
            yield Fields(source.group[0][0], len(source.group), tuple(values))


def _reader(source: _Lines, table: Delimited) -> Iterator[list[str]]:
    options: dict[str, Any] = {"delimiter": table.separator, "skipinitialspace": table.spaced, "strict": True}
    match table.quoting:
        case "none":
            options |= {"quoting": csv.QUOTE_NONE, "quotechar": None}
        case "backslash":
            options |= {"escapechar": "\\", "doublequote": False}
    return csv.reader(source, **options)


def _names_a_file(value: str) -> bool:
    return "://" in value or _names_a_picture(value)


def _names_a_picture(value: str) -> bool:
    return _PICTURE.search(value.strip(' "\n')) is not None
