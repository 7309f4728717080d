"""Images and texts to vectors with onnxruntime, tokenizers, Pillow and numpy; needs no other file than the folder's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from ito_ray.data.preprocess import clean_text, middle_square, to_rgb


class OnnxEncoder:
    """Both encoders of an exported folder.

    `providers` as in onnxruntime; `threads` 0 for one a core; `int8_text`, `int8_image` for the small towers, if there.
    """

    def __init__(
        self,
        folder: str | Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        int8_text: bool = False,
        int8_image: bool = False,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        facts = json.loads(Path(folder, "preprocess.json").read_text("utf-8"))
        self.image, self.text = facts["image"], facts["text"]
        self.image_net, self.text_net = (
            onnxruntime.InferenceSession(str(Path(folder, file)), options, providers=list(providers))
            for file in (
                self.image["int8_file" if int8_image else "file"],
                self.text["int8_file" if int8_text else "file"],
            )
        )
        padding = self.text["padding"]
        self.tokenizer = Tokenizer.from_file(str(Path(folder, self.text["tokenizer"])))
        self.tokenizer.encode_special_tokens = True  # the name of a special token in a text is text
        self.tokenizer.enable_truncation(self.text["context"], direction=self.text["truncate"])
        self.tokenizer.enable_padding(direction="right", pad_id=padding["id"], pad_token=padding["token"])

    def encode_images(self, images: Sequence[Image.Image]) -> Any:
        """Images of any size and mode to (n, D) float32 of unit length."""
        pixels = np.stack([self.pixels(image) for image in images])
        return self.image_net.run(None, {"pixels": pixels})[0]

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Texts to (n, D) float32 of unit length."""
        encodings = self.tokenizer.encode_batch([clean_text(text) for text in texts])
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        return self.text_net.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    def pixels(self, image: Image.Image) -> Any:
        """The middle square of side `size` as RGB, (3, size, size) float32 less mean over std."""
        square = np.asarray(middle_square(to_rgb(image), self.image["size"]), np.float32) / 255
        mean, std = (np.array(self.image[name], np.float32) for name in ("mean", "std"))
        return ((square - mean) / std).transpose(2, 0, 1)
