"""The icon fonts inside the `qtawesome` wheel, read as plain files (its Qt code is never run)."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ito_ray.data.icons.names import clean_name
from ito_ray.errors import DataError


@dataclass(frozen=True, slots=True)
class Family:
    """A set of fonts drawn by one team. `fonts` are file-name prefixes inside the wheel."""

    name: str
    fonts: tuple[str, ...]
    style_words: frozenset[str]


# Only the newest Material Design Icons: the wheel's older version holds near copies of its glyphs.
TRAINING_FAMILIES = (
    Family("codicon", ("codicon",), frozenset({"filled", "outline"})),
    Family("elusive", ("elusiveicons-webfont",), frozenset({"alt"})),
    Family("mdi6", ("materialdesignicons6-webfont",), frozenset({"outline", "variant"})),
    Family("phosphor", ("phosphor",), frozenset({"bold", "fill", "light", "thin", "logo"})),
    Family("remix", ("remixicon",), frozenset({"fill", "line"})),
)
# All versions of Font Awesome are near copies of one another, so the whole family is held out.
UNSEEN_FAMILY = Family(
    "fontawesome",
    tuple(f"fontawesome{version}-{style}-webfont" for version in (5, 6) for style in ("brands", "regular", "solid")),
    frozenset({"alt"}),
)


@dataclass(frozen=True, slots=True, order=True)
class Drawing:
    """One glyph. `id` is `<font>:<raw name>`, unique; `name` is cleaned and without style words."""

    id: str
    family: str
    name: str
    style: str
    font_file: str
    codepoint: int


@cache
def font_folder() -> Path:
    """The wheel's folder of fonts, found without importing the package (which would load Qt)."""
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "The icon fonts come with the package 'qtawesome', which is not installed: "
            "run `pip install 'ito_ray[demo]'`."
        )
    return Path(spec.submodule_search_locations[0]) / "fonts"


def read_family(family: Family) -> list[Drawing]:
    """Every drawing of a family, sorted by id; names of one code point are one drawing.

    Raises:
        DataError: the wheel lacks one of the family's fonts.
    """
    return sorted(drawing for prefix in family.fonts for drawing in _read_font(family, prefix))


def _read_font(family: Family, prefix: str) -> list[Drawing]:
    folder = font_folder()
    charmaps = sorted(folder.glob(f"{prefix}-charmap-*.json"))
    fonts = sorted(folder.glob(f"{prefix}-*.ttf"))
    if len(charmaps) != 1 or len(fonts) != 1:
        raise DataError(
            f"Icon font {prefix!r}: expected one .ttf and one charmap in the qtawesome wheel, "
            f"found {len(fonts)} and {len(charmaps)}; install qtawesome 1.4."
        )
    charmap: dict[str, str] = json.loads(charmaps[0].read_text("utf-8"))
    drawings: dict[int, Drawing] = {}
    for raw_name in sorted(charmap, key=lambda name: (len(name), name)):
        codepoint = int(charmap[raw_name], 16)
        name, style = clean_name(raw_name, family.style_words)
        # Aliases of one glyph: the shortest raw name stands for it.
        drawings.setdefault(
            codepoint,
            Drawing(f"{prefix}:{raw_name}", family.name, name, style, fonts[0].name, codepoint),
        )
    return list(drawings.values())
