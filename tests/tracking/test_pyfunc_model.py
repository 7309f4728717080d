"""One bad row costs no other; what a row may hold is bounded before it is decoded. No registry, no server."""

from __future__ import annotations

import base64
import io
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image

from ito_ray.data.decode import decode_rgb
from ito_ray.data.preprocess import clean_text
from ito_ray.data.tokens import load_tokenizer
from ito_ray.evaluation.encoder import TowerEncoder
from ito_ray.export.parity import probe_images
from ito_ray.export.standalone import standalone
from ito_ray.tracking import pyfunc_model
from ito_ray.tracking.pyfunc_model import ImageTextEncoder
from ito_ray.tracking.signature import SERVING, example, signature
from tests.data.odd_images import odd_images
from tests.export.tiny import Exported, export


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


def load(folder: Path, **limits: int) -> Any:
    encoder: Any = ImageTextEncoder()
    encoder.load_context(SimpleNamespace(model_config={**SERVING, **limits}, artifacts={"encoder": str(folder)}))
    return encoder


@pytest.fixture(scope="module")
def encoder(made: Exported) -> Any:
    return load(made.folder, max_image_bytes=9000, max_image_pixels=10_000, max_text_characters=2000)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def table(texts: Sequence[Any], images: Sequence[Any]) -> pd.DataFrame:
    return pd.DataFrame({"text": pd.Series(texts, dtype=object), "image": pd.Series(images, dtype=object)})


def embeddings(answer: pd.DataFrame) -> NDArray[np.float32]:
    return np.array(answer["embedding"].tolist(), dtype=np.float32)


SMALL = png(Image.new("RGB", (8, 8)))
NOISE = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)))
BAD_ROWS = {
    "has neither text": (None, None),
    "has neither text (a": (float("nan"), float("nan")),
    "has neither text (a string)": (pd.NA, b""),
    "has both": ("b", SMALL),
    "text is int": (5, None),
    "text is list": (["a"], None),
    "half of a surrogate pair": ("half \ud83d", None),
    "text of 2001 characters": ("a" * 2001, None),
    "image cannot be read (": (None, b"\xff\xd8\xff not a picture"),
    "image cannot be read (OSError": (None, NOISE[:4000]),
    "image cannot be read (an HTML page": (None, b"<!doctype html><title>404</title>"),
    "image cannot be read (U": (None, b"GIF89a" + b"0" * 50),
    "image of too many pixels (101×100, 10000 are allowed)": (None, png(Image.new("RGB", (101, 100)))),
    "bytes; at most 9000": (None, NOISE),
    "base64 characters; at most 9000": (None, base64.b64encode(NOISE).decode()),
    "image is not base64; addresses and paths are not fetched": (None, "https://example.org/cat.png"),
    "image is not base64; addresses": (None, "/etc/hostname"),
    "image is dict, not bytes or base64": (None, {"path": "/etc/hostname"}),
}


def test_bad_rows_name_themselves_and_cost_no_other(encoder: Any, made: Exported) -> None:
    picture = probe_images()[-1]  # the smallest
    texts, images = zip(*BAD_ROWS.values(), strict=True)
    answer = encoder.predict(None, table(["a bird", *texts, None], [None, *images, png(picture)]), {"batch_size": 2})
    assert answer["modality"].tolist() == ["text", *[None] * len(BAD_ROWS), "image"]
    for row, reason in enumerate(BAD_ROWS, start=1):
        error, embedding = answer["error"][row], answer["embedding"][row]
        assert embedding is None
        assert error.startswith(f"row {row}: ") and reason in error, error
    good = answer.iloc[[0, -1]]
    assert good["error"].tolist() == [None, None]
    expected = made.encoder.encode_texts(["a bird"]), made.encoder.encode_images([picture])
    np.testing.assert_allclose(embeddings(good), np.concatenate(expected), atol=1e-5)


def test_a_row_that_the_encoder_fails_with_costs_no_other(
    encoder: Any, made: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoder.encoder.encode

    def encode(inputs: Any, **options: Any) -> Any:
        if {"text": "bad"} in inputs:
            raise TypeError("TextEncodeInput must be Union[TextInputSequence, ...]")
        return real(inputs, **options)

    monkeypatch.setattr(encoder.encoder, "encode", encode)
    answer = encoder.predict(None, table(["a bird", "bad", "a cat"], [None] * 3))
    assert answer["error"].tolist() == [None, "row 1: text cannot be encoded (TypeError).", None]
    np.testing.assert_allclose(
        embeddings(answer.iloc[[0, 2]]), made.encoder.encode_texts(["a bird", "a cat"]), atol=1e-5
    )


def test_what_concerns_the_whole_request_is_refused(encoder: Any) -> None:
    for batch in (-1, 1025):
        with pytest.raises(MlflowException, match=f"batch_size={batch}: give 1 to 1024") as caught:
            encoder.predict(None, table(["a"], [None]), {"batch_size": batch})
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException, match="neither a column"):
        encoder.predict(None, pd.DataFrame({"caption": ["a"]}))
    assert len(encoder.predict(None, pd.DataFrame({"text": []}))) == 0


