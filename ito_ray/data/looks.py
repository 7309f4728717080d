"""Do two pictures look the same? Perceptual hashes, and colours since those hashes see none."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import imagehash
import numpy as np
from PIL import Image

_BITS = 64
_GRID = 4
_COLOUR_LEVELS = 4.0
"""Mean difference of the grid's colours, 0…255, up to which pictures are the same; scaled and at JPEG 50: about 2."""


def look_of(image: Image.Image) -> bytes:
    """56 bytes that hardly change when an RGB picture is scaled or compressed.

    Eight of pHash (`imagehash.phash`: the signs of a cosine transform's low frequencies against their median, of the
    grey picture), and the mean colours of a 4×4 grid.
    """
    bits = np.packbits(imagehash.phash(image).hash.ravel())
    colours = image.resize((_GRID, _GRID), Image.Resampling.BOX)
    return bits.tobytes() + colours.tobytes()


class Looks:
    """Looks that may be asked for one within `distance` bits of the hash and about the same colours.

    Cut in `distance + 1` bands, two such hashes agree in at least one of them: only those are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = np.linspace(0, _BITS, distance + 2).round().astype(int).tolist()
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._known: dict[tuple[int, int], list[tuple[int, bytes, str]]] = defaultdict(list)

    def find_or_add(self, look: bytes, name: str) -> str | None:
        """Name of a known look near this one; if there is none, this one becomes known."""
        bits, colours = int.from_bytes(look[: _BITS // 8], "big"), look[_BITS // 8 :]
        places = [(band, bits >> low & mask) for band, (low, mask) in enumerate(self._bands)]
        for place in places:
            for other, others, owner in self._known.get(place, ()):
                if (bits ^ other).bit_count() <= self.distance and _difference(colours, others) <= _COLOUR_LEVELS:
                    return owner
        for place in places:
            self._known[place].append((bits, colours, name))
        return None


def _difference(colours: bytes, others: bytes) -> float:
    return sum(abs(one - other) for one, other in zip(colours, others, strict=True)) / len(colours)
