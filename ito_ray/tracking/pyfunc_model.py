"""The code that MLflow stores beside the model and runs to serve it. It must work where ito_ray is not installed.

A request is a table with the columns `text` (string) and `image` (bytes of a JPEG, PNG or WebP; base64 over HTTP).
Each row fills one of them; rows of both kinds may be mixed. The answer has the same rows: `modality` ("text" or
"image") and `embedding` (list of D floats, L2-normalised). A row that cannot be encoded fails the request, with its
number (from 0) in the message.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")


def refuse(row: int, reason: str) -> MlflowException:
    """The error for one row; a server answers it with HTTP 400."""
    return MlflowException(f"row {row}: {reason}", error_code=INVALID_PARAMETER_VALUE)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as in training: turned upright by EXIF, transparency on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class ImageTextEncoder(PythonModel):
    """Texts and images to embeddings, by a stock SentenceTransformer folder."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the folder: from disk only, without code from it."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        config = dict(context.model_config or {})
        self.batch_size = int(config["batch_size"])
        self.max_bytes = int(config["max_image_bytes"])
        self.max_pixels = int(config["max_image_pixels"])
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            self.encoder = SentenceTransformer(
                context.artifacts["encoder"],
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
            MlflowException: a row with both or neither, an image too large or unreadable, a batch size below 1.
        """
        batch = int((params or {}).get("batch_size") or self.batch_size)
        if batch < 1:
            raise MlflowException(f"batch_size={batch}: give 1 or more.", error_code=INVALID_PARAMETER_VALUE)
        texts, images = self._split(model_input)
        embeddings: list[Any] = [None] * len(model_input)
        if texts:
            inputs = [{"text": text} for text in texts.values()]
            vectors = self.encoder.encode(inputs, batch_size=batch, show_progress_bar=False)
            for row, vector in zip(texts, vectors, strict=True):
                embeddings[row] = vector.tolist()
        for rows, pictures in self._batches(images, batch):
            vectors = self.encoder.encode(list(pictures), batch_size=batch, show_progress_bar=False)
            for row, vector in zip(rows, vectors, strict=True):
                embeddings[row] = vector.tolist()
        kinds = ["text" if row in texts else "image" for row in range(len(model_input))]
        return pd.DataFrame({"modality": kinds, "embedding": embeddings}, index=model_input.index)

    def _split(self, table: pd.DataFrame) -> tuple[dict[int, str], dict[int, bytes]]:
        """Rows with a text and rows with an image. None, NaN and b"" mean no value, and so does "" beside an image."""
        empty = [None] * len(table)
        texts: dict[int, str] = {}
        images: dict[int, bytes] = {}
        columns = (table.get(name, empty) for name in ("text", "image"))
        for row, (text, image) in enumerate(zip(*columns, strict=True)):
            if isinstance(image, bytes | bytearray | memoryview) and len(image):
                if isinstance(text, str) and text:
                    raise refuse(row, "has both text and image; give each its own row.")
                if len(image) > self.max_bytes:
                    raise refuse(row, f"image of {len(image)} bytes; at most {self.max_bytes} are allowed.")
                images[row] = bytes(image)
            elif isinstance(text, str):
                texts[row] = text
            else:
                raise refuse(row, "has neither text (a string) nor image (bytes of a JPEG, PNG or WebP).")
        return texts, images

    def _batches(self, images: dict[int, bytes], batch: int) -> Iterator[tuple[Sequence[int], Sequence[Image.Image]]]:
        """Decoded images, at most `batch` and at most `max_pixels` together, so that memory stays bounded."""
        rows: list[int] = []
        pictures: list[Image.Image] = []
        pixels = 0
        for row, data in images.items():
            picture = self._decode(row, data)
            size = picture.width * picture.height
            if rows and (len(rows) == batch or pixels + size > self.max_pixels):
                yield rows, pictures
                rows, pictures, pixels = [], [], 0
            rows.append(row)
            pictures.append(picture)
            pixels += size
        if rows:
            yield rows, pictures

    def _decode(self, row: int, data: bytes) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                size = image.width * image.height
                if size > self.max_pixels:
                    raise refuse(row, f"image of {size} pixels; at most {self.max_pixels} are allowed.")
                return to_rgb(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            message = "image is not a readable JPEG, PNG or WebP"
            raise refuse(row, f"{message} ({type(error).__name__}, {len(data)} bytes).") from error


mlflow.models.set_model(ImageTextEncoder())
