"""What bytes are that are not an image we read, told by how they begin; and the file endings of images."""

import base64
import binascii
import json
import re

from PIL import features

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", "avif", "gif", "bmp", "tif", "tiff")
PICTURES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_HEAD = 4096
_STARTS = {
    b"%PDF-": "a PDF document",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "a PostScript file",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"8BPS": "a Photoshop document",
    b"gimp xcf": "a GIMP document",
    b"\0\0\1\0": "a Windows icon",
    b"qoif": "a QOI image",
    b"DDS ": "a DDS texture",
    b"v/1\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance image",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"fLaC": "a FLAC file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "a Microsoft Office document",
}
_AVIF = "an AVIF image"
_BRANDS = {
    _AVIF: {b"avif", b"avis"},
    "a HEIC image": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
    "a Canon raw image": {b"crx "},
    "a QuickTime video": {b"qt  "},
}
_NETPBM = re.compile(rb"P[1-7]\s")
_OTHER_IMAGES = ("image", "icon", "drawing", "texture", "Photoshop document", "GIMP document")
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAV file"}
_ADDRESS = re.compile(r"(https?|s3|gs|ftp|file)://\S+$", re.IGNORECASE)


def no_image(data: bytes) -> str | None:
    """Why the bytes are no image: what they are instead; None for an image of a format that is read, and if unknown."""
    kind = what_it_is(data)
    if kind is None or (kind == _AVIF and features.check("avif")):
        return None
    return f"{kind}, which is not read" if kind.endswith(_OTHER_IMAGES) else f"{kind}, not an image"


def what_it_is(data: bytes) -> str | None:
    """What the bytes are, with an article."""
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes" if data else "no bytes at all"
    if data[4:8] == b"ftyp":
        return _brand(data)
    if data.startswith(b"RIFF"):
        return _RIFF.get(data[8:12])
    if data.startswith((b"GIF87a", b"GIF89a")):  # the one format we read that may begin like a text
        return None
    if data[257:262] == b"ustar":
        return "a tar archive"
    if _NETPBM.match(data):
        return "a Netpbm image"
    start = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    return start or _text_kind(data)


def _brand(data: bytes) -> str:
    """Of an ISO media file; a general brand may stand before the one that tells."""
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4))]
    for general in ({b"mif1", b"msf1"}, set[bytes]()):
        for brand in brands:
            kind = next((kind for kind, known in _BRANDS.items() if brand in known - general), None)
            if kind:
                return kind
    return "an MP4 video"


def _text_kind(data: bytes) -> str | None:
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data[:_HEAD].decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < min(_HEAD, len(data)) - 4:  # a character cut by the end of the head is none
            return None
        text = data[: error.start].decode("utf-8-sig", "replace")
    text = text.strip()
    if not text or any(letter < " " and not letter.isspace() for letter in text):
        return None
    start = text.lower()
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself (git lfs pull)"
    if start.startswith("<"):
        return _markup(start)
    if start.startswith("data:image/"):
        return "a data: address, not the bytes"
    if _ADDRESS.match(text):
        return "an address, not the bytes"
    if start.startswith(("{", "[")) and _is_json(data, text):
        return "a JSON document"
    return _base64(text) or "text"


def _markup(start: str) -> str:
    if "<!doctype html" in start or re.search(r"<(html|head|body|title|script|meta)\b", start):
        return "an HTML page"
    if "<svg" in start:
        return "an SVG drawing"
    return "an XML document"


def _is_json(data: bytes, text: str) -> bool:
    if len(data) > _HEAD:
        return re.match(r'[{\[]\s*(["{\[\]}\d-]|true|false|null)', text) is not None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _base64(text: str) -> str | None:
    """Base64 of an image, which begins as the image does."""
    try:
        head = base64.b64decode(text[:16], validate=True)
    except (binascii.Error, ValueError):
        return None
    images = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
    return "base64 text of an image, not its bytes" if head.startswith(images) else None
