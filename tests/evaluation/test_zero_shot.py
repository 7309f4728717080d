"""Zero-shot against full matrices and open_clip."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ito_ray.errors import DataError
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.zero_shot import ZeroShot, class_embeddings, zero_shot


def unit(x: NDArray[np.float64]) -> Embeddings:
    unit_ND: Embeddings = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def make(n: int, k: int, d: int, seed: int) -> tuple[Embeddings, NDArray[np.int64], Embeddings]:
    rng = np.random.default_rng(seed)
    classes = rng.standard_normal((k, d))
    labels = rng.integers(k, size=n)
    return unit(classes[labels] + 1.2 * rng.standard_normal((n, d))), labels, unit(classes)


class HashEncoder:
    """A fixed random vector per text."""

    name = "hash"

    def __init__(self) -> None:
        self.largest_call = 0

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        raise AssertionError("texts only")

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        self.largest_call = max(self.largest_call, len(texts))
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return unit(np.stack([np.random.default_rng(seed).standard_normal(12) for seed in seeds]))


@pytest.mark.parametrize("chunk", [1, 9, 1024])
def test_equals_the_full_matrix_with_ties(chunk: int) -> None:
    image, labels, classes = make(80, 21, 10, seed=0)
    classes[5:12] = classes[0:7]  # equal classes: neither may win
    found = zero_shot(image, labels, classes, chunk=chunk)
    grid = [np.rint(x.astype(np.float64) * 2**26).astype(np.int64).astype(object) for x in (image, classes)]
    score = grid[0] @ grid[1].T
    rank = [sum(score[i] >= score[i, labels[i]]) for i in range(80)]
    np.testing.assert_array_equal(found.rank, rank)
    twins = np.isin(labels, [*range(12)])
    assert not found.hits(1)[twins].any()


@pytest.mark.parametrize("chunk", [3, 1024])
def test_of_classes_of_one_name_the_first_wins_as_in_an_argmax(chunk: int) -> None:
    image, labels, _ = make(400, 12, 10, seed=5)
    names = [*"abcdefgh", "", "b", "b", "a"]
    classes = class_embeddings(HashEncoder(), names, ("a {}", "{}."), batch=4)
    image = unit(classes[labels][:, :12] + 0.4 * np.random.default_rng(0).standard_normal((400, 12)))
    found = zero_shot(image, labels, classes, names, chunk=chunk)
    score = image.astype(np.float64) @ classes.astype(np.float64).T
    order = np.argsort(-score, axis=1, kind="stable")
    np.testing.assert_array_equal(found.rank, 1 + (order == labels[:, None]).argmax(axis=1))
    assert found.hits(1)[np.isin(labels, (0, 1))].any() and not found.hits(1)[np.isin(labels, (9, 10, 11))].any()


def test_accuracy_equals_topk() -> None:
    image, labels, classes = make(300, 20, 10, seed=1)
    found = zero_shot(image, labels, classes, chunk=64)
    first = torch.from_numpy(image @ classes.T).topk(5).indices.numpy()
    assert found.top(1) == pytest.approx((first[:, 0] == labels).mean(), abs=1e-12)
    assert found.top(5) == pytest.approx((first == labels[:, None]).any(1).mean(), abs=1e-12)
    assert 0.1 < found.top(1) < found.top(5) < 1
    by_class = [found.hits(1)[labels == c].mean() for c in range(20)]
    assert found.mean_per_class == pytest.approx(float(np.mean(by_class)), abs=1e-12)


def test_mean_per_class_leaves_out_classes_without_images() -> None:
    found = ZeroShot(np.array([1, 2, 1, 1]), np.array([0, 0, 3, 3]), classes=5)
    assert found.per_class.tolist() == [0.5, 1.0]
    assert found.mean_per_class == 0.75
    assert found.chance(1) == 0.2
    assert ZeroShot(found.rank, found.labels, classes=4).chance(5) == 1.0


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_class_embeddings_equal_open_clip(batch: int) -> None:
    build = pytest.importorskip("open_clip.zero_shot_classifier", reason="extra `clip`").build_zero_shot_classifier
    names = [f"thing {i}" for i in range(11)]
    templates = ["a photo of a {}", "{} drawn by hand", "the {}, and {} again"]
    encoder = HashEncoder()

    class Model:
        """open_clip's two calls over the same vectors."""

        texts: list[str]

        def tokenizer(self, texts: list[str]) -> torch.Tensor:
            self.texts = texts
            return torch.zeros(len(texts))

        def encode_text(self, _: torch.Tensor, normalize: bool) -> torch.Tensor:
            assert normalize
            return torch.from_numpy(HashEncoder().encode_texts(self.texts))

    model = Model()
    functions = [lambda name, t=template: t.replace("{}", name) for template in templates]
    expected = build(model, model.tokenizer, names, functions, num_classes_per_batch=4).T.numpy()
    np.testing.assert_allclose(class_embeddings(encoder, names, templates, batch=batch), expected, atol=2e-7)
    assert encoder.largest_call <= max(batch, len(templates))


def test_braces_in_a_class_name_are_kept() -> None:
    encoder = HashEncoder()
    np.testing.assert_array_equal(
        class_embeddings(encoder, ["{x}"], ["a {} here"]), class_embeddings(encoder, ["a {x} here"], ["{}"])
    )


def test_a_class_without_direction_is_named() -> None:
    class Broken(HashEncoder):
        def encode_texts(self, texts: Sequence[str]) -> Embeddings:
            return np.stack([np.full(4, np.nan if text == "b" else 0.5, np.float32) for text in texts])

    with pytest.raises(DataError, match="class 'b'"):
        class_embeddings(Broken(), ["a", "b", "c"], ["{}"])


def test_memory_is_flat() -> None:
    def peak(n: int, k: int) -> int:
        image, labels, classes = make(n, k, 8, seed=2)
        tracemalloc.start()
        zero_shot(image, labels, classes, chunk=128)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(8000, 1000) - peak(1000, 1000) < 2 * 7000 * 8  # ranks only; the full matrix would add 56 MB


def test_refuses_wrong_labels() -> None:
    image, labels, classes = make(5, 3, 4, seed=3)
    with pytest.raises(ValueError, match=r"values in \[0, 3\)"):
        zero_shot(image, labels + 2, classes)
