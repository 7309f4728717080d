"""Through a real exported folder: the vectors are those of SentenceTransformer's own encode."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ito_ray.embeddings.model import identify, on_this_machine, read_files
from ito_ray.errors import ConfigError
from ito_ray.evaluation.encoder import FolderEncoder
from tests.data.makers import encoded, noise, write_tar
from tests.embeddings.makers import run, table, vectors
from tests.export.tiny import Exported, export

SIZES = [(32, 32), (40, 33), (200, 31), (17, 90), (5, 7), (33, 64), (64, 64)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


def test_equals_the_stock_encode(made: Exported, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    images = [encoded(Image.fromarray(noise(*size, seed=n)), "PNG") for n, size in enumerate(SIZES)]
    captions = [f"a photo of {'a red bird ' * n}" for n in range(len(SIZES))]
    samples = [
        (f"k{n}", {"png": image, "txt": text.encode()})
        for n, (image, text) in enumerate(zip(images, captions, strict=True))
    ]
    write_tar(tmp_path / "a.tar", samples)
    found = identify(made.folder, address="here")
    assert found.size == 32
    encoder = FolderEncoder(made.folder, batch=3, device="cpu")
    run(tmp_path / "out", tmp_path / "a.tar", encoder=encoder, batch=3, what="both", size=found.size)
    stock = SentenceTransformer(str(made.folder), device="cpu", local_files_only=True)
    kinds = np.array(table(tmp_path / "out")["kind"].to_pylist())
    ours = vectors(tmp_path / "out")
    pictures = [Image.open(io.BytesIO(image)) for image in images]
    np.testing.assert_allclose(ours[kinds == "image"], stock.encode(pictures), atol=1e-6, rtol=0)
    texts = stock.encode([{"text": text} for text in captions])
    np.testing.assert_allclose(ours[kinds == "text"], texts, atol=1e-6, rtol=0)


def test_the_checksum_is_of_the_content(made: Exported, tmp_path: Path) -> None:
    found = identify(made.folder, address="here")
    files = read_files(made.folder)
    for name, content in files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "copy" / "README.md").write_text("another card")
    assert identify(tmp_path / "copy", address="there").checksum == found.checksum
    assert set(found.weights) == {name for name in files if name.endswith(".safetensors")}
    with on_this_machine(found, None) as folder:
        assert folder == made.folder.absolute()
    (tmp_path / "copy" / "ito.json").write_text('{"image": {"size": 16}}')
    changed = identify(tmp_path / "copy", address="there")
    assert changed.checksum != found.checksum
    elsewhere = type(found)(found.address, "", tmp_path / "copy", found.checksum, found.weights, found.size)
    with pytest.raises(ConfigError, match="has changed or is gone"), on_this_machine(elsewhere, None):
        pass
    with on_this_machine(elsewhere, files) as folder:
        assert identify(folder, address="").checksum == found.checksum
    assert not folder.exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model nowhere is not a SentenceTransformer folder"):
        identify(tmp_path, address="nowhere")
