"""The one contract that evaluation asks of a model, and its two implementations.

`TowerEncoder` is the model while it trains; `FolderEncoder` is what was exported, loaded as its users load it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ito_ray.data.preprocess import middle_square, to_rgb
from ito_ray.data.tokens import tokenize
from ito_ray.data.views import eval_view
from ito_ray.errors import ConfigError
from ito_ray.models.image_tower import pixels_to_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ito_ray.models.dual_encoder import DualEncoder

Embeddings = NDArray[np.float32]
MOST_ELONGATED = 100
"""Long side over short that other people's preprocessing is given."""


class Encoder(Protocol):
    """Images and texts to unit vectors of one space."""

    @property
    def name(self) -> str:
        """What the reports call it."""

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """RGB images of any size to (n, D) float32, L2-normed."""

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts to (n, D) float32, L2-normed."""


class TowerEncoder:
    """The model in memory, on its device, in float32. Each call leaves every module in the mode it was in."""

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        batch: int = 256,
        *,
        name: str = "model in training",
    ) -> None:
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._batch = batch

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """RGB images to (n, D) float32; the view is timm's evaluation transform."""
        tower = self._model.image
        mean = torch.tensor(tower.mean, device=self._device)
        std = torch.tensor(tower.std, device=self._device)
        parts = []
        with _evaluating(self._model):
            for start in range(0, len(images), self._batch):
                chunk = images[start : start + self._batch]
                views_BHWC = torch.from_numpy(np.stack([eval_view(i, tower.cfg.size) for i in chunk]))
                image_BCHW = pixels_to_input(views_BHWC.to(self._device), mean, std)
                parts.append(_to_numpy(self._model.encode_image(image_BCHW)))
        return _unit(np.concatenate(parts))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts to (n, D) float32, each batch padded to its longest text."""
        parts = []
        with _evaluating(self._model):
            for start in range(0, len(texts), self._batch):
                chunk = list(texts[start : start + self._batch])
                tokens = tokenize(self._tokenizer, chunk, self._model.text.cfg.context)
                ids_BT = torch.from_numpy(tokens.ids).to(self._device, torch.int64)
                lengths_B = torch.from_numpy(tokens.lengths).to(self._device, torch.int64)
                parts.append(_to_numpy(self._model.encode_text(ids_BT, lengths_B)))
        return _unit(np.concatenate(parts))


class FolderEncoder:
    """An exported folder, through stock sentence-transformers: no code of this package takes part.

    Raises:
        ConfigError: the folder holds no SentenceTransformer.
    """

    def __init__(self, folder: Path | str, *, batch: int = 256, device: str | None = None, name: str = "") -> None:
        from sentence_transformers import SentenceTransformer

        folder = Path(folder)
        if not (folder / "modules.json").is_file():
            raise ConfigError(
                f"model={folder} is not a SentenceTransformer folder (it has no modules.json): give the folder that "
                "training exported, or a registry address such as models:/NAME@ALIAS."
            )
        self.name = name or folder.resolve().name
        self._batch = batch
        facts = folder / "ito.json"
        self._size = json.loads(facts.read_text("utf-8"))["image"]["size"] if facts.is_file() else None
        self._model = SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False)

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """Images of any mode to (n, D) float32, through our own view where we know the size of it.

        Stock preprocessing leaves such a view as it is; it would resize a line of one pixel to gigabytes.
        """
        shown = (to_rgb(image) for image in images)
        size = self._size
        return self._encode([middle_square(image, size) if size else shortened(image) for image in shown])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts to (n, D) float32; wrapped in dicts: a bare text that looks like an address is taken for an image."""
        return self._encode([{"text": text} for text in texts])

    def _encode(self, inputs: list[Image.Image] | list[dict[str, str]]) -> Embeddings:
        out = self._model.encode(
            inputs,
            batch_size=self._batch,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return _unit(np.asarray(out, dtype=np.float32))


def shortened(image: Image.Image) -> Image.Image:
    """The middle of an elongated image: most preprocessing resizes the short side first, whatever the long one gets."""
    most = MOST_ELONGATED * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; a part that was frozen in evaluation mode stays so afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _to_numpy(embedding_BD: torch.Tensor) -> Embeddings:
    return embedding_BD.float().cpu().numpy()


def _unit(embedding_ND: Embeddings) -> Embeddings:
    """A model in bfloat16 is off unit length by up to 1 %; NaN stays NaN for `embed` to report."""
    norm_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    unit_ND: Embeddings = embedding_ND / np.maximum(norm_N1, np.finfo(np.float32).tiny)
    return unit_ND
