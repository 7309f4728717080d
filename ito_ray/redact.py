"""Secrets out of texts. Whatever is printed, logged or stored passes here: errors, configurations, addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8
"""Shorter values are no secrets, and hiding them wherever they turn up would garble texts."""

# Passwords may hold / ? # and @ that nobody has encoded: with `user:` before it, all up to the last @ is taken.
# `host:8080/a@b` has a port, no password.
_PORT = r"\d{1,5}(?:[/?#&,;)\]}\s'\"]|$)"
_USER = re.compile(
    rf"(://)(?:(?!\[)[^\s/:?#@'\"]*:(?!{_PORT})(?:(?!://)[^\s'\"])*@|[^/\s?#'\"]*@)"
    r"|(%3A%2F%2F)[^\s'\"&]*?%40",
    re.IGNORECASE,
)
_CUT = re.compile(rf"(://)(?!\[)[^\s/:?#@'\"]*:(?!{_PORT})[^\s'\"@]+…?$")
"""An address whose end was cut off before its @."""
_BARE = re.compile(
    r"(?:(?<![^\s='\"(,])|(?<=[^:]//))(?!mailto:|e-?mail:|contact:|from:|to:|cc:)[\w.+%-]+:[^\s:@/'\"]+"
    r"@(?=[\w-]+(?:\.[\w-]+)+(?:[:/\s'\",]|$)|[\w.-]+:\d{2,5}(?!\w))",
    re.IGNORECASE,
)
"""user:password@host.domain or user:password@host:port, where the scheme was forgotten or taken off."""
_NAME = re.compile(
    r"(?:(?P<lead>[?&]|%3F|%26)|(?<![\w.-]))(?P<name>[\w.-]{2,64})(?P<sep>['\"]?\s{0,2}[=:]\s{0,2}|%3D)", re.IGNORECASE
)
_VALUE = re.compile(r"'[^']+'|\"[^\"]+\"|(?:(?:Bearer|Basic|Token|Digest)\s+)?[^\s&;'\"#]+")
_ENCODED_VALUE = re.compile(r"(?:(?!%26)[^\s&'\"])+", re.IGNORECASE)
_SECRET = re.compile(
    r"(?:secret|password|passwd|passphrase|(?<!^)(?<!^old)pwd|credentials?|signature|connectionstring|authorization"
    r"|(?:secret|access|account|shared|private|api|storage|subscription|master)key(?:id|secret)?"
    r"|(?:access|refresh|auth|id|session|security|bearer|sas|api|hf|github|personal)token)$"
)
"""Names of secrets, without separators and in small letters."""
_SECRET_IN_QUERY = re.compile(r"(?:key|token|sig|sas|auth|pass|pwd|jwt|accesskeyid|googleaccessid)$")
"""Names that are ordinary in a text, but not in the query of an address."""
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|sk-[A-Za-z0-9_-]{24,}|dapi[0-9a-f]{32}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
    r"|(?<=Bearer )(?=\S*\d)[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
"""Tokens that are known by how they look."""
_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|CONNECTION_STRING|SAS|(?:API|ACCESS|ACCOUNT|SECRET|PRIVATE|STORAGE)_KEY"
    r"|ACCESS_KEY_ID|PGPASSWORD)$"
)
"""Environment variables whose values are hidden wherever they turn up."""
MOST_REMEMBERED = 1000
"""The newest ones: a table may have a signed address in each of a million rows."""
_remembered: dict[str, None] = {}


def redact(text: str) -> str:
    """`text` without user and password of addresses, secrets in their queries, tokens, and values of secret variables.

    Ordinary text stays as it is, and what is redacted does not change when it is redacted again.
    """
    if not text:
        return text
    for value in [*_of_environment(), *_remembered]:
        if value in text:
            text = text.replace(value, HIDDEN)
    if "@" in text or "%40" in text:
        text = _BARE.sub(f"{HIDDEN}@", _USER.sub(_hide_user, text))
    if "://" in text:
        text = _CUT.sub(rf"\1{HIDDEN}", text)
    if "=" in text or ":" in text or "%3" in text:
        text = _hide_values(text)
    return _SHAPES.sub(HIDDEN, text)


def redact_all(value: Any) -> Any:
    """`redact` for every text in nested dictionaries, lists and tuples, keys included."""
    return _mapped(value, redact)


def without_secrets(value: Any) -> Any:
    """`redact_all` without a trace: equal for an address with some keys, with others and with none at all."""
    return _mapped(value, _without)


def remember(text: str) -> None:
    """Hide the secrets of the addresses in `text` wherever they turn up from now on, also outside an address.

    For whatever is given to a library: its errors may quote a path or a key alone.
    """
    for address in text.split("://")[1:]:
        user, at, rest = address.rpartition("@") if ":" in address.split("/")[0] else ("", "", address)
        if not at:
            user, at, rest = address.split("/")[0].rpartition("@")
        name, colon, password = user.partition(":")
        found = [user, password] if colon else [name]
        found += [rest[start:end] for start, end in _values(rest)]
        for secret in found:
            if len(secret) >= SHORTEST and HIDDEN not in secret:
                _remembered.update(dict.fromkeys((secret, unquote(secret))))
    while len(_remembered) > MOST_REMEMBERED:
        _remembered.pop(next(iter(_remembered)), None)


def _of_environment() -> list[str]:
    return [value for name, value in os.environ.items() if _is_variable(name) and len(value) >= SHORTEST]


@lru_cache(maxsize=1024)
def _is_variable(name: str) -> bool:
    return bool(_VARIABLE.search(name))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(inner, change) for inner in value)
    return value


def _without(text: str) -> str:
    text = redact(text).replace(f"{HIDDEN}@", "")
    text = re.sub(rf"[?&][\w.-]+={re.escape(HIDDEN)}(?=[&#]|$)", lambda match: match[0][0], text)
    return re.sub(r"[?&]+$", "", re.sub(r"([?&])&+", r"\1", text))


def _hide_user(match: re.Match[str]) -> str:
    return f"{match[1]}{HIDDEN}@" if match[1] else f"{match[2]}{HIDDEN}%40"


def _hide_values(text: str) -> str:
    parts, done = [], 0
    for start, end in _values(text):
        parts += [text[done:start], HIDDEN]
        done = end
    return "".join([*parts, text[done:]])


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets are, without their quotes."""
    done = 0
    for match in _NAME.finditer(text):
        if match.start() < done or not _is_secret(match["name"], in_query=bool(match["lead"])):
            continue
        value = (_ENCODED_VALUE if match["sep"].startswith("%") else _VALUE).match(text, match.end())
        if value:
            quoted = value[0][0] in "'\""
            yield value.start() + quoted, value.end() - quoted
            done = value.end()


@lru_cache(maxsize=1024)
def _is_secret(name: str, *, in_query: bool) -> bool:
    letters = re.sub(r"[^a-z]", "", name.lower())
    return bool(_SECRET.search(letters) or (in_query and _SECRET_IN_QUERY.search(letters)))
