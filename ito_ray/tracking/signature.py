"""What a registered model takes and gives, and the limits it serves with."""

from __future__ import annotations

import io

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array
from PIL import Image

SERVING = {
    "batch_size": 32,
    "max_image_bytes": 20_000_000,
    "max_image_pixels": 40_000_000,  # 120 MB as RGB
    "max_text_characters": 100_000,
}
"""`model_config` of the registered model: whoever loads it may give other numbers."""


def signature() -> ModelSignature:
    """Two optional columns in; modality, embedding and error out, of which a row has either; `batch_size` to choose.

    `image` is bytes in a frame and base64 in JSON. MLflow's type for that, `binary`, refuses a whole request for one
    null or one broken string (proto_json_utils.cast_df_types_according_to_schema); with `any` the model sees both.
    """
    any_type = AnyType()  # type: ignore[no-untyped-call]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "text", required=False), ColSpec(any_type, "image", required=False)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "modality", required=False),
                ColSpec(Array(DataType.float), "embedding", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("batch_size", DataType.long, SERVING["batch_size"])]),
    )


def example() -> pd.DataFrame:
    """One text row and one image row."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(picture, "PNG")
    return pd.DataFrame({"text": ["a photo of a cat", None], "image": [None, picture.getvalue()]})
