"""What decides the embeddings, beside model and inputs. Light: commands import it before they know what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from ito_ray.data.rows import Needs

What = Literal["image", "text", "both"]
Precision = Literal["float32", "float16"]
NEEDS: Mapping[What, Needs] = {"image": "image", "text": "text", "both": "pair"}


@dataclass(frozen=True)
class Spec:
    """What decides the output, beside model and inputs."""

    what: What
    dtype: Precision
    thumbnail: int
    """Longest side of the small pictures to keep, pixels; 0 = none."""
    max_pixels: int
    size: int | None
    """Side of the images that the encoder takes; pictures are brought to it on the decoding threads."""

    def schema(self, width: int, metadata: Mapping[str, str]) -> pa.Schema:
        """Of the embeddings: key, shard, kind (image, text), caption, thumbnail (WebP), embedding (D numbers)."""
        kind = pa.float32() if self.dtype == "float32" else pa.float16()
        fields = [("key", pa.string()), ("shard", pa.string()), ("kind", pa.string()), ("caption", pa.string())]
        if self.thumbnail and self.what != "text":
            fields.append(("thumbnail", pa.binary()))
        return pa.schema([*fields, ("embedding", pa.list_(kind, width))], metadata=dict(metadata))
