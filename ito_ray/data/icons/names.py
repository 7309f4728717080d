"""From a glyph's raw name to words people say, and which names mean the same thing."""

import re
from collections.abc import Set

# Words that icon families use for one another. The first word of a row is the canonical one.
_SYNONYMS = (
    ("user", "account"),
    ("users", "accounts"),
    ("home", "house"),
    ("search", "magnify", "magnifying glass"),
    ("settings", "setting", "cog", "gear"),
    ("mail", "email", "envelope"),
    ("trash", "trash can", "delete bin", "trashcan"),
    ("comment", "chat", "message"),
    ("close", "times", "x", "xmark"),
    ("plus", "add"),
    ("edit", "pencil"),
    ("image", "picture", "photo"),
    ("globe", "earth", "globe hemisphere west"),
    ("thumbs up", "thumb up", "thumbsup"),
    ("thumbs down", "thumb down", "thumbsdown"),
    ("eye off", "eye close", "eye closed"),
    ("bulb", "lightbulb", "light bulb"),
    ("warning", "alert", "exclamation triangle"),
    ("bolt", "flash", "lightning", "lightning bolt"),
    ("film", "movie", "filmstrip", "film strip"),
    ("microphone", "mic"),
    ("location", "map marker", "map pin"),
    ("puzzle", "puzzle piece", "extension"),
    ("paperclip", "paper clip", "attachment"),
    ("bicycle", "bike"),
    ("airplane", "plane"),
    ("car", "automobile"),
    ("dollar", "currency usd", "dollar sign", "currency dollar", "usd"),
    ("euro", "currency eur", "euro sign", "currency euro"),
    ("refresh", "sync", "arrows rotate"),
    ("phone", "telephone"),
    ("graduation cap", "mortarboard", "mortar board", "school"),
    ("gift", "present"),
    ("document", "file"),
    ("cart", "shopping cart"),
    ("speaker", "volume"),
    ("off", "slash", "disabled"),
    ("beaker", "flask"),
    ("dashboard", "gauge", "tachometer"),
    ("tools", "wrench and screwdriver"),
    ("sort", "unfold more"),
    ("fire", "flame"),
    ("water", "drop", "droplet", "tint"),
    ("television", "tv"),
    ("hotel", "bed"),
    ("food", "utensils", "fork knife", "silverware fork knife", "restaurant"),
    ("megaphone", "bullhorn"),
    ("exit", "sign out", "logout", "log out"),
    ("enter", "sign in", "login", "log in"),
    ("check", "tick"),
)
_CANONICAL = {name: row[0] for row in _SYNONYMS for name in row[1:]}
_LONGEST = max(len(name.split()) for name in _CANONICAL)


def clean_name(raw: str, style_words: Set[str]) -> tuple[str, str]:
    """Split `account-circle-outline` into (`account circle`, `outline`).

    Style words are stripped from the end only, and never the last word that is left: the glyph
    `bold` is a picture of a letter, not a style.
    """
    words = [word for word in re.split(r"[-_\s]+", raw.lower()) if word]
    end = len(words)
    while end > 1 and words[end - 1] in style_words:
        end -= 1
    return " ".join(words[:end]), " ".join(words[end:])


def concept_of(name: str) -> str:
    """A key that is equal for names of the same thing: synonyms folded, word order ignored.

    `circle arrow up` = `arrow up circle`; `account plus` = `user add`.
    """
    words = name.split()
    folded: list[str] = []
    start = 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + length])
            if length == 1 or phrase in _CANONICAL:
                folded.extend(_CANONICAL.get(phrase, phrase).split())
                start += length
                break
    return " ".join(sorted(folded))


def with_article(words: str) -> str:
    """Put `a` or `an` in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
