"""The code that MLflow stores beside the model and runs to serve it. It must work where ito_ray is not installed: what
it imports of us is put in when a model is registered (`export.standalone`), so that must import nothing else of us.

A request is a table with the columns `text` (string) and `image` (the bytes of an image file of any format that
training reads; over HTTP, or wherever bytes are awkward, as base64). Each row fills one of them; rows of both kinds may
be mixed. The answer has the same rows in the same order:

    modality    "text" or "image"; null when the row failed
    embedding   list of D floats, L2-normalised; null when the row failed
    error       null, or "row N: reason", N counted from 0

A row that cannot be encoded costs no other row. What is wrong with the whole request (no such columns, a batch size
out of range) is refused, by a server with HTTP 400. Nothing named in a row is ever fetched or opened: a text that looks
like an address is a text, and an image that looks like one is a broken image.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

from ito_ray.data.file_kinds import no_image
from ito_ray.data.preprocess import TooManyPixels, clean_text, middle_square, open_image, to_rgb

MAX_BATCH = 1024


class RowError(ValueError):
    """Why one row cannot be encoded."""


def refuse(message: str) -> MlflowException:
    """The error for a whole request; a server answers it with HTTP 400."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def check_files(folder: Path) -> None:
    """Every file of `folder` as its manifest.json has it: none changed, missing or added.

    Raises:
        MlflowException: the first file that is not.
    """
    path = folder / "manifest.json"
    sums: dict[str, str] = json.loads(path.read_text("utf-8"))["sha256"] if path.is_file() else {}
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    for name in sorted((found | set(sums)) - {"manifest.json"}):
        if name not in found or name not in sums:
            raise refuse(f"{name} is {'missing' if name in sums else 'not listed'} in the model's manifest.json.")
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sums[name]:
                raise refuse(f"{name} is not the file that the model's manifest.json describes: register it again.")


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


