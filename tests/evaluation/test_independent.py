"""The same embeddings through CLIP_benchmark's own metric functions: https://github.com/LAION-AI/CLIP_benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from benchmarks.clip_benchmark import as_float
from ito_ray.evaluation.retrieval import retrieval
from ito_ray.evaluation.zero_shot import class_embeddings, zero_shot

zeroshot_classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
zeroshot_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")


class Stored(torch.nn.Module):
    """A "model" whose inputs are rows of stored embeddings; a text is its row's number."""

    name = "stored"

    def __init__(self, image: Any, text: Any) -> None:
        super().__init__()
        self.image, self.text = torch.from_numpy(image), torch.from_numpy(text)

    def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
        return self.image[rows.long()]

    def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
        return self.text[rows.long()]

    def encode_texts(self, texts: Any) -> Any:
        return self.text[numbers(texts)].numpy()


def numbers(texts: Any) -> torch.Tensor:
    return torch.tensor([int(text) for text in texts])


def unit(rng: np.random.Generator, *shape: int) -> Any:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (zeroshot_classification, zeroshot_retrieval):
        monkeypatch.setattr(module, "tqdm", lambda items: items)
    monkeypatch.setattr(zeroshot_classification, "float", as_float, raising=False)


@pytest.mark.usefixtures("no_bar")
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_with_several_captions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, captions = 90, rng.integers(1, 6, 90)
    owner = np.repeat(np.arange(n), captions)
    image = unit(rng, n, 24)
    text = image[owner] + 2.0 * unit(rng, len(owner), 24)
    text /= np.linalg.norm(text, axis=1, keepdims=True)

    def batches() -> Iterator[Any]:
        for start in range(0, n, 32):
            rows = np.arange(start, min(n, start + 32))
            yield torch.from_numpy(rows), [[str(m) for m in np.flatnonzero(owner == row)] for row in rows]

    theirs = zeroshot_retrieval.evaluate(
        Stored(image, text), batches(), numbers, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    ours = retrieval(image, text, owner, chunk=37)
    for k in (1, 5, 10):
        assert ours.text_to_image.recall(k) == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours.image_to_text.recall(k) == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0.05 < ours.text_to_image.recall(1) < 0.95


@pytest.mark.usefixtures("no_bar")
@pytest.mark.parametrize("seed", range(3))
def test_zero_shot_with_several_prompts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, prompts = 12, 3
    centre = unit(rng, classes, 24)
    text = np.repeat(centre, prompts, axis=0) + 0.5 * unit(rng, classes * prompts, 24)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    labels = rng.integers(0, classes, 200)
    image = centre[labels] + 1.5 * unit(rng, 200, 24)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    model = Stored(image, text)

    class Loader:
        dataset = type("Dataset", (), {"classes": list(range(classes))})

        def __iter__(self) -> Iterator[Any]:
            for start in range(0, 200, 64):
                rows = torch.arange(start, min(200, start + 64))
                yield rows, torch.from_numpy(labels)[rows]

    names = {str(k): [str(prompts * k + p) for p in range(prompts)] for k in range(classes)}
    theirs = zeroshot_classification.evaluate(model, Loader(), numbers, list(names), names, "cpu", amp=False)

    # Our prompts: class k and template p make the text 3·k + p, as theirs.
    class Rows:
        name = "stored"

        def encode_texts(self, texts: Any) -> Any:
            return model.encode_texts([prompts * int(k) + int(p) for k, p in (text.split("-") for text in texts)])

    class_KD = class_embeddings(Rows(), list(names), [f"{{}}-{p}" for p in range(prompts)])  # type: ignore[arg-type]
    found = zero_shot(image, labels, class_KD, chunk=50)
    assert found.top(1) == pytest.approx(theirs["acc1"], abs=1e-6)
    assert found.top(5) == pytest.approx(theirs["acc5"], abs=1e-6)
    assert found.mean_per_class == pytest.approx(theirs["mean_per_class_recall"], abs=1e-6)
    assert found.mean_per_class == pytest.approx(
        balanced_accuracy_score(labels, (image @ class_KD.T).argmax(axis=1)), abs=1e-6
    )
    assert 0.1 < found.top(1) < 0.95