def test_images_within_the_limits_are_batched_by_pixels(encoder: Any, made: Exported) -> None:
    """Each is below 10000 pixels, together they are not: two batches, the same answer, the table's own index."""
    pictures = [Image.new("RGB", (90, 90), colour) for colour in ("red", "green", "blue")]
    rows = table([None, "", None], [png(picture) for picture in pictures]).set_index(pd.Index(["x", "y", "z"]))
    answer = encoder.predict(None, rows)
    assert answer.index.tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(embeddings(answer), made.encoder.encode_images(pictures), atol=1e-5)


def test_base64_and_bytes_are_the_same_image(encoder: Any) -> None:
    data = png(Image.new("RGB", (60, 40), "red"))
    broken_lines = base64.encodebytes(data).decode()
    answer = encoder.predict(None, pd.DataFrame({"image": [data, bytearray(data), broken_lines]}))
    assert answer["error"].isna().all()
    assert answer["embedding"][0] == answer["embedding"][1] == answer["embedding"][2]


def test_damaged_files_never_cost_another_row(encoder: Any) -> None:
    rng = np.random.default_rng(0)
    whole = probe_images()[1].resize((24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        whole.save(buffer, kind, exif=exif)
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            where = rng.integers(0, len(data) if rng.random() < 0.5 else 80, 6)
            data[where] = rng.integers(0, 256, 6)
            files.append(data.tobytes())
    answer = encoder.predict(None, pd.DataFrame({"image": [*files, png(whole)]}))
    failed = answer["embedding"].isna()
    assert (failed == answer["error"].notna()).all()
    assert 20 < failed.sum() < len(files) and not failed.iloc[-1]


def test_a_folder_that_is_not_as_registered_is_not_loaded(made: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "copy"))
    weights = folder / "text_2_Dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MlflowException, match=r"text_2_Dense/model\.safetensors is not the file"):
        load(folder)
    weights.unlink()
    with pytest.raises(MlflowException, match=r"text_2_Dense/model\.safetensors is missing"):
        load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(MlflowException, match=r"README\.md is not listed"):
        load(folder)


def test_the_example_fits_the_signature(encoder: Any) -> None:
    assert signature().inputs.input_names() == list(example().columns)
    assert encoder.predict(None, example())["error"].isna().all()


def test_odd_images_and_texts_are_encoded_as_in_training(made: Exported) -> None:
    """And so is a line of one pixel, which stock preprocessing would make gigabytes of."""
    files = {**odd_images(), "line.png": png(Image.new("RGB", (1, 30_000), (200, 10, 10)))}
    texts = ["salt &amp;amp; ｆｕｌｌ", "two\u200b green <|endoftext|> [SEP] boats"]
    rows = table([None] * len(files) + texts, [*files.values(), None, None])
    answer = load(made.folder, max_image_bytes=100_000_000).predict(None, rows, {"batch_size": 7})
    assert answer["error"].isna().all(), answer["error"].dropna().tolist()
    seen = [decode_rgb(data, max_pixels=64_000_000) for data in files.values()]
    tokenizer = load_tokenizer(made.folder / "text_0_Transformer")
    trained = TowerEncoder(made.model, tokenizer, "cpu")
    expected = trained.encode_images(seen), trained.encode_texts([clean_text(text) for text in texts])
    np.testing.assert_allclose(embeddings(answer), np.concatenate(expected), atol=1e-5)


def test_the_code_that_is_registered_needs_no_ito_ray() -> None:
    code = standalone(Path(pyfunc_model.__file__))
    assert "import ito_ray" not in code and "from ito_ray" not in code
    compile(code, "pyfunc_model.py", "exec")


def test_requests_decode_one_at_a_time(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may hold pictures of `max_image_pixels`, whatever the number of a server's threads."""
    inside, most = threading.Semaphore(100), []
    decode = ImageTextEncoder._decode

    def slow(self: ImageTextEncoder, data: bytes) -> Any:
        with inside:
            most.append(100 - inside._value)
            time.sleep(0.05)
            return decode(self, data)

    monkeypatch.setattr(ImageTextEncoder, "_decode", slow)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: encoder.predict(None, table([None] * 2, [SMALL] * 2)), range(4)))
    assert most == [1] * 8
    assert all(answer["error"].isna().all() for answer in answers)