class ImageTextEncoder(PythonModel):
    """Texts and images to embeddings, by a stock SentenceTransformer folder."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the folder: from disk only, without code from it, and only if its files are those of its manifest."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        config = dict(context.model_config or {})
        self.batch_size = int(config["batch_size"])
        self.max_bytes = int(config["max_image_bytes"])
        self.max_pixels = int(config["max_image_pixels"])
        self.max_characters = int(config["max_text_characters"])
        self.turn = threading.Lock()
        """One request at a time decodes and encodes."""
        folder = Path(context.artifacts["encoder"])
        check_files(folder)
        self.size = int(json.loads((folder / "ito.json").read_text("utf-8"))["image"]["size"])
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            self.encoder = SentenceTransformer(
                str(folder),
                device=config.get("device"),
                local_files_only=True,
                trust_remote_code=False,
            )
        finally:
            if bars:
                transformers_logging.enable_progress_bar()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See the file's docstring; `params` may hold `batch_size`.

        Raises:
            MlflowException: neither column is there, or a batch size out of range.
        """
        batch = int((params or {}).get("batch_size", self.batch_size))
        if not 1 <= batch <= MAX_BATCH:
            raise refuse(f"batch_size={batch}: give 1 to {MAX_BATCH}.")
        if not {"text", "image"} & set(model_input.columns):
            raise refuse("The table has neither a column 'text' nor a column 'image': give one of them, or both.")
        answer = _Answer(len(model_input))
        texts, images = self._split(model_input, answer)
        # A server answers in threads. Decoded pictures are what takes memory, and a tokenizer must not be set up twice.
        with self.turn:
            if texts:
                self._answer("text", list(texts), [{"text": text} for text in texts.values()], batch, answer)
            for rows, pictures in self._batches(images, batch, answer):
                self._answer("image", rows, list(pictures), batch, answer)
        return answer.table(model_input.index)

    def _answer(self, modality: str, rows: Sequence[int], inputs: list[Any], batch: int, answer: _Answer) -> None:
        """Embeddings of the inputs; when they cannot be had together, those of each that can be had alone."""
        try:
            answer.put(modality, rows, self._encode(inputs, batch))
        except Exception as error:
            if len(inputs) == 1:
                answer.fail(rows[0], RowError(f"{modality} cannot be encoded ({type(error).__name__})."))
                return
            for row, one in zip(rows, inputs, strict=True):
                self._answer(modality, [row], [one], batch, answer)

    def _encode(self, inputs: list[Any], batch: int) -> Any:
        return self.encoder.encode(inputs, batch_size=batch, show_progress_bar=False)

    def _split(self, table: pd.DataFrame, answer: _Answer) -> tuple[dict[int, str], dict[int, bytes]]:
        """Rows with a text and rows with an image; an empty image is no value, nor is "" beside one."""
        empty = [None] * len(table)
        texts: dict[int, str] = {}
        images: dict[int, bytes] = {}
        columns = (table.get(name, empty) for name in ("text", "image"))
        for row, (text, image) in enumerate(zip(*columns, strict=True)):
            try:
                data = self._bytes(image)
                if data:
                    if isinstance(text, str) and text:
                        raise RowError("has both text and image; give each its own row.")
                    images[row] = data
                else:
                    texts[row] = self._text(text)
            except RowError as error:
                answer.fail(row, error)
        return texts, images

    def _text(self, text: object) -> str:
        if not isinstance(text, str):
            if _is_missing(text):
                raise RowError("has neither text (a string) nor image (bytes or base64 of an image file).")
            raise RowError(f"text is {type(text).__name__}, not a string.")
        if len(text) > self.max_characters:
            raise RowError(f"text of {len(text)} characters; at most {self.max_characters} are allowed.")
        if text != text.encode("utf-8", "replace").decode():
            raise RowError("text has half of a surrogate pair, which is no character.")
        return clean_text(text)

    def _bytes(self, image: object) -> bytes:
        """What is in the column `image`, b"" for nothing."""
        if _is_missing(image):
            return b""
        if isinstance(image, str):
            if len(image) > 1.5 * self.max_bytes + 4:  # base64 is 4/3 of the bytes, and a little more with line ends
                raise RowError(f"image of {len(image)} base64 characters; at most {self.max_bytes} bytes are allowed.")
            try:
                image = base64.b64decode("".join(image.split()), validate=True)
            except (binascii.Error, ValueError) as error:
                raise RowError("image is not base64; addresses and paths are not fetched.") from error
        if not isinstance(image, bytes | bytearray | memoryview):
            raise RowError(f"image is {type(image).__name__}, not bytes or base64.")
        if len(image) > self.max_bytes:
            raise RowError(f"image of {len(image)} bytes; at most {self.max_bytes} are allowed.")
        return bytes(image)

    def _batches(
        self, images: dict[int, bytes], batch: int, answer: _Answer
    ) -> Iterator[tuple[Sequence[int], Sequence[Image.Image]]]:
        """Squares, at most `batch` together."""
        rows: list[int] = []
        pictures: list[Image.Image] = []
        for row, data in images.items():
            try:
                pictures.append(self._decode(data))
                rows.append(row)
            except RowError as error:
                answer.fail(row, error)
            if len(rows) == batch:
                yield rows, pictures
                rows, pictures = [], []
        if rows:
            yield rows, pictures

    def _decode(self, data: bytes) -> Image.Image:
        """The square that the encoder takes, as training read it."""
        try:
            return middle_square(to_rgb(open_image(data, self.max_pixels)), self.size)
        except (TooManyPixels, Image.DecompressionBombError) as error:
            raise RowError(f"image of too many pixels ({error}).") from error
        except Exception as error:  # a broken file makes Pillow raise almost anything
            kind = no_image(data) or f"{type(error).__name__}, {len(data)} bytes"
            raise RowError(f"image cannot be read ({kind}).") from error


class _Answer:
    """One embedding or one reason for each row."""

    def __init__(self, rows: int) -> None:
        self.modality: list[str | None] = [None] * rows
        self.embedding: list[list[float] | None] = [None] * rows
        self.error: list[str | None] = [None] * rows

    def put(self, modality: str, rows: Sequence[int], vectors: Any) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            self.modality[row], self.embedding[row] = modality, vector.tolist()

    def fail(self, row: int, error: RowError) -> None:
        self.error[row] = f"row {row}: {error}"

    def table(self, index: pd.Index) -> pd.DataFrame:
        columns = {"modality": self.modality, "embedding": self.embedding, "error": self.error}
        return pd.DataFrame(columns, index=index, dtype=object)


mlflow.models.set_model(ImageTextEncoder())
