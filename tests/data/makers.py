"""Small shards, made with the standard library and pyarrow only."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Members = Mapping[str, bytes]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, *, seed: int = 0, channels: int = 3) -> np.ndarray:
    """(H, W, channels) uint8, smooth enough that resizing keeps its colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    planes = [Image.fromarray(coarse[..., channel]).resize((width, height)) for channel in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def picture(number: int, size: int = 24, kind: str = "PNG") -> bytes:
    """An encoded RGB picture, another one for each number."""
    return encoded(Image.fromarray(noise(size, size, seed=number)), kind)


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG chunk by chunk, so that the header may promise what the data does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def good(number: int) -> dict[str, bytes]:
    """Members of a good sample."""
    return {"png": picture(number), "txt": f"picture number {number}".encode()}


def write_tar(path: Path, samples: Iterable[tuple[str, Members]], kind: int = tarfile.PAX_FORMAT) -> list[int]:
    """Write the samples; where each member's header lies, in bytes."""
    offsets = []
    with tarfile.open(path, "w", format=kind) as archive:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                offsets.append(archive.offset - -(-len(data) // 512) * 512 - 512)
    return offsets


def good_tar(path: Path, count: int) -> list[int]:
    """`count` good samples with keys s000, s001, …, an image and a text member each."""
    return write_tar(path, ((f"s{number:03d}", good(number)) for number in range(count)))


def damage(path: Path, offset: int, data: bytes = b"\xde\xad\xbe\xef" * 128) -> None:
    """Overwrite bytes in place: by default a whole header block."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
